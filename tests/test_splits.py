"""Splits of random listings: nothing stands on two sides, everything goes somewhere, and the shares are as near as can be."""
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signbook.corpora.listings import Item
from signbook.corpora.splits import COLUMNS, disjoint, distribute, leave_signers_out, listed
from signbook.errors import UserError

DATA = Path(os.environ.get('SIGNBOOK_DATA') or 'nowhere')


@st.composite
def listings(draw):
    "Items of random signers, texts and recordings, some typed in two ways."
    clips, signers, texts, videos = (draw(st.integers(low, high)) for low, high in ((3, 80), (1, 9), (1, 30), (1, 12)))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    return [Item(f'c{i}', text=f'{"Text" if random.random() < .5 else "text"} {random.integers(texts)}{"." if random.random() < .5 else ""}',
                 signer=f's{random.integers(signers)}', source=f'v{random.integers(videos)}') for i in range(clips)]


@settings(max_examples=150, deadline=None)
@given(listings(), st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=3, unique=True), st.integers(0, 3),
       st.sampled_from([{'train': .8, 'dev': .1, 'test': .1}, {'train': .5, 'test': .5}]))
def test_groups_stay_whole_and_every_clip_is_assigned(items, by, seed, shares):
    try: found = disjoint(items, by, shares, seed, tolerance=1)
    except UserError as error: assert 'need as many groups' in str(error); return
    assert set(found.split) == {item.id for item in items} and set(found.split.values()) == set(shares)
    table = listed(found.apply(items))
    for name in by: assert (table.groupby(COLUMNS[name])['split'].nunique() == 1).all()
    assert found.summary['clips'].sum() == len(items)
    for name in by: assert (found.summary[f'{name}s in train'].iloc[1:] == 0).all()
    assert found == disjoint(items, by, shares, seed, tolerance=1)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=3, max_size=7), st.integers(0, 5))
def test_small_choices_are_near_the_best_of_all(sizes, seed):
    wanted = sum(sizes)*np.array([.6, .2, .2])
    def error(split): return float(((np.bincount(split, sizes, 3) - wanted)**2/wanted).sum())
    found = distribute(sizes, wanted, seed)
    whole = [np.array(split) for split in itertools.product(range(3), repeat=len(sizes)) if set(split) == {0, 1, 2}]
    best = min(map(error, whole))
    assert set(found.tolist()) == {0, 1, 2} and best - 1e-9 <= error(found) <= best + .25*sum(sizes)
    assert np.abs(np.bincount(found, sizes, 3) - wanted).max() <= np.abs(np.bincount(min(whole, key=error), sizes, 3) - wanted).max() + max(sizes)


def test_many_small_groups_come_as_near_as_one_clip():
    random = np.random.default_rng(0)
    sizes = random.integers(1, 12, 5000)
    found = distribute(sizes, sizes.sum()*np.array([.8, .1, .1]))
    assert np.abs(np.bincount(found, sizes, 3)/sizes.sum() - [.8, .1, .1]).max() < 1e-3


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 3), st.integers(0, 9))
def test_every_signer_is_tested_once(signers, k, dev, seed):
    items = [Item(f'{signer}-{i}', signer=str(signer)) for signer in range(signers) for i in range(1 + signer % 3)]
    if k + dev >= signers:
        with pytest.raises(UserError, match='nobody to train on'): leave_signers_out(items, k, dev, seed)
        return
    folds = leave_signers_out(items, k, dev, seed)
    tested = [name for fold in folds for name, split in fold.split.items() if split == 'test']
    assert sorted(tested) == sorted(item.id for item in items) and len(folds) == -(-signers//k)
    for fold in folds:
        table = listed(fold.apply(items))
        assert (table.groupby('signer')['split'].nunique() == 1).all()
        assert table[table['split'] == 'dev']['signer'].nunique() == dev and 'train' in set(table['split'])


@pytest.mark.parametrize('call, message', [
    (lambda items: disjoint([], 'signer'), 'there are no clips'),
    (lambda items: disjoint(items, 'recording'), 'recording: 6 of 6 clips name none'),
    (lambda items: disjoint(items, []), 'by: nothing cannot be kept whole'),
    (lambda items: disjoint(items, 'signer', {'train': 1.0}), 'shares'),
    (lambda items: disjoint(items, 'signer', {'train': 1.2, 'test': -.2}), 'shares'),
    (lambda items: disjoint(items, 'signer', {'train': .9, 'test': .1}), 'no choice found'),
    (lambda items: disjoint(items[:2], 'signer', {'train': .5, 'test': .5}), '2 splits need as many groups, there is 1'),
    (lambda items: leave_signers_out(items, 0), 'k: 0 test'),
])
def test_impossible_demands_are_one_sentence(call, message):
    items = [Item(str(i), signer='AAABBB'[i]) for i in range(6)]
    with pytest.raises(UserError, match=message) as refused: call(items)
    assert '\n' not in str(refused.value)
