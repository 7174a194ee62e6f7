"""The pose translator under odd clips, odd batches and bad checkpoints."""

import argparse
import ast
import copy
import importlib
import inspect
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from signbook.errors import UserError
from signbook.geosign.model import GeoSign, GeoSignConfig, PoseTranslator, batched_parts, load_translator, public_name, save_translator
from signbook.geosign.upstream import DEVIATIONS, deviations_markdown
from signbook.poses.parts import PARTS, frames_evenly, whole_body_parts

SMALL = GeoSignConfig(widths="8-8-16-16", vocabulary=120, d_model=32, d_ff=48, d_kv=8, heads=4, layers=2, dropout=0.0, dim=16)
pytestmark = pytest.mark.filterwarnings("ignore:.* keys: ")


def translator(seed=0, **settings):
    torch.manual_seed(seed)
    return PoseTranslator(replace(SMALL, **settings)).eval()


def clip(frames, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(-1, 1, (frames, len(part.names), 3)).astype(np.float32) for name, part in PARTS.items()}


def batch_of(clips, config=SMALL, prompts=None):
    count = len(clips)
    prompts = prompts or [[9, 8, 7, 1]] * count
    prompt = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in prompts], batch_first=True)
    labels = torch.tensor([[3 + number, 4, 1, 0] for number in range(count)])
    return batched_parts(clips, config) | dict(prompt=prompt, prompt_mask=prompt != 0, labels=labels)


def only(batch, row, frames):
    "One clip of a batch, alone."
    return {name: tensor[row : row + 1, :frames] if name in PARTS else tensor[row : row + 1] for name, tensor in batch.items()}


def spoilt(batch):
    "The same clips with nonsense behind their ends."
    changed = {name: tensor.clone() for name, tensor in batch.items()}
    for name in PARTS:
        for row, length in enumerate(batch["lengths"]):
            changed[name][row, length:] = 1e3
    return changed


# Clips and batches


@torch.no_grad()
def test_a_clip_gets_alone_what_it_gets_in_company():
    model, frames = translator(), [12, 1, 7, 30]
    batch = batch_of([clip(count, count) for count in frames], prompts=[[9, 8, 7, 1], [9, 1], [5, 6, 1], [9, 8, 7, 1]])
    together, longest = model.encode(batch), batch["prompt"].shape[1]
    for row, count in enumerate(frames):
        single = only(batch, row, count)
        tokens = int(single["prompt_mask"].sum())
        single |= dict(prompt=single["prompt"][:, :tokens], prompt_mask=single["prompt_mask"][:, :tokens])
        alone = model.encode(single)
        for name in PARTS:
            assert torch.allclose(together.parts[name][row, :count], alone.parts[name][0], atol=1e-6)
        ours = together.hidden[row, longest - tokens : longest + count]
        assert torch.allclose(ours, alone.hidden[0], atol=1e-5)
        said, own = (model.search(one, beams=1, new_tokens=5).ids[place, 0].tolist() for one, place in ((together, row), (alone, 0)))
        assert said[: len(own)] == own and not any(said[len(own) :])  # only the padding may differ


@pytest.mark.parametrize("mode", ["pooled", "attn", "token"])
def test_nothing_behind_the_end_is_read_in_training(mode):
    "Losses, gradients and batch statistics are the same bits whatever stands there."
    batch, found = batch_of([clip(9, 1), clip(4, 2), clip(6, 3)]), []
    for given in (batch, spoilt(batch)):
        model = translator(mode=mode).train()
        losses = model(given, 0.5)
        losses.loss.backward()
        found.append((losses.scalars, {key: p.grad for key, p in model.named_parameters() if p.grad is not None}, dict(model.named_buffers())))
    for first, second in zip(*found):
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_upstream_s_padding_is_read():
    model = translator(padding="upstream", pooled_padding=True)
    batch = batch_of([clip(9, 1), clip(4, 2)])
    with torch.no_grad():
        assert not torch.allclose(model.encode(batch).parts["body"][1, 3], model.encode(spoilt(batch)).parts["body"][1, 3], atol=1e-3)
        assert model.encode(batch).parts["body"][1, 4:].any()


