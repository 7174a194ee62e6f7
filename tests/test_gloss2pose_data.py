"What a model of gloss to pose is given: rows of numbers, numbers of glosses, real corpora; and what is refused before it is asked."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from signbook.corpora import sentences
from signbook.corpora.exports import export
from signbook.corpora.isign import hashed_split, video_of, write_isign
from signbook.corpora.skels import skels_items
from signbook.errors import UserError
from signbook.gloss2pose import real
from signbook.gloss2pose.glosses import BEGIN, END, PAD, SPECIALS, UNKNOWN, Vocabulary, refuse_unreadable
from signbook.gloss2pose.targets import GAP, TARGETS, Normaliser, Target, clip_of, explicit, left_handed, prepared, target
from signbook.gloss2pose.targets import travelled, truncation, usually_seen, values_of
from signbook.poses.clips import Clip, cut, mirror, resample
from signbook.poses.skeletons import holistic75, skels50

HANDS = np.arange(75) >= 33


@pytest.fixture(scope='module')
def clips(): return list(sentences.clips('smoke', split='train', count=40))


@pytest.fixture(scope='module')
def ready(clips): return [prepared(clip, 12.5) for clip in clips]


def altered(clip, points=None, confidence=None, **fields):
    return replace(clip, points=clip.points if points is None else points.astype(np.float32), streams={},
                   confidence=clip.confidence if confidence is None else confidence.astype(np.float32), **fields)


# targets

def test_152_is_76_points_and_the_last_is_the_neck(ready):
    one = target('holistic76x2')
    assert one.width == 152 and one.points[:75] == holistic75.points and one.points[75] == 'neck'
    values, seen = values_of(ready[0], one)
    left, right = holistic75.shoulders
    both = seen[:, left] & seen[:, right]
    assert np.array_equal(seen[:, 75], both)
    rows = values.reshape(len(values), 76, 2)
    assert np.allclose(rows[both, 75], (rows[both, left] + rows[both, right])/2, atol=1e-6)


@pytest.mark.parametrize('name', TARGETS)
def test_a_target_is_a_whole_table(name):
    one = target(name)
    assert one.width == len(one)*len(one.axes) == len(one.columns) == len(set(one.columns))
    assert sorted(np.concatenate(list(one.parts.values())).tolist()) == list(range(len(one)))
    assert len(set(one.bones)) == len(one.bones) and all(a != b for a, b in one.bones)


@pytest.mark.parametrize('wrong', [dict(layout='holistic99'), dict(axes=('x',)), dict(axes=('x', 'z')), dict(derived=('nose',)),
                                   dict(layout='skels50', derived=('neck',)), dict(derived=('neck', 'neck'))])
def test_a_wrong_target_is_refused(wrong):
    with pytest.raises(UserError): Target(**(dict(name='x', layout='holistic75') | wrong))


def test_rows_of_another_layout_and_of_too_few_coordinates_are_refused(ready):
    with pytest.raises(UserError, match='needs layout skels50'): values_of(ready[0], target('skels50x3'))
    with pytest.raises(UserError, match='needs 3 coordinates'): values_of(replace(ready[0], points=ready[0].points[..., :2]), target('holistic75x3'))
    with pytest.raises(UserError, match='holistic99'): prepared(replace(ready[0], layout='holistic99'), 12.5)
    with pytest.raises(UserError, match='expected .frames, 152'): clip_of(np.zeros((4, 150)), target('holistic76x2'), 25.)
    with pytest.raises(UserError, match='no frame'): clip_of(np.zeros((0, 152)), target('holistic76x2'), 25.)
    with pytest.raises(UserError, match='NaN'): clip_of(np.full((4, 152), np.nan), target('holistic76x2'), 25.)


def test_generated_nan_where_nothing_is_shown_is_nothing():
    values, shown = np.zeros((3, 152)), np.ones(76, bool)
    values[:, 2*25:2*27], shown[25:27] = np.nan, False
    clip = clip_of(values, target('holistic76x2'), 12.5, seen=shown)
    assert np.isfinite(clip.points).all() and (clip.confidence[:, 25:27] == 0).all() and clip.confidence.sum() == 3*73


