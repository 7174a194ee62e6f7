"""The regulariser: numbers of the published code, names, what must not matter, what must, and nothing read back from the device."""

import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, embedding
from torch.utils._python_dispatch import TorchDispatchMode

from signbook.errors import UserError
from signbook.geosign.regulariser import MODES, PARTS, Contrast, Regulariser, RegulariserConfig
from signbook.layers.manifolds import MANIFOLDS, frechet_step_by_step

FOLDER = Path(os.environ.get("SIGNBOOK_PARITY", "")) / "geosign"
upstream = pytest.mark.skipif(not os.environ.get("SIGNBOOK_PARITY"), reason="SIGNBOOK_PARITY is not set: no numbers of the published code in reach")
torch.set_num_threads(1)


def batch(B=6, T=9, L=7, C=8, W=10, seed=0):
    "Parts, lengths, text and its mask."
    generator = torch.Generator().manual_seed(seed)
    parts = {part: torch.randn(B, T, C, generator=generator) for part in PARTS}
    lengths, tokens = torch.randint(1, T + 1, (B,), generator=generator), torch.randint(1, L + 1, (B, 1), generator=generator)
    return parts, lengths, torch.randn(B, L, W, generator=generator), torch.arange(L) < tokens


def made(name="poincare", mode="pooled", seed=0, spread=0.1, **settings):
    "A regulariser whose weights are not those of the start."
    torch.manual_seed(seed)
    regulariser = Regulariser(RegulariserConfig(name, mode, dim=12, **settings), 8, 10)
    with torch.no_grad():
        for parameter in regulariser.parameters():
            if parameter.ndim:
                parameter += spread * torch.randn_like(parameter)
    return regulariser


# Numbers of the published code

CASES = ("pooled_decoder", "pooled_token_src", "pooled_c0.001", "pooled_c1.5", "attn_decoder", "token_decoder_fixed", "token_tokensrc_fixed",
         "token_c0.001_fixed")  # fmt: skip


@cache
def tensors(name):
    return load_file(FOLDER / f"{name}.safetensors")


def told(name):
    return json.loads((FOLDER / "cases" / f"{name}.json").read_text())


def published(name, iterations=0):
    "The published weights in our regulariser."
    numbers, settings = told(name), told(name)["args"]
    config = RegulariserConfig(
        mode=settings.get("hyp_text_cmp", "pooled"),
        text=settings.get("hyp_text_emb_src", "decoder"),
        curvature=numbers["out_curvature"],
        pooled_padding=True,
        iterations=iterations,
    )
    regulariser = Regulariser(config, 256, 768)
    state = {key: tensors("state_dict")[key] for key in regulariser.state_dict() if key in tensors("state_dict") and key != "manifold.isp_c"}
    if config.mode == "attn":
        state["text_pool_attn.weight"] = tensors(f"cases/{name}")["text_pool_attn.0"]
        state["text_pool_attn.bias"] = torch.tensor([numbers["text_pool_attn.1"]])
    missing, unexpected = regulariser.load_state_dict(state, strict=False)
    assert missing == ["manifold.isp_c"] and not unexpected
    return regulariser


def compared(regulariser):
    "What the regulariser says of the recorded features and texts."
    seen = tensors("cases/pooled_decoder")  # features and states are those of all cases in evaluation mode
    parts = {part: seen[f"fusion_gcn_modules.{part}"].mean(-1).transpose(1, 2) for part in PARTS}
    labels = tensors("inputs")["tgt.labels_ids"]
    words = tensors("state_dict")["mt5_model.shared.weight"]
    text = seen["decoder_last_hidden"] if regulariser.config.text == "decoder" else embedding(labels, words)
    return regulariser(parts, tensors("inputs")["src.src_length_batch"], text, labels != 0)


def near(ours, theirs, eps=1e-5):
    assert (torch.as_tensor(ours) - torch.as_tensor(theirs)).abs().max() <= eps