@pytest.mark.parametrize("manifold", ["none", "euclidean", "poincare", "lorentz"])
@pytest.mark.parametrize("mode", ["pooled", "token"])
def test_one_frame_and_clips_without_hands(manifold, mode):
    handless = clip(5) | {side: np.zeros((5, 21, 3), np.float32) for side in ("left", "right")}
    empty = {name: np.zeros_like(part) for name, part in clip(3).items()}
    batch = batch_of([clip(1), handless, empty])
    model = translator(manifold=manifold, mode=mode)
    for train in (True, False):
        model.train(train).zero_grad()
        losses = model(batch, 0.5)
        losses.loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
        assert all(torch.isfinite(value).all() for value in losses.scalars.values())
    assert model.translate(batch, new_tokens=4).ids.shape[:2] == (3, 1)
    alone = model.translate(batch_of([clip(1)]), n_best=3, new_tokens=4)
    assert alone.ids.shape[:2] == (1, 3) and (alone.scores.diff() <= 0).all()


def test_ten_thousand_frames_are_cut_before_they_are_normalised():
    rng = np.random.default_rng(0)
    points, scores = rng.normal(0.5, 0.1, (10_000, 133, 2)).astype(np.float32), np.ones((10_000, 133), np.float32)
    kept = frames_evenly(10_000, SMALL.frames)
    batch = batch_of([whole_body_parts(points[kept], scores[kept]), clip(3)])
    assert batch["body"].shape[1] == 256
    assert translator().translate(batch, new_tokens=3).ids.shape[0] == 2


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c["left"].__setitem__((2, 0, 0), np.nan), ["clip b", "left", "frame 2"]),
        (lambda c: c["body"].__setitem__((0, 0, 2), np.inf), ["clip b", "body", "frame 0"]),
        (lambda c: c.pop("face_all"), ["clip b", "face_all"]),
        (lambda c: c.update(right=c["right"][:3]), ["clip b", "3 and 4 frames"]),
        (lambda c: c.update(right=c["left"][:, :20]), ["clip b", "right", "21 joints"]),
        (lambda c: c.update({name: part[:0] for name, part in c.items()}), ["clip b", "at least one frame"]),
    ],
)
def test_a_broken_clip_is_named(change, words):
    bad = clip(4)
    change(bad)
    with pytest.raises(UserError) as error:
        batched_parts([clip(2), bad], SMALL, ["a", "b"])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_no_clips_are_an_error():
    with pytest.raises(UserError, match="at least one"):
        batched_parts([], SMALL)


@pytest.mark.parametrize("parts", ["body", "left", "body+right", "left+right", "body+left+face_all"])
@pytest.mark.parametrize("manifold", ["none", "poincare"])
def test_some_of_the_parts(parts, manifold):
    model = translator(parts=parts, manifold=manifold, mode="pooled")
    given = {name: part for name, part in clip(5).items() if name in model.part_names}
    batch = batch_of([given, given], model.config)
    model.train()(batch).loss.backward()
    assert model.part_para.shape == (16 * len(model.part_names),) and model.part_para.grad.any()
    back = PoseTranslator.from_upstream(model.to_upstream(), dict(mode="pooled") if manifold != "none" else None)
    assert back.config.parts == parts and all(torch.equal(a, b) for a, b in zip(model.to_upstream().values(), back.to_upstream().values()))


