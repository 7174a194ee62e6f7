"""Collapsed systems do not pass, hidden landmarks do not count, and every baseline says what it is made of."""
import json
from dataclasses import replace

import numpy as np
import pytest

from signbook.corpora.sentences import clips as sentences
from signbook.errors import UserError
from signbook.gloss2pose.baselines import REAL, as_long_as, as_table, attempt, baselines, edits, nearest, pieces
from signbook.gloss2pose.figures import joint_errors, joint_figures, speed_histograms, strips, wrist_paths
from signbook.gloss2pose.scoring import collapse_rows, compared, parted, scope_of, score_system, unit_of, verdicts, whole
from signbook.gloss2pose.targets import left_handed, prepared
from signbook.poses.drawing import png
from signbook.scores.word_errors import edit_table


@pytest.fixture(scope='module')
def corpus():
    raw = [*sentences('smoke', split='train'), *sentences('smoke', split='test'), *sentences('smoke', split='dev')]
    left = frozenset(left_handed(raw))
    ready = [prepared(clip, 12.5, right_handed=left) for clip in raw]
    train = [clip for clip in ready if clip.split == 'train']
    known = {gloss for clip in train for gloss in clip.gloss.split()}
    return train, [clip for clip in ready if clip.split != 'train' and set(clip.gloss.split()) <= known]