def test_rows_and_masks_of_torch_are_taken_too(ready):
    values, seen = values_of(ready[0], target('holistic75x2'))
    clip = clip_of(torch.from_numpy(values), target('holistic75x2'), 12.5, 'A', torch.from_numpy(seen))
    assert np.array_equal(clip.confidence > 0, ready[0].confidence > 0) and clip.gloss == 'A'


# preparation

def test_nothing_that_is_not_a_number_comes_through(clips):
    rng = np.random.default_rng(0)
    for bad in (np.nan, np.inf, -np.inf):
        points = clips[0].points.copy()
        points[rng.random(points.shape) < .02] = bad
        for fps in (25., 12.5, 10.):
            clip = prepared(altered(clips[0], points), fps)
            assert np.isfinite(clip.points).all() and np.abs(clip.points).max() < 20
            values, seen = values_of(clip, target('holistic76x2'))
            assert np.isfinite(values).all() and not values.reshape(len(values), 76, 2)[~seen].any()


def test_what_stands_at_a_missing_point_does_not_matter(clips):
    rng = np.random.default_rng(1)
    rubbish = np.where(clips[1].confidence[..., None] > 0, clips[1].points, 1e6*rng.standard_normal(clips[1].points.shape))
    for fps in (25., 12.5, 17.): assert np.array_equal(prepared(altered(clips[1], rubbish), fps).points, prepared(clips[1], fps).points)


@pytest.mark.parametrize('scale', [.01, 1, 300])
def test_the_camera_does_not_matter(clips, scale):
    here, there = prepared(clips[2], 12.5), prepared(altered(clips[2], scale*clips[2].points + 7*scale), 12.5)
    seen = here.confidence > 0
    assert np.allclose(here.points[seen], there.points[seen], atol=2e-3)


def test_a_clip_without_hands_or_shoulders_is_refused_by_name(clips):
    for gone, word in ((HANDS, 'hand'), (np.isin(np.arange(75), holistic75.shoulders), 'shoulders')):
        bare = altered(clips[0], confidence=np.where(gone, 0, clips[0].confidence), id='bare/7')
        with pytest.raises(UserError, match=f'bare/7.*{word}'): prepared(bare, 12.5)


def test_one_frame_is_a_clip(clips):
    start = next(start for start, *_ in clips[0].segments)
    one = prepared(cut(clips[0], start, start + 1), 12.5)
    values, seen = values_of(one, target('holistic76x2'))
    assert values.shape == (1, 152) and travelled(one) == (0., 0.) and len(clip_of(values, target('holistic76x2'), 12.5, seen=seen)) == 1
    assert truncation([one], 12.5)['clips'] == 0


def test_no_sign_is_lost_and_streams_are_dropped(clips, ready):
    for before, after in zip(clips, ready):
        assert [gloss for *_, gloss in after.segments] == before.gloss.split() == after.gloss.split() and after.streams == {}
        assert after.segments[0][0] >= 0 and after.segments[-1][1] <= len(after)


def test_a_sign_whose_hands_were_lost_keeps_its_frames(clips):
    clip, (start, end, first) = clips[3], clips[3].segments[0]
    early = np.arange(len(clip))[:, None] < end
    lost = altered(clip, confidence=np.where(early & HANDS, 0, clip.confidence))
    kept = prepared(lost, 25., frames=1000)
    assert kept.segments[0] == (0, end - start, first) and not kept.confidence[:end - start, 33:].any()


def test_gaps_are_bridged_up_to_a_fifth_of_a_second(clips):
    inside = (clips[4].segments[0][0] + clips[4].segments[-1][1])//2
    nose = 0
    for lost, bridged in ((round(GAP*25), True), (round(GAP*25) + 1, False)):
        hole = clips[4].confidence.copy()
        hole[inside:inside + lost, nose] = 0
        clip = prepared(altered(clips[4], confidence=hole), 25., frames=1000)
        assert (clip.confidence[:, nose] > 0).all() == bridged


def test_guesses_count_as_missing_but_rarely_seen_points_do_not(clips):
    sure = clips[0].confidence.copy()
    sure[:, 0], sure[:, 1] = .01, 0
    sure[10:14, 1] = .9
    seen = explicit(altered(clips[0], confidence=sure)).confidence > 0
    assert not seen[:, 0].any() and seen[:, 1].sum() == 4