@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels(channels):
    "Positions without scores, and depth."
    rng = np.random.default_rng(0)
    given = {name: rng.normal(size=(5, len(part.names), 4)).astype(np.float32) for name, part in PARTS.items()}
    model = translator(channels=channels)
    batch = batch_of([given], model.config)
    assert batch["body"].shape[-1] == channels
    assert torch.isfinite(model(batch).loss)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(padding="none"), dict(manifold="sphere"), dict(mode="tokens"), dict(text="encoder"), dict(prompt="german"), dict(widths="64"),
        dict(widths="8-x"), dict(widths="8-0"), dict(parts=""), dict(parts="body+body"), dict(layers=0), dict(dropout=2.0), dict(alpha=-1.0),
        dict(pooled_padding=True), dict(channels=0),
    ],
)  # fmt: skip
def test_settings_are_checked(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        replace(SMALL, **wrong)


# Numbers


def test_the_same_seed_gives_the_same_model_and_losses():
    batch, runs = batch_of([clip(6), clip(9, 1)]), []
    for _ in range(2):
        model = translator(seed=3).train()
        losses = model(batch, 0.25)
        losses.loss.backward()
        runs.append([losses.loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*runs))
    model.eval()
    first, second = (model.translate(batch, n_best=2, new_tokens=6) for _ in range(2))
    assert torch.equal(first.ids, second.ids) and torch.equal(first.scores, second.scores)


def test_the_total_is_the_weighted_sum():
    model, batch = translator(), batch_of([clip(6), clip(9, 1)])
    with torch.no_grad():
        early, late = model(batch, 0.0), model(batch, 1.0)
    assert float(early.alpha) == pytest.approx(0.8) and float(late.alpha) == pytest.approx(0.9)
    for losses in (early, late):
        assert torch.allclose(losses.loss, losses.alpha * losses.cross_entropy + (1 - losses.alpha) * losses.regularised.loss)
    plain = translator(manifold="none")
    with torch.no_grad():
        losses = plain(batch)
    assert torch.equal(losses.loss, losses.cross_entropy) and losses.alpha is None and list(losses.scalars) == ["loss", "cross_entropy"]


def test_translation_does_not_depend_on_the_regulariser():
    "After training nothing of it is left in the forward pass."
    model, plain, batch = translator(), translator(seed=1, manifold="none"), batch_of([clip(6), clip(9, 1)])
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in plain.state_dict()})
    first, second = (one.translate(batch, n_best=4, new_tokens=8) for one in (model, plain))
    assert torch.equal(first.ids, second.ids) and torch.equal(first.scores, second.scores)


def test_equal_texts_need_not_be_negatives():
    batch = batch_of([clip(6), clip(9, 1), clip(4, 2)])
    batch["labels"][1] = batch["labels"][0]
    with torch.no_grad():
        kept, masked = (translator(same_text_negatives=choice)(batch).regularised.loss for choice in (True, False))
    assert float(masked) < float(kept)


def test_half_precision_stays_near():
    model, batch = translator(), batch_of([clip(6), clip(9, 1)])
    with torch.no_grad():
        full = model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(batch)
    assert half.cross_entropy.dtype == half.regularised.loss.dtype == torch.float32
    assert torch.allclose(full.loss, half.loss, rtol=0.02)


def test_three_clips_are_learnt_by_heart():
    batch = batch_of([clip(6), clip(9, 1), clip(4, 2)])
    model = translator(mode="pooled").train()
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    for step in range(120):
        optimiser.zero_grad()
        losses = model(batch, step / 120)
        losses.loss.backward()
        optimiser.step()
    assert int(model.global_step) == 120
    ids = model.eval().translate(batch, new_tokens=5).ids[:, 0]
    assert [[token for token in row if token > 1] for row in ids.tolist()] == [[3, 4], [4, 4], [5, 4]]


def test_sizes_of_the_paper():
    "Counted on tensors without memory."
    with torch.device("meta"):
        models = {name: PoseTranslator(GeoSignConfig(manifold=name)) for name in ("none", "poincare", "euclidean", "lorentz")}
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    assert sizes["none"] == 587_747_368 == 582_401_280 + 5_346_088
    assert {sizes[name] - sizes["none"] for name in ("poincare", "euclidean", "lorentz")} == {525_833}, "the control has the same parameters"
    streams = [p for name, p in models["none"].named_parameters() if not name.startswith("mt5_model")]
    assert sum(p.numel() for p in streams) == 5_346_088


