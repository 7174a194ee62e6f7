"The embedded corpus: the same everywhere, balanced, disjoint, and what its parameters say."
from dataclasses import replace

import numpy as np
import pytest

from signbook.corpora import pocket
from signbook.corpora.phonology import KINDS, lexicon, minimal_pairs
from signbook.corpora.sensing import CLEAN, Sensing
from signbook.corpora.signing import Performers, compile_lexicon, render, rest_posture, timeline
from signbook.errors import UserError
from signbook.poses.clips import check, normalise
from signbook.poses.kinematics import points_of


@pytest.fixture(scope='module')
def smoke(): return pocket.build('smoke')


def test_fingerprint_is_the_frozen_one(smoke): assert pocket.fingerprint(smoke) == pocket.FINGERPRINT['smoke']


def test_fingerprint_sees_a_small_change(smoke):
    moved = replace(smoke[3], points=smoke[3].points + np.float32(2e-4)*(np.arange(75) == 60)[None, :, None])
    assert pocket.fingerprint([smoke[3]]) != pocket.fingerprint([moved])
    assert pocket.fingerprint([smoke[3]]) == pocket.fingerprint([replace(smoke[3])])


def test_every_gloss_in_every_split_and_no_signer_in_two(smoke):
    signers = {split: {clip.signer for clip in smoke if clip.split == split} for split in ('train', 'dev', 'test')}
    assert not signers['train'] & signers['dev'] and not signers['train'] & signers['test'] and not signers['dev'] & signers['test']
    for split in signers: assert {clip.gloss for clip in smoke if clip.split == split} == set(lexicon().gloss)


def test_laptop_gives_every_gloss_every_training_signer():
    seen = {(gloss, signer) for number in range(pocket.rounds('laptop')['train'])
            for gloss, signer in enumerate(pocket.signer_of('train', number))}
    assert len(seen) == 200*8
    assert pocket.rounds('laptop') == dict(train=12, dev=4, test=4) and pocket.rounds('smoke') == dict(train=2, dev=1, test=1)


def test_clips_are_whole(smoke):
    for clip in smoke:
        check(clip)
        assert 18 <= len(clip) <= 60 and clip.fps == 25 and clip.streams['smplx'].shape == (len(clip), 179)
        assert np.isfinite(clip.points).all() and not clip.points[clip.confidence == 0].any()
        (start, end, gloss), = clip.segments
        assert 0 < start < end <= len(clip) and gloss == clip.gloss
        assert (clip.confidence[:, 33:].max(1) > 0).any(), 'a clip shows a hand at least once'


def test_clean_sensing_is_the_projection_of_the_parameters():
    clip = pocket.build(3, split='dev', sensing=CLEAN)[0]
    seen, exact = normalise(clip).points[:, 33:, :2], pocket.in_layout(clip, 'holistic75')
    flat = normalise(exact).points[:, 33:, :2]
    # a perspective camera straight in front: nearer hands look larger, so directions agree and sizes only roughly
    assert np.corrcoef(seen.ravel(), flat.ravel())[0, 1] > .98 and (clip.confidence[:, 33:] == 1).all()


def test_stored_rotations_give_the_exact_layout():
    clip = next(pocket.clips(3, split='test', layout='smplx55'))
    again = points_of(clip.streams['smplx'], 'smplx55')*(1, -1, -1)
    assert np.array_equal(clip.points, again.astype(np.float32)) and (clip.confidence == 1).all()


def test_minimal_pairs_are_minimal_and_enough():
    pairs, table = minimal_pairs(), lexicon().set_index('gloss')
    assert len(pairs) >= 60 and set(pairs.kind) == set(KINDS) and pairs.kind.value_counts().min() >= 10
    for a, b, kind in pairs.itertuples(index=False):
        differs = {name for name in ('orientation', 'movement', 'non_manual') if table.loc[a, name] != table.loc[b, name]}
        assert differs == ({kind} & {'orientation', 'movement', 'non_manual'})


def test_sequences_of_many_lengths_render_together():
    signs, rng = compile_lexicon(), np.random.default_rng(0)
    clip = np.repeat(np.arange(4), [1, 3, 6, 2])
    gloss = rng.integers(0, 200, len(clip))
    line = timeline(gloss, clip, signs.begin.take(gloss), signs.end.take(gloss), rest_posture().take(np.zeros(4, int)),
                    np.tile([5, 9, 2.], (len(clip), 1)), np.tile([3, 6, 2.], (4, 1)), np.ones(len(clip)))
    who = Performers(np.zeros((4, 10)), np.array([0, 1, 0, 0], bool), np.zeros((4, 2)), np.zeros((4, 3)), np.ones(4), np.zeros((4, 12)))
    parameters, frames = render(line, who, signs)
    assert line.frames().tolist() == [27, 59, 107, 43] and len(parameters) == 236 and np.isfinite(parameters).all()
    for c in range(4):
        strokes = frames.sign[frames.clip == c]
        order = [sign for sign, before in zip(strokes, np.r_[-1, strokes]) if sign >= 0 and sign != before]
        assert order == [sign for sign, before in zip(gloss[clip == c], np.r_[-1, gloss[clip == c]]) if sign != before]


@pytest.mark.parametrize('wrong, words', [(dict(preset='huge'), 'choose smoke, laptop'), (dict(preset=2), '3 or more'),
                                          (dict(preset=4, split='dev2'), 'choose one of train'),
                                          (dict(preset=3, layout='h75'), 'not declared')])
def test_wrong_settings_are_told(wrong, words):
    with pytest.raises(UserError, match=words): pocket.build(**wrong)


def test_strengths_have_bounds():
    with pytest.raises(UserError, match='sensing.dropout'): Sensing(dropout=9)
