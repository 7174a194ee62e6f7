"""The audit against brute force, on hostile clips and listings, and on the real files whose traps are known."""
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signbook.corpora import pocket
from signbook.corpora.languages import words
from signbook.corpora.listings import Item
from signbook.corpora.splits import listed
from signbook.errors import UserError
from signbook.poses.clips import Clip
from signbook.poses.skeletons import LAYOUTS, layout
from signbook.scores.audit import audit_corpus, figures
from signbook.scores.duplicates import described, fingerprint
from signbook.scores.findings import Audit, two_proportions
from signbook.scores.neighbours import by_distance, distance_to_train, memorisation, nearest
from signbook.scores.overlap import by_similarity, n_grams, nearest_texts, overlap, text_overlap, text_similarity
from signbook.scores.spellings import script

DATA = Path(os.environ.get('SIGNBOOK_DATA') or 'nowhere')


def needs(name):
    return pytest.mark.skipif(not (DATA/name).is_dir(), reason=f'SIGNBOOK_DATA holds no {name}')


def moving(identity, seed, frames=12, **fields):
    """A holistic75 clip with shoulders."""
    points = np.random.default_rng(seed).normal(size=(frames, 75, 3)).astype(np.float32)
    points[:, layout('holistic75').shoulders[0]], points[:, layout('holistic75').shoulders[1]] = (1, 0, 0), (-1, 0, 0)
    return Clip(points, np.ones((frames, 75), np.float32), 'holistic75', 25.0, id=identity, **fields)


def test_missing_points_do_not_change_a_fingerprint():
    clip = moving('a', 0)
    hidden = replace(clip, confidence=np.where(np.arange(75) < 70, clip.confidence, 0))
    garbage = replace(hidden, points=np.where(hidden.confidence[..., None] > 0, hidden.points, 999).astype(np.float32))
    assert fingerprint(hidden) == fingerprint(garbage) != fingerprint(clip)
    assert fingerprint(replace(clip, confidence=0*clip.confidence)) == 'empty'


def test_an_audit_of_few_clips_says_what_it_cannot_say():
    found = audit_corpus(clips=[moving('a', 0, gloss='EAT', split='train'), moving('b', 1, gloss='EAT', split='train')])
    assert 'nothing can be said' in found['near duplicates'].sentence and 'not known' in found.report()
    assert not any(finding.found for finding in found.findings) and found.report().startswith('### Audit')


def test_the_same_clip_under_three_labels():
    clips = [replace(moving(f'{gloss}{i}', i), gloss=gloss, split='train', signer=f's{i}') for gloss in ('help', 'no', 'what') for i in range(10)]
    finding = audit_corpus(clips=clips)['exact duplicates']
    assert finding.numbers == {'groups': 10, 'copies': 20, 'across_split': 0, 'across_gloss': 10, 'across_language': 0}
    assert finding.rows[0]['gloss'] == ['help', 'no', 'what']


@pytest.mark.parametrize('name', sorted(LAYOUTS))
def test_every_layout_is_audited(name):
    clips = [pocket.in_layout(clip, name) for clip in pocket.build(3, split='train')[:40]]
    clips = [replace(clip, split='train' if i % 2 else 'test') for i, clip in enumerate(clips)]
    copy = replace(clips[1], id='copy', split='test', points=clips[1].points + np.float32(1e-3))
    found = audit_corpus(clips=[*clips, copy])
    assert found['near duplicates'].rows[0]['other'] == 'copy' and found['warped copies'].rows[0]['other'] == 'copy'


def test_hostile_clips_are_described():
    unseen = replace(moving('unseen', 0), confidence=np.zeros((12, 75), np.float32))
    blank = replace(moving('blank', 1), points=np.full((12, 75, 3), np.nan, np.float32), confidence=np.zeros((12, 75), np.float32))
    table, vectors, ways = described([moving('one', 2, frames=1), moving('long', 3, frames=400), unseen, blank])
    assert len(table) == 4 and np.isfinite(vectors).all() and np.isfinite(ways).all()
    assert (vectors[2:] == 0).all() and list(table['hash'][2:]) == ['empty', 'empty'] and list(table['placed']) == [True, True, False, False]
    assert [finding.check for finding in audit_corpus(clips=[unseen, blank], by='split').findings][-1] == 'clips without shoulders'