# Names


def test_names_of_a_state_inside_another_module():
    model = translator()
    holder = torch.nn.ModuleDict(dict(inner=model))
    state = holder.state_dict()
    assert set(state) == {f"inner.{name}" for name in model.state_dict()} and "inner.proj_linear.right.bias" in state
    other = torch.nn.ModuleDict(dict(inner=translator(seed=1)))
    other.load_state_dict(state)
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in state.items())


def test_a_copy_is_independent_and_keeps_its_names():
    model = translator()
    other = copy.deepcopy(model)
    assert list(other.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        other.pose_proj.bias.add_(1)
    assert not torch.equal(other.pose_proj.bias, model.pose_proj.bias)
    assert {public_name(name) for name, _ in model.named_parameters()} < set(model.state_dict())


# Own checkpoints


def test_own_checkpoints_there_and_back(tmp_path):
    batch = batch_of([clip(6), clip(9, 1)])
    for settings in (dict(), dict(manifold="none"), dict(mode="attn", parts="body+face_all", tied=True)):
        model = translator(seed=5, **settings)
        path = save_translator(model, tmp_path / "best.safetensors", "abc")
        again = load_translator(path, "abc").eval()
        assert again.config == model.config
        with torch.no_grad():
            assert torch.equal(model(batch).loss, again(batch).loss)


def test_own_checkpoints_are_closed_by_default(tmp_path):
    path = save_translator(translator(), tmp_path / "best.safetensors", "abc")
    with pytest.raises(UserError, match="tokenizer is 'abc', expected 'xyz'"):
        load_translator(path, "xyz")
    with pytest.raises(UserError, match="there is no such"):
        load_translator(tmp_path / "none.safetensors", "abc")
    (tmp_path / "short.safetensors").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="not a whole"):
        load_translator(tmp_path / "short.safetensors", "abc")
    from signbook.training.checkpoints import read_contract, save_weights

    told = read_contract(path)["contract"]
    changes = dict(system="soke", layout="holistic75", normaliser="standard")
    for name, value in changes.items():
        save_weights(translator(), tmp_path / "other.safetensors", told | {name: value})
        with pytest.raises(UserError, match=name):
            load_translator(tmp_path / "other.safetensors", "abc")
    save_weights(translator(), tmp_path / "other.safetensors", told | dict(config=told["config"] | dict(fusion=2)))
    with pytest.raises(UserError, match="absent in the model"):
        load_translator(tmp_path / "other.safetensors", "abc")
    save_weights(translator(), tmp_path / "other.safetensors", told | dict(config=told["config"] | dict(colour=2)))
    with pytest.raises(UserError, match="colour"):
        load_translator(tmp_path / "other.safetensors", "abc")


# Checkpoints of upstream

TOLD = dict(hyp_text_cmp="pooled", hyp_text_emb_src="decoder", alpha=0.7)


def upstream_file(path, change=None, **settings):
    "A checkpoint as upstream writes it, perhaps changed."
    state = dict(translator(**settings).to_upstream())
    if change:
        change(state)
    torch.save(dict(model=state, args=argparse.Namespace(**TOLD), epoch=1), path)
    return path