def test_longer_clips(clips):
    long = max(clips, key=len)
    whole = prepared(long, 25., frames=1000)
    squeezed, cropped = prepared(long, 25., frames=40), prepared(long, 25., frames=40, longer='crop')
    assert len(squeezed) == len(cropped) == 40 < len(whole)
    assert np.allclose(squeezed.points[[0, -1]], whole.points[[0, -1]], atol=1e-5) and np.array_equal(cropped.points, whole.points[:40])
    assert (len(squeezed) - 1)/squeezed.fps == pytest.approx((len(whole) - 1)/25) and cropped.fps == 25
    with pytest.raises(UserError, match='longer'): prepared(long, 25., longer='fold')
    with pytest.raises(UserError, match='frame rate'): prepared(long, 0.)
    lost = truncation([long], 25., 40)
    assert lost['clips'] == 1 and lost['frames'] == pytest.approx(1 - 40/len(whole))
    assert lost['signs'] == pytest.approx(1 - sum(end <= 40 for _, end, _ in whole.segments)/len(whole.segments))


def test_mirroring_makes_a_left_handed_signer_right_handed(clips):
    left = left_handed(clips)
    assert left == {'signer02', 'signer05'}
    for clip in clips:
        plain, turned = prepared(clip, 12.5), prepared(clip, 12.5, right_handed=frozenset(left))
        assert np.array_equal(plain.points, turned.points) == (clip.signer not in left)
    assert left_handed([prepared(clip, 12.5, right_handed=frozenset(left)) for clip in clips]) == set()
    assert left_handed([replace(mirror(replace(clip, streams={})), signer='') for clip in clips]) == set()   # nobody knows who signs


def test_mirroring_commutes_with_the_preparation(clips):
    one = clips[5]
    a = prepared(one, 12.5, right_handed=frozenset([one.signer]))
    b = prepared(mirror(replace(one, streams={})), 12.5)
    assert np.array_equal(a.confidence, b.confidence) and np.allclose(a.points[a.confidence > 0], b.points[a.confidence > 0], atol=1e-4)


# the scale of the numbers

def test_padding_and_missing_points_do_not_move_the_scale(ready):
    rows = [values_of(clip, target('holistic76x2')) for clip in ready[:10]]
    plain = Normaliser.fit(*zip(*rows))
    behind = np.full((9, 152), 50, np.float32), np.zeros((9, 76), bool)
    padded = Normaliser.fit(*zip(*((np.r_[values, behind[0]], np.r_[seen, behind[1]]) for values, seen in rows)))
    filled = Normaliser.fit([np.where(np.repeat(seen, 2, 1), values, -7) for values, seen in rows], [seen for _, seen in rows])
    for other in (padded, filled): assert np.allclose(plain.mean, other.mean) and np.allclose(plain.deviation, other.deviation)
    assert plain.deviation.min() >= .001 and plain.mean.dtype == np.float32
    for values, seen in rows:
        assert np.allclose(plain.undo(plain(values)), values, atol=1e-5)
        assert not plain(values, seen)[~np.repeat(seen, 2, 1)].any()
    assert np.array_equal(Normaliser.from_json(json.loads(json.dumps(plain.as_json()))).mean, plain.mean)
    with pytest.raises(UserError, match='no training clip'): Normaliser.fit([], [])


def test_a_point_that_training_never_shows_is_harmless(ready):
    rows = [values_of(clip, target('holistic76x2')) for clip in ready]
    often = usually_seen([seen for _, seen in rows])
    legs = [place for place, name in enumerate(target('holistic76x2').points) if 'knee' in name or 'ankle' in name]
    assert not often[legs].any() and often[[0, 11, 12, 75]].all()
    scale = Normaliser.fit(*zip(*rows))
    assert scale.mean[2*legs[0]] == 0 and scale.deviation[2*legs[0]] == np.float32(.001)
    assert usually_seen([np.array([[1, 0], [0, 0]], bool), np.array([[1, 1]], bool)]).tolist() == [True, False]


# glosses

