"""The grammar of the embedded sentences: every text well formed, every sentence signed as the rules say, the same in every process."""

import hashlib
import os
import random
import re
import subprocess
import sys
from collections import Counter

import pytest

from signbook.corpora import grammar
from signbook.corpora.ceilings import VIEWS, Prior, readings
from signbook.corpora.german import WEATHER
from signbook.corpora.meanings import AGREEING
from signbook.corpora.wordings import Meaning
from signbook.errors import UserError

LAPTOP = dict(train=1600, dev=200, test=200, test_signers=200, test_sentences=200)
TEXT = {
    "de": re.compile(r"[a-zäöüß]+( [a-zäöüß]+)+ [.?]"),
    "zh": re.compile(r"[\u4e00-\u9fff]+[。？]"),
    "en": re.compile(r"[A-Z][A-Za-z']*,?( [A-Za-z']+,?)+[.?]"),
}


@pytest.fixture(scope="module")
def corpus():
    return grammar.sentences(LAPTOP)


@pytest.fixture(scope="module")
def draws():
    rng = random.Random("tests")
    return [grammar.draw(rng, domain, rare=1.0) for domain in grammar.LANGUAGES for _ in range(1500)]


def test_every_wording_is_a_sentence_of_its_language(draws):
    for meaning, _ in draws:
        says, language = grammar.wordings(meaning), grammar.LANGUAGES[meaning.domain]
        assert abs(sum(says.values()) - 1) < 1e-9 and len(says) <= 1000
        question = meaning.kind in ("yes_no", "wh")
        for text in says:
            assert TEXT[language].fullmatch(text), (meaning, text)
            assert question == text.endswith(("?", "？")), text
            assert not re.search(r"\b(\w+) \1\b", text), f"a word twice: {text}"


def test_german_verbs_are_second_in_statements():
    verbs = {clause.split("/")[0].strip() for pair in WEATHER.values() for side in pair for clause in side.split(";") if clause.strip()}
    verbs = {verb.split()[0] for verb in verbs}
    for sky in WEATHER:
        words = sky.split()
        mood = words.pop() if words[-1] == "CAN" else ""
        meaning = Meaning("weather", "statement", time=("NIGHT",), place=("COAST",), thing=tuple(words), count=3, mood=mood)
        for text in grammar.wordings(meaning):
            first = next(place for place, word in enumerate(text.split()) if word in verbs)
            before = " ".join(text.split()[:first])
            assert text.split().count(".") == 1 and 0 < first <= 4, text
            known = {"in der nacht", "nachts", "an der küste", "in küstennähe", "es", "wir"}
            assert before in known or not before.startswith(("in ", "an ", "nachts ")), text
        for text in grammar.wordings(meaning._replace(kind="yes_no")):
            assert text.split()[0] in verbs, text


def test_signs_follow_the_rules(corpus):
    for slice in corpus.values():
        for s in slice:
            glosses, faces = s.gloss.split(), [token.face for token in s.tokens]
            assert 3 <= len(glosses) <= 6 and set(glosses) <= set(grammar.GLOSSES80)
            assert s.language == grammar.LANGUAGES[s.domain] and s.text in grammar.paraphrases(s)
            face = dict(negation="shake", yes_no="brow_raise", wh="brow_furrow").get(s.kind, "neutral")
            assert faces[-2:] == [face] * 2 and set(faces) <= {face, "neutral"}
            assert ("NOT" in glosses) <= (s.kind == "negation") and "NOT" not in glosses[:-1]
            assert (glosses[-1] in ("WHAT", "WHERE", "WHEN")) == (s.kind == "wh")
            for token in s.tokens:
                assert token.number is None or 1 <= token.number <= 10
                if token.gloss in AGREEING:
                    assert token.loci and 0 not in token.loci and token.loci[0] != token.loci[1]
                else:
                    assert token.loci == ((0, grammar.PRONOUNS[token.gloss]) if token.gloss in grammar.PRONOUNS else None)
            if any(token.gloss in AGREEING for token in s.tokens):
                assert not set(glosses) & set(grammar.PRONOUNS), "an agreeing verb drops its pronouns"


def test_negations_are_half_silent_and_questions_have_no_sign_of_their_own(corpus):
    denied = [s for s in corpus["train"] if s.kind == "negation"]
    assert 0.4 < sum("NOT" in s.gloss.split() for s in denied) / len(denied) < 0.6
    for s in corpus["test"]:
        if s.kind == "yes_no":
            same = grammar.signs(s.meaning._replace(kind="statement"))
            assert VIEWS["hands"](same) == VIEWS["hands"](s.tokens) and same != s.tokens


@pytest.mark.parametrize("seed", range(4))
def test_every_gloss_is_frequent_enough_and_pairs_stay_held_out(seed):
    made = grammar.sentences(dict(train=1600, test=100, test_sentences=100), seed)
    counts = Counter(token.gloss for s in made["train"] for token in s.tokens)
    assert set(counts) == set(grammar.GLOSSES80) and min(counts.values()) >= 60
    held = grammar.held_out_pairs(seed)
    assert all(bool(grammar.pairs_of(s.tokens) & held) == (name == "test_sentences") for name in made for s in made[name])
    assert len({s.language for s in made["test_sentences"]}) == 3


def test_the_same_in_every_process(corpus):
    code = "from signbook.corpora.grammar import sentences; import hashlib; s = sentences(dict(train=200, test_sentences=20));"
    code += "print(hashlib.sha256(repr(s).encode()).hexdigest())"
    here = hashlib.sha256(repr(grammar.sentences(dict(train=200, test_sentences=20))).encode()).hexdigest()
    for seed in "1", "2":
        done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == here
    assert grammar.sentences(dict(test=200))["test"] == corpus["test"]


def test_wrong_slices_are_refused():
    with pytest.raises(UserError, match="training"):
        grammar.sentences(dict(training=10))
    assert grammar.sentences(dict(train=0)) == {"train": []}


def test_readings_hold_the_truth(corpus):
    prior = Prior(corpus["train"])
    for s in corpus["test"] + corpus["test_sentences"]:
        for view in ("hands", "gloss"):
            silent = s.kind == "negation" and "NOT" not in s.gloss.split()
            assert (s.meaning, silent) in readings(s, view)
            assert sum(grammar.wordings(prior.guess(s, view)).values()) > 0.99
        if s.kind == "wh" or "NOT" in s.gloss.split():
            assert prior.guess(s, "hands") == s.meaning
