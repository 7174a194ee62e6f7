"""The alphabets protocol: nothing leaks, jobs split, results survive JSON; on the real folder, what the audit must find."""
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from signbook.errors import UserError
from signbook.poses.clips import Clip
from signbook.recognition.alphabets import (CANDIDATES, account, choose, described, inner, left_handed, merged, network_probabilities, outer,
                                            pairs_of, prepare, read_alphabets, usable, with_depth)

torch.set_num_threads(1)
DATA = Path(os.environ['SIGNBOOK_DATA']) if os.environ.get('SIGNBOOK_DATA') else None
real = pytest.mark.skipif(DATA is None, reason='needs the real alphabets: set SIGNBOOK_DATA')
SHORT = [replace(candidate, epochs=3, width=16) for candidate in CANDIDATES]


def alphabet(language: str, letters: str, seed: int, hand: str = 'right') -> list[Clip]:
    "Clips whose hand has a form for every letter, with noise of its own for every language."
    clips, noise = [], np.random.default_rng(seed)
    for letter in letters:
        form = np.random.default_rng(ord(letter)).standard_normal((21, 3))*.1
        points = np.zeros((10, 75, 3))
        points[:, 11], points[:, 12] = (.5, 0, 0), (-.5, 0, 0)
        start = 54 if hand == 'right' else 33
        points[:, start:start + 21] = form*(1 if hand == 'right' else [-1, 1, 1]) + .02*noise.standard_normal((10, 21, 3))
        confidence = np.zeros((10, 75), np.float32)
        confidence[:, :33] = confidence[:, start:start + 21] = 1
        clips.append(Clip(points.astype(np.float32), confidence, 'holistic75', 25.0, id=f'{language}/{letter}', gloss=letter, language=language,
                          source=f'{language}/{ord(letter)}.pose; pose 0.2'))
    return clips


@pytest.fixture(scope='module')
def listed() -> list[Clip]:
    clips = alphabet('aaa', 'ABCDEÄ', 1) + alphabet('bbb', 'ABCDE', 2, 'left') + alphabet('ccc', 'ABCDE', 3) + alphabet('ddd', 'АБВ', 4)
    copies = [replace(clip, language='eee', id=clip.id.replace('aaa', 'eee')) for clip in clips if clip.language == 'aaa' and clip.gloss != 'Ä']
    return clips + copies


@pytest.fixture(scope='module')
def data(listed): return described(prepare(listed)[0])


def test_copies_other_scripts_and_unshared_letters_are_left_out(listed):
    clips, found = prepare(listed)
    assert sorted({c.language for c in clips}) == ['aaa', 'bbb', 'ccc'] and {c.gloss for c in clips} == set('ABCDE') and len(clips) == 15
    assert found['exact duplicates'].numbers['copies'] == 5 and found['scripts'].found and found['alphabets'].found
    assert left_handed(clips) == [] and left_handed(usable(listed)) == ['bbb']


def test_too_few_languages_are_refused():
    with pytest.raises(UserError, match='three languages'): usable(alphabet('aaa', 'AB', 1) + alphabet('bbb', 'AB', 2))
    with pytest.raises(UserError, match='fingerspelling'): read_alphabets('nowhere')


def test_what_is_left_out_does_not_reach_the_network(data):
    train = data.language != 'bbb'
    said = network_probabilities(data, SHORT[0], train, 0)
    scrambled = replace(data, letter=np.where(train, data.letter, 0))
    assert np.array_equal(said, network_probabilities(scrambled, SHORT[0], train, 0))
    shifted = replace(data, arrays={kind: [a if kept else a + 5 for a, kept in zip(arrays, train)] for kind, arrays in data.arrays.items()})
    x = [d.inputs(SHORT[0], train)[train] for d in (data, shifted)]
    assert torch.equal(*x)   # scales come from the training clips alone


def test_jobs_can_be_split_and_stored(data):
    pairs = pairs_of(data)
    whole = merged([inner(data, system) for system in (*SHORT, None)])
    parts = [json.loads(json.dumps(inner(data, system, [pair]))) for pair in reversed(pairs) for system in (None, *SHORT)]
    assert merged(parts) == {name: whole[name] for name in merged(parts)} and set(merged(parts)) == {'forest', *(c.name for c in SHORT)}


def test_the_test_language_has_no_say_in_the_choice(data):
    results = merged([inner(data, system) for system in (*SHORT, None)])
    for language in data.languages:
        nonsense = replace(data, letter=np.where(data.language == language, (data.letter + 1) % 5, data.letter))
        assert choose(data, results, language) == choose(nonsense, results, language)


def test_the_account_is_whole_and_a_leak_is_named(data):
    results = merged([inner(data, system) for system in (*SHORT, None)])
    outcomes = [outer(data, choose(data, results, language), language, seeds=(0, 1), candidates=SHORT) for language in data.languages]
    told = json.loads(json.dumps(account(outcomes, 5)))
    assert [row['language'] for row in told['rows']] == ['aaa', 'bbb', 'ccc'] and told['seeds']['n'] == 2
    assert set(told['tests']) == {'network', 'networks', 'ensemble'}
    assert set(told['means']) == {'neighbour', 'forest', 'networks', 'ensemble', 'network'}
    assert told['means']['forest']['value'] > .75 and 'forest' in told['suspicious']   # the forms are nearly the same in every language
    assert told == json.loads(json.dumps(account(outcomes, 5)))


def test_depth_is_rescaled_and_nothing_else():
    clip = alphabet('aaa', 'A', 1)[0]
    assert np.allclose(with_depth(clip, 3).points, clip.points*[1, 1, 3])


@real
def test_the_traps_of_the_real_index():
    clips, found = prepare(read_alphabets(DATA))
    assert len(clips) == 234 and len({c.language for c in clips}) == 9 and {c.gloss for c in clips} == set('ABCDEFGHIJKLMNOPQRSTUVWXYZ')
    reasons = {row['language']: row['left out because'] for row in found['alphabets'].rows}
    assert reasons == {'fsl': 'its files are those of ase', 'ukl': 'its letters are CYRILLIC'}
    assert found['exact duplicates'].numbers['across_language'] == 26 and found['scripts'].found
