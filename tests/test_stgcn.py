"""Part streams and the axis under them: the published numbers, every clip as if alone, derivatives as by definition."""

import copy
import json
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from signbook.errors import UserError
from signbook.layers import axis as axes
from signbook.layers.stgcn import GRAPHS, PartStreams, plain_streams
from signbook.layers.temporal import convolved, over_time

SMALL, WIDE = (8, 8, 16, 16), (64, 64, 128, 256)
CHAINS = ("proj_linear", "gcn_modules", "fusion_gcn_modules")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def published():
    "Reads a file of the published implementation's numbers."
    root = os.environ.get("SIGNBOOK_PARITY")
    if not root:
        pytest.skip("SIGNBOOK_PARITY is not set: the published numbers are not in reach")
    from safetensors.torch import load_file

    return lambda name: load_file(Path(root) / "geosign" / f"{name}.safetensors")


@pytest.fixture(scope="module")
def checkpoint(published):
    "The published weights, every name with its tensor."
    weights = published("state_dict")
    aliases = json.loads((Path(os.environ["SIGNBOOK_PARITY"]) / "geosign" / "state_dict_aliases.json").read_text())
    weights |= {name: weights[held] for name, held in aliases.items()}
    return {name: tensor for name, tensor in weights.items() if name.split(".")[0] in CHAINS}


@pytest.fixture(scope="module")
def clips(published):
    inputs = published("inputs")
    return {part: inputs[f"src.{part}"] for part in GRAPHS}


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def batch(lengths, channels=3, dtype=torch.float32, parts=tuple(GRAPHS)):
    return {part: torch.randn(len(lengths), max(lengths), GRAPHS[part].nodes, channels, dtype=dtype) for part in parts}


def shaken(streams):
    "Normalisations that are no longer as they begin."
    for module in streams.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return streams


# The published network


def test_geosign_parity_stream_keys_and_shapes(checkpoint):
    own = PartStreams().state_dict()
    assert {name: tensor.shape for name, tensor in own.items()} == {name: tensor.shape for name, tensor in checkpoint.items()}
    assert len(own) == 340


def test_geosign_parity_streams_eval(published, checkpoint, clips):
    streams, told = PartStreams().eval(), published("cases/pooled_decoder")
    streams.load_state_dict(checkpoint)
    with torch.no_grad():
        got, plain = streams(clips), plain_streams(streams, clips)
    for part in GRAPHS:
        expected = told[f"fusion_gcn_modules.{part}"].mean(3).transpose(1, 2)
        assert relative(got[part], expected) < 1e-5 and relative(plain[part], expected) < 1e-5


def test_geosign_parity_spatial_chain(published, checkpoint, clips):
    streams, told = PartStreams().eval(), published("cases/pooled_decoder")
    streams.load_state_dict(checkpoint)
    laid = axes.laid_out([27] * 3, 27)
    for part, x in clips.items():
        points = torch.cat([axes.onto(laid, x), laid.real.float()[:, None].expand(x.shape[2], -1, -1)], 2)
        with torch.no_grad():
            spatial, _ = streams.stream(part, points, laid, None, torch.float32)
        expected = told[f"gcn_modules.{part}"].permute(3, 0, 2, 1)
        assert relative(spatial[:, laid.places].view_as(expected), expected) < 1e-5


def test_geosign_parity_streams_train_statistics(published, checkpoint, clips):
    streams, told = PartStreams().train(), published("cases/pooled_decoder_train")
    streams.load_state_dict(checkpoint)
    streams(clips)
    own = streams.state_dict()
    moved = {name.removeprefix("bn_after."): tensor for name, tensor in told.items() if name.startswith("bn_after.")}
    assert len(moved) == 24
    for name, expected in moved.items():
        assert relative(own[name], expected) < 1e-5, name
        assert relative(checkpoint[name], expected) > 1e-4, f"{name} did not move: the comparison says nothing"
    assert own["gcn_modules.left.layer0_0.gcn.bn.num_batches_tracked"] == checkpoint["gcn_modules.left.layer0_0.gcn.bn.num_batches_tracked"] + 2


# Against the definition


