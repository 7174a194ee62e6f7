"""The ball against geoopt, the hyperboloid against the ball, fast means and distances against plain ones, and what must hold in any space."""

import math
import os
import subprocess
import sys
from functools import cache

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from signbook.errors import UserError
from signbook.layers.hyperbolic_benchmarks import clips, plain_distances, plain_mean, short_mean
from signbook.layers.manifolds import MANIFOLDS, Euclidean, Lorentz, Manifold, Poincare, frechet_step_by_step, manifold_of, newton, rim

gyro = pytest.importorskip("geoopt.manifolds.stereographic.math")
CURVATURES = (0.001, 1.0, 1.5)
TYPES = (torch.float32, torch.float64)
torch.set_num_threads(1)


def tangents(*shape, seed=0, size=1.0, dtype=torch.float64):
    "Vectors at the origin of lengths from nearly 0 to `size`."
    generator = torch.Generator().manual_seed(seed)
    way = torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)
    return (way * size * torch.rand(*shape[:-1], 1, generator=generator, dtype=torch.float64)).to(dtype)


def weights_of(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(0).to(dtype)


def space_of(name, c=1.0, dtype=torch.float64):
    return manifold_of(name, c).to(dtype)


def close(ours, theirs, eps):
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    error = float((ours - theirs).detach().abs().max())
    assert error <= eps, error


# The ball against geoopt


@cache
def pair(c, dtype):
    "The ball, geoopt's k, and two sets of points from the origin to near the rim."
    ball = space_of("poincare", c, dtype)
    x, y = (ball.expmap0(tangents(40, 12, seed=seed, size=2.5 / c**0.5, dtype=dtype)).detach() for seed in (1, 2))
    return ball, -ball.c.detach(), x, y


def matrix(dtype):
    return torch.randn(5, 12, generator=torch.Generator().manual_seed(3)).to(dtype)


OPERATIONS = {
    "logmap0": (lambda m, x, y: m.logmap0(x), lambda k, x, y: gyro.logmap0(x, k=k)),
    "project": (lambda m, x, y: m.project(1.3 * x), lambda k, x, y: gyro.project(1.3 * x, k=k)),
    "dist0": (lambda m, x, y: m.dist0(x), lambda k, x, y: gyro.dist0(x, k=k)),
    "add": (lambda m, x, y: m.add(x, y), lambda k, x, y: gyro.project(gyro.mobius_add(x, y, k=k), k=k)),
    "matvec": (lambda m, x, y: m.matvec(matrix(x.dtype), x), lambda k, x, y: gyro.project(gyro.mobius_matvec(matrix(x.dtype), x, k=k), k=k)),
    "dist": (lambda m, x, y: m.dist(x, y), lambda k, x, y: gyro.dist(x, y, k=k)),
    "pairwise": (lambda m, x, y: m.pairwise(x, y), lambda k, x, y: gyro.dist(x[:, None], y[None], k=k)),
    "midpoint": (
        lambda m, x, y: m.midpoint(x, weights_of(40, 3, dtype=x.dtype).T),
        lambda k, x, y: torch.stack([gyro.weighted_midpoint(x, k=k, weights=w, reducedim=[0], dim=-1) for w in weights_of(40, 3, dtype=x.dtype).T]),
    ),
}


@pytest.mark.parametrize("c", CURVATURES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_ball_agrees_with_geoopt(operation, c):
    "In float64 to rounding, which geoopt's distances magnify near the rim."
    ball, k, x, y = pair(c, torch.float64)
    ours, theirs = (way(space, x, y) for way, space in zip(OPERATIONS[operation], (ball, k)))
    close(ours, theirs, 1e-9 * max(1, float(theirs.abs().max())))


@pytest.mark.parametrize("c", CURVATURES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_ball_agrees_with_geoopt_in_single_precision(operation, c):
    "Both against the truth, which is geoopt in float64 on the same points: we are as near as it is, up to a few roundings."
    ball, k, x, y = pair(c, torch.float32)
    ours, theirs = (way(space, x, y) for way, space in zip(OPERATIONS[operation], (ball, k)))
    assert ours.dtype == theirs.dtype == torch.float32
    if operation in ("project", "add", "matvec"):  # these end on a rim that float64 does not have
        close(ours, theirs, 2e-5 * max(1, float(theirs.abs().max())))
        return
    true = OPERATIONS[operation][1](k.double(), x.double(), y.double())
    error, allowed = ((told.double() - true).abs().max() / true.abs().max() for told in (ours, theirs))
    assert error <= max(float(allowed), 2e-6), (float(error), float(allowed))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("c", CURVATURES)
def test_the_way_onto_the_ball_agrees_with_geoopt(c, dtype):
    ball = space_of("poincare", c, dtype)
    k = -ball.c.detach()
    u = torch.cat([*(tangents(40, 12, size=size / c**0.5, dtype=dtype) for size in (2, 20)), torch.zeros(1, 12, dtype=dtype)])
    close(ball.expmap0(u), gyro.project(gyro.expmap0(u, k=k), k=k), {torch.float32: 1e-6, torch.float64: 1e-12}[dtype] / c**0.5)
    stopped = gyro.expmap0(u, k=k).norm(dim=-1) * c**0.5 > rim(dtype)
    assert torch.equal(ball.beyond(u), stopped) and stopped.any() and not stopped.all()
    assert (ball.dist0(ball.expmap0(u)) * c**0.5).max().item() == pytest.approx(2 * math.atanh(rim(dtype)), rel=1e-3)


@pytest.mark.parametrize("c", CURVATURES)
def test_gradients_agree_with_geoopt(c):
    def gradients(expmap0, dist, total):
        u, v, isp_c = tangents(6, 5, seed=1).requires_grad_(), tangents(7, 5, seed=2).requires_grad_(), Poincare(c).double().isp_c
        k = -torch.nn.functional.softplus(isp_c)
        return torch.autograd.grad(total(dist(expmap0(u, k), expmap0(v, k), k)), (u, v, isp_c))

    def ours(k):
        return type("Given", (Poincare,), dict(c=-k))().double()

    fast = gradients(lambda u, k: ours(k).expmap0(u), lambda x, y, k: ours(k).pairwise(x, y), lambda d: d.square().sum())
    slow = gradients(lambda u, k: gyro.expmap0(u, k=k), lambda x, y, k: gyro.dist(x[:, None], y[None], k=k), lambda d: d.square().sum())
    for one, other in zip(fast, slow):
        close(one, other, 1e-9 * max(1, float(other.abs().max())))


@pytest.mark.parametrize("c", CURVATURES)
def test_the_curvature_is_that_of_geoopt_s_parameter(c):
    geoopt = pytest.importorskip("geoopt")
    ours, theirs = Poincare(c), geoopt.PoincareBall(c=c, learnable=True)
    assert ours.c.item() == pytest.approx(c, rel=2e-7) and ours.isp_c.item() == pytest.approx(theirs.isp_c.item(), rel=1e-4)
    assert dict(ours.named_parameters()).keys() == dict(theirs.named_parameters()).keys() == {"isp_c"}


# The hyperboloid against the ball


def told_in_ball(name, c, what, size, dtype=torch.float64):
    "An operation in one model, its points brought into the ball."
    space = space_of(name, c, dtype)
    x, y, z = (space.expmap0(tangents(4, 9, 6, seed=seed, size=size / c**0.5, dtype=dtype)) for seed in (1, 2, 3))
    return what(space, x, y, z)


ISOMETRIC = {
    "points": lambda m, x, y, z: m.to_ball(x),
    "there and back": lambda m, x, y, z: m.logmap0(x),
    "and back": lambda m, x, y, z: m.to_ball(m.from_ball(m.to_ball(x))),
    "distances from the origin": lambda m, x, y, z: m.dist0(x),
    "distances": lambda m, x, y, z: m.dist(x, y),
    "all distances": lambda m, x, y, z: m.pairwise(x, y),
    "midpoints": lambda m, x, y, z: m.to_ball(m.midpoint(x, weights_of(9, 4, 3, dtype=x.dtype).movedim(0, -1))),
    "means": lambda m, x, y, z: m.to_ball(m.mean(x, weights_of(4, 9, dtype=x.dtype))),
    "sums": lambda m, x, y, z: m.to_ball(m.add(m.add(x, y), z)),
    "maps": lambda m, x, y, z: m.to_ball(m.matvec(torch.ones(3, 6, dtype=x.dtype).tril(), x)),
    "which are stopped": lambda m, x, y, z: m.beyond(m.logmap0(x) * 1.5).to(x.dtype),
}


@pytest.mark.parametrize("size", [0.3, 2.0, 20.0])
@pytest.mark.parametrize("c", CURVATURES)
@pytest.mark.parametrize("what", ISOMETRIC)
def test_the_hyperboloid_is_the_ball(what, c, size):
    ball, sheet = (told_in_ball(name, c, ISOMETRIC[what], size) for name in ("poincare", "lorentz"))
    close(sheet, ball, 1e-6 * max(1, ball.abs().max().item()) if size > 2 else 1e-9 * max(1, ball.abs().max().item()))


@pytest.mark.parametrize("c", CURVATURES)
@pytest.mark.parametrize("what", ["points", "distances", "all distances", "means", "midpoints", "sums"])
def test_the_hyperboloid_is_the_ball_in_single_precision(what, c):
    ball, sheet = (told_in_ball(name, c, ISOMETRIC[what], 1.5, torch.float32) for name in ("poincare", "lorentz"))
    close(sheet, ball, 2e-5 * max(1, ball.abs().max().item()))


@pytest.mark.parametrize("what", [what for what in ISOMETRIC if what != "which are stopped"])
def test_flat_space_is_the_limit(what):
    near, flat = (told_in_ball(name, c, ISOMETRIC[what], size) for name, c, size in (("poincare", 1e-8, 1e-4), ("euclidean", 1.0, 1.0)))
    close(near, flat, 1e-6)


def test_all_spaces_have_the_same_parameters():
    assert len({tuple((name, one.shape) for name, one in kind(2.0).named_parameters()) for kind in MANIFOLDS.values()}) == 1
    assert set(MANIFOLDS) == {"poincare", "euclidean", "lorentz"} and Euclidean(1.5).c == 0 and not Poincare(1.0, trainable=False).isp_c.requires_grad


# What must hold in any space

seeds, sizes = st.integers(0, 10**6), st.floats(0.01, 3.0)
names = st.sampled_from(sorted(MANIFOLDS))


@settings(max_examples=40, deadline=None)
@given(names, seeds, sizes)
def test_distances_are_distances(name, seed, size):
    space = space_of(name, 1.3)
    x = space.expmap0(tangents(8, 4, seed=seed, size=size))
    d = space.pairwise(x, x).detach()
    assert (d >= 0).all() and (d.diagonal() < 1e-4).all() and (d - d.T).abs().max() < 1e-9
    assert (d[:, None] <= d[:, :, None] + d[None] + 1e-6).all(), "no way around is shorter"
    close(space.dist(x[:, None], x[None]).detach(), d, 1e-4)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["poincare", "lorentz"]), seeds, st.floats(0.01, 1.5))
def test_carrying_and_turning_change_no_distance(name, seed, size):
    space = space_of(name, 0.8)
    x, y, a = (space.expmap0(tangents(5, 4, seed=seed + one, size=size)) for one in range(3))
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    close(space.dist(space.add(a[0], x), space.add(a[0], y)), space.dist(x, y), 1e-6)
    close(space.dist(space.matvec(turn, x), space.matvec(turn, y)), space.dist(x, y), 1e-6)
    close(space.add(space.add(-a, a), x), x, 1e-6 * (x.norm(dim=-1).max().item() + 1))


@settings(max_examples=40, deadline=None)
@given(names, seeds, sizes, st.integers(1, 7))
def test_the_mean_is_the_minimum_and_knows_no_order(name, seed, size, count):
    space = space_of(name, 1.3)
    points, weights = space.expmap0(tangents(count, 3, 5, seed=seed, size=size)).detach(), weights_of(count, 3, seed=seed)
    mean = space.mean(points, weights).detach().requires_grad_()

    def cost(place):
        return (weights * space.dist(place, points).square()).sum(0)

    gradient = torch.autograd.grad(cost(mean).sum(), mean)[0]
    metric = 2 / (1 - 1.3 * mean.square().sum(-1, keepdim=True)) if name == "poincare" else 2
    assert (gradient / metric).abs().max() < 1e-5, "no way down"
    around = space.expmap0(space.logmap0(mean.detach()) + 1e-2 * tangents(20, 3, 5, seed=seed))
    for place in around:
        assert (cost(place) >= cost(mean) - 1e-12).all()
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    close(space.mean(points[order], weights[order]), mean.detach(), 1e-7 * (1 + float(mean.abs().max())))
    close(space.mean(points, 5 * weights), mean.detach(), 1e-7 * (1 + float(mean.abs().max())))


@pytest.mark.parametrize("name", sorted(MANIFOLDS))
def test_means_of_one_of_two_and_of_equal_points(name):
    space = space_of(name, 1.5, torch.float32)
    x, y = space.expmap0(tangents(2, 3, 5, dtype=torch.float32)).detach()
    one = torch.ones(1, 3)
    close(space.mean(x[None], one), x, 1e-6)
    close(space.mean(torch.stack([x, x, x, x]), torch.rand(4, 3)), x, 1e-6)
    close(space.mean(torch.stack([x, y]), torch.cat([one, 0 * one])), x, 1e-6)
    half = space.mean(torch.stack([x, y]), torch.cat([one, one]))
    close(space.dist(half, x), space.dist(x, y) / 2, 1e-5)
    close(space.midpoint(torch.stack([x, y], 1), torch.ones(3, 1, 2))[:, 0], half, 1e-6)


@pytest.mark.parametrize("dtype,steps,far", [(torch.float32, 5, 6.22), (torch.float64, 9, 12.2)])
def test_the_steps_are_enough_up_to_the_rim(dtype, steps, far):
    "Random configurations in 1, 2, 3 and 8 dimensions, a third of the points on the rim, weights from equal to one-sided."
    generator = torch.Generator().manual_seed(0)
    ball = space_of("poincare", 1.0, dtype)
    for dim in (1, 2, 3, 8):
        way = torch.nn.functional.normalize(torch.randn(4000, 4, dim, generator=generator, dtype=torch.float64), dim=-1)
        out = (far / 2 * 1.5 * torch.rand(4000, 4, 1, generator=generator, dtype=torch.float64)).clamp(max=far / 2)
        points = ball.expmap0((way * out).to(dtype)).transpose(0, 1)
        weights = (8 * torch.rand(4, 4000, generator=generator, dtype=torch.float64)).softmax(0)
        with torch.no_grad():
            x = points.double().transpose(0, 1)
            gaps = ball.double().gaps(x, x)
            few, many = (newton(gaps, weights.T[..., None], count) for count in (steps, 30))
            error = torch.bmm((few - many).mT, torch.bmm(gaps + 1, few - many)).abs().sqrt().max()
        assert error < 1e-5, (dim, float(error))


def test_at_the_rim_steps_of_length_one_are_lost_and_the_mean_is_not():
    ball = Poincare(1.0)
    points = ball.expmap0(3.1 * torch.eye(4, 6))[:, None]
    weights = torch.full((4, 1), 0.25)
    lost, steps = frechet_step_by_step(points, weights, ball.c)
    mean = ball.mean(points, weights)

    def cost(place):
        return float((weights * ball.dist(place, points) ** 2).sum())

    assert steps == 50 and cost(lost) > 1.5 * cost(mean)
    assert (mean[0, :4] - mean[0, 0]).abs().max() < 1e-6 and mean[0, 4:].abs().max() < 1e-6, "four equal corners: the mean is in the middle"


# Fast against plain


@pytest.mark.parametrize("c", [1.0, 1.5])
def test_the_fast_mean_is_the_plain_mean_in_256_dimensions(c):
    ball, parts, _ = clips(8, c=c)
    assert (plain_mean(ball, parts) - short_mean(ball, parts)).abs().max() < 1e-4


def given_c(kind, isp_c):
    "A manifold whose curvature comes from a tensor, for gradients by it."
    space = kind(1.0).double()
    del space.isp_c
    space.isp_c = isp_c
    return space


@pytest.mark.parametrize("kind", [Poincare, Lorentz])
def test_gradcheck_of_means_midpoints_and_distances(kind):
    u, v = tangents(4, 2, 3, seed=1).requires_grad_(), tangents(2, 3, 3, seed=2).requires_grad_()
    w, isp_c = weights_of(4, 2).requires_grad_(), torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    check = torch.autograd.gradcheck
    assert check(lambda u, w, isp_c: (s := given_c(kind, isp_c)).mean(s.expmap0(u), w), (u, w, isp_c))
    assert check(lambda u, v, isp_c: (s := given_c(kind, isp_c)).pairwise(s.expmap0(u.transpose(0, 1)), s.expmap0(v)), (u, v, isp_c))
    assert check(lambda v, w, isp_c: (s := given_c(kind, isp_c)).midpoint(s.expmap0(v), w[:3].T[:, None]), (v, w, isp_c))
    assert check(lambda u, v, isp_c: (s := given_c(kind, isp_c)).add(s.expmap0(u[:2, :, None]), s.expmap0(v)), (u, v, isp_c))


@pytest.mark.parametrize("c", [0.001, 1.0])
def test_gradients_of_the_fast_mean_are_those_through_the_plain_loop(c):
    ball = space_of("poincare", c)
    points = ball.expmap0(tangents(4, 3, 5, size=0.7)).detach().requires_grad_()
    seen = tangents(3, 5, seed=9)

    def gradients(mean_of):
        weights = (-ball.dist0(points)).softmax(0)
        return torch.autograd.grad((mean_of(points, weights) * seen).sum(), (points, ball.isp_c))

    fast, slow = gradients(ball.mean), gradients(lambda x, w: frechet_step_by_step(x, w, ball.c, 400, 1e-13)[0])
    for one, other in zip(fast, slow):
        close(one, other, 1e-8)


@pytest.mark.parametrize("c", CURVATURES)
def test_gradients_of_the_fast_distances_are_those_of_the_plain_ones(c):
    ball = space_of("poincare", c)
    x, y = (ball.expmap0(tangents(6, 5, seed=seed)).detach().requires_grad_() for seed in (1, 2))
    fast, slow = (torch.autograd.grad(way.square().sum(), (x, y, ball.isp_c)) for way in (ball.pairwise(x, y), plain_distances(ball, x, y)))
    for one, other in zip(fast, slow):
        close(one, other, 1e-9 * max(1, float(other.abs().max())))


# Precision


@pytest.mark.parametrize("name", ["poincare", "lorentz"])
def test_neighbours_are_told_apart(name):
    "Two points 1e-4 apart, 2 from the origin: inner products in single precision would find them equal or 1e-3 apart."
    space, wide = space_of(name, 1.0, torch.float32), space_of(name, 1.0)
    x = space.expmap0(torch.nn.functional.normalize(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)), dim=-1)).detach()
    y = x + 2e-5 * torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
    true = wide.dist(x.double(), y.double())
    assert ((space.pairwise(x, y).diagonal() - true) / true).abs().max() < 1e-5


