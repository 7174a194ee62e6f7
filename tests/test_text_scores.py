"""Text scores against their oracles, under any input, and on published predictions."""

import json
import os
from pathlib import Path

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from signbook.errors import CorpusError, UserError
from signbook.scores.predictions import matched, read_sentences
from signbook.scores.rouge import rouge_l, rouge_l_slt
from signbook.scores.text import bleu_counts, bleu_of, text_scores
from signbook.scores.uncertainty import OfSums, paired_bootstrap
from signbook.scores.word_errors import errors, word_errors
from signbook.workbook.scoring import read_output, score_files, slices_of

SENTENCE = st.lists(st.sampled_from("a b c d e . 今 天 Haus".split()), max_size=9).map(" ".join)
PAIRS = st.lists(st.tuples(SENTENCE, SENTENCE), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.sampled_from(["en", "de", "zh"]), st.sampled_from(["signbook", "upstream"]))
def test_scores_keep_their_bounds_and_mind_no_order(pairs, language, convention):
    hypotheses, references = zip(*pairs)
    scores = text_scores(hypotheses, references, language, convention)
    turned = text_scores(hypotheses[::-1], references[::-1], language, convention)
    for name, metric in scores.items():
        assert np.isfinite(metric.value) and metric.value >= 0
        if name not in ("TER", "length ratio"):
            assert metric.value <= 100 + 1e-9
        assert metric.value == pytest.approx(turned[name].value, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.integers(1, 4))
