"""Losses of made signing: what must not matter does not, on every target; and draws that can be repeated."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from signbook.errors import UserError
from signbook.gloss2pose.losses import (
    LossConfig,
    Unit,
    counted,
    draws_of,
    fed_frames,
    mean_difference,
    pose_loss,
    progress,
    rigid_bones,
    teacher_share,
    unit_of,
)
from signbook.gloss2pose.targets import TARGETS, Normaliser, target

EVERY = LossConfig(velocity=1.0, acceleration=0.3, bones=0.5, shapes=0.5)
CONFIGS = {
    "pose": LossConfig(),
    "velocity": LossConfig(velocity=1),
    "acceleration": LossConfig(acceleration=1),
    "bones": LossConfig(bones=1),
    "bones in the same frame": LossConfig(bones=1, bone_length="frame"),
    "shapes": LossConfig(shapes=1),
    "all": EVERY,
}


def example(name, seed=0, frames=9):
    "A batch of four clips, one of a single frame and one of which nothing is seen, an answer and a unit."
    generator = torch.Generator().manual_seed(seed)
    what, lengths = target(name), torch.tensor([frames, 5, 1, 4])
    shape = (4, frames, what.width)
    seen = torch.rand((4, frames, len(what)), generator=generator) < 0.8
    seen[3] = False
    real = torch.arange(frames) < lengths[:, None]
    batch = dict(values=torch.randn(shape, generator=generator), seen=seen, frames=real, lengths=lengths)
    made = SimpleNamespace(
        values=torch.randn(shape, generator=generator),
        counter=torch.rand((4, frames), generator=generator),
        log_length=torch.rand(4, generator=generator),
    )
    deviation = torch.rand(what.width, generator=generator) + 0.1
    return made, batch, what, Unit(torch.randn(what.width, generator=generator), deviation, 0.05, 0.02)


def loss_and_slope(made, batch, what, unit, config):
    made = SimpleNamespace(**vars(made))
    made.values = made.values.clone().requires_grad_()
    loss, terms = pose_loss(made, batch, what, unit, config)
    loss.backward()
    return loss.detach(), made.values.grad, terms


def hole_of(batch, what):
    return ~counted(batch["seen"], batch["frames"]).repeat_interleave(len(what.axes), -1)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("name", TARGETS)
def test_padding_and_lost_points_are_in_no_masked_loss(name, config):
    made, batch, what, unit = example(name)
    hole = hole_of(batch, what)
    loss, slope, terms = loss_and_slope(made, batch, what, unit, config)
    assert torch.isfinite(loss) and torch.isfinite(slope).all() and all(torch.isfinite(term) for term in terms.values())
    assert (slope[hole] == 0).all() and slope[~hole].any()
    for spoil in (0.0, -1e7, torch.nan, -torch.inf):
        other, spoilt = SimpleNamespace(**vars(made)), dict(batch, values=batch["values"].clone())
        other.values, other.counter = made.values.clone(), made.counter.clone()
        other.values[hole], spoilt["values"][hole] = spoil, -spoil
        other.counter[~batch["frames"]] = spoil
        again, same, _ = loss_and_slope(other, spoilt, what, unit, config)
        assert torch.equal(again, loss) and torch.equal(same, slope)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_more_padding_is_the_same_loss(config):
    made, batch, what, unit = example("holistic76x2")
    loss, slope, _ = loss_and_slope(made, batch, what, unit, config)

    def longer(x):
        return torch.cat([x, torch.ones_like(x[:, :3])], 1)

    wide = SimpleNamespace(values=longer(made.values), counter=longer(made.counter), log_length=made.log_length)
    padded = dict(batch, values=longer(batch["values"]), seen=longer(batch["seen"]), frames=longer(batch["frames"]) & False)
    padded["frames"][:, :9] = batch["frames"]
    again, same, _ = loss_and_slope(wide, padded, what, unit, config)
    assert torch.allclose(again, loss, rtol=1e-6) and torch.allclose(same[:, :9], slope, rtol=1e-5, atol=1e-8) and not same[:, 9:].any()


def test_the_seed_learns_its_padding():
    made, batch, what, unit = example("holistic76x2")
    hole = hole_of(batch, what)
    loss, slope, terms = loss_and_slope(made, batch, what, unit, LossConfig(masked=False))
    assert slope[hole].any()
    zeroed = torch.where(hole, 0, batch["values"])
    assert torch.isclose(terms["pose"], ((made.values - zeroed) ** 2).mean())
    assert loss > terms["pose"]


def test_the_slope_is_the_slope():
    made, batch, what, unit = example("skels50x3", seed=3)
    _, slope, _ = loss_and_slope(made, batch, what, unit, EVERY)
    direction = torch.randn(made.values.shape, generator=torch.Generator().manual_seed(1))

    def at(size):
        moved = SimpleNamespace(values=(made.values + size * direction), counter=made.counter, log_length=made.log_length)
        return pose_loss(moved, batch, what, unit, EVERY)[0]

    assert float((at(1e-2) - at(-1e-2)) / 2e-2) == pytest.approx(float((slope * direction).sum()), rel=2e-2)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_losses_are_float32_whatever_surrounds_them(precision):
    made, batch, what, unit = example("holistic76x2")
    half = SimpleNamespace(**{name: value.to(precision) for name, value in vars(made).items()})
    wide = SimpleNamespace(**{name: value.float() for name, value in vars(half).items()})
    with torch.autocast("cpu", torch.bfloat16):
        loss, terms = pose_loss(half, batch, what, unit, EVERY)
    assert loss.dtype == torch.float32 and {term.dtype for term in terms.values()} == {torch.float32}
    assert torch.equal(loss, pose_loss(wide, batch, what, unit, EVERY)[0])


def test_a_perfect_answer_costs_nothing_but_bent_bones():
    made, batch, what, unit = example("holistic75x3")
    made.values = batch["values"]
    made.counter, made.log_length = progress(batch["lengths"], 9), batch["lengths"].float().log()
    perfect = LossConfig(velocity=1, acceleration=1, bones=1, shapes=1, bone_length="frame")
    assert pose_loss(made, batch, what, unit, perfect)[0] == 0
    assert pose_loss(made, batch, what, unit, LossConfig(bones=1))[1]["bones"] > 0


def test_hands_weigh_more_and_the_loss_keeps_its_size():
    made, batch, what, unit = example("holistic76x2")
    hands = np.concatenate([what.parts["left_hand"], what.parts["right_hand"]])
    slopes = {hand: loss_and_slope(made, batch, what, unit, LossConfig(hands=hand))[1].reshape(4, 9, 76, 2) for hand in (1.0, 2.0)}
    body = np.setdiff1d(np.arange(76), hands)
    ratio = slopes[2.0].abs().sum((0, 1, 3)) / slopes[1.0].abs().sum((0, 1, 3))
    assert torch.allclose(ratio[hands], 2 * ratio[body][0], rtol=1e-4) and ratio[body][0] < 1 < ratio[hands][0]
    made.values = batch["values"] + 1
    assert {round(float(pose_loss(made, batch, what, None, LossConfig(hands=hand))[1]["pose"]), 5) for hand in (0.5, 1, 3)} == {1.0}


def test_only_bones_that_keep_their_length():
    for name, what in TARGETS.items():
        bones = {tuple(bone) for bone in rigid_bones(what).T.tolist()}
        assert bones <= set(what.bones)
        arms = [bone for bone in bones if any("elbow" in what.points[end] for end in bone)]
        assert bool(arms) == (len(what.axes) == 3), name
        assert sum(set(bone) <= set(what.parts["left_hand"].tolist()) for bone in bones) == 20


def test_the_unit_of_a_corpus():
    generator = np.random.default_rng(0)
    values = [generator.normal(size=(length, 8)).cumsum(0).astype(np.float32) for length in (1, 2, 7)]
    seen = [generator.random((len(rows), 4)) < 0.7 for rows in values]
    sizes = [
        abs(rows[t + 1, 2 * v + c] - rows[t, 2 * v + c])
        for rows, real in zip(values, seen)
        for t in range(len(rows) - 1)
        for v in range(4)
        for c in range(2)
        if real[t, v] and real[t + 1, v]
    ]
    assert mean_difference(values, seen, 1) == pytest.approx(np.mean(sizes), rel=1e-5)
    scale = Normaliser.fit(values, seen)
    unit = unit_of(values, seen, scale)
    assert torch.allclose(unit.body(torch.from_numpy(scale(values[2]))), torch.from_numpy(values[2]), atol=1e-5)
    still = unit_of([np.ones((3, 8), np.float32)], [np.ones((3, 4), bool)], scale)
    assert 0 < still.speed < 1e-5 and 0 < still.acceleration < 1e-5  # nothing is ever divided by 0


def test_bad_settings_are_named():
    for name in ("hands", "velocity", "acceleration", "bones", "shapes", "length", "counting"):
        for value in (-0.1, float("nan"), float("inf")):
            with pytest.raises(UserError, match=name):
                LossConfig(**{name: value})
    for call in (lambda: teacher_share(0, "half"), lambda: teacher_share(0, schedule="sudden"), lambda: LossConfig(bone_length="mean")):
        with pytest.raises(UserError, match="choose one"):
            call()
    made, batch, what, _ = example("holistic75x2")
    with pytest.raises(UserError, match="unit"):
        pose_loss(made, batch, what, None, LossConfig(bones=0.1))


def test_schedules_fall_and_stay_probabilities():
    for schedule in ("inverse_sigmoid", "linear"):
        shares = [teacher_share(done, schedule=schedule) for done in np.linspace(-1, 2, 40)]
        assert all(0 <= b <= a <= 1 for a, b in zip(shares, shares[1:]))
    assert teacher_share(1, schedule="linear", least=0.1) == pytest.approx(0.1)
    assert teacher_share(0.5, k=20) > teacher_share(0.5, k=5)


def test_every_frame_is_drawn_for_itself():
    drawn = torch.stack([fed_frames(0.5, (32, 96), draws_of(1, epoch, number)) for epoch in range(3) for number in range(4)]).float()
    shares = drawn.mean((2, 1))
    assert (shares - 0.5).abs().max() < 0.05  # no batch is all teacher or all free
    assert (drawn.mean(2) - 0.5).abs().max() < 0.25 and drawn.mean(2).std() > 0.02  # nor is any clip
    neighbours = ((drawn[:, :, 1:] - 0.5) * (drawn[:, :, :-1] - 0.5)).mean() / 0.25
    assert abs(neighbours) < 0.02
    assert torch.equal(drawn[5], fed_frames(0.5, (32, 96), draws_of(1, 1, 1)).float())
    assert not torch.equal(fed_frames(0.5, (32, 96), draws_of(1, 1, 2)), fed_frames(0.5, (32, 96), draws_of(1, 2, 1)))
