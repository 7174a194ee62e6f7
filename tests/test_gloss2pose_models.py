"""Gloss to pose: sizes, company and feedback of all models, and the tables of what they cost."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from signbook.corpora.batches import mask
from signbook.errors import UserError
from signbook.gloss2pose import benchmarks
from signbook.gloss2pose.decoders import Guide, TwoWayGRU, turned
from signbook.gloss2pose.encoders import Memory
from signbook.gloss2pose.losses import LossConfig, pose_loss, progress
from signbook.gloss2pose.memory import training_memory
from signbook.gloss2pose.models import BERT_BASE, MODELS, GlossToPose, ModelConfig, frames_of, parameter_counts, parameter_groups, stopped
from signbook.gloss2pose.targets import TARGETS, target
from signbook.layers.recurrent import GatedEncoder

FOLDER = Path(__file__).parents[1] / "outputs" / "reference" / "benchmarks"
SMALL = ModelConfig(embed=16, hidden=24, d_model=32, heads=4, ff=48, encoder_layers=1, decoder_layers=2, bert_layers=1, bert_width=64)
IDS = torch.tensor([[2, 7, 5, 9, 3, 0, 0], [2, 8, 3, 0, 0, 0, 0], [2, 6, 11, 10, 4, 6, 3], [2, 1, 3, 0, 0, 0, 0]])
LENGTHS = torch.tensor([9, 5, 14, 1])
MODES = {
    "feedback": dict(),
    "fixed": dict(attention=False),
    "everything": dict(residual=True, counter=True, noise=0.2),
    "unaligned": dict(aligned=False, counter=True, stop="counter"),
    "parallel": dict(feedback=False),
    "parallel, unaligned": dict(feedback=False, aligned=False, counter=True),
    "parallel, fixed": dict(feedback=False, attention=False),
}
EVERY = pytest.mark.parametrize("name, mode", list(product(MODELS, MODES)))
torch.set_num_threads(1)


def made(name="gru", mode="feedback", **changes):
    torch.manual_seed(0)
    return GlossToPose(replace(SMALL, model=name, **MODES[mode], **changes), 12).eval()


def close(first, second):
    "Equal to 1e-5, of the largest number where that is above 1: residual frames add up."
    return (first - second).abs().max() <= 1e-5 * max(1.0, float(second.abs().max()))


def teacher(frames=14, width=152):
    return torch.randn(len(LENGTHS), frames, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "name, changes, vocabulary, expected",
    [
        ("gru", dict(), 84, (2_912_769, 3_660_185)),
        ("gru", dict(attention=False), 84, (2_912_769, 2_872_728)),
        ("gru", dict(feedback=False), 84, (2_912_769, 1_096_345)),
        ("gru", dict(layers=2), 84, (7_637_505, 3_660_185)),
        ("gru", dict(counter=True), 84, (2_912_769, 3_660_185 + 256 + 512 + 1)),
        ("transformer", dict(), 84, (13_026_817, 16_973_465)),
        ("transformer", dict(feedback=False), 84, (13_026_817, 17_027_225)),
        ("bert", BERT_BASE, 30_522, (109_548_545, 2_611_609)),
        ("bert", dict(feedback=False, **BERT_BASE), 30_522, (109_548_545, 834_201)),
    ],
)
def test_parameters_at_the_sizes_of_the_seed(name, changes, vocabulary, expected):
    assert parameter_counts(ModelConfig(name, **changes), vocabulary) == dict(reader=expected[0], writer=expected[1], all=sum(expected))


@pytest.mark.parametrize("name, feedback", list(product(MODELS, (True, False))))
def test_shapes_at_the_sizes_of_the_seed(name, feedback):
    config = ModelConfig(name, feedback=feedback)
    assert (config.glosses, config.frames, config.embed, config.hidden, target(config.target).width) == (16, 96, 256, 512, 152)
    model, ids = GlossToPose(config, 84).eval(), torch.randint(4, 84, (2, 16))
    with torch.no_grad():
        memory = model.encode(ids, ids > 0)
        found = model(ids, ids > 0, torch.tensor([96, 50]), torch.zeros(2, 96, 152))
    assert memory.states.shape == (2, 16, 1024 if name == "gru" else 512) and memory.pooled.shape == (2, 512)
    assert found.values.shape == (2, 96, 152) and found.counter is None and found.log_length.shape == (2,)


@pytest.mark.parametrize("name", TARGETS)
def test_every_target(name):
    model = made(mode="parallel", target=name)
    values, lengths = model.generate(IDS, IDS > 0)
    assert values.shape == (4, int(lengths.max()), target(name).width)


@EVERY
def test_a_sentence_is_the_same_in_every_company(name, mode):
    model, frames = made(name, mode), teacher()
    with torch.no_grad():
        taught = model(IDS, IDS > 0, LENGTHS, frames)
        free, sizes = model.generate(IDS, IDS > 0)
        told, _ = model.generate(IDS, IDS > 0, LENGTHS)
        for row, length in enumerate(LENGTHS.tolist()):
            ids, inside = IDS[row : row + 1, IDS[row] > 0], torch.ones(1, int((IDS[row] > 0).sum()), dtype=torch.bool)
            alone = model(ids, inside, LENGTHS[row : row + 1], frames[row : row + 1, :length])
            assert close(alone.values[0], taught.values[row, :length]) and close(alone.log_length[0], taught.log_length[row])
            single, size = model.generate(ids, inside)
            assert size[0] == sizes[row] and close(single[0], free[row, : sizes[row]])
            assert close(model.generate(ids, inside, LENGTHS[row : row + 1])[0][0], told[row, :length])
    assert free.shape[1] == sizes.max() and not free[~mask(sizes)].any() and not told[~mask(LENGTHS)].any()
    assert sizes.min() >= 1 and sizes.max() <= SMALL.frames


@EVERY
def test_every_weight_that_learns_gets_a_gradient(name, mode):
    model, frames = made(name, mode).train(), teacher()
    for fed in (None, torch.rand(frames.shape[:2]) < 0.5):
        model.zero_grad()
        found = model(IDS, IDS > 0, LENGTHS, frames, fed)
        inside = mask(LENGTHS)
        batch = dict(values=frames, lengths=LENGTHS, frames=inside, seen=inside[..., None].expand(-1, -1, 76))
        pose_loss(found, batch, target("holistic76x2"), None, LossConfig())[0].backward()
        missing = [key for key, weights in model.named_parameters() if weights.grad is None or not weights.grad.isfinite().all()]
        assert not missing


@pytest.mark.parametrize("name, mode", list(product(MODELS, ("feedback", "fixed", "everything", "unaligned"))))
def test_own_frames_fed_by_a_teacher_give_the_free_run(name, mode):
    model = made(name, mode)
    with torch.no_grad():
        memory, lengths = model.encode(IDS, IDS > 0), torch.full((4,), 14)
        free = model.writer(memory, lengths, 14)
        known = model.writer(memory, lengths, 14, free)
        assert close(known, free)
        fed = torch.rand(4, 14, generator=torch.Generator().manual_seed(2)) < 0.5
        assert close(model.writer(memory, lengths, 14, free, fed), free)
        other = free + torch.randn(free.shape, generator=torch.Generator().manual_seed(3))
        assert close(model.writer(memory, lengths, 14, other, torch.zeros_like(fed)), free)
        assert (model.writer(memory, lengths, 14, other) - free).abs().max() > 1e-3


def test_a_transformer_runs_the_same_with_and_without_gradients():
    model, frames = made("transformer", "everything"), teacher()
    fed = torch.rand(4, 14, generator=torch.Generator().manual_seed(2)) < 0.5
    learning = model(IDS, IDS > 0, LENGTHS, frames, fed)
    with torch.no_grad():
        looking = model(IDS, IDS > 0, LENGTHS, frames, fed)
    assert learning.values.requires_grad and close(learning.values, looking.values)
    model.train()(IDS, IDS > 0, LENGTHS, frames, fed)
    assert all(part.training for part in model.modules())   # the loop without dropout has left no trace


@pytest.mark.parametrize("mode", ["parallel", "parallel, unaligned", "parallel, fixed"])
@pytest.mark.parametrize("name", MODELS)
def test_parallel_models_listen_to_no_teacher(name, mode):
    model = made(name, mode)
    with torch.no_grad():
        first, second = (model(IDS, IDS > 0, LENGTHS, frames).values for frames in (teacher(), teacher() + 1))
        free = model(IDS, IDS > 0, LENGTHS).values
    assert torch.equal(first, second) and torch.equal(first, free)


def test_turned_clips_read_like_packed_ones():
    torch.manual_seed(0)
    two_way, packed, x = TwoWayGRU(6, 5), GatedEncoder(6, 5, 1), torch.randn(4, 14, 6)
    parts = {"": two_way.ahead, "_reverse": two_way.back}
    packed.gru.load_state_dict({key + tail: weights for tail, part in parts.items() for key, weights in part.state_dict().items()})
    assert (two_way(x, LENGTHS) - packed(x, LENGTHS))[mask(LENGTHS)].abs().max() < 1e-6
    assert torch.equal(turned(turned(x, LENGTHS), LENGTHS), x) and torch.equal(turned(x, LENGTHS)[3], x[3])


def test_the_guide_goes_from_left_to_right_and_stays_finite():
    for shares in ([0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.5]):
        memory = Memory(torch.zeros(1, 4, 2), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 2), torch.zeros(1), torch.tensor([shares]))
        bias = Guide()(memory, torch.tensor([96]), 120)
        assert bias.isfinite().all() and (bias.softmax(2).argmax(2)[0, :96].diff() >= 0).all()


def test_counters_stop_and_lengths_stay_within_bounds():
    counter = progress(torch.tensor([5, 14, 3]), 14)
    assert stopped(counter).tolist() == [5, 14, 3] and stopped(counter * 0.9).tolist() == [14, 14, 14]
    assert frames_of(torch.tensor([-9.0, 0.0, 3.0, 99.0]), 96).tolist() == [1, 1, 20, 96]
    model = made(mode="unaligned", frames=20)
    with torch.no_grad():
        model.writer.out.bias[-1] = 9.0   # a counter that has arrived at once
        assert model.generate(IDS, IDS > 0)[1].tolist() == [1] * 4
        model.writer.out.bias[-1] = -9.0   # and one that never does
        assert model.generate(IDS, IDS > 0)[1].tolist() == [20] * 4


def test_noise_is_for_training_and_spares_the_counter():
    model, frames = made(mode="everything"), teacher()
    assert torch.equal(model.taught(frames, LENGTHS)[..., :-1], frames)
    noisy = model.train().taught(frames, LENGTHS)
    assert abs((noisy[..., :-1] - frames).std() - 0.2) < 0.01 and torch.equal(noisy[..., -1], progress(LENGTHS, 14))


def test_frozen_bert_stays_as_it_came():
    model = made("bert", freeze=True).train()
    before = {key: weights.clone() for key, weights in model.state_dict().items()}
    groups = parameter_groups(model)
    optimiser = torch.optim.Adam(groups["rest"], 1e-2)
    model(IDS, IDS > 0, LENGTHS, teacher()).values.square().mean().backward()
    optimiser.step()
    moved = [key for key, weights in model.state_dict().items() if not torch.equal(weights, before[key])]
    assert not groups["bert"] and moved and not [key for key in moved if ".bert." in key]
    assert not model.reader.encoder.bert.training and len(parameter_groups(made("bert"))["bert"]) > 10


def test_mixed_precision_runs_through_all_modes():
    for name, mode in product(MODELS, MODES):
        model = made(name, mode).train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model(IDS, IDS > 0, LENGTHS, teacher(), torch.rand(4, 14) < 0.5)
            values, _ = model.generate(IDS, IDS > 0)
        found.values.float().square().mean().backward()
        assert found.values.isfinite().all() and values.isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_two_sentences_are_learned_by_heart(name):
    torch.manual_seed(0)
    model, ids, lengths = GlossToPose(replace(SMALL, model=name, feedback=False, dropout=0.0), 12), IDS[:2], LENGTHS[:2]
    poses, inside = teacher()[:2, :9], mask(lengths)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        found = model(ids, ids > 0, lengths)
        loss = (found.values - poses)[inside].square().mean() + (found.log_length - lengths.log()).square().mean()
        optimiser.zero_grad(), loss.backward(), nn.utils.clip_grad_norm_(model.parameters(), 1.0), optimiser.step()
    values, sizes = model.eval().generate(ids, ids > 0)
    assert sizes.tolist() == lengths.tolist() and (values - poses)[inside].square().mean() < 0.25


@pytest.mark.parametrize(
    "wrong, field",
    [
        (dict(model="lstm"), "model"),
        (dict(target="holistic"), "target"),
        (dict(stop="never"), "stop"),
        (dict(stop="counter"), "stop"),
        (dict(frames=0), "frames"),
        (dict(d_model=100), "heads"),
        (dict(feedback=False, residual=True), "residual"),
        (dict(feedback=False, noise=0.1), "noise"),
        (dict(feedback=False, counter=True, stop="counter"), "stop"),
        (dict(model="transformer", detach=False), "detach"),
        (dict(freeze=True), "freeze"),
    ],
)
def test_settings_that_do_not_go_together_are_named(wrong, field):
    with pytest.raises(UserError, match=f"^{field}: "):
        ModelConfig(**wrong)


def test_memory_counts_every_kind():
    told = training_memory(replace(SMALL, frames=12), 84, 2)
    weights = 4e-6 * parameter_counts(SMALL, 84)["all"]
    assert told["parameters"] == pytest.approx(weights) == told["gradients"] and told["optimiser"] == pytest.approx(2 * weights)
    assert told["together"] == pytest.approx(4 * weights + told["activations"]) and told["activations"] > 0
    longer = training_memory(replace(SMALL, frames=48), 84, 2)
    assert 2 < longer["activations"] / told["activations"] < 4.5


def table(name):
    found = pd.read_csv(FOLDER / f"{name}.csv")
    assert (FOLDER / f"{name}.md").exists() and found.isna().sum().sum() == 0 and found["rounds"].min() >= 5
    return found


def test_fast_path_table():
    found = table("fast_path").set_index(["timed", "way"])
    assert set(found.index.get_level_values(0)) == {"forward", "forward and backward"}
    for timed in ("forward", "forward and backward"):
        assert found.loc[(timed, "all at once, attention"), "times faster"] >= 8
    assert (found.xs("frame by frame, attention", level=1)[["steps of the loop", "parameters"]] == [96, 3_660_185]).all(axis=None)


def test_padding_table():
    found = table("pose_padding")
    for _, (plain, buckets) in ((key, (rows.iloc[0], rows.iloc[1])) for key, rows in found.groupby("decoder")):
        assert buckets["times faster"] >= 1.4 and plain["frames computed"] == 96 * plain["clips"]
        assert abs(buckets["loss of one batch"] / plain["loss of one batch"] - 1) < 1e-6
        assert buckets["frames computed"] < 1.2 * buckets["real frames"]


def test_cached_table():
    found = table("cached_frames")
    assert found[found["way"] == "keys kept"]["times faster"].min() > 1 and found["largest difference"].max() <= 1e-4


def test_the_benchmark_of_padding_counts_what_it_claims():
    lengths = benchmarks.np.array([9, 20, 11, 7])
    rows = benchmarks.examples(lengths)
    plain, short = (benchmarks.together(rows, frames) for frames in (96, None))
    assert plain["values"].shape == (4, 96, 152) and short["values"].shape == (4, 20, 152)
    assert int(plain["frames"].sum()) == int(short["frames"].sum()) == lengths.sum()
