"""SOKE's tokenizer: numbers of the published code, and what it promises beyond them."""

import json
import os
import zlib
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from signbook.errors import UserError
from signbook.soke.motion import FEATURES, PARTS
from signbook.soke.quantiser import Quantiser, perplexity
from signbook.soke.tokenizer import MODULES, SAVED, PlainPart, Tokenizer, TokenizerConfig, folded, import_upstream, latents
from signbook.training.checkpoints import load_checkpoint, save_checkpoint

FOLDER = Path(os.environ.get("SIGNBOOK_PARITY", "")) / "soke"
parity = pytest.mark.skipif(not os.environ.get("SIGNBOOK_PARITY"), reason="SIGNBOOK_PARITY is not set; the fixtures of upstream numbers are needed")
SIZES = ("small", "full")


@cache
def recorded(name):
    "Scalars and tensors of the published code."
    return json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")


def inputs():
    told, tensors = recorded("tokenizer_inputs")
    return tensors["x"], told["lengths"]


def filled(name, shape):
    "A weight of the large fixture, from the recipe that made it."
    values = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    if name.endswith("codebook"):
        return 0.5 * values
    return 0.02 * values if len(shape) == 1 else values / torch.tensor(shape[1:]).prod().sqrt()


@cache
def state(size):
    if size == "small":
        return load_file(FOLDER / "tokenizer_small_state_dict.safetensors")
    told, _ = recorded("tokenizer_full")
    return {name: filled(name, shape) for name, shape in told["keys"].items()}


def tokenizer(size, masked=True):
    told, _ = recorded(f"tokenizer_{size}")
    made = Tokenizer(TokenizerConfig(width=told["width"], code_dim=told["code_dim"], masked=masked))
    missing, unexpected = made.load_state_dict(state(size), strict=False)
    assert not unexpected and {name.rpartition(".")[2] for name in missing} == {"code_sum", "code_count", "initialised"}
    return made


def close(a, b, tolerance=1e-5):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=tolerance, check_dtype=False)


@parity
@pytest.mark.parametrize("size", SIZES)
def test_soke_parity_of_reconstruction_codes_and_losses(size):
    told, tensors = recorded(f"tokenizer_{size}")
    model, (x, lengths) = tokenizer(size, masked=False).eval(), inputs()
    with torch.no_grad():
        made, (rows, _) = model(x, lengths), latents(model, x)
    for i, (part, name) in enumerate(MODULES.items()):
        wanted = tensors[f"eval.latents.{name}"].transpose(1, 2)
        close(rows[part].view(3, 24, -1)[..., : wanted.shape[2]], wanted)
        assert torch.equal(made.codes[..., i], tensors[f"eval.codes.{name}"])
        close(made.losses[f"commitment_{part}"], told[f"eval.commit.{name}"])
        close(made.perplexity[part], told[f"eval.perplexity.{name}"], 1e-4)
    close(made.recon, tensors["eval.recon"])
    close(made.losses["recon"], told["eval.loss_recon"])
    close(made.loss, told["eval.loss_total"])
    assert torch.equal(model.encode(x)[0], made.codes)


@parity
@pytest.mark.parametrize("size", SIZES)
def test_soke_parity_of_decoding(size):
    _, tensors = recorded(f"tokenizer_{size}")
    model = tokenizer(size).eval()
    codes = torch.stack([tensors[f"eval.codes.{name}"] for name in MODULES.values()], 2)
    alone, batch = model.decode(codes[:1]), model.decode(codes)
    for i, (part, name) in enumerate(MODULES.items()):
        close(alone[..., PARTS[part]], tensors[f"decode_first.{name}"])
        close(batch[:1, :, PARTS[part]], tensors[f"decode_first.{name}"])
        wanted = tensors[f"deq.{name}"]
        close(getattr(model, name).quantizer.codebook[codes[..., i]][..., : wanted.shape[2]], wanted, 0)


@parity
def test_soke_parity_of_the_running_means():
    told, tensors = recorded("tokenizer_inputs")
    quantiser = Quantiser(6, 4).train()
    for step in range(4):
        one = {name: tensors[f"ema_trace.{step}.{name}"] for name in ("before", "code_count", "code_sum", "codebook", "out", "rng", "z")}
        torch.set_rng_state(one["rng"])
        if step:
            close(quantiser.codebook, one["before"], 1e-6)
        made = quantiser(one["z"].transpose(1, 2).flatten(0, 1))
        close(made.latents.view(2, 5, 4).transpose(1, 2), one["out"], 1e-6)
        for name in ("codebook", "code_sum", "code_count"):
            close(getattr(quantiser, name), one[name], 1e-6)
        close(made.commitment, told[f"ema_trace.{step}.commit"], 1e-6)
        close(perplexity(made.counts), told[f"ema_trace.{step}.perp"])


