"""Stress for the scores: random inputs against reference implementations and hostile inputs."""
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import f1_score, label_ranking_average_precision_score, top_k_accuracy_score

from signbook.errors import UserError
from signbook.scores import controls, labels, tripwires, uncertainty


@st.composite
def answers(draw):
    """Scores without ties, and true labels."""
    clips, classes = draw(st.integers(1, 60)), draw(st.integers(2, 15))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    return random.normal(size=(clips, classes)), random.integers(0, classes, clips)


@settings(max_examples=60, deadline=None)
@given(answers())
def test_label_scores_agree_with_scikit_learn(data):
    scores, truth = data
    classes = scores.shape[1]
    for k in range(1, classes):
        if classes > 2: assert labels.top_k(scores, truth, k) == pytest.approx(top_k_accuracy_score(truth, scores, k=k, labels=range(classes)))
    assert labels.reciprocal_rank(scores, truth) == pytest.approx(label_ranking_average_precision_score(np.eye(classes)[truth], scores))
    row = labels.summary(labels.softmax(scores), truth)
    predicted = scores.argmax(1)
    assert row['macro_f1'] == pytest.approx(f1_score(truth, predicted, average='macro', labels=np.unique(truth), zero_division=0))
    assert row['weighted_f1'] == pytest.approx(f1_score(truth, predicted, average='weighted', zero_division=0))
    assert 0 <= row['ece'] <= 1 and row['top1'] <= row['top5'] <= row['top10'] and row['mrr'] <= row['dcg'] <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 25), st.integers(0, 25), st.integers(0, 40))
def test_mcnemar_is_the_binomial_test(won, lost, both):
    first, second = np.r_[np.ones(won), np.zeros(lost), np.ones(both + 1)], np.r_[np.zeros(won), np.ones(lost), np.ones(both + 1)]
    expected = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert uncertainty.mcnemar(first, second) == pytest.approx(expected)
    assert uncertainty.mcnemar(second, first) == pytest.approx(expected)


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(0).exponential(size=150)
    ours = uncertainty.bootstrap(values, count=8000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=8000, method='percentile', rng=np.random.default_rng(1)).confidence_interval
    assert (ours.low, ours.high) == pytest.approx(tuple(theirs), abs=.012)


def test_wilson_agrees_with_scipy():
    for right, n in ((0, 5), (5, 5), (17, 40), (3498, 3552)):
        ours = uncertainty.wilson(np.arange(n) < right)
        theirs = stats.binomtest(right, n).proportion_ci(method='wilson')
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_large_resampling_stays_within_memory():
    interval = uncertainty.bootstrap(np.random.default_rng(0).random(40_000) < .5, count=1000)
    assert interval.n == 40_000 and .49 < interval.low < interval.high < .51
    assert uncertainty.swap_scores(np.ones(5000), np.zeros(5000), np.arange(5000), None, 3000, 0).shape == (3000,)


def test_holm_against_the_definition():
    p = dict(zip('abcdef', [.001, .2, .03, .04, .012, .6]))
    ordered = sorted(p.values())
    expected = np.maximum.accumulate([min(1, (6 - i)*value) for i, value in enumerate(ordered)])
    corrected = uncertainty.holm(p)
    assert [corrected[name] for name in sorted(p, key=p.get)] == pytest.approx(list(expected)) and list(corrected) == list(p)


@pytest.mark.parametrize('call, message', [
    (lambda: labels.top_k(np.zeros((3, 2)), [0, 1]), 'truth: there are'),
    (lambda: labels.top_k(np.full((2, 2), np.nan), [0, 1]), 'clip 0 has no number'),
    (lambda: labels.confusion([0, 1], [0, -1], 2), 'predicted: clip 1 has label -1'),
    (lambda: labels.report([], [], ['EAT']), 'truth: there are no clips'),
    (lambda: uncertainty.bootstrap([]), 'values: the shape is'),
    (lambda: uncertainty.paired_randomisation([1, 0], [1]), 'second: 1 clips'),
    (lambda: controls.nearest_neighbour(np.zeros((2, 3)), [0], np.zeros((1, 3)), 2), 'train_labels: there are'),
    (lambda: controls.binned([np.zeros((0, 3))]), 'features: clip 0'),
    (lambda: tripwires.constant_output([1], [1, 2]), 'predicted: '),
    (lambda: tripwires.independent_of_input(len, [1]), 'clips: 1 given'),
])
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(UserError, match=message): call()


def test_controls_do_not_touch_the_global_random_state():
    import torch
    clips = [np.random.default_rng(i).normal(size=(10 + i % 3, 4)).astype(np.float32) for i in range(12)]
    torch.manual_seed(5); before = torch.get_rng_state()
    controls.controls(clips, [0, 1, 2]*4, clips[:3], 3, trees=5)
    assert torch.equal(before, torch.get_rng_state())


def test_published_scores_trip_the_wire():
    for validation in (300, 700, 3000):
        assert tripwires.above_validation(round(.8547*validation), validation, 3498, 3552).tripped


def test_label_scores_need_no_torch():
    code = 'import sys, signbook.scores.labels, signbook.scores.uncertainty; sys.exit("torch" in sys.modules or "accelerate" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
