"""Continuous recognition: exactness on cases that can be enumerated, damaged input, interruption, and what it must not see."""
import itertools
import json
import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch

from signbook.errors import UserError
from signbook.poses.clips import Clip
from signbook.poses.skeletons import layout
from signbook.recognition import continuous
from signbook.recognition import isolated as alone
from signbook.recognition.continuous import (
    ContinuousConfig,
    ContinuousRecogniser,
    array_of,
    collapse,
    configure,
    ctc,
    frames_needed,
    greedy,
    landmark_columns,
    load,
    prefix_search,
    train,
)
from signbook.scores.judges import Reader, read_back_sentences, reading_rows
from signbook.training.checkpoints import read_contract

torch.set_num_threads(1)
TINY = dict(fps=25.0, hidden=24, layers=2, epochs=12, batch_size=8, learning_rate=1e-2, warp=.1, smooth=1, noise=.02)
PLACES = dict(A=(1, 0), B=(-1, 0), C=(0, 1), D=(0, -1))


def sentence(words: str, rng: np.random.Generator, name: str = 'holistic75') -> Clip:
    "The right hand goes to one of four places for every gloss, and back to the middle between them."
    table, path = layout(name), []
    for word in words.split():
        path += [PLACES[word]]*int(rng.integers(3, 6)) + [(0, 0)]*int(rng.integers(2, 4))
    path = np.array([(0, 0)]*2 + path, float)
    points = np.zeros((len(path), len(table), 3), np.float32)
    points[:, table.shoulders[0], 0], points[:, table.shoulders[1], 0] = .5, -.5
    points[:, table.index('right_wrist'), :2] = path
    points[:, table.indices('right_hand'), :2] = path[:, None] + .1*np.arange(len(table.indices('right_hand')))[:, None]/21
    points[:, [i for i in range(len(table)) if i not in table.shoulders]] += .01*rng.standard_normal((len(path), len(table) - 2, 3))
    return Clip(points, np.ones(points.shape[:2], np.float32), name, 25.0, id=words.replace(' ', '-'), gloss=words, signer='s', split='train')


def sentences(count: int, seed: int, name: str = 'holistic75') -> list[Clip]:
    rng = np.random.default_rng(seed)
    return [sentence(' '.join(rng.choice(list(PLACES), rng.integers(1, 5))), rng, name) for _ in range(count)]


TRAIN, DEV = sentences(64, 1), sentences(16, 2)


def enumerated(table: np.ndarray) -> dict[tuple, float]:
    totals = defaultdict(float)
    for path in itertools.product(range(table.shape[1]), repeat=len(table)):
        totals[collapse(path)] += math.exp(sum(table[t, k] for t, k in enumerate(path)))
    return totals


@pytest.mark.parametrize('seed', range(4))
def test_loss_and_search_agree_with_enumeration(seed):
    rng = np.random.default_rng(seed)
    table = np.log(rng.dirichlet(np.full(3, .6), 6))
    totals = enumerated(table)
    found = dict(prefix_search(table, beams=10_000, least=-math.inf))
    assert found.keys() == totals.keys()
    for target, probability in totals.items():
        assert math.isclose(math.exp(found[target]), probability, rel_tol=1e-9)
        if target:
            loss = ctc(torch.from_numpy(table)[None], torch.tensor([6]), torch.tensor(target), torch.tensor([len(target)]))
            assert math.isclose(float(loss)*len(target), -math.log(probability), rel_tol=1e-6)
    assert list(found.values()) == sorted(found.values(), reverse=True)


def test_a_narrow_search_finds_what_greedy_misses_and_a_bonus_counts_once_a_gloss():
    two = np.log([[.6, .4], [.6, .4]])
    assert greedy(two) == () and prefix_search(two, 2)[0][0] == (1,)
    assert prefix_search(two, 2)[0][1] == pytest.approx(math.log(.64))
    with_bonus = dict(prefix_search(two, 10, bonus=lambda prefix, label: -1.0))
    assert with_bonus[1,] == pytest.approx(math.log(.64) - 1) and with_bonus[()] == pytest.approx(math.log(.36))


def test_a_table_with_certain_labels_is_read_without_a_warning(recwarn):
    with np.errstate(divide='ignore'): table = np.log(np.eye(3)[[1, 0, 1, 2]])
    assert prefix_search(table)[0] == ((1, 1, 2), 0.0) and greedy(table) == (1, 1, 2)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_impossible_lengths_are_refused_by_name(tmp_path):
    assert frames_needed('A A B'.split()) == 4
    clip = replace(TRAIN[0], id='too-short', gloss='A A B', points=TRAIN[0].points[:3], confidence=TRAIN[0].confidence[:3])
    with pytest.raises(UserError, match=r'too-short: 3 frames of output for 3 glosses that need 4'):
        train([*TRAIN, clip], DEV, configure('smoke', TINY), tmp_path, progress=False)
    four = replace(clip, points=TRAIN[0].points[:4], confidence=TRAIN[0].confidence[:4])
    with pytest.raises(UserError, match='2 frames of output'):
        train([*TRAIN, four], DEV, configure('smoke', dict(TINY, halvings=1)), tmp_path, progress=False)


