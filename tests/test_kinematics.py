"Kinematics where a chapter cell is the wrong place: every parameter's gradient, many poses, other shapes and precisions."
import numpy as np
import pytest
import torch

from signbook.errors import UserError
from signbook.poses.kinematics import LANDMARKS, PARAMETERS, PARENTS, SLICES, chosen, landmarks, points_of, rotations
from signbook.poses.skeletons import LAYOUTS, layout


def test_gradients_reach_every_parameter_that_does_something():
    parameters = (.4*torch.randn(3, PARAMETERS, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    landmarks(parameters).square().sum().backward()
    moved = parameters.grad.abs().sum(0) > 0
    idle = [SLICES['expression'].start + i for i in range(6, 10)]
    assert not moved[idle].any()
    assert moved[[i for i in range(PARAMETERS) if i not in idle]].all()
    assert torch.isfinite(parameters.grad).all()


def test_gradient_is_finite_and_right_at_the_zero_pose():
    zero = torch.zeros(PARAMETERS, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(len(LANDMARKS), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (landmarks(zero)*weights).sum().backward()
    for i in (0, 50, 70, 120, 157, 160, 170):
        step = torch.zeros(PARAMETERS, dtype=torch.float64)
        step[i] = 1e-6
        slope = ((landmarks(step) - landmarks(-step))*weights).sum()/2e-6
        assert abs(slope - zero.grad[i]) < 1e-7


@pytest.mark.parametrize('size', [0, 1e-9, 1e-4, 1e-2, .0101, 3.1, 6.2])
def test_rotations_are_rotations_on_both_sides_of_the_series(size):
    axis = torch.tensor([.6, -.64, .48], dtype=torch.float64)
    R = rotations(axis*size)
    assert torch.allclose(R @ R.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(R @ axis, axis, atol=1e-12)
    assert abs((R.trace() - 1)/2 - np.cos(size)) < 1e-12


def test_turning_the_root_turns_the_body():
    g = torch.Generator().manual_seed(2)
    posed = .3*torch.randn(20, PARAMETERS, dtype=torch.float64, generator=g)
    posed[:, :3] = 0
    turned = posed.clone()
    turned[:, :3] = torch.randn(20, 3, dtype=torch.float64, generator=g)
    Q = rotations(turned[:, :3].T).permute(2, 0, 1)
    assert torch.allclose(landmarks(turned), landmarks(posed) @ Q.transpose(1, 2), atol=1e-12)


def test_bones_keep_their_length_in_every_pose():
    rng = np.random.default_rng(3)
    joints = points_of(rng.normal(0, .5, (50, PARAMETERS))*(np.arange(PARAMETERS) < 159), 'smplx55')
    child = np.arange(1, 55)
    length = np.linalg.norm(joints[:, child] - joints[:, np.array(PARENTS)[child]], axis=-1)
    assert np.ptp(length, axis=0).max() < 1e-12 and length.min() > .005


def test_shapes_batches_and_precisions():
    parameters = torch.zeros(2, 5, PARAMETERS)
    assert landmarks(parameters).shape == (2, 5, len(LANDMARKS), 3) and landmarks(parameters).dtype == torch.float32
    assert points_of(np.zeros((0, PARAMETERS))).shape == (0, 75, 3)
    with pytest.raises(UserError, match='expected 179'): landmarks(torch.zeros(4, 133))


@pytest.mark.parametrize('name', LAYOUTS)
def test_rest_pose_is_symmetric_in_every_layout(name):
    points = points_of(np.zeros((1, PARAMETERS)), name)[0]
    mirrored = points[list(layout(name).mirror)]*(-1, 1, 1)
    assert np.abs(points - mirrored).max() < 1e-9 and chosen(name).max() < len(LANDMARKS)
    left, right = layout(name).shoulders
    assert points[left, 0] > 0 > points[right, 0]