@upstream
@pytest.mark.parametrize("iterations", [0, 50])
@pytest.mark.parametrize("name", CASES)
def test_geosign_parity_of_the_regulariser(name, iterations):
    numbers, recorded, regulariser = told(name), tensors(f"cases/{name}"), published(name, iterations)
    found = compared(regulariser)
    near(found.loss, numbers["out_margin_loss_val"])
    near(regulariser.alpha(20 / 100), numbers["out_alpha_hyp"])
    for ours, theirs in dict(temperature="temperature", margin="effective_margin", curvature="curvature", similarity="hyp_sim_mean").items():
        near(found.telemetry[ours], numbers[f"out_{theirs}"], 1e-4 if ours == "similarity" else 1e-6)
    for part, face in PARTS.items():
        near(found.points[part], recorded[f"hyp_{face}"])
    real = tensors("inputs")["tgt.labels_ids"] != 0 if found.attention is not None else slice(None)
    near(found.text[real], recorded["hyp_text"][real])
    if found.attention is None:
        near(found.mean, recorded["rec_frechet_mu"], 1e-4)
        near(found.weights, recorded["rec_frechet_w"])
    else:
        near(found.attention, recorded["rec_attn_weights"])
        near(regulariser.manifold.midpoint(found.text, found.attention), recorded["rec_text_contexts"])


@upstream
@pytest.mark.parametrize("name", CASES)
def test_geosign_parity_of_gradients(name):
    "Norms of the gradients of all that only the regulariser knows, the mean reached as upstream does."
    numbers, regulariser = told(name), published(name, 50)
    ((1 - numbers["out_alpha"]) * compared(regulariser).loss).backward()
    silent = set()
    for key, parameter in regulariser.named_parameters():
        if key in numbers["no_grad_params"]:
            assert parameter.grad is None
            silent.add(key)
        elif key != "loss_alpha_logit":  # it belongs to the sum of both losses
            norm = numbers["grads"][key][0]
            assert abs(float(parameter.grad.norm()) - norm) <= 1e-4 * norm + (2e-7 if parameter.numel() == 1 else 1e-9), key
    assert silent == (set() if name.startswith("token") else {"hyp_attn_W", "hyp_attn_b"})


@upstream
def test_geosign_parity_of_the_training_case():
    "All points on the rim, where the published walk never arrives: its recorded end gives its recorded loss; the mean has a third of the cost."
    numbers, recorded, regulariser = told("pooled_decoder_train"), tensors("cases/pooled_decoder_train"), published("pooled_decoder_train")
    space, points, weights, walked = regulariser.manifold, *(recorded[f"rec_frechet_{one}"] for one in ("points", "w", "mu"))
    near(regulariser.geom_loss(space.pairwise(walked, recorded["hyp_text"])), numbers["out_margin_loss_val"])
    assert numbers["rec_frechet_iters"] == frechet_step_by_step(points, weights, space.c)[1] == 50

    def cost(mean):
        return (weights * space.dist(mean, points) ** 2).sum(0)

    assert (cost(space.mean(points, weights)) < 0.4 * cost(walked)).all()


@upstream
def test_geosign_parity_of_what_token_mode_was_meant_to_be():
    assert "midpoint" in told("token_decoder_AS_RELEASED")["error"]
    near(compared(published("token_decoder_fixed")).loss, 2.6712586879730225)


@upstream
def test_geosign_parity_of_names_and_sizes():
    keys = {key: tuple(value.shape) for key, value in tensors("state_dict").items() if key.startswith(("hyp_", "geom_", "loss_", "manifold."))}
    ours = {key: tuple(value.shape) for key, value in Regulariser(RegulariserConfig(), 256, 768).state_dict().items()}
    assert ours == {key: shape for key, shape in keys.items() if not key.endswith(".manifold.isp_c")}
    assert {key for key in keys if key.endswith(".manifold.isp_c")} == {f"{owner}.manifold.isp_c" for owner in
           (*(f"hyp_proj_{face}" for face in (*PARTS.values(), "text")), "geom_loss")}  # fmt: skip


def test_the_regulariser_is_as_large_as_the_released_one():
    for name in MANIFOLDS:
        assert sum(one.numel() for one in Regulariser(RegulariserConfig(name), 256, 768).parameters()) == 525_833
    assert sum(one.numel() for one in Regulariser(RegulariserConfig(mode="attn"), 256, 768).parameters()) == 525_833 + 769