def used_codes(counts):  # after two steps, from counts of 1
    "Which codes the recorded run used in its first and in its second step."
    both = [(0.9801 + 0.0099 * first + 0.01 * second, first, second) for first in range(40) for second in range(40)]
    nearest_pair = [min(both, key=lambda pair: abs(pair[0] - count)) for count in counts.tolist()]
    return [torch.tensor([pair[step] > 0 for pair in nearest_pair]) for step in (1, 2)]


def recorded_choice(monkeypatch):
    """In the recorded batch 72 latents meet 96 or 192 codes: themselves, repeated with noise of 0.01, so near that rounding decides which copy
    wins (plain convolutions give the recorded choice with two threads, another with one). Codes that the recorded run did not use are left out."""
    _, tensors = recorded("tokenizer_small")
    used = {name: used_codes(tensors[f"train_ema_after2.{name}.code_count"]) for name in MODULES.values()}
    calls = iter([used[name][step] for step in range(2) for name in MODULES.values()])

    def nearest(x, codebook):
        return torch.cdist(x.double(), codebook.double()).masked_fill(~next(calls), torch.inf).argmin(1)

    monkeypatch.setattr("signbook.soke.quantiser.nearest", nearest)


@parity
@pytest.mark.parametrize("size", SIZES)
def test_soke_parity_of_two_steps_of_training(size, monkeypatch):
    told, tensors = recorded(f"tokenizer_{size}")
    if size == "small":
        recorded_choice(monkeypatch)
    torch.manual_seed(0)  # the recorded run was seeded before its networks were made: their first weights use up as many numbers as ours
    model, (x, lengths) = tokenizer(size, masked=False).train(), inputs()
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-4, betas=(0.9, 0.99), weight_decay=0.0)
    loose = 1e-5 if size == "small" else 1e-4  # the counts of the large run were not recorded, so rounding chooses its codes
    for step in range(2):
        made = model(x, lengths)
        optimiser.zero_grad()
        made.loss.backward()
        norms = {name: value.grad.norm().item() for name, value in model.named_parameters()}
        optimiser.step()
        where = f"train_steps.{step}"
        close(made.loss, told[f"{where}.loss_total"], loose)
        close(made.losses["recon"], told[f"{where}.loss_recon"], loose)
        close(sum(made.losses[f"commitment_{part}"] for part in PARTS), told[f"{where}.loss_commit"], 100 * loose)
        for part, name in MODULES.items():
            close(made.perplexity[part], told[f"{where}.perplexity.{name}"], 2e-3 if size == "small" else 2)
            norm = getattr(model, name).quantizer.codebook.norm().item()
            assert norm == pytest.approx(told[f"{where}.codebook_norm.{name}"], rel=1e-4 if size == "small" else 1e-2)
        if size == "small":
            for name, norm in norms.items():
                assert norm == pytest.approx(told[f"{where}.grad_norms.{name}"], rel=1e-4), (step, name)
    if size == "small":
        found, wanted = model.state_dict(), load_file(FOLDER / "tokenizer_small_train_state_after2.safetensors")
        for name, value in wanted.items():
            close(found[name], value, 1e-4 if name.endswith("codebook") else 2e-5)
        for name in MODULES.values():
            for kind in ("code_sum", "code_count"):
                close(found[f"{name}.quantizer.{kind}"], tensors[f"train_ema_after2.{name}.{kind}"], 1e-4)


def small(**settings):
    "A little tokenizer with codes that stand for something."
    torch.manual_seed(0)
    made = Tokenizer(TokenizerConfig(width=24, code_dim=16, codes_body=12, codes_left=20, codes_right=20, **settings))
    for part in made.parts.values():
        part.quantizer.start(torch.randn_like(part.quantizer.codebook), 50)
    return made.eval()


def clips(*frames):
    torch.manual_seed(1)
    made = [torch.randn(length, FEATURES) for length in frames]
    return torch.nn.utils.rnn.pad_sequence(made, batch_first=True), made