def test_equal_points_have_finite_gradients():
    for name in MANIFOLDS:
        space = space_of(name, 1.0, torch.float32)
        u = torch.ones(4, 2, 3).requires_grad_()
        x = space.expmap0(u)
        far = space.pairwise(x[0], x[1]).sum() + space.dist(x[0], x[1]).sum() + space.dist0(space.expmap0(0 * u)).sum()
        (far + space.mean(x, torch.ones(4, 2)).sum() + space.midpoint(x, torch.ones(4, 1, 2)).sum()).backward()
        assert u.grad.isfinite().all(), name


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", sorted(MANIFOLDS))
def test_what_is_no_number_stays_none(name, bad):
    space = space_of(name, 1.0, torch.float32)
    u = tangents(4, 3, 5, dtype=torch.float32)
    u[2, 1, 4] = bad
    x = space.expmap0(u)
    for told in (space.mean(x, torch.ones(4, 3)), space.dist(x[2], x[0])[:, None], space.dist0(x[2])[:, None], space.pairwise(x[2], x[0])):
        assert told.isfinite().all(-1).tolist() == [True, False, True]
    assert not space.midpoint(x[2], torch.ones(1, 3)).isfinite().all()


def test_errors_name_what_was_expected():
    with pytest.raises(UserError, match="poincare.*euclidean.*lorentz.*'sphere'"):
        manifold_of("sphere")
    for c in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match="curvature: expected a positive number"):
            Manifold(c)