# The contrast


def test_the_contrast_is_a_cross_entropy():
    contrast, distances = Contrast(0.2), 3 * torch.rand(9, 9)
    scores = -distances / (0.01 + 1.99 * torch.sigmoid(torch.tensor(1.0))) + 0.3 * (1 - torch.eye(9))
    near(contrast(distances), cross_entropy(scores, torch.arange(9), label_smoothing=0.2), 1e-6)
    near(contrast(distances, torch.zeros(9, 9, dtype=torch.bool)), contrast(distances), 0)
    assert contrast(torch.zeros(0, 0)) == 0 and contrast(torch.ones(1, 1)) == 0


@pytest.mark.parametrize("mode", MODES)
def test_equal_texts_can_be_left_out(mode):
    "A clip beside a second one of the same sentence is contrasted with the rest only: as if the second were not there."
    parts, lengths, text, mask = batch(5)
    text[1], mask[1] = text[0], mask[0]
    equal = torch.eye(5, dtype=torch.bool)
    equal[0, 1] = equal[1, 0] = True
    regulariser = made(mode=mode, same_text_negatives=False)
    found = regulariser(parts, lengths, text, mask, equal)
    assert found.loss < made(mode=mode)(parts, lengths, text, mask, equal).loss
    near(made(mode=mode)(parts, lengths, text, mask, equal).loss, made(mode=mode)(parts, lengths, text, mask).loss, 0)

    if mode != "token":
        distances = regulariser.manifold.pairwise(found.mean, found.text)
        rows = -distances / Contrast().temperature + 0.3 * (1 - torch.eye(5))
        losses = [cross_entropy(rows[row][~twin], (~twin)[:row].sum(), label_smoothing=0.2) for row, twin in enumerate(equal & ~torch.eye(5).bool())]
        near(found.loss, sum(losses) / 5, 1e-6)
    found.loss.backward()
    assert all(one.grad is None or one.grad.isfinite().all() for one in regulariser.parameters())
    everybody = torch.ones(5, 5, dtype=torch.bool)
    only = regulariser(parts, lengths, text, mask, everybody)
    assert only.loss.isfinite() and (mode == "token" or only.loss == 0), "where all texts are equal, nothing is left to contrast"


# What must not matter


@pytest.mark.parametrize("name", sorted(MANIFOLDS))
@pytest.mark.parametrize("mode", MODES)
def test_padding_and_company_do_not_matter(mode, name):
    regulariser, (parts, lengths, text, mask) = made(name, mode), batch()
    found = regulariser(parts, lengths, text, mask)
    longer = {part: torch.cat([x, torch.randn(6, 4, 8)], 1) for part, x in parts.items()}
    more = torch.cat([text, torch.randn(6, 3, 10)], 1), torch.cat([mask, torch.zeros(6, 3, dtype=torch.bool)], 1)
    padded = regulariser(longer, lengths, *more)
    near(padded.loss, found.loss, 1e-5)
    one = regulariser({part: x[2:3] for part, x in parts.items()}, lengths[2:3], text[2:3], mask[2:3])
    for part in PARTS:
        near(one.points[part][0], found.points[part][2], 1e-5)
    if mode == "token":
        near(one.attention[0], found.attention[2], 1e-5)
        assert (found.attention.sum(-1) - 1).abs().max() < 1e-5 and (padded.attention[..., 7:] == 0).all()
    else:
        near(one.mean[0], found.mean[2], 1e-5)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = regulariser({part: x[order] for part, x in parts.items()}, lengths[order], text[order], mask[order])
    near(shuffled.loss, found.loss, 1e-5)


def test_padding_is_read_where_it_is_asked_for():
    parts, lengths, text, mask = batch()
    upstream_way = made(pooled_padding=True)(parts, lengths, text, mask)
    near(upstream_way.loss, made()(parts, torch.full_like(lengths, 9), text, mask).loss, 1e-6)
    assert (upstream_way.loss - made()(parts, lengths, text, mask).loss).abs() > 1e-4


