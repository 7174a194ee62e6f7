"""Features on clips that nobody wants: no hands, one frame, another unit, another layout."""
from dataclasses import replace

import numpy as np
import pytest

from signbook.errors import UserError
from signbook.poses.clips import Clip
from signbook.poses.features import KINDS, columns, features, hand_shape
from signbook.poses.skeletons import holistic75

EVERYTHING = '+'.join(KINDS)


def made(frames: int = 12, seed: int = 0) -> Clip:
    rng = np.random.default_rng(seed)
    points = np.cumsum(.02*rng.standard_normal((frames, 75, 3)), 0).astype(np.float32) + rng.standard_normal((75, 3)).astype(np.float32)
    points[:, 11], points[:, 12] = (.5, 0, 0), (-.5, 0, 0)
    return Clip(points, np.ones((frames, 75), np.float32), 'holistic75', 25.0)


@pytest.mark.parametrize('frames', [1, 2, 12])
def test_every_description_is_finite_and_named(frames):
    clip = made(frames)
    for hidden in ([], holistic75.indices('left_hand'), np.r_[33:75], np.r_[0:11, 13:75]):
        clip.confidence[:] = 1
        clip.confidence[:, hidden] = 0
        array = features(clip, EVERYTHING)
        assert array.shape == (frames, len(columns(EVERYTHING))) and array.dtype == np.float32 and np.isfinite(array).all()


def test_a_hand_that_is_not_seen_leaves_no_trace():
    clip, other = made(), made()
    clip.confidence[:, 33:54] = other.confidence[:, 33:54] = 0
    other.points[:, 33:54] = 1e6
    assert np.array_equal(features(clip, EVERYTHING), features(other, EVERYTHING))
    names = columns('relative+shape')
    left = [i for i, name in enumerate(names) if 'left' in name]
    assert not features(clip, 'relative+shape')[:, left].any()


def test_unit_and_place_of_the_recording_do_not_matter():
    clip = made()
    moved = replace(clip, points=clip.points*130 + np.float32([300, 240, 5]))
    assert np.allclose(features(clip, EVERYTHING), features(moved, EVERYTHING), atol=2e-3)


def test_a_point_that_appears_has_no_speed():
    clip = made()
    clip.confidence[:6, 54:] = 0
    names = columns('points+relative')
    moving = [i for i, name in enumerate(names) if name.startswith(('velocity_right_hand', 'change_right'))]
    array = features(clip, 'points+relative')[:, moving]
    assert not array[6].any() and array[7].any()


def test_a_hand_shrunk_to_a_point_is_finite():
    assert np.isfinite(hand_shape(np.zeros((3, 21, 2), np.float32), 1e-6)).all()


def test_other_layouts_and_undeclared_kinds_are_refused():
    with pytest.raises(UserError, match='skels50'): features(replace(made(), layout='skels50', points=np.zeros((12, 50, 3), np.float32)))
    for kind in ('', 'points+', 'shape,relative'):
        with pytest.raises(UserError, match='not declared'): features(made(), kind)


