"""The dictionary: strings equal to the published ones, odd texts, damaged files, and a build from isolated clips."""

import json
import os
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from signbook.corpora import sentences
from signbook.errors import UserError
from signbook.soke.dictionary import (
    FILED,
    MOST,
    Dictionary,
    build,
    encoded,
    hints,
    keyword_ids,
    keyword_string,
    label_words,
    learn_words,
    listed_hints,
    match_words,
    matching,
    merged_words,
    read_dictionary,
    read_names,
    shortened,
    write_dictionary,
)

FOLDER = Path(os.environ.get("SIGNBOOK_PARITY", "")) / "soke"
parity = pytest.mark.skipif(not os.environ.get("SIGNBOOK_PARITY"), reason="SIGNBOOK_PARITY is not set; the fixtures of upstream numbers are needed")
LANGUAGES = dict(how2sign="en", csl="zh", phoenix="de")


@cache
def published():
    return json.loads((FOLDER / "lm.json").read_text(encoding="utf-8"))


@pytest.fixture
def files(tmp_path):
    "The published dictionary as the two files in which it comes."
    (tmp_path / "word2code.json").write_text(json.dumps(published()["word2code"]), encoding="utf-8")
    half = dict(list(published()["name2kws"].items())[:2])
    (tmp_path / "name2kws_train.json").write_text(json.dumps(half), encoding="utf-8")
    (tmp_path / "name2kws_val.json").write_text(json.dumps(published()["name2kws"]), encoding="utf-8")
    return tmp_path


# parity


@parity
def test_soke_parity_keyword_strings(files):
    told, dictionary = published(), read_dictionary(files / "word2code.json")
    names = read_names(files / "name2kws_train.json", files / "name2kws_val.json")
    made = [keyword_string(listed_hints(name, names, dictionary), LANGUAGES[src]) for name, src in zip(told["train.names"], told["train.src"])]
    assert made == told["kw_strings"]
    assert keyword_string(listed_hints("unlisted", names, dictionary), "en") == ""


@parity
def test_soke_parity_keyword_numbers(files):
    "The same hints as numbers, without the way through text: row of a token is that of its name in the published vocabulary."
    told, dictionary = published(), read_dictionary(files / "word2code.json")
    spare, rows = 3, len(told["map_ids_full"])  # each part has three tokens beyond its codes; the right hand's are the last
    first = dict(motion=rows - 2 * (192 + spare) - (96 + spare), hand=rows - 2 * (192 + spare), rhand=rows - (192 + spare))
    for name, src, text in zip(told["train.names"], told["train.src"], told["kw_strings"]):
        tokens = re.findall(r"<(motion|hand|rhand)_id_(\d+)>|[^<]+", text)
        wanted = [first[part] + int(code) if part else -1 for part, code in tokens]
        signs = listed_hints(name, told["name2kws"], dictionary)
        assert keyword_ids(signs, LANGUAGES[src], lambda words: [-1], list(first.values())) == wanted


@parity
def test_soke_parity_files_round_trip(files, tmp_path):
    dictionary = read_dictionary(files / "word2code.json")
    back = read_dictionary(write_dictionary(dictionary, tmp_path / "ours.json"))
    assert back.words == dictionary.words and all(np.array_equal(back.signs[name], codes) for name, codes in dictionary.signs.items())
    assert [match.sign for match in match_words("am montag kommt Regen, dann die Sonne", "de", dictionary)] == ["regen", "sonne"]
    assert [match.sign for match in match_words("今天天气很好", "zh", dictionary)] == ["天气"]


# words


@pytest.fixture(scope="module")
def learned():
    return learn_words(one for _, split, one in sentences.records(400) if split == "train")


def codes(*numbers):
    return np.array([(number, number, number) for number in numbers])


def test_words_are_learned_in_every_language(learned):
    assert set(learned) == {"de", "en", "zh"}
    heard = [one for _, split, one in sentences.records(400) if split == "test"]
    table = matching(heard, Dictionary({}, learned), 99)
    assert (table.precision > 0.9).all() and (table.recall > 0.7).all(), table
    assert (matching(heard, Dictionary({}, learned)).found <= MOST * table.sentences).all()


def test_learning_takes_no_notice_of_the_order_of_sentences(learned):
    listed = [one for _, split, one in sentences.records(400) if split == "train"]
    again = learn_words(reversed(listed))
    assert {language: {word: set(signs) for word, signs in table.items()} for language, table in again.items()} == {
        language: {word: set(signs) for word, signs in table.items()} for language, table in learned.items()
    }


@pytest.mark.parametrize("text", ["🙂", "🙂 👍🏽", "…?!", "123", "\u200b\u200bxyz", "x" * 2000, "qq " * 667])
def test_texts_without_a_known_word_find_nothing(learned, text):
    for language in learned:
        assert match_words(text, language, Dictionary({}, learned)) == []


@pytest.mark.parametrize(
    ("text", "language", "most", "part"),
    [("", "de", 3, "empty"), (" \n\t", "en", 3, "empty"), ("rain", "fr", 3, "'fr'"), ("rain", "", 3, "''"), ("rain", "de", -1, "-1")],
)
def test_what_cannot_be_looked_up_is_one_sentence(learned, text, language, most, part):
    with pytest.raises(UserError, match=part) as told:
        match_words(text, language, Dictionary({}, learned), most)
    assert "\n" not in str(told.value)