@pytest.mark.parametrize("widths", [SMALL, WIDE])
@pytest.mark.parametrize("training", [True, False])
def test_results_derivatives_and_statistics_are_those_of_the_definition(widths, training):
    plain = shaken(PartStreams(widths).double()).train(training)
    fast, given = copy.deepcopy(plain), batch([9, 9], dtype=torch.float64)
    up = torch.randn(2, 9, widths[-1], dtype=torch.float64)
    outs = plain_streams(plain, given), fast(given)
    for out in outs:
        sum((y * up).sum() for y in out.values()).backward()
    for part in GRAPHS:
        torch.testing.assert_close(outs[1][part], outs[0][part], rtol=1e-9, atol=1e-9)
    for (name, expected), got in zip(plain.named_parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-8, atol=1e-9, msg=name)
    for (name, expected), got in zip(plain.named_buffers(), fast.buffers(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, msg=name)


def test_float32_and_bfloat16_are_close_to_the_definition():
    plain, given = shaken(PartStreams(WIDE)).train(), batch([30, 30])
    exact, fast = copy.deepcopy(plain).double(), copy.deepcopy(plain)
    expected = plain_streams(exact, {part: x.double() for part, x in given.items()})
    got = fast(given)
    with torch.autocast("cpu", torch.bfloat16):
        half = copy.deepcopy(plain)(given)
    for part in GRAPHS:
        assert relative(got[part].double(), expected[part]) < 1e-5
        assert half[part].dtype == torch.float32 and relative(half[part].double(), expected[part]) < 0.05


def test_a_bfloat16_step_has_float32_gradients_and_statistics():
    streams, given = PartStreams(SMALL).train(), batch([12, 7])
    reference = copy.deepcopy(streams)
    with torch.autocast("cpu", torch.bfloat16):
        out = streams(given, torch.tensor([12, 7]))
    for some in (out, reference(given, torch.tensor([12, 7]))):
        sum(y.square().mean() for y in some.values()).backward()
    assert {p.grad.dtype for p in streams.parameters()} == {torch.float32}
    for (name, got), expected in zip(streams.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(got, expected, rtol=0.1, atol=0.02, msg=name)
    weights = [name for name, _ in streams.named_parameters() if name.endswith("gcn.conv.weight")]
    got, expected = dict(streams.named_parameters()), dict(reference.named_parameters())
    assert all(torch.cosine_similarity(got[n].grad.flatten(), expected[n].grad.flatten(), 0) > 0.9 for n in weights)


# Clips on one axis


@pytest.mark.parametrize("widths", [SMALL, WIDE])
def test_every_clip_gets_what_it_gets_alone(widths):
    lengths = [9, 1, 4, 6]
    streams, given = shaken(PartStreams(widths)).eval(), batch(lengths)
    with torch.no_grad():
        together = streams(given, torch.tensor(lengths))
        for place, length in enumerate(lengths):
            alone = streams({part: x[place : place + 1, :length] for part, x in given.items()})
            for part in GRAPHS:
                torch.testing.assert_close(together[part][place, :length], alone[part][0], rtol=1e-4, atol=2e-5)
                assert not together[part][place, length:].any()


def test_what_lies_behind_the_end_of_a_clip_changes_nothing():
    lengths = torch.tensor([8, 3])
    given, outs = batch([8, 3]), []
    for filling in (0.0, 100.0, float("nan")):
        streams = PartStreams(SMALL).train()
        streams.load_state_dict({name: tensor for name, tensor in (outs[0][2] if outs else streams.state_dict()).items()})
        begin = copy.deepcopy(streams.state_dict())
        for x in given.values():
            x[1, 3:] = filling
        out = streams(given, lengths)
        sum(y.square().sum() for y in out.values()).backward()
        outs.append((out, [p.grad for p in streams.parameters()], begin))
    for out, gradients, _ in outs[1:]:
        assert all(torch.equal(out[part], outs[0][0][part]) for part in GRAPHS)
        assert all(torch.equal(a, b) for a, b in zip(gradients, outs[0][1], strict=True))


def test_packed_training_statistics_are_those_of_the_real_frames():
    streams, lengths = PartStreams(SMALL, parts=("body",)).double().train(), [7, 2, 5]
    given = batch(lengths, dtype=torch.float64, parts=("body",))
    block = streams.gcn_modules["body"]["layer0_0"]
    streams(given, torch.tensor(lengths))
    points = torch.cat([given["body"][i, :n] for i, n in enumerate(lengths)])
    with torch.no_grad():
        spread = block.gcn.conv(streams.proj_linear["body"](points).permute(2, 0, 1)[None]).unflatten(1, (2, -1))
        mixed = torch.einsum("nkctv,kvw->nctw", spread, block.gcn.A)[0].flatten(1)
    torch.testing.assert_close(block.gcn.bn.running_mean, 0.1 * mixed.mean(1))
    torch.testing.assert_close(block.gcn.bn.running_var, 0.9 + 0.1 * mixed.var(1))


def test_a_broken_clip_spoils_only_itself():
    streams, given = PartStreams(SMALL).eval(), batch([5, 5, 5])
    for x in given.values():
        x[1, 2] = float("nan")
    with torch.no_grad():
        out = streams(given, torch.tensor([5, 5, 5]))
    for y in out.values():
        assert y[1].isnan().any() and y[[0, 2]].isfinite().all()


def test_one_frame_and_one_clip():
    for training in (True, False):
        streams = PartStreams(SMALL).train(training)
        out = streams(batch([1]))
        assert {tuple(y.shape) for y in out.values()} == {(1, 1, 16)} and all(y.isfinite().all() for y in out.values())
        sum(y.sum() for y in out.values()).backward()
        assert all(p.grad.isfinite().all() for p in streams.parameters())


def test_ten_thousand_frames():
    streams, given = PartStreams(SMALL).eval(), batch([10_000])
    with torch.no_grad():
        out = streams(given)
        end = streams({part: x[:, -40:] for part, x in given.items()})
    for part in GRAPHS:
        torch.testing.assert_close(out[part][:, -20:], end[part][:, -20:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lengths", [[0, 3], [5, 3], [-1, 4]])
def test_lengths_that_make_no_sense_are_refused(lengths):
    with pytest.raises(UserError, match="every clip must have 1 to 4 frames"):
        PartStreams(SMALL)(batch([4, 4]), torch.tensor(lengths))


# Parts


def test_hands_are_one_module_under_two_names():
    streams = PartStreams(SMALL)
    state = streams.state_dict()
    pairs = [(name, name.replace(".left.", ".right.")) for name in state if ".left." in name]
    assert len(pairs) > 50
    for chain in CHAINS:
        assert getattr(streams, chain)["left"] is getattr(streams, chain)["right"]
    with torch.no_grad():
        for parameter in streams.parameters():
            parameter.add_(1)
    state = streams.state_dict()
    assert all(torch.equal(state[a], state[b]) for a, b in pairs)


def test_hands_together_are_hands_one_after_the_other():
    streams, given = shaken(PartStreams(SMALL).double()).train(), batch([6, 4], dtype=torch.float64)
    lengths, single = torch.tensor([6, 4]), copy.deepcopy(streams)
    both = streams(given, lengths)
    for hand in ("left", "right"):
        frozen = copy.deepcopy(single)
        alone = frozen({part: given[part] for part in ("body", hand)}, lengths)[hand]
        torch.testing.assert_close(both[hand], alone)
        for part in ("gcn_modules", "fusion_gcn_modules"):   # statistics move on from one hand to the next
            getattr(single, part)[hand].load_state_dict(getattr(frozen, part)[hand].state_dict())
    for a, b in zip(streams.gcn_modules["left"].buffers(), single.gcn_modules["left"].buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_body_does_not_learn_from_hands_and_face():
    streams, given = PartStreams(SMALL).train(), batch([5])
    out = streams(given)
    (out["left"].sum() + out["right"].sum() + out["face_all"].sum()).backward()
    assert all(p.grad is None for name, p in streams.named_parameters() if ".body." in name)
    assert all(p.grad is not None for name, p in streams.named_parameters() if ".body." not in name)


def test_hands_and_face_are_told_about_the_body():
    streams, given = PartStreams(SMALL).eval(), batch([5])
    with torch.no_grad():
        before = streams(given)
        after = streams(given | dict(body=given["body"] + 1))
        without = streams({part: x for part, x in given.items() if part != "body"})
    for part in ("left", "right", "face_all"):
        assert not torch.allclose(before[part], after[part], atol=1e-4) and not torch.allclose(before[part], without[part], atol=1e-4)


@pytest.mark.parametrize("parts", [("body",), ("right",), ("body", "left"), ("face_all", "body"), ("left", "right")])
def test_some_of_the_parts(parts):
    streams = PartStreams(SMALL, parts=parts).train()
    out = streams(batch([4, 4], parts=parts))
    assert set(out) == set(parts) and list(out) == [part for part in GRAPHS if part in parts]
    sum(y.sum() for y in out.values()).backward()
    assert all(p.grad is not None for p in streams.parameters())
    assert set(PartStreams(SMALL)(batch([4, 4], parts=parts))) == set(parts)


def test_more_channels_and_other_sizes():
    streams = PartStreams((6, 10, 24), fusion=1, temporal=3, channels=5).double().train()
    given = batch([6, 3], channels=5, dtype=torch.float64)
    torch.testing.assert_close(streams(given)["left"], plain_streams(copy.deepcopy(streams), given)["left"])
    assert streams.width == 24


@pytest.mark.parametrize("parts", [(), ("body", "foot")])
def test_parts_that_do_not_exist_are_refused(parts):
    with pytest.raises(UserError, match="choose one or more of body, left, right, face_all"):
        PartStreams(SMALL, parts=parts)


# The layers of the axis


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fewer_multiplications_give_the_same_convolution(dtype):
    x, weight = torch.randn(9, 64, 128, dtype=dtype), torch.randn(160, 128, 5, 1, dtype=dtype) / 25
    x[:, :2] = x[:, -2:] = 0
    up = torch.randn(9, 64, 160, dtype=dtype)
    up[:, :2] = up[:, -2:] = 0
    outs = []
    for way, kind in ((convolved, torch.float64), (over_time, dtype)):
        a, b = x.to(kind).requires_grad_(), weight.to(kind).requires_grad_()
        y = way(a, b)
        outs.append([y[:, 2:-2], *torch.autograd.grad(y, (a, b), up.to(kind))])
    for expected, got in zip(*outs, strict=True):
        assert relative(got.double(), expected) < {torch.float32: 3e-6, torch.float64: 1e-13}[dtype]


def test_statistics_keep_their_digits_far_from_zero():
    laid = axes.laid_out([40, 25], 40)
    x = torch.randn(9, len(laid.real), 16) + 300
    norm = nn.BatchNorm2d(16)
    axes.rectified_norm(x, torch.zeros(9, 16), norm, laid)
    exact = x[:, laid.places].flatten(0, 1).double()
    torch.testing.assert_close(norm.running_var.double(), 0.9 + 0.1 * exact.var(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(norm.running_mean.double(), 0.1 * exact.mean(0), rtol=1e-6, atol=0)


# The committed tables


def test_the_committed_tables_of_the_streams_keep_their_promises(project):
    told = {path.stem: pd.read_csv(path) for path in (project / "outputs" / "reference" / "benchmarks").glob("stgcn*.csv")}
    assert {"stgcn", "stgcn_padding", "stgcn_growth"} <= set(told)
    for table in told.values():
        assert (table["rounds"] == 5).all() and (table["peak (GFLOP/s)"] > 0).all()
    steps = told["stgcn"].set_index(["widths", "way"])
    assert set(steps.index.get_level_values("widths")) == {"64-64-128-256", "8-8-16-16"}
    assert (steps["loss, relative difference"].drop("fast, bfloat16", level="way") < 1e-4).all()
    assert (steps["times faster"].xs("fast, float32", level="way") >= 1.25).all()
    assert steps["times faster"]["64-64-128-256", "fast, bfloat16"] >= 2
    for name, table in told["stgcn_padding"].groupby("widths"):
        assert table["way"].iloc[1] == "random order, real frames only" and table["times faster"].iloc[1] >= 1.4, name
    for key, table in told["stgcn_growth"].query("way == 'fast, float32'").groupby(["widths", "against"]):
        *_, half, whole = table["milliseconds"]
        assert whole < 2.4 * half, f"{key}: twice the frames, more than twice the time"