# No questions to the device


class Deaf(TorchDispatchMode):
    "Refuses every operation that reads a value back from the device."

    ASKING = ("_local_scalar_dense", "nonzero", "equal.default", "is_nonzero", "masked_select", "unique", "item")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert not any(word in str(function) for word in self.ASKING), f"{function} waits for the device"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(MANIFOLDS))
def test_nothing_is_read_back_from_the_device(name):
    space = manifold_of(name, 1.5)
    with Deaf():
        u = torch.ones(4, 3, 5, requires_grad=True) * torch.arange(5.0)
        x = space.expmap0(u)
        mean = space.mean(x, space.dist0(x).softmax(0))
        keys = space.add(space.matvec(torch.eye(5), x), space.from_ball(torch.zeros(5)))
        out = space.pairwise(mean, mean).sum() + space.midpoint(keys, torch.ones(4, 2, 3)).sum() + space.beyond(space.logmap0(x)).sum()
        out.backward()


def test_the_plain_loop_does_ask():
    with pytest.raises((AssertionError, RuntimeError)), Deaf():
        frechet_step_by_step(torch.rand(4, 3, 5) / 5, torch.ones(4, 3) / 4, torch.tensor(1.0))


@pytest.mark.parametrize("name", sorted(MANIFOLDS))
def test_shapes_follow_without_numbers(name):
    "On a device that holds no values at all, so that nothing can depend on one."
    space = manifold_of(name, 1.5).to("meta")
    x = space.expmap0(torch.empty(4, 3, 5, device="meta"))
    assert space.mean(x, space.dist0(x).softmax(0)).shape == (3, 5)
    assert space.midpoint(x, torch.empty(4, 2, 3, device="meta")).shape == (4, 2, 5) and space.pairwise(x, x).shape == (4, 3, 3)