def test_a_long_text_is_searched_to_its_end(learned):
    found = match_words("qq " * 650 + "slowly fold the paper", "en", Dictionary({}, learned))
    assert [match.sign for match in found] == ["SLOW", "FOLD", "PAPER"]


def test_retrieval_can_be_switched_off():
    dictionary = Dictionary({"RAIN": codes(1)}, {"en": {"rain": ("RAIN",)}})
    assert hints("rain", "en", dictionary, 0) == [] and len(hints("rain", "en", dictionary)) == 1


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=80), st.sampled_from(["de", "en", "zh"]))
def test_any_text_has_an_answer(text, language):
    dictionary = Dictionary({}, {"de": {"nord": ("N",), "see": ("S",)}, "en": {"a b": ("AB",), "b": ("B",)}, "zh": {"明天": ("T",), "天": ("D",)}})
    if not text.strip():
        return
    found = match_words(text, language, dictionary)
    assert len(found) <= MOST and len({match.sign for match in found}) == len(found)
    assert all(match.how in ("exact", "lemma", "compound") for match in found)


@settings(deadline=None, max_examples=100)
@given(st.text("abcd", min_size=1, max_size=12), st.lists(st.text("abcd", min_size=1, max_size=3), min_size=1, max_size=6))
def test_the_longest_key_wins(text, keys):
    "Against a plain search over the string."
    lookup = {key: (key,) for key in keys}
    place, wanted = 0, []
    while place < len(text):
        key = max((key for key in lookup if text.startswith(key, place)), key=len, default="")
        wanted += [key] * (bool(key) and key not in wanted)
        place += len(key) or 1
    assert [match.sign for match in match_words(text, "ja", Dictionary({}, {"ja": lookup}), 99)] == wanted


def test_a_word_of_every_language_and_one_of_its_own():
    dictionary = Dictionary({}, merged_words({"de": {"gift": ("POISON",)}}, label_words(["gift", "Hand"], "")))
    assert [match.sign for match in match_words("gift hand", "de", dictionary)] == ["POISON", "Hand"]
    assert [match.sign for match in match_words("gift hands", "en", dictionary)] == ["gift", "Hand"]


# codes


class Standin:
    "Codes that tell which frames they come from, and what was done to the batch."

    def encode(self, x, lengths):
        assert x.dtype == torch.float32 and x.shape[2] == 133 and all(length % 4 == 0 for length in lengths.tolist())
        for row, length in zip(x, lengths.tolist()):
            assert (row[length:] == 0).all()
        return (x[:, ::4, [3, 40, 90]].abs() * 20).long(), lengths // 4


def test_a_batch_gives_what_each_clip_gives_alone():
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(length, 133)) for length in (40, 12, 80, 4, 40)]
    together = encoded(features, Standin(), lambda x: x, batch=2)
    assert all(np.array_equal(row, encoded([one], Standin(), lambda x: x)[0]) for one, row in zip(features, together))
    assert [len(row) for row in together] == [10, 3, 20, 1, 10]


def test_a_dictionary_from_clips():
    clips = list(sentences.dictionary(per_gloss=2))[:9]
    glosses = {clip.gloss for clip in clips}
    words = {"en": {"one": (clips[0].gloss,), "two": (clips[0].gloss, "NOT THERE"), "none": ("NOT THERE",)}}
    made = build(clips, Standin(), lambda x: x, words)
    assert set(made.signs) == glosses and all(one.dtype == np.int64 and one.shape[1] == 3 for one in made.signs.values())
    assert made.words == {"en": {"one": (clips[0].gloss,), "two": (clips[0].gloss,)}}
    with pytest.raises(UserError, match="no stream smplx"):
        build([replace(clips[0], streams={})], Standin(), lambda x: x, {})


def test_a_hint_has_at_most_ten_triples():
    assert np.array_equal(shortened(codes(*range(10))), codes(*range(10)))
    assert shortened(codes(*range(12)))[:, 0].tolist() == np.linspace(0, 11, 10).astype(int).tolist()
    assert keyword_string([codes(*range(40))], "en").count("<motion_id_") == 10


# files


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no json",
        "[1]",
        "[" * 10_000,
        '{"rain": 5}',
        '{"rain": {"body": [1], "lhand": [1]}}',
        '{"rain": {"body": [1], "lhand": [1], "rhand": [1, 2]}}',
        '{"rain": {"body": [], "lhand": [], "rhand": []}}',
        '{"rain": {"body": [1.5], "lhand": [1], "rhand": [1]}}',
        '{"rain": {"body": [true], "lhand": [1], "rhand": [1]}}',
        '{"rain": {"body": [-1], "lhand": [1], "rhand": [1]}}',
        '{"rain": {"body": [1e400], "lhand": [1], "rhand": [1]}}',
        '{"signs": {}, "words": {"de": 5}}',
        '{"signs": {}, "words": {"de": {"regen": ["RAIN"]}}}',
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, content):
    (tmp_path / "word2code.json").write_text(content)
    with pytest.raises(UserError, match="word2code.json") as told:
        read_dictionary(tmp_path / "word2code.json")
    assert "\n" not in str(told.value)


def test_missing_files_and_lists_that_are_none(tmp_path):
    with pytest.raises(UserError, match="nothing.json"):
        read_dictionary(tmp_path / "nothing.json")
    (tmp_path / "names.json").write_text('{"a": "rain"}')
    with pytest.raises(UserError, match="names.json"):
        read_names(tmp_path / "names.json")
    assert FILED == ("body", "lhand", "rhand")