@parity
@pytest.mark.parametrize("size", SIZES)
def test_soke_parity_of_a_masked_clip_beside_others(size):
    "Upstream's numbers for a clip alone, in a batch of clips of other lengths."
    masked, upstream, (x, lengths) = tokenizer(size).eval(), tokenizer(size, masked=False).eval(), inputs()
    with torch.no_grad():
        together = masked(x, lengths)
        for i, length in enumerate(lengths):
            alone = upstream(x[i : i + 1, :length])
            close(together.recon[i, :length], alone.recon[0], 1e-5)
            assert torch.equal(together.codes[i, : length // 4], alone.codes[0])
        padded = upstream(x, lengths)
    assert (padded.recon[2, : lengths[2]] - together.recon[2, : lengths[2]]).abs().max() > 1e-2


@parity
@pytest.mark.parametrize("size", SIZES)
def test_soke_parity_of_the_plain_networks(size):
    "The plain way loads the same weights strictly and gives the same numbers."
    told, tensors = recorded(f"tokenizer_{size}")
    x, _ = inputs()
    for part, name in MODULES.items():
        config = TokenizerConfig(width=told["width"], code_dim=told["code_dim"])
        plain = PlainPart(len(PARTS[part]), config.codes[part], config).eval()
        weights = {key.removeprefix(f"{name}."): value for key, value in state(size).items() if key.startswith(f"{name}.")}
        missing, unexpected = plain.load_state_dict(weights, strict=False)
        assert not unexpected and set(missing) == {f"quantizer.{key}" for key in SAVED}
        with torch.no_grad():
            close(plain(x[..., PARTS[part]])[0], tensors["eval.recon"][..., PARTS[part]])


@parity
def test_soke_parity_of_keys():
    "Every key of upstream is read, and none of ours but the running means is new."
    made, report = import_upstream(state("small") | {"_losses.total": torch.zeros(1), "metrics.count": torch.zeros(1)})
    assert set(report.read) == set(state("small")) and report.ignored == ("_losses.total", "metrics.count")
    assert {name.rpartition(".")[2] for name in report.missing} == set(SAVED)
    assert made.config == TokenizerConfig(width=32, code_dim=32)
    for name, value in made.to_upstream().items():
        assert torch.equal(value, state("small")[name])


@pytest.mark.parametrize("frames", [(4, 40, 9), (23, 5, 64, 7), (31,)])
def test_soke_clip_gets_in_a_batch_what_it_gets_alone(frames):
    model, (x, alone) = small(), clips(*frames)
    with torch.no_grad():
        together = model(x, frames)
        codes, lengths = model.encode(x, frames)
        assert lengths.tolist() == [length // 4 for length in frames]
        for i, clip in enumerate(alone):
            single = model(clip[None])
            close(together.recon[i, : len(clip) // 4 * 4], single.recon[0], 1e-6)
            assert torch.equal(codes[i, : len(clip) // 4], model.encode(clip[None])[0][0])
            close(model.decode(codes, lengths)[i, : len(clip) // 4 * 4], single.recon[0], 1e-6)


def test_soke_training_step_ignores_padding():
    "Loss, gradients and codebooks are the same whatever stands behind the ends of clips."
    found = []
    for fill in (0.0, 7.0):
        model, (x, _) = small().train(), clips(24, 40, 13)
        for i, length in enumerate((24, 40, 13)):
            x[i, length:] = fill
        model(torch.cat([x, torch.full((3, 8, 133), fill)], 1), (24, 40, 13)).loss.backward()
        found.append([value.grad for value in model.parameters()] + [part.quantizer.codebook for part in model.parts.values()])
    for one, other in zip(*found):
        assert torch.equal(one, other)


def test_soke_short_and_odd_clips():
    model, (x, _) = small(), clips(40, 4)
    refused = (([40, 3], "clip 1 of the batch: 3 frames"), ([0, 4], "clip 0 of the batch: 0"), ([41, 4], "41 frames"), ([40], "1 lengths"))
    for lengths, message in refused:
        for call in (model.encode, model):
            with pytest.raises(UserError, match=message):
                call(x, lengths)
    assert model.encode(x, [40, 4])[1].tolist() == [10, 1]


@pytest.mark.parametrize("wrong", [-1, 12, 195, 1 << 40])
def test_soke_codes_out_of_range_are_refused(wrong):
    model = small()
    codes = torch.zeros(2, 5, 3, dtype=torch.int64)
    codes[1, 3, 0] = wrong
    with pytest.raises(UserError, match=f"clip 1, code 3, body: {wrong} is no code; there are 12"):
        model.decode(codes)
    assert model.decode(codes, [5, 3]).shape == (2, 20, 133)  # behind the end anything may stand


def test_soke_resumed_training_continues(tmp_path):
    "Six steps, and three steps, a checkpoint, three steps: the same to the last bit."
    x, _ = clips(32, 32, 20, 16)

    def steps(model, optimiser, numbers):
        for number in numbers:
            torch.manual_seed(number)
            optimiser.zero_grad()
            model.train()(x, (32, 32, 20, 16)).loss.backward()
            optimiser.step()

    def fresh():
        model = small()
        return model, torch.optim.AdamW(model.parameters(), lr=1e-3)

    whole, first = fresh(), fresh()
    steps(*whole, range(6))
    steps(*first, range(3))
    save_checkpoint(tmp_path, {"model": first[0].state_dict(), "optimiser": first[1].state_dict()})
    saved, second = load_checkpoint(tmp_path), fresh()
    second[0].load_state_dict(saved["model"])
    second[1].load_state_dict(saved["optimiser"])
    steps(*second, range(3, 6))
    for name, value in whole[0].state_dict().items():
        assert torch.equal(value, second[0].state_dict()[name]), name
    lost = fresh()
    lost[0].load_state_dict(first[0].to_upstream(), strict=False)
    for part in lost[0].parts.values():
        part.quantizer.initialised.fill_(False)  # as upstream finds it
    before = first[0].vae.quantizer.codebook.clone()
    steps(*lost, [3])
    assert (lost[0].vae.quantizer.codebook - before).norm() > 0.3 * before.norm()


def test_soke_decoding_sees_every_change_of_weights():
    model, codes = small(), torch.zeros(1, 4, 3, dtype=torch.int64)
    before = model.decode(codes)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.003, fused=True)
    model.train()(torch.randn(2, 32, 133)).loss.backward()
    optimiser.step()
    training, after = model.decode(codes), model.eval().decode(codes)
    close(training, after, 1e-5)
    assert (after - before).abs().max() > 1e-3
    model.load_state_dict(small().state_dict())
    close(model.decode(codes), before, 0)


def test_soke_wide_decoding_in_pairs_equals_the_plain_networks():
    torch.manual_seed(0)
    config = TokenizerConfig(width=192, code_dim=64, downsamplings=3, depth=2)
    model = Tokenizer(config).eval()
    for part in model.parts.values():
        part.quantizer.start(torch.randn_like(part.quantizer.codebook))
    codes = torch.stack([torch.randint(size, (2, 11)) for size in config.codes.values()], 2)
    assert model.decode(codes, [11, 2]).shape == (2, 88, 133) and folded(model)["body"].blocks[0][0][1].weight.ndim == 3
    for part in PARTS:
        plain = PlainPart(len(PARTS[part]), config.codes[part], config)
        plain.load_state_dict(model.parts[part].state_dict())
        with torch.no_grad():
            wanted = plain.decoder["model"](plain.quantizer.codebook[codes[..., list(PARTS).index(part)]].transpose(1, 2)).transpose(1, 2)
        close(model.decode(codes)[..., PARTS[part]], wanted, 1e-5)


def test_soke_checkpoint_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    torch.save({"state_dict": small().to_upstream(), "hyper_parameters": {"trap": Trap(), "list": [Trap()]}}, tmp_path / "deto.ckpt")
    made = Tokenizer.from_upstream(tmp_path / "deto.ckpt")
    assert not (tmp_path / "trapped").exists() and torch.equal(made.vae.quantizer.codebook, small().vae.quantizer.codebook)
    for content, message in ((b"", "whole"), (b"not a checkpoint", "whole")):
        (tmp_path / "bad.ckpt").write_bytes(content)
        with pytest.raises(UserError, match=message):
            import_upstream(tmp_path / "bad.ckpt")
    torch.save({"epoch": 3}, tmp_path / "bare.ckpt")
    with pytest.raises(UserError, match="holds no weights"):
        import_upstream(tmp_path / "bare.ckpt")
    with pytest.raises(UserError, match="no such checkpoint"):
        import_upstream(tmp_path / "none.ckpt")


def test_soke_imported_codebook_holds():
    "One step on imported weights moves few codes; a codebook with counts of 1 would lose every code that the batch does not use."
    made, report = import_upstream(small().to_upstream())
    before = {part: one.quantizer.codebook.clone() for part, one in made.parts.items()}
    made.train()(clips(64, 64, 64)[0])
    for part, one in made.parts.items():
        moved = (one.quantizer.codebook - before[part]).norm(dim=1) / before[part].norm(dim=1)
        assert moved.max() < 0.2 and bool(one.quantizer.initialised)
    assert len(report.missing) == 9