class Largest(TorchDispatchMode):
    "Notes the largest tensor that is made."

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor) and "expand" not in str(function):
                self.numbers = max(self.numbers, one.numel())
        return out


def test_no_tensor_of_all_differences():
    x, y = torch.randn(2, 40, 64) / 20
    with Largest() as ours:
        Poincare(1.0).pairwise(x, y)
    with Largest() as plain:
        plain_distances(Poincare(1.0), x, y)
    assert ours.numbers == 40 * 64 and plain.numbers == 40 * 40 * 64


# The benchmarks


def test_the_committed_tables_keep_their_promises(project):
    told = {name: pd.read_csv(project / "outputs" / "reference" / "benchmarks" / f"{name}.csv")
            for name in ("frechet", "pair_loss", "frechet_and_pair_loss", "token_reading")}  # fmt: skip
    for table in told.values():
        assert {*table.clips} == {8, 32, 128} and {*table.c} == {1.0, 1.5} and (table.rounds >= 5).all()
    both = told["frechet_and_pair_loss"]
    assert both[both.way == "inner products"]["times faster"].min() >= 5
    assert told["frechet"].difference.max() <= 1e-4 and both.difference.max() <= 1e-5
    pairs = told["pair_loss"]
    assert (pairs[(pairs.way == "plain") & (pairs.clips == 128)]["largest tensor"] == 128 * 128 * 256).all()


def test_a_benchmark_runs_as_a_program(tmp_path):
    code = (
        "from functools import partial; from signbook.corpora.benchmarks import command; from signbook.layers import hyperbolic_benchmarks as made;"
        "command({'frechet': partial(made.frechet, counts=(2,), rounds=1)}, 'x', ['frechet', '--output', '.'])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert (tmp_path / "frechet.md").read_text() == done.stdout and os.uname().nodename not in done.stdout