def test_variation_leaves_every_sentence_possible():
    rng = np.random.default_rng(0)
    clip = sentence('A A B B', rng)
    tight = replace(clip, points=clip.points[:12], confidence=clip.confidence[:12])
    for halvings in (0, 1):
        training = continuous.Training([tight], ['A', 'B'], configure('smoke', dict(TINY, warp=.9, halvings=halvings)))
        shortest = min(len(training.varied(0, epoch)) for epoch in range(200))
        assert continuous.frames_after(shortest, training.config) >= frames_needed('A A B B'.split())


def test_a_short_training_reads_without_error(tmp_path):
    judge = train(TRAIN, DEV, configure('smoke', dict(TINY, epochs=20)), tmp_path/'run', progress=False)
    assert judge.reads(DEV) == [clip.gloss for clip in DEV]
    again = load(tmp_path/'run')
    assert isinstance(again, Reader) and again.reads(DEV) == judge.reads(DEV) and again.identity == judge.identity
    told = read_contract(tmp_path/'run'/continuous.BEST)['contract']
    assert told['columns'] == landmark_columns('holistic75') and told['labels'] == list('ABCD') and told['fps'] == 25
    greedily = replace(judge.config, beams=1)
    judge.config = greedily
    assert judge.reads(DEV) == again.reads(DEV) and again.reads([]) == []


def test_an_interrupted_run_ends_like_an_undisturbed_one(tmp_path, monkeypatch):
    config = configure('smoke', dict(TINY, epochs=3, turn=4., stretch=.05))
    whole = train(TRAIN, DEV, config, tmp_path/'whole', progress=False)
    evaluate, calls = continuous.evaluation, []

    def dies(*given):
        inner = evaluate(*given)
        def wrapped(model):
            calls.append(1)
            if len(calls) == 2: raise KeyboardInterrupt
            return inner(model)
        return wrapped

    monkeypatch.setattr(continuous, 'evaluation', dies)
    with pytest.raises(KeyboardInterrupt): train(TRAIN, DEV, config, tmp_path/'cut', progress=False)
    with pytest.raises(UserError, match='not a finished run'): load(tmp_path/'cut')
    assert train(TRAIN, DEV, config, tmp_path/'cut', progress=False).identity == whole.identity


def test_padding_and_company_change_nothing():
    for settings in (dict(), dict(halvings=2), dict(encoder='bigru', head_layers=1, head=8, halvings=1)):
        torch.manual_seed(0)
        model = ContinuousRecogniser(configure('smoke', settings), 10, 5).eval()
        x, lengths = torch.randn(3, 23, 10), torch.tensor([23, 14, 5])
        with torch.no_grad():
            told, after = model(x, lengths)
            for row, length in enumerate(lengths):
                single, _ = model(x[row:row + 1, :length], lengths[row:row + 1])
                assert torch.allclose(told[row, :after[row]], single[0], atol=1e-5)
        assert told.dtype == torch.float32 and torch.allclose(told.exp().sum(-1), torch.ones(3, told.shape[1]), atol=1e-5)


def test_unknown_glosses_are_refused_or_counted(tmp_path):
    odd = replace(DEV[0], gloss='A Z')
    with pytest.raises(UserError, match="gloss 'Z'.*unknown=count"): train(TRAIN, [odd], configure('smoke', TINY), tmp_path/'a', progress=False)
    judge = train(TRAIN, [odd], configure('smoke', dict(TINY, epochs=1, unknown='count')), tmp_path/'b', progress=False)
    assert json.loads((judge.folder/'reports'/'final_metrics.json').read_text())['validation']['wer'] > 0
    with pytest.raises(UserError, match='no gloss'): train([replace(TRAIN[0], gloss='')], DEV, configure('smoke', TINY), tmp_path/'c', progress=False)
    with pytest.raises(UserError, match='empty'): train(TRAIN, [], configure('smoke', TINY), tmp_path/'d', progress=False)


def test_weights_that_do_not_belong_are_refused(tmp_path):
    judge = train(TRAIN, DEV, configure('smoke', dict(TINY, epochs=1)), tmp_path, progress=False)
    path = tmp_path/'training_config.json'
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | dict(fps=12.5)))
    with pytest.raises(UserError, match='fps is 25.0, expected 12.5'): load(tmp_path)
    path.write_text(json.dumps(settings | dict(colour='red')))
    with pytest.raises(UserError, match="'colour' is unknown"): load(tmp_path)
    with pytest.raises(UserError, match='its layout is skels50'): judge.reads(sentences(1, 3, 'skels50'))
    with pytest.raises(UserError, match='no such weight file|not a finished run'): load(tmp_path/'nowhere')


@pytest.mark.parametrize('name, value', [('encoder', 'lstm'), ('layout', 'stick'), ('features', 'shapes'), ('beams', 0), ('fps', 0.),
                                         ('halvings', -1), ('hue', 1)])
