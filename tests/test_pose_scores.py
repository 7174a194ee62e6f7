"""Stress for the pose scores: public values, the definitions on random inputs, what each convention promises, hostile inputs."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from signbook.errors import UserError
from signbook.scores import alignment, distributions, metatests, motions, movement, pose, procrustes

PARITY = os.environ.get('SIGNBOOK_PARITY', '')
needs_parity = pytest.mark.skipif(not PARITY, reason='SIGNBOOK_PARITY is not set: no parity numbers in reach')
CONVENTIONS, ALIGNED = alignment.CONVENTIONS, alignment.ALIGNED


@pytest.fixture(scope='module')
def soke():
    """Joints and values that the public implementation of SOKE gave."""
    from safetensors.numpy import load_file

    folder = Path(PARITY)/'soke'
    return load_file(folder/'metrics.safetensors'), json.loads((folder/'metrics.json').read_text(encoding='utf-8'))


@needs_parity
def test_soke_parity_of_time_warped_scores(soke):
    arrays, wanted = soke
    A, B = arrays['dtw.A'], arrays['dtw.B']
    hand = slice(25, 46)      # which of the 144 joints stood in for a hand; found by the first cost of the hand
    body, small = motions.SMPLX_BODY, motions.SMPLX_HAND
    ours = dict(body_jpe=alignment.dtw_jpe(A, B, body), body_pa=alignment.dtw_pa_jpe(A, B, body),
                hand_jpe=alignment.dtw_jpe(A[:, hand], B[:, hand], small), hand_pa=alignment.dtw_pa_jpe(A[:, hand], B[:, hand], small),
                plain=alignment.dtw(A[:, hand], B[:, hand], small, 'none'))
    for name, value in ours.items(): assert value[0] == pytest.approx(wanted[f'dtw.{name}'], rel=1e-6), name
    pa = alignment.frame_costs(motions.motion(A[:, hand]), motions.motion(B[:, hand]), small, 'similarity')
    assert pa[0, 0] == pytest.approx(wanted['dtw.cost00_pa'], rel=1e-6)
    costs = alignment.frame_costs(motions.motion(A[:, hand]), motions.motion(B[:, hand]), small, 'root')
    assert np.array_equal(alignment.path(costs).T, [arrays['dtw.path.0'], arrays['dtw.path.1']])


@needs_parity
def test_soke_parity_of_procrustes(soke):
    arrays, _ = soke
    for name in ('rigid', 'rigid_reflect'):
        ours = np.stack([procrustes.moved(p, q) for p, q in zip(arrays[f'{name}.P'].astype(float), arrays[f'{name}.Q'].astype(float))])
        for made in ('np', 'torch'):
            there = arrays[f'{name}.{made}']
            assert np.linalg.norm(ours - there)/np.linalg.norm(there) < 1e-6


@needs_parity
def test_soke_parity_of_joint_tables(soke):
    _, wanted = soke
    assert list(motions.SMPLX_BODY.compared) == wanted['joint_part2idx.upper_body'] and motions.SMPLX_BODY.of == 144
    for side in ('left', 'right'):
        rows = wanted[f'joint_part2idx.{side[0]}hand']
        assert [joint for joint in rows if joint < 55] == list(motions.HAND_ROWS[side][1:])      # the others are fingertips
        assert len(motions.HAND_TIPS[side]) == len([joint for joint in rows if joint >= 55]) == 5


def random_pair(seed, frames=9, others=7, points=6, coordinates=3, share=.8):
    """Two motions with gaps; the first point is always seen."""
    random = np.random.default_rng(seed)
    made, real = random.normal(size=(frames, points, coordinates)), random.normal(size=(others, points, coordinates))
    seen = [random.random(side.shape[:2]) < share for side in (made, real)]
    for one in seen: one[:, :2] = True
    return motions.motion(made, seen[0]), motions.motion(real, seen[1])


def table(points, compared=None):
    every = tuple(range(points))
    return motions.Joints('test', points, compared or every, every, (0,))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(ALIGNED), st.sampled_from([2, 3]), st.sampled_from([1., .7]), st.integers(1, 12), st.integers(1, 12))
def test_kernels_agree_with_the_definition(seed, aligned, coordinates, share, frames, others):
    one, other = random_pair(seed, frames, others, 7, coordinates, share)
    costs = alignment.frame_costs(one, other, table(7), aligned)
    for i in range(frames):
        for j in range(others):
            both = one.seen[i] & other.seen[j]
            slow = alignment.defined_cost(one.points[i, both], other.points[j, both], table(int(both.sum())), aligned)
            assert costs[i, j] == pytest.approx(slow, rel=1e-9, abs=1e-9)
    assert alignment.cheapest(costs)[0] == pytest.approx(alignment.defined_total(costs), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.sampled_from([1., 1e-3, 1e-6, 0.]))
def test_procrustes_ignores_similarities_of_the_prediction(seed, size, flatness):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(5, 8, 3)), random.normal(size=(4, 8, 3))
    a[..., 2] *= flatness      # flat and nearly flat poses, where the best rotation is hardest to find
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    before, after = alignment.dtw_pa_jpe(a, b)[0], alignment.dtw_pa_jpe(size*a @ turn.T + random.normal(size=3)*size, b)[0]
    assert after == pytest.approx(before, rel=1e-6)
    assert alignment.dtw_pa_jpe(size*b @ turn.T, b)[0] < 1e-6 and alignment.dtw_pa_jpe(a, size*b @ turn.T)[0] == pytest.approx(size*before, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_procrustes_beats_every_other_similarity(seed):
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(2, 9, 3))
    best = ((procrustes.moved(a, b) - b)**2).sum()
    turn = np.linalg.qr(random.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    other = random.random()*a @ turn.T
    assert best <= ((other - other.mean(0) + b.mean(0) - b)**2).sum() + 1e-9


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(ALIGNED), st.sampled_from(CONVENTIONS))
def test_distance_to_itself_is_zero_however_often_frames_repeat(seed, aligned, convention):
    random = np.random.default_rng(seed)
    real = random.normal(size=(8, 6, 3))
    slow = np.repeat(real, random.integers(1, 4, 8), axis=0)
    for made, wanted in ((real, real), (slow, real), (real, slow)):
        assert alignment.dtw(made, wanted, None, aligned, convention)[0] < 1e-6
    assert alignment.ndtw_mje(slow, real)[0] == alignment.ndtw_mje(real, slow)[0] == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(ALIGNED))
def test_longer_copies_never_gain_by_the_sum(seed, aligned):
    one, other = random_pair(seed, share=1.)
    times = np.random.default_rng(seed).integers(1, 4, len(one))
    longer = metatests.repeated(one, times)
    for convention in ('path_sum', 'reference_length'):
        assert alignment.dtw(longer, other, None, aligned, convention)[0] >= alignment.dtw(one, other, None, aligned, convention)[0] - 1e-9
    both = alignment.dtw(metatests.repeated(one, np.full(len(one), 3)), metatests.repeated(other, np.full(len(other), 3)), None, aligned)[0]
    assert alignment.dtw(one, other, None, aligned)[0] - 1e-9 <= both <= 3*alignment.dtw(one, other, None, aligned)[0] + 1e-9


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(CONVENTIONS[:2]), st.sampled_from(['none', 'root']))
def test_symmetry_and_bounds(seed, convention, aligned):
    one, other = random_pair(seed)
    there = alignment.dtw(one, other, None, aligned, convention)[0]
    assert there == pytest.approx(alignment.dtw(other, one, None, aligned, convention)[0], rel=1e-9)
    costs = alignment.frame_costs(one, other, None, aligned)
    total, pairs = alignment.cheapest(costs)
    assert max(costs.shape) <= pairs <= sum(costs.shape) - 1
    assert max(costs.min(0).sum(), costs.min(1).sum()) <= total + 1e-9 <= costs.max()*pairs + 1e-6
    path = alignment.path(costs)
    assert len(path) == pairs and costs[tuple(path.T)].sum() == pytest.approx(total)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(-5, 5), st.floats(.1, 10))
def test_errors_move_with_units_and_order(seed, shift, size):
    one, other = random_pair(seed, 8, 8)
    scale = lambda motion: motions.motion(size*motion.points + shift, motion.seen)
    batch, moved = ([one, other], [other, one]), ([scale(one), scale(other)], [scale(other), scale(one)])
    assert pose.mse(*moved) == pytest.approx(size**2*pose.mse(*batch)) and pose.mae(*moved) == pytest.approx(size*pose.mae(*batch))
    assert (pose.mae(*batch)**2 <= pose.mse(*batch) + 1e-12).all() and (pose.pck(*batch, .1) <= pose.pck(*batch, .2)).all()
    forth, back = pose.pose_scores(*batch), pose.pose_scores(*(side[::-1] for side in batch))
    for name, metric in forth.items(): assert metric.value == pytest.approx(back[name].value), name
    assert all(metric.signature for metric in forth.values()) and (pose.coverage(*batch) <= 1).all()


def test_numpy_torch_lists_and_padding_agree():
    random = np.random.default_rng(0)
    made, real = ([random.normal(size=(n, 5, 3)).astype(np.float32) for n in lengths] for lengths in ((6, 9), (7, 9)))
    def padded(side):
        points, mask = torch.full((2, 12, 5, 3), torch.nan), torch.zeros(2, 12, dtype=torch.bool)
        for place, one in enumerate(side): points[place, :len(one)], mask[place, :len(one)] = torch.from_numpy(one), True
        return motions.motions(points, mask)
    tensors = [torch.from_numpy(one).requires_grad_() for one in made]
    wanted = alignment.dtw_pa_jpe(made, real)
    assert alignment.dtw_pa_jpe(tensors, real) == pytest.approx(wanted, rel=1e-12)
    assert alignment.dtw_pa_jpe(padded(made), padded(real)) == pytest.approx(wanted, rel=1e-12)
    assert pose.pose_scores(padded(made), padded(real), frames='stretched')['duration ratio'].value == pytest.approx(15/16)


def test_long_clips_are_computed_in_bands():
    random = np.random.default_rng(0)
    made, real = random.normal(size=(700, 3, 3)), random.normal(size=(400, 3, 3))      # more than one band of frames
    whole = alignment.frame_costs(motions.motion(made), motions.motion(real), None, 'similarity')
    part = alignment.frame_costs(motions.motion(made[600:]), motions.motion(real), None, 'similarity')
    assert whole[600:] == pytest.approx(part, rel=1e-6)


def test_degenerate_poses_have_defined_scores():
    flat, point, line = np.zeros((4, 6, 3)), np.full((4, 6, 3), 7.), np.zeros((4, 6, 3))
    line[..., 0] = np.arange(6)
    real = np.random.default_rng(0).normal(size=(4, 6, 3))
    middle = np.linalg.norm(real - real.mean(1, keepdims=True), axis=-1).mean(1)
    for made in (flat, point):      # no size: everything falls onto the middle of the reference
        costs = alignment.frame_costs(motions.motion(made), motions.motion(real), None, 'similarity')
        assert costs == pytest.approx(np.broadcast_to(middle, (4, 4)))
    assert alignment.dtw_pa_jpe(line, 3*line + 1)[0] < 1e-9 and alignment.dtw_pa_jpe(real, point)[0] < 1e-6
    assert movement.speed(motions.motion(flat)) == movement.spread(motions.motion(flat)) == movement.travel(motions.motion(flat)) == 0
    assert distributions.frechet(np.ones((3, 2)), np.ones((4, 2))) == 0


def test_compared_joints_need_not_be_fitted():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 5, 8, 3))
    chosen = motions.Joints('some', 8, (6, 7), (0, 1, 2, 3, 4), (0,))
    slow = [[alignment.defined_cost(x, y, chosen, 'similarity') for y in b] for x in a]
    assert alignment.frame_costs(motions.motion(a), motions.motion(b), chosen, 'similarity') == pytest.approx(np.array(slow))


HOSTILE = {
    'no clip': ([], []), 'no frames': (np.zeros((0, 5, 3)), np.zeros((4, 5, 3))), 'other points': (np.zeros((4, 5, 3)), np.zeros((4, 6, 3))),
    'other coordinates': (np.zeros((4, 5, 2)), np.zeros((4, 5, 3))), 'four coordinates': (np.zeros((4, 5, 4)), np.zeros((4, 5, 4))),
    'NaN': (np.full((4, 5, 3), np.nan), np.zeros((4, 5, 3))), 'infinity': (np.zeros((4, 5, 3)), np.full((4, 5, 3), np.inf)),
    'words': ('a clip', 'another'), 'nothing': (None, None), 'ragged': ([[[1, 2], [3]]], [[[1, 2], [3, 4]]]),
    'other count': ([np.zeros((4, 5, 3))]*2, [np.zeros((4, 5, 3))]), 'complex': (np.zeros((4, 5, 3), complex), np.zeros((4, 5, 3))),
}


@pytest.mark.parametrize('case', HOSTILE)
@pytest.mark.parametrize('score', [pose.mse, pose.pck, pose.coverage, alignment.dtw_jpe, alignment.dtw_pa_jpe, alignment.ndtw_mje,
                                   movement.movement_ratios, pose.pose_scores])
def test_bad_input_is_one_sentence(score, case):
    with pytest.raises(UserError) as told: score(*HOSTILE[case])
    assert '\n' not in str(told.value) and len(str(told.value)) < 200


def test_masks_that_hide_everything_are_one_sentence():
    points, nothing = np.zeros((4, 5, 3)), np.zeros((4, 5), bool)
    with pytest.raises(UserError, match='no point was seen'): motions.motion(points, nothing)
    first, last = nothing.copy(), nothing.copy()
    first[:, 0], last[:, 4] = True, True
    one, other = motions.motion(points, first), motions.motion(points, last)
    for score in (pose.mse, alignment.dtw_jpe, alignment.dtw_pa_jpe):
        with pytest.raises(UserError): score(one, other)
    assert pose.coverage(one, other)[0] == 0
    with pytest.raises(UserError, match='no bone'): movement.bone_drift(one, ((0, 1),))
    with pytest.raises(UserError, match='mask'): motions.motion(points, np.ones((3, 5), bool))


def test_lengths_that_differ_are_an_error_frame_by_frame():
    with pytest.raises(UserError, match='stretched'): pose.mse(np.zeros((4, 5, 3)), np.zeros((6, 5, 3)))
    assert pose.mse(np.zeros((4, 5, 3)), np.zeros((6, 5, 3)), frames='stretched')[0] == 0
    for wrong in (lambda: pose.mse(np.zeros((4, 5, 3)), np.zeros((6, 5, 3)), frames='cut'), lambda: alignment.dtw(np.zeros((4, 5, 3)),
                  np.zeros((6, 5, 3)), aligned='pelvis'), lambda: motions.joints('holistic75', 'foot'), lambda: motions.joints('nothing')):
        with pytest.raises(UserError): wrong()


def test_gaps_in_both_sides_leave_the_shared_joints():
    one, other = random_pair(3, 10, 10)
    shared = one.seen & other.seen
    wanted = np.linalg.norm(one.points - other.points, axis=-1)[shared].mean()
    assert pose.joint_error(one, other)[0] == pytest.approx(wanted)
    hidden = motions.motion(np.where(one.seen[..., None], one.points, np.nan), one.seen)      # what lies under a mask is nobody's business
    for score in (pose.mse, alignment.dtw_jpe, alignment.dtw_pa_jpe, alignment.ndtw_mje): assert score(hidden, other) == score(one, other)