def test_upstream_files_are_taken_with_their_arguments(tmp_path):
    model = GeoSign.from_upstream(upstream_file(tmp_path / "best.pth", mode="pooled"))
    assert (model.config.mode, model.config.padding, model.config.prompt) == ("pooled", "upstream", "chinese")
    assert model.report.named("taken") and not model.report.named("missing")
    assert "| gcn_modules | taken |" in model.report.markdown() and "taken" in str(model.report)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: [s.pop(name) for name in list(s) if "running_" in name], ["batch statistics", "running_mean"]),
        (lambda s: s.pop("gcn_modules.face_all.layer1_0.residual.1.running_var"), ["batch statistics", "running_var"]),
        (lambda s: s.pop("pose_proj.bias"), ["pose_proj.bias", "missing"]),
        (lambda s: s.pop("part_para"), ["part_para", "missing"]),
        (lambda s: [s.pop(name) for name in list(s) if name.startswith("mt5_model.decoder.")], ["decoder 0"]),
        (lambda s: s.update({"pose_proj.bias": torch.zeros(31)}), ["pose_proj.bias", "(31,)", "(32,)"]),
        (lambda s: s.update({"proj_linear.left.bias": torch.ones(8)}), ["left", "right", "differ"]),
        (lambda s: s.update({"geom_loss.manifold.isp_c": torch.tensor(9.0)}), ["isp_c", "differ"]),
        (lambda s: s.update({"mt5_model.shared.weight": torch.zeros(120, 32)}), ["embed_tokens", "differ"]),
        (lambda s: s.update(classifier=torch.zeros(3)), ["classifier", "no place"]),
        (lambda s: s.update({"pose_proj.bias": torch.full((32,), torch.nan)}), ["pose_proj.bias", "no numbers"]),
        (lambda s: s.update({"pose_proj.bias": "zero"}), ["pose_proj.bias", "str"]),
        (lambda s: s.clear(), ["no weights"]),
    ],
)
def test_a_bad_checkpoint_is_refused_with_its_reason(tmp_path, change, words):
    with pytest.raises(UserError) as error:
        GeoSign.from_upstream(upstream_file(tmp_path / "best.pth", change))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_another_vocabulary_is_refused(tmp_path):
    path = upstream_file(tmp_path / "best.pth")
    assert GeoSign.from_upstream(path, vocabulary=110).config.vocabulary == 120
    for pieces in (121, 250100):
        with pytest.raises(UserError, match=f"embedding of 120 rows and the tokenizer {pieces} pieces"):
            GeoSign.from_upstream(path, vocabulary=pieces)
    wide = dict(translator(vocabulary=400).to_upstream())
    with pytest.raises(UserError, match="tokenizer 120 pieces"):
        GeoSign.from_upstream(wide, dict(mode="token"), vocabulary=120)