def test_the_order_of_clips_does_not_matter():
    clips = [replace(clip, split='train' if i % 3 else 'test') for i, clip in enumerate(pocket.build(3, split='train')[:60])]
    first, second = (audit_corpus(clips=part) for part in (clips, clips[::-1]))
    assert [(f.check, f.found) for f in first.findings] == [(f.check, f.found) for f in second.findings]
    for check in ('exact duplicates', 'signer overlap', 'near duplicates', 'memorisation', 'spellings'):
        ours, theirs = first[check].numbers, second[check].numbers
        assert {k: v for k, v in ours.items() if not isinstance(v, float)} == {k: v for k, v in theirs.items() if not isinstance(v, float)}
        for key, value in ours.items():
            if isinstance(value, float): assert theirs[key] == pytest.approx(value, rel=1e-4)


TEXTS = st.lists(st.lists(st.sampled_from('abcde'), max_size=6).map(' '.join), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS, st.integers(1, 3))
def test_nearest_texts_against_the_definition(test, train, n):
    index, likeness = nearest_texts(test, train, '', n)
    for text, place, value in zip(test, index, likeness):
        sets = [(n_grams(words(text), n), n_grams(words(other), n)) for other in train]
        jaccard = [len(a & b)/len(a | b) for a, b in sets]
        if text in train: assert value == 1 and train[place] == text and place == train.index(text)
        else: assert value == pytest.approx(min(max(jaccard), .99)) and jaccard[place] == max(jaccard) and value < 1


@st.composite
def listings(draw):
    """Items with and without names, texts, splits."""
    columns = (['train', 'dev', 'test', ''], ['', 'It rains.', 'it rains', 'Snow, snow and snow', '雨'], ['', 'P1', 'P2', '$x_1$'],
               ['', 'a/v1.mp4', 'b/V1.mp4', 'v2'], ['', 'EAT', 'eat', 'ПА'], [0, 1, 2])
    rows = draw(st.lists(st.tuples(*map(st.sampled_from, columns)), min_size=1, max_size=14))
    return [Item(f'c{i}', split, text, gloss, signer, 'en', source, source and f'{source}.pkl', row)
            for i, (split, text, signer, source, gloss, row) in enumerate(rows)]


@settings(max_examples=150, deadline=None)
@given(listings())
def test_any_listing_is_audited_and_counted_right(items):
    found, table = audit_corpus(items), listed(items)
    assert json.loads(json.dumps(found.as_json()))['corpus'] == 'the corpus'
    assert found.report().count('\n- ') == len(found.findings)
    for pair in text_overlap(table).numbers.get('shared', ()):
        here = [item for item in items if item.split == pair['split'] and item.text.strip()]
        there = {item.text for item in items if item.split == pair['in']}
        assert pair['clips'] == len(here) and pair['verbatim'] == sum(item.text in there for item in here) <= pair['folded']
    shared = {item.signer for item in items if item.signer and len({other.split for other in items if other.signer == item.signer}) > 1}
    assert overlap(table).numbers.get('shared', 0) == len(shared)
    for numbers in text_similarity(table).numbers.get('splits', {}).values(): assert sum(numbers['counts']) + numbers['same'] == numbers['n']


def test_figures_are_the_same_bytes_and_mind_no_names(tmp_path):
    items = [Item(f'c{i}', ('train', 'dev', 'test')[i % 3], f'There is {i} rain & snow $ {i % 7}', signer=f'$signer_{i % 60}$ ' + 'x'*(i % 10),
                  language='en') for i in range(300)]
    found = audit_corpus(items, corpus='many')
    paths = figures(found, tmp_path/'one')
    assert [path.name for path in paths] == ['texts.pdf', 'texts.png', 'signers.pdf', 'signers.png']
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in figures(found, tmp_path/'two')]
    assert figures(Audit('nothing', ()), tmp_path/'three') == [] and max(path.stat().st_size for path in paths) < 200_000


def test_a_listing_and_a_part_of_its_clips():
    clips = [moving(f'c{i}', i, split='train' if i < 6 else 'test', gloss='AB'[i % 2], signer=f's{i % 3}') for i in range(9)]
    items = [Item(clip.id, clip.split, gloss=clip.gloss, signer=clip.signer, path=f'{clip.id}.pose') for clip in clips]
    found = audit_corpus([*items, Item('lost', 'test', gloss='A', signer='s0', path='lost.pose')], (clip for clip in clips))
    assert found['signer overlap'].numbers['known'] == 10 and found['distance to train'].numbers['n'] == 3
    right = audit_corpus(items, clips, correct={clip.id: True for clip in clips})
    assert json.dumps(right.as_json()) and right['memorisation'].numbers['model'] == 1
    assert sum(row['clips'] for row in right['distance to train'].numbers['quarters']) == 3