def test_bleu_and_chrf_are_those_of_sacrebleu(pairs, order):
    hypotheses, references = (list(side) for side in zip(*pairs))
    counts = np.array([bleu_counts(h.split(), r.split()) for h, r in pairs])
    theirs = BLEU(max_ngram_order=order, tokenize="none", force=True).corpus_score(hypotheses, [references]).score
    assert float(bleu_of(counts.sum(0), order)) == pytest.approx(theirs, abs=1e-9)
    scores = text_scores(hypotheses, references, "xx", "upstream")
    for name, words in (("chrF2", 0), ("chrF2++", 2)):
        assert scores[name].value == pytest.approx(CHRF(word_order=words).corpus_score(hypotheses, [references]).score, abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_word_error_rate_is_that_of_jiwer(reference, hypothesis):
    theirs = jiwer.process_words([" ".join(reference)], [" ".join(hypothesis)])
    assert errors(reference, hypothesis).rate == pytest.approx(100 * theirs.wer)
    nist = errors(reference, hypothesis, "nist")
    assert nist.words == len(reference) and nist.words - nist.deleted + nist.inserted == len(hypothesis)


def test_a_perfect_and_a_silent_system():
    references = ["Take 3 eggs and beat them well.", "Do not open the door now."]
    perfect, silent = (text_scores(said, references, "en") for said in (references, ["", ""]))
    for name in ("BLEU-4", "chrF2", "ROUGE-L"):
        assert perfect[name].value == pytest.approx(100) and silent[name].value == 0
    assert silent["TER"].value == 100 and silent["ROUGE-L (SLT)"].value == 0


def test_paired_bootstrap_of_counts_equals_calling_sacrebleu():
    draw = np.random.default_rng(0)
    first, second, references = ([" ".join(draw.choice(list("abcdefg"), 6)) for _ in range(25)] for _ in range(3))
    rows = [np.array([bleu_counts(h.split(), r.split()) for h, r in zip(said, references)]) for said in (first, second)]

    quick = paired_bootstrap(*rows, OfSums(bleu_of), count=40)

    def score(said):
        metric = BLEU(tokenize="none")
        return lambda places: metric.corpus_score([said[i] for i in places], [[references[i] for i in places]]).score

    draws = np.random.default_rng(0).integers(0, 25, (40, 25))
    slow = np.array([score(first)(places) - score(second)(places) for places in draws])
    assert quick.difference.low == pytest.approx(np.quantile(slow, 0.025), abs=1e-9)
    assert quick.difference.high == pytest.approx(np.quantile(slow, 0.975), abs=1e-9)


def test_bad_prediction_files_are_told_in_one_sentence(tmp_path):
    (tmp_path / "ref.txt").write_text("a\nb\n", encoding="utf-8")
    bad = {
        "latin.txt": "schön\nx\n".encode("latin-1"),
        "short.txt": b"a\n",
        "long.txt": b"a\nb\nc\n",
        "empty.txt": b"",
        "twice.txt": b"sample: a, prediction: x\nsample: a, prediction: y\n",
        "half.jsonl": b'{"id": "a", "text": "x"}\n{"id": ',
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as told:
            read_output(tmp_path / name, tmp_path / "ref.txt", "en")
        assert "\n" not in str(told.value) and len(str(told.value)) < 400
    with pytest.raises(UserError, match="klingon"):
        read_output(tmp_path / "ref.txt", tmp_path / "ref.txt", "klingon")
    (tmp_path / "labels.csv").write_text("name,signer\nline 1,P1\n")
    with pytest.raises(UserError, match="line 2"):
        slices_of(read_output(tmp_path / "ref.txt", tmp_path / "ref.txt", "en"), labels=tmp_path / "labels.csv")
    with pytest.raises(CorpusError):
        read_sentences(tmp_path / "nothing.txt")


def test_geosign_parity_metric_examples():
    folder = os.environ.get("SIGNBOOK_PARITY")
    if not folder:
        pytest.skip("SIGNBOOK_PARITY is not set; the fixtures of upstream numbers are needed")
    known = json.loads(Path(folder, "geosign", "meta.json").read_text(encoding="utf-8"))
    scores = text_scores(known["metrics.hyps"], known["metrics.refs"], "zh", "upstream")
    for order in (1, 2, 3, 4):
        assert scores[f"BLEU-{order}"].value == pytest.approx(known[f"metrics.bleu.bleu{order}"], abs=1e-12)
    assert scores["ROUGE-L (SLT)"].value == pytest.approx(known["metrics.rougeL"], abs=1e-12)


PUBLISHED = {
    "csl_daily.test": ("zh", 53.87, 25.70, 55.00),
    "csl_daily.dev": ("zh", 53.30, 25.27, 54.30),
    "how2sign.test": ("en", 39.38, 14.50, 34.51),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows_come_out(name):
    folder = Path(os.environ.get("SIGNBOOK_DATA", ""), "published_predictions")
    if "SIGNBOOK_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("published_predictions is not under SIGNBOOK_DATA")
    language, *rows = PUBLISHED[name]
    _, ours, theirs = matched(read_sentences(folder / f"{name}.hyp.txt"), read_sentences(folder / f"{name}.ref.txt"))
    counts = text_scores(ours, theirs, language, "upstream", edits=False)
    for metric, value in zip(("BLEU-1", "BLEU-4", "ROUGE-L (SLT)"), rows):
        assert round(counts[metric].value, 2) == value


def test_score_files_writes_every_format(tmp_path):
    for name, texts in (("hyp", "a b c d e\nx y"), ("ref", "a b c d f\nx z")):
        (tmp_path / f"{name}.txt").write_text(texts + "\n")
    score_files(tmp_path / "hyp.txt", tmp_path / "ref.txt", "de", output=tmp_path / "out", count=50)
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    score_files(tmp_path / "hyp.txt", tmp_path / "ref.txt", "de", output=tmp_path / "out", count=50)
    assert first == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {"scores.csv", "scores.md", "scores.tex", "metrics.json"} <= set(first)


def test_repeating_sentences_in_rouge_and_word_errors():
    assert rouge_l([["a", "b"]], [["a", "b"]]).tolist() == [100]
    assert rouge_l_slt(["a. a."], ["a."])[0] > 99
    whole, rows = word_errors([["a"], ["b", "c"]], [["a"], []])
    assert whole.deleted == 2 and rows.shape == (2, 4)