def test_damaged_files_are_refused(tmp_path):
    whole = upstream_file(tmp_path / "best.pth").read_bytes()
    for name, content in dict(short=whole[: len(whole) // 2], empty=b"", text=b"version https://git-lfs.github.com/spec/v1\n").items():
        for ending in ("pth", "safetensors"):
            path = tmp_path / f"{name}.{ending}"
            path.write_bytes(content)
            with pytest.raises(UserError, match="copy the file again"):
                GeoSign.from_upstream(path)
    with pytest.raises(UserError, match="no such checkpoint"):
        GeoSign.from_upstream(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list"):
        GeoSign.from_upstream(tmp_path / "list.pth")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("modern", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path, modern):
    trap = str(tmp_path / "sprung")
    torch.save(dict(model=translator().to_upstream(), args=Trap(trap)), tmp_path / "trap.pth", _use_new_zipfile_serialization=modern)
    with pytest.raises(UserError, match="mkdir.*refused"):
        GeoSign.from_upstream(tmp_path / "trap.pth")
    assert not os.path.exists(trap)


@pytest.mark.filterwarnings("default:.* keys: ")
def test_what_is_dropped_or_unknown_is_told(tmp_path):
    def change(state):
        video = ("rgb_support_backbone.conv.weight", "fusion_pose_rgb_DA.0.weight", "fusion_gate.bias")
        state |= {name: torch.zeros(2) for name in video} | {"manifold.c": torch.tensor(1.5), "hyp_token_attn.in_proj": torch.zeros(4)}

    with pytest.warns(UserWarning) as heard:
        model = GeoSign.from_upstream(upstream_file(tmp_path / "best.pth", change))
    assert [str(one.message).split(",")[0] for one in heard] == ["dropped keys: 3", "unexpected keys: 2"]
    assert model.report.named("unexpected") == ["manifold.c", "hyp_token_attn.in_proj"]
    assert "video" in next(row.note for row in model.report.rows if row.name.startswith("rgb"))
    with pytest.warns(UserWarning, match="dropped"):
        plain = GeoSign.from_upstream(upstream_file(tmp_path / "best.pth", change), dict(manifold="none"))
    assert plain.regulariser is None and "hyp_attn_W" in plain.report.named("dropped")


def test_what_the_tensors_do_not_tell_must_be_given():
    state = translator().to_upstream()
    with pytest.raises(UserError, match="mode: the tensors do not tell"):
        GeoSign.from_upstream(state)
    assert GeoSign.from_upstream(state, dict(mode="pooled", padding="skip")).config.padding == "skip"
    assert GeoSign.from_upstream(translator(mode="attn").to_upstream()).config.mode == "attn"
    for settings, word in ((dict(width=3), "unknown"), (dict(d_model=64), "cannot be 64"), (dict(mode="both"), "not one of")):
        with pytest.raises(UserError, match=word):
            GeoSign.from_upstream(state, settings)


def test_curvature_is_kept_or_reset():
    state = translator(curvature=0.8).to_upstream()
    kept = GeoSign.from_upstream(state, dict(mode="token"))
    new = GeoSign.from_upstream(state, dict(mode="token", curvature=0.25), curvature="reset")
    default = GeoSign.from_upstream(state, dict(mode="token"), curvature="reset")
    found = [float(model.regulariser.manifold.c.detach()) for model in (kept, new, default)]
    assert found == pytest.approx([0.8, 0.25, 1.5], rel=1e-5)
    assert [model.config.curvature for model in (kept, new, default)] == pytest.approx([0.8, 0.25, 1.5], rel=1e-5)
    with pytest.raises(UserError, match="neither"):
        GeoSign.from_upstream(state, dict(mode="token"), curvature="drop")


@pytest.mark.parametrize("settings", [dict(), dict(mode="attn"), dict(mode="pooled"), dict(manifold="none"), dict(tied=True)])
def test_there_and_back_for_every_kind(settings):
    state = translator(seed=7, **settings).to_upstream()
    model = GeoSign.from_upstream(state, None if settings.get("manifold") == "none" else dict(mode=settings.get("mode", "token")))
    back = model.to_upstream()
    assert list(back) == list(state) and all(torch.equal(back[name], tensor) for name, tensor in state.items())


# The table of deviations


def test_every_peculiarity_has_a_row():
    assert [row.number for row in DEVIATIONS] == [f"Q{number}" for number in range(1, 29)]
    assert all(row.upstream and row.here and row.why for row in DEVIATIONS)
    assert len(deviations_markdown().splitlines()) == 30 and "|" not in "".join(row.upstream + row.here + row.why for row in DEVIATIONS)


@pytest.mark.parametrize("row", [row for row in DEVIATIONS if row.switch], ids=lambda row: row.number)
def test_every_switch_exists(row):
    place, _, given = row.switch.partition(": ")
    names = place.split(".")
    thing = importlib.import_module("signbook." + ".".join(names[:2]))
    for name in names[2:]:
        thing = getattr(thing, name)
    call = ast.parse(f"f({given})", mode="eval").body
    known = inspect.signature(thing).parameters
    assert all(one.id in known for one in call.args), f"{place} has no {given}"
    values = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
    assert set(values) <= set(known)
    if thing is GeoSignConfig and values:
        assert replace(SMALL, **values) != SMALL
    if "convention" in values:
        with pytest.raises(UserError, match="convention"):
            thing(["a"], ["a"], *(["de"] if "language" in known else []), convention="nobody's")
        thing(["a"], ["a"], *(["de"] if "language" in known else []), **values)