def test_a_vocabulary_knows_training_only():
    known = Vocabulary.of(['B A', 'C  A', '<pad> <eos>'])
    assert known.names == (*SPECIALS, 'A', 'B', 'C') and known.unknown_share(['A D', 'E']) == pytest.approx(2/3) and known.unknown_share([]) == 0
    ids, inside = known.batch(['A', 'A B C D', ''])
    assert inside.sum(1).tolist() == [3, 6, 2]
    assert ids.tolist() == [[BEGIN, 4, END, PAD, PAD, PAD], [BEGIN, 4, 5, 6, UNKNOWN, END], [BEGIN, END] + [PAD]*4]
    assert known.batch(['A '*500])[0].shape == (1, 16) and known.batch(['A '*500])[0][0, -1] == END
    assert Vocabulary.from_json(json.loads(json.dumps(known.as_json()))) == known


@pytest.mark.parametrize('told', [[], ['A'], list(SPECIALS[::-1]), [*SPECIALS, 'A', 'A'], [*SPECIALS, 3], [*SPECIALS, ['A']], 'abcd', None, {}])
def test_a_damaged_vocabulary_is_refused(told):
    with pytest.raises(UserError, match='train it again'): Vocabulary.from_json(told)


@pytest.mark.parametrize('asked, told', [('', 'no gloss'), (' \t ', 'no gloss'), ('A '*500, '500 glosses'), ('A '*15, 'at most 14'),
                                         ('HOUS', 'nearest: HOUSE'), ('house', 'nearest: HOUSE'), ('QQ', 'it knows 3'), ('A \x1b[2J', "'.x1b"),
                                         ('<pad>', 'does not know'),
                                         ('X'*100_000, 'does not know'), ('A\nQ\nZ', 'and 1 more')])
def test_what_cannot_be_signed_is_told_in_one_sentence(asked, told):
    with pytest.raises(UserError, match=told) as caught: refuse_unreadable(asked, Vocabulary.of(['A HOUSE TREE']), where='glosses.txt, line 3')
    assert str(caught.value).isprintable() and len(str(caught.value)) < 250 and str(caught.value).startswith('glosses.txt, line 3')


def test_what_can_be_signed_passes(): refuse_unreadable('A '*14 + '\n', Vocabulary.of(['A']))


# real data

def test_phoenix(data):
    if not (data/'phoenix_skels').is_dir(): pytest.skip('SIGNBOOK_DATA holds no phoenix_skels')
    found = real.phoenix(data)
    assert {split: len(some) for split, some in found.clips.items()} == dict(train=5, dev=5) and not found.left_out and 'by heart' in found.note
    assert {clip.id for some in found.clips.values() for clip in some} == {item.id for item in skels_items(data/'phoenix_skels')}
    for clip in (clip for some in found.clips.values() for clip in some):
        values, seen = values_of(clip, target(found.target))
        assert values.shape == (len(clip), 150) and seen.all() and len(clip) <= 96 and clip.gloss
        shoulders = np.median(clip.points[:, list(skels50.shoulders)], 0)
        assert np.linalg.norm((shoulders[0] - shoulders[1])[:2]) == pytest.approx(1, abs=.01)


def test_spelled_words(data):
    if not (data/'fingerspelling').is_dir(): pytest.skip('SIGNBOOK_DATA holds no fingerspelling')
    found = real.fingerspelled_words(root=data, counts=dict(train=30, dev=4, test=6))
    spelled = {split: {clip.gloss for clip in some} for split, some in found.clips.items()}
    assert {split: len(some) for split, some in spelled.items()} == dict(train=30, dev=4, test=6) and not found.left_out
    assert not spelled['train'] & (spelled['dev'] | spelled['test']) and not spelled['dev'] & spelled['test']
    assert set(' '.join(spelled['train']).split()) == set('ABCDEFGHIJKLMNOPQRSTUVWXYZ') and 'share their recordings' in found.note
    again, other = (real.fingerspelled_words(root=data, counts=dict(train=30), seed=seed) for seed in (0, 1))
    assert {clip.gloss for clip in again.clips['train']} == spelled['train'] != {clip.gloss for clip in other.clips['train']}
    for clip in found.clips['train']:
        assert [gloss for *_, gloss in clip.segments] == clip.gloss.split() == list(clip.text) and clip.signer == 'ase'
        steps = np.abs(np.diff(clip.points[:, holistic75.index('right_hand_wrist'), :2], axis=0))
        assert steps.max() < .8   # shoulder widths in 0.08 s: joins do not jump
    with pytest.raises(UserError, match='leave out'): real.fingerspelled_words(root=data, counts=dict(train=4))
    with pytest.raises(UserError, match='recordings of ase'): real.letters_of('fsl', data)
    with pytest.raises(UserError, match='it has ase'): real.letters_of('tlh', data)