@pytest.mark.parametrize("mode", MODES)
def test_precision_around_it_does_not_matter(mode):
    "Autocast does not reach inside, and a batch in bfloat16 is compared in float32."
    regulariser, (parts, lengths, text, mask) = made(mode=mode), batch()
    plain = regulariser(parts, lengths, text, mask)
    with torch.autocast("cpu", torch.bfloat16):
        cast = regulariser(parts, lengths, text, mask)
    assert cast.loss.dtype == torch.float32 and torch.equal(cast.loss, plain.loss)
    half = {part: x.bfloat16() for part, x in parts.items()}
    found = regulariser(half, lengths, text.bfloat16(), mask)
    assert found.loss.dtype == torch.float32 and all(x.dtype == torch.float32 for x in found.points.values())
    near(found.loss, plain.loss, 0.05)


@pytest.mark.parametrize("mode", MODES)
def test_the_hyperboloid_and_the_ball_give_one_loss_and_flat_space_another(mode):
    losses = {name: made(name, mode)(*batch()).loss for name in MANIFOLDS}
    near(losses["lorentz"], losses["poincare"], 1e-5)
    near(made(mode=mode, curvature=1e-6)(*batch()).loss, losses["euclidean"], 1e-3)
    assert (losses["euclidean"] - losses["poincare"]).abs() > 1e-4


def test_the_same_numbers_every_time():
    first, second = (made(mode="token")(*batch()) for _ in range(2))
    assert torch.equal(first.loss, second.loss) and all(torch.equal(first.telemetry[name], second.telemetry[name]) for name in first.telemetry)


# What must


@pytest.mark.parametrize("name", sorted(MANIFOLDS))
@pytest.mark.parametrize("mode", MODES)
def test_gradients_arrive_everywhere(mode, name):
    regulariser, (parts, lengths, text, mask) = made(name, mode), batch()
    for one in (*parts.values(), text):
        one.requires_grad_()
    regulariser(parts, lengths, text, mask).loss.backward()
    real = torch.arange(9) < lengths[:, None]
    for x in parts.values():
        assert (x.grad[real].abs().sum(-1) > 0).all() and (x.grad[~real] == 0).all()
    assert (text.grad[mask].abs().sum(-1) > 0).all() and (text.grad[~mask] == 0).all()
    silent = {key for key, one in regulariser.named_parameters() if one.grad is None}
    expected = {"loss_alpha_logit"} | ({"manifold.isp_c"} if name == "euclidean" else set())
    assert silent == expected | (set() if mode == "token" else {"hyp_attn_W", "hyp_attn_b"})


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["left", "text"])
@pytest.mark.parametrize("name", sorted(MANIFOLDS))
@pytest.mark.parametrize("mode", MODES)
def test_what_is_no_number_makes_the_loss_none(mode, name, where, bad):
    "Never a finite loss: the loop that looks at the loss stops."
    parts, lengths, text, mask = batch()
    (parts["left"] if where == "left" else text)[4, 0, 3] = bad
    assert not made(name, mode)(parts, lengths, text, mask).loss.isfinite()


@pytest.mark.parametrize("name", sorted(MANIFOLDS))
@pytest.mark.parametrize("mode", MODES)
def test_one_clip_one_frame_one_token_and_none(mode, name):
    regulariser = made(name, mode)
    one = regulariser(*batch(1, 1, 1))
    assert one.loss.isfinite() and (mode == "token" or one.loss == 0), "a clip alone has nothing to be told from"
    parts, lengths, text, mask = batch(4)
    silent = regulariser(parts, lengths * 0, text, mask & False)
    assert silent.loss.isfinite(), "no frames, no tokens: points where the biases lead"
    none = regulariser(*batch(0))
    assert none.loss == 0 and all(point.shape == (0, 12) for point in none.points.values())
    (one.loss + silent.loss + none.loss).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in regulariser.parameters())


def test_equal_features_do_no_harm():
    parts, lengths, text, mask = batch()
    regulariser = made()
    regulariser({part: torch.ones_like(x) for part, x in parts.items()}, lengths, torch.ones_like(text), mask).loss.backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in regulariser.parameters())