@pytest.mark.parametrize('call, message', [
    (lambda: two_proportions(.85, 0, 3, 4), 'first: '),
    (lambda: described([]), 'clips: there are none'),
    (lambda: described([moving('a', 0), pocket.in_layout(pocket.build(3, split='dev')[0], 'coco133')]), 'different layouts'),
    (lambda: nearest(np.zeros((1, 2)), np.zeros((0, 2))), 'one side has no clips'),
    (lambda: memorisation(pd.DataFrame({'split': ['train']}), np.zeros((1, 2))), '1 train and 0 test clips'),
    (lambda: distance_to_train(pd.DataFrame({'split': ['test']}), np.zeros((1, 2))), '0 train and 1 test clips'),
    (lambda: by_distance(np.zeros(2), np.zeros(2)), 'at least 4 of each'),
    (lambda: by_similarity(np.zeros((2, 2)), np.zeros((2, 2))), 'give one for each'),
    (lambda: nearest_texts(['a'], []), 'no texts to compare with'),
    (lambda: audit_corpus(), 'neither a listing nor clips'),
    (lambda: audit_corpus([]), 'there are no clips in it'),
    (lambda: audit_corpus([Item('a')])['near duplicates'], 'no check .near duplicates.; it made'),
])
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(UserError, match=message): call()


@needs('fingerspelling')
def test_the_real_alphabets_hold_two_traps():
    from signbook.corpora.formats import read_pose_folder
    clips = read_pose_folder(DATA/'fingerspelling')
    found = audit_corpus(clips=clips, corpus='fingerspelling')
    assert [finding.check for finding in found.findings] == ['exact duplicates', 'same files', 'scripts', 'spellings', 'alphabets', 'near duplicates']
    assert {row['language'] for row in found['alphabets'].rows} == {'fsl', 'ukl'}
    assert found['exact duplicates'].numbers['across_language'] == found['near duplicates'].numbers['pairs'] == 26
    assert all(row['language'] == ['ase', 'fsl'] for row in found['same files'].rows)
    assert found['alphabets'].numbers['clips'] == 234
    assert {script(clip.gloss) for clip in clips if clip.language == 'ukl'} == {'CYRILLIC'}


def shared(found, split, other):
    return next(pair for pair in found['text overlap'].numbers['shared'] if (pair['split'], pair['in']) == (split, other))


@needs('csl_daily')
def test_csl_daily_repeats_its_training_sentences_and_shares_its_signers():
    from signbook.corpora.wholebody import CSL_DAILY
    items = CSL_DAILY.items(DATA/'csl_daily')
    found = audit_corpus(items, corpus='csl_daily')
    assert found['text overlap'].numbers['splits'] == {'train': {'clips': 18401, 'texts': 6578}, 'dev': {'clips': 1077, 'texts': 797},
                                                       'test': {'clips': 1176, 'texts': 798}}
    assert found['signer overlap'].numbers['splits']['test'] == {'values': 10, 'in train': 10, 'clips': 1176, 'clips of these': 1176}
    assert shared(found, 'test', 'train')['verbatim'] == 2 and shared(found, 'test', 'dev')['verbatim'] == 1173
    dev, test = ({(item.text, item.signer) for item in items if item.split == split} for split in ('dev', 'test'))
    assert not dev & test       # the same sentences, but never by the same signer


@needs('how2sign')
def test_how2sign_repeats_some_sentences_and_no_recording():
    from signbook.corpora.wholebody import HOW2SIGN
    found = audit_corpus(HOW2SIGN.items(DATA/'how2sign'), corpus='how2sign')
    pair = shared(found, 'test', 'train')
    assert (pair['verbatim'], pair['folded'], pair['clips']) == (71, 77, 2349)
    assert found['text similarity'].numbers['splits']['test']['same'] == 77 and not found['recording overlap'].found


@needs('phoenix14t')
def test_one_phoenix_test_sentence_in_twenty_stands_in_training():
    from signbook.corpora.skels import PHOENIX14T
    found = audit_corpus(PHOENIX14T.items(DATA/'phoenix14t'), corpus='phoenix14t')
    pair = shared(found, 'test', 'train')
    assert (pair['verbatim'], pair['clips']) == (32, 642) and found['signer overlap'].found is None