def test_dealt_words_are_equally_spelled():
    dealt = real.dealt_words('ABCDE', dict(train=40, dev=5, test=5), seed=3)
    assert len({word for some in dealt.values() for word in some}) == 50
    counts = np.unique([letter for some in dealt.values() for word in some for letter in word], return_counts=True)[1]
    assert len(counts) == 5 and counts.max() - counts.min() <= 12   # words that were thrown away take their letters with them
    with pytest.raises(UserError, match='too many'): real.dealt_words('AB', dict(train=5))


def test_isign_there_and_back(tmp_path):
    written = export('pocket', 'isign', tmp_path/'isign', number=12)
    found = real.isign(tmp_path, shares=(.5, .25, .25))
    assert sum(map(len, found.clips.values())) == written.clips == 12 and not found.left_out
    assert 'no glosses and no official split' in found.note and found.target == 'holistic76x2'
    for split, some in found.clips.items():
        for clip in some:
            assert hashed_split(clip.source, (.5, .25, .25)) == split == clip.split and all(word[0] == '~' for word in clip.gloss.split())
            values_of(clip, target(found.target))
    assert [*found.clips] == [split for split in ('train', 'dev', 'test') if split in found.clips]
    assert len(real.isign(tmp_path, shares=(1, 0, 0), wanted=5).clips['train']) == 5


def test_isign_keeps_videos_together_and_counts_what_it_cannot_use(tmp_path, clips):
    english = [clip for clip in clips if clip.language == 'en'][:6]
    names = ['a-1', 'a-2', 'b-1', 'b-2', 'c-1_w', 'c-2_e1']
    bare = [altered(clip, confidence=np.where(HANDS & (name == 'b-2'), 0, clip.confidence), id=name) for clip, name in zip(english, names)]
    write_isign(bare, tmp_path/'isign')
    found = real.isign(tmp_path, shares=(1, 0, 0))
    assert [clip.id for clip in found.clips['train']] == ['a-1', 'a-2', 'b-1'] and len(found.left_out) == 1 and 'b-2' in found.left_out[0]
    assert {video_of(name) for name in names} == {'a', 'b', 'c'}
    origin = prepared(replace(english[0], segments=()), 12.5)
    assert np.allclose(found.clips['train'][0].points, origin.points, atol=1e-4)
    with pytest.raises(UserError, match='none of 6 clips is in train'): real.isign(tmp_path, shares=(0, .5, .5))
    for file in (tmp_path/'isign'/'poses').iterdir(): file.unlink()
    with pytest.raises(UserError, match='no .pose file'): real.isign(tmp_path)


def test_data_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.delenv('SIGNBOOK_DATA', raising=False)
    for source in (real.phoenix, real.fingerspelled_words, real.isign):
        with pytest.raises(UserError, match='SIGNBOOK_DATA'): source()
        with pytest.raises(UserError, match='does not exist'): source(root=tmp_path)


def test_made_clips_are_scored_and_described(ready):
    from signbook.poses.drawing import strip
    from signbook.poses.features import features
    from signbook.scores.pose import pose_scores
    values, seen = values_of(ready[0], target('holistic76x2'))
    made = clip_of(values, target('holistic76x2'), 12.5, ready[0].gloss, seen, id='made')
    assert isinstance(made, Clip) and made.points.shape[2] == 2 and resample(made, 25.).fps == 25
    assert features(made, 'shape+relative').shape == (len(made), 282) and strip(made) is not None
    scores = pose_scores([made], [replace(ready[0], points=ready[0].points[..., :2])], bones=holistic75.bones)
    assert scores['MSE'].value == 0 and scores['PCK 0.1'].value == 1