def test_points_at_the_rim_are_counted():
    parts, lengths, text, mask = batch()
    far = {part: x * (100 if part == "left" else 0.1) for part, x in parts.items()}
    told = made()(far, lengths, text, mask).telemetry
    assert told["boundary/left"] == 6 and told["boundary/body"] == 0
    assert float(told["radius/left"]) == pytest.approx(6.2126 / 1.5**0.5, abs=1e-2) and told["radius/left"] > told["radius/body"]
    loud = text.masked_fill(mask[..., None], 0) * 1000 + text.masked_fill(~mask[..., None], 0) * 0.1  # loud where nobody speaks
    told = made(mode="token")(parts, lengths, loud, mask).telemetry
    assert told["boundary/text"] == 0 and told["radius/text"] < 1
    flat = made("euclidean")(far, lengths, text, mask).telemetry
    assert flat["boundary/left"] == 0 and flat["radius/left"] > 10 and flat["curvature"] == 0


def test_telemetry_has_one_number_each():
    expected = {"temperature", "margin", "curvature", "similarity"} | {f"{what}/{who}" for what in ("radius", "boundary") for who in (*PARTS, "text")}
    for mode in MODES:
        told = made(mode=mode)(*batch()).telemetry
        assert set(told) == expected | (set() if mode == "token" else {f"weight/{part}" for part in PARTS})
        assert all(value.ndim == 0 and not value.requires_grad for value in told.values())


def test_a_part_less():
    parts, *rest = batch()
    del parts["face_all"]
    for mode in MODES:
        found = made(mode=mode)(parts, *rest)
        assert found.loss.isfinite() and list(found.points) == ["body", "left", "right"]
        assert (found.weights if mode != "token" else found.attention[0]).shape[0] == 3


def test_alpha_follows_progress_and_is_learnt():
    regulariser = made(alpha=0.5)
    assert [round(regulariser.alpha(t).item(), 4) for t in (0, 0.5, 1)] == [0.6, 0.65, 0.7]
    regulariser.alpha(0.5).backward()
    assert regulariser.loss_alpha_logit.grad > 0
    assert made(alpha=1.0).alpha(1.0).item() == 1 and made(alpha=0.0).alpha(0.0).item() == pytest.approx(0.1)


def test_learning_lowers_the_loss_in_every_space():
    for name in MANIFOLDS:
        regulariser, data = made(name, spread=0), batch(12)
        optimiser = torch.optim.Adam(regulariser.parameters(), 0.02)
        losses = []
        for _ in range(30):
            optimiser.zero_grad()
            loss = regulariser(*data).loss
            loss.backward()
            optimiser.step()
            losses.append(float(loss))
        assert losses[-1] < losses[0] - 0.5, name


def test_errors_name_what_was_expected():
    for settings, words in ((dict(mode="word"), "mode.*pooled, attn, token"), (dict(text="gloss"), "text.*decoder, token"),
                            (dict(manifold="lorentz", iterations=50), "iterations.*poincare"), (dict(manifold="torus"), "manifold.*lorentz"),
                            (dict(curvature=-1), "curvature.*positive")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            Regulariser(RegulariserConfig(**settings), 8, 10)


# No questions to the device


class Deaf(TorchDispatchMode):
    "Refuses every operation that reads a value back from the device."

    ASKING = ("_local_scalar_dense", "nonzero", "equal.default", "is_nonzero", "masked_select", "unique", "item")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not any(word in str(function) for word in self.ASKING), f"{function} waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(MANIFOLDS))
@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_read_back_from_the_device(mode, name, monkeypatch):
    regulariser, data = made(name, mode, same_text_negatives=False), batch()
    equal = torch.eye(6, dtype=torch.bool)

    def refused(*_):
        raise AssertionError("a value was read back from the device")

    for question in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, question, refused)
    with Deaf():
        found = regulariser(*data, equal)
        (found.loss * regulariser.alpha(0.5)).backward()
    monkeypatch.undo()
    assert found.loss.isfinite()