class Listener:
    "Reads what is in its list, by how far the wrist gets; says the first word of everything otherwise."
    def __init__(self, known): self.known = {self.key(clip): clip.gloss for clip in known}
    def key(self, clip):
        path = clip.points[:, clip.table.index('right_wrist'), :2]
        return tuple(np.round(path[[0, len(path)//2, -1]] - path[0], 1).ravel().tolist())
    def reads(self, clips): return [self.known.get(self.key(clip), 'HELLO') for clip in clips]


def moved(clip, points): return replace(clip, points=points.astype(np.float32))


def shaken(frames):
    "To and fro, but not where the listener looks."
    time = np.arange(frames)
    return (-1.)**time*~np.isin(time, (0, frames//2, frames - 1))


def records_of(corpus):
    train, references = corpus
    made, absent = baselines(references, train)
    assert not absent
    judge, unit = Listener(references), unit_of(train)
    pose = made['mean pose'].oracle[0].points[0]
    rng = np.random.default_rng(3)
    systems = {'statue': [moved(clip, clip.points + .001*rng.standard_normal(clip.points.shape)) for clip in made['mean pose'].oracle],
               'shrunk': [moved(clip, pose + .3*(clip.points - pose)) for clip in references],
               'good': [moved(clip, clip.points + .05*rng.standard_normal((1, *clip.points.shape[1:]))) for clip in references],
               'hectic': [moved(clip, clip.points + .1*shaken(len(clip))[:, None, None]) for clip in references]}
    attempts = {name: attempt(clips, references) for name, clips in systems.items()} | made
    told = {name: score_system(one.oracle, one.predicted, references, unit, judge, 'listener', count=100) for name, one in attempts.items()}
    return told, list(made)


def without_readings(record):
    return {**record, **{length: {score: value for score, value in record[length].items() if score != 'WER'} for length in ('oracle', 'predicted')}}


def test_a_collapsed_system_never_holds(corpus):
    records, known = records_of(corpus)
    states = {row['system']: row for row in verdicts(records, known)}
    assert set(states) == {'statue', 'shrunk', 'good', 'hectic'}
    assert states['statue']['state'] == states['shrunk']['state'] == 'warning' and states['good']['state'] == 'holds'
    assert 'no better than a pose that stands still' in states['statue']['sentence'] and 'of the real speed' in states['shrunk']['sentence']
    # squared error alone would have it the other way round
    errors = {name: record['oracle']['MSE']['value'] for name, record in records.items()}
    assert errors['statue'] < errors['nearest training clip'] and errors['shrunk'] < errors['dictionary']
    # nor is moving too much enough
    assert records['hectic']['predicted']['velocity ratio']['value'] > 1.5
    assert states['hectic']['state'] == 'open' and 'outside the pace' in states['hectic']['sentence']
    # and nothing holds that nobody read
    unread = {row['system']: row['state'] for row in verdicts({name: without_readings(record) for name, record in records.items()}, known)}
    assert unread == {'statue': 'warning', 'shrunk': 'warning', 'good': 'open', 'hectic': 'open'}
    # the references are the ceiling, and the mean pose has the variance of the data as its error
    best, still = records['references'], records['mean pose']
    assert best['oracle']['MSE']['value'] == 0 and best['predicted']['WER']['value'] == best['ceiling']['WER']['value']
    assert best['gap']['predicted']['value'] == 0 and best['gap']['predicted']['p'] == 1
    assert still['oracle']['velocity ratio']['value'] < 1e-6 and still['oracle']['diversity']['value'] < 1e-9
    assert abs(still['oracle']['MSE, normalised']['value'] - 1) < .15
    rows = {row['system']: row for row in collapse_rows(records)}
    assert rows['mean pose']['velocity ratio'] < 1e-6 < rows['wrong clip']['velocity ratio']
    # comparisons are corrected
    pairs = [('good', 'mean pose'), ('good', 'mean trajectory'), ('good', 'wrong clip')]
    told = compared(records, pairs)
    assert all(row['p_holm'] >= row['p'] for row in told) and told[0]['value'] < 0
    with pytest.raises(UserError, match="no rows of 'FGD'"): compared(records, pairs, 'FGD')


def test_landmarks_that_references_never_show_do_not_count(corpus):
    train, references = corpus
    unit, some = unit_of(train), references[:6]
    rng = np.random.default_rng(0)
    hidden = [(clip.confidence == 0).all(0) for clip in some]
    assert all(mask.any() for mask in hidden)
    base = [moved(clip, clip.points + .05) for clip in some]
    wild = [replace(clip, points=np.where(mask[:, None], rng.normal(0, 30, clip.points.shape), clip.points).astype(np.float32),
                    confidence=np.where(mask, 1, clip.confidence).astype(np.float32)) for clip, mask in zip(base, hidden)]
    a, b = (score_system(clips, clips, some, unit, count=20) for clips in (base, wild))
    assert a == b
    assert not {'left_knee', 'right_heel'} & {some[0].table.points[i] for i in scope_of(some).all.compared}


def test_errors_by_hand(corpus):
    train, references = corpus
    one, unit = references[0], unit_of(train)
    made = moved(one, one.points + np.float32([.3, 0, 0]))
    record = score_system([made], [made], [one], unit, count=20)['oracle']
    assert np.isclose(record['MSE']['value'], .045, rtol=1e-3) and np.isclose(record['MAE']['value'], .15, rtol=1e-3)
    assert record['PCK 0.2']['value'] == 0 and np.isclose(record['MJE']['value'], .3, rtol=1e-3)
    shown = (one.confidence > 0)[:, scope_of([one]).all.compared]
    assert np.isclose(record['MSE, padding counted']['value'], .045*shown.mean()*len(one)/96, rtol=1e-3)
    assert record['DTW-JPE path_sum']['value'] < 1e-4, 'a shift of the whole body is no error after alignment'


def test_lengths_and_json(corpus):
    train, references = corpus
    some = references[:5]
    longer = attempt([as_long_as(clip, 2*len(clip)) for clip in some], some)
    record = score_system(longer.oracle, longer.predicted, some, unit_of(train), count=20)
    assert record['predicted']['length error (%)']['value'] == record['predicted']['length bias (%)']['value'] == 100
    assert record['oracle']['MSE']['value'] < .02 and 'MSE' not in record['predicted']
    json.loads(json.dumps(record, allow_nan=False))
    metrics, details = parted(record)
    assert 'details' not in metrics and details['signatures']['oracle']['MSE'] and whole(metrics, details) == record
    assert len(json.dumps(metrics)) < len(json.dumps(details))/3


def test_one_frame_and_no_hand_can_be_scored(corpus):
    train, references = corpus
    some = references[:4]
    hands = [i for part in ('left_hand', 'right_hand') for i in some[0].table.indices(part)]
    def handless(clip):
        confidence = clip.confidence.copy(); confidence[:, hands] = 0
        return replace(clip, confidence=confidence)
    short = attempt([handless(replace(clip, points=clip.points[:1], confidence=clip.confidence[:1], segments=())) for clip in some], some)
    record = score_system(short.oracle, short.predicted, some, unit_of(train), count=20)
    found = {score: record['oracle'][score]['value'] for score in ('hand PCK 0.2', 'coverage', 'velocity ratio')}
    assert found['hand PCK 0.2'] == found['velocity ratio'] == 0 and found['coverage'] < 1


def test_clips_in_another_order_are_refused(corpus):
    train, references = corpus
    with pytest.raises(UserError, match='give both in one order'):
        score_system(references[:3][::-1], references[:3][::-1], references[:3], unit_of(train))
    with pytest.raises(UserError, match='2 made clips for 3 references'): score_system(references[:2], references[:2], references[:3], unit_of(train))


def test_edit_distances_agree_with_the_table():
    rng = np.random.default_rng(1)
    sentences_ = [' '.join(rng.choice(list('ABCDE'), rng.integers(1, 7))) for _ in range(40)]
    table = as_table(sentences_)
    for sentence in sentences_[:10]:
        slow = [edit_table(sentence.split(), other.split(), (1, 1, 1))[-1][-1] for other in sentences_]
        assert edits(sentence.split(), table).tolist() == slow


def test_baselines_are_what_they_say(corpus):
    train, references = corpus
    made, _ = baselines(references, train, seed=1)
    again, _ = baselines(references, train, seed=1)
    for name, one in made.items():
        assert [len(clip) for clip in one.oracle] == [len(clip) for clip in references]
        assert [clip.gloss for clip in one.predicted] == [clip.gloss for clip in references]
        assert all(np.array_equal(a.points, b.points) for a, b in zip(one.predicted, again[name].predicted))
    assert set(REAL) <= set(made)
    other, _ = nearest(references, train, seed=2)
    assert any(a.id != b.id for a, b in zip(other, nearest(references, train, seed=1)[0])), 'among equals the seed decides'


def test_single_signs_need_no_boundaries(corpus):
    train, _ = corpus
    signs = [replace(clip, gloss=gloss, segments=()) for gloss, clips in pieces(train).items() if gloss[0] != '<'
             for clip in clips[:3] if len(clip) > 2]
    real = signs[::7]
    made, absent = baselines(real, signs)
    assert not absent and (np.mean([len(clip) for clip in made['mean trajectory'].predicted]) < 12)
    strange = [replace(real[0], gloss='UNHEARD-OF')] + real[1:]
    made, absent = baselines(strange, signs)
    assert set(absent) == {'mean trajectory', 'dictionary'} and 'UNHEARD-OF' in absent['dictionary']
    sentence = [replace(clip, segments=()) for clip in train]
    assert 'begin and end' in baselines(sentence[:3], sentence)[1]['mean trajectory']


def test_figures_do_not_change_between_drawings(corpus):
    _, references = corpus
    rows = {'reference': references[0], 'another': references[1]}
    assert png(strips(rows)) == png(strips(rows))
    many = {f'system {number}': clip for number, clip in enumerate(references[:6])}
    assert len(wrist_paths(references[0], many).axes) == 16
    assert len(speed_histograms({name: [clip] for name, clip in many.items()}, references).axes) == 8
    assert len(joint_figures({name: references for name in many}, references).axes) == 8 + 1
    with pytest.raises(UserError, match='oracle length'): joint_errors(references[:1], [replace(references[0], points=references[0].points[:-1],
                                                                                              confidence=references[0].confidence[:-1])])