def test_settings_that_mean_nothing_are_refused(name, value):
    with pytest.raises(UserError, match=name): configure('laptop', {name: value})


def test_only_landmarks_can_be_turned():
    with pytest.raises(UserError, match='only landmarks'): configure('laptop', dict(features='points', turn=3.))


@pytest.mark.parametrize('name', ['coco133', 'skels50', 'smplx55'])
def test_every_layout_can_be_read(name, tmp_path):
    clips = sentences(12, 5, name)
    judge = train(clips, clips, configure('smoke', dict(TINY, epochs=1, layout=name)), tmp_path, progress=False)
    assert len(judge.reads(clips)) == 12 and judge.model.encoder.mean.shape == (len(landmark_columns(name)),)
    with pytest.raises(UserError, match='holistic75 only'): configure('smoke', dict(layout=name, features='points'))


def test_what_a_clip_lacks_cannot_be_told_from_what_it_has(tmp_path):
    config, clip = configure('smoke', TINY), DEV[3]
    flat = array_of(replace(clip, points=clip.points[..., :2]), config)
    assert np.array_equal(flat, array_of(clip, config)) and np.array_equal(flat, array_of(replace(clip, confidence=.3*clip.confidence), config))
    judge = train(TRAIN, DEV, replace(config, epochs=1), tmp_path, progress=False)
    hand = clip.table.indices('left_hand')
    lost = replace(clip, confidence=clip.confidence.copy(), points=clip.points.copy())
    lost.confidence[:, hand], lost.points[:, hand] = 0, np.nan
    averaged = continuous.without_gaps(array_of(lost, config), judge.model.encoder.mean.numpy())
    places = [i for i, column in enumerate(landmark_columns('holistic75')) if column.startswith('left_hand')]
    assert np.allclose(averaged[:, places], judge.model.encoder.mean.numpy()[places])
    assert np.isfinite(judge.log_probabilities([lost])[0]).all()


def test_an_encoder_is_taken_over_whole_or_not_at_all(tmp_path):
    rng = np.random.default_rng(0)
    signs = [replace(sentence(word, rng), split='train') for word in 'ABCD'*3]
    settings = dict(features='relative', hidden=8, epochs=1, embedding=8, batch_size=4, masking='pack', precision='no', normaliser='standard')
    alone.train(signs, signs, alone.configure('paper', settings), tmp_path/'signs', progress=False)
    shared = dict(features='relative', encoder='bigru', hidden=8, layers=2, fps=25.0, epochs=2, frozen=1, head=8, patience=0, beams=1)
    judge = train(TRAIN, DEV, ContinuousConfig(**shared), tmp_path/'run', start=tmp_path/'signs', progress=False)
    report = json.loads((judge.folder/'reports'/'final_metrics.json').read_text())['start']
    assert 'encoder.proj.weight' in report['taken'] and 'classifier.weight' in report['fresh'] and not set(report['taken']) & set(report['fresh'])
    load(tmp_path/'run')
    with pytest.raises(UserError, match='hidden is 8, expected 16'):
        train(TRAIN, DEV, ContinuousConfig(**(shared | dict(hidden=16))), tmp_path/'other', start=tmp_path/'signs', progress=False)
    model = ContinuousRecogniser(ContinuousConfig(**shared), 170, 4)
    continuous.start_encoder(model, ContinuousConfig(**shared), tmp_path/'signs')
    for epoch, moves in ((0, False), (1, True)):
        continuous.freezing(1)(model.train(), epoch)
        assert all(p.requires_grad == moves for p in model.encoder.parameters()) and (moves or not model.encoder.training)


def test_read_back_sentences_counts_over_the_corpus():
    rows = reading_rows(['A B C', 'A', 'B B'], ['A C', 'A', ''])
    assert rows.tolist() == [[1, 3, 0, 1, 2], [0, 1, 1, 1, 1], [2, 2, 0, 1, 0]]

    class Deaf:
        def reads(self, clips): return [clip.text for clip in clips]

    real = [replace(clip, text=clip.gloss) for clip in DEV]
    made = [replace(clip, text=' '.join(clip.gloss.split()[1:])) for clip in real]
    told = read_back_sentences(Deaf(), made, real, 'feed')
    glosses = sum(len(clip.gloss.split()) for clip in real)
    assert told['word error rate']['made'].value == pytest.approx(len(real)/glosses) == pytest.approx(1 - told['found']['made'].value)
    assert told['sentences']['made'].value == 0 and told['sentences']['real'].value == 1 and 'feed' in told['found']['made'].signature
    gap = told['word error rate']['gap'].difference
    assert gap.low <= gap.value <= gap.high and gap.value == pytest.approx(len(real)/glosses)
    for broken, message in ((made[::-1], 'one order'), (made[1:], 'one for each')):
        with pytest.raises(UserError, match=message): read_back_sentences(Deaf(), broken, real, 'feed')
    with pytest.raises(UserError, match='no gloss'): read_back_sentences(Deaf(), [replace(made[0], gloss='')], [replace(real[0], gloss='')], 'feed')
