"""Folding and tokens under random text, every code point, and the published predictions."""
import os
import re
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signbook.corpora.languages import CONVENTIONS, fold, policy, primary, tokens, words
from signbook.errors import UserError

DATA = Path(os.environ.get('SIGNBOOK_DATA') or 'nowhere')
CODES = st.sampled_from(['zh', 'zh-TW', 'de', 'en', 'hi', 'ja', ''])
SIDES = st.sampled_from(['reference', 'hypothesis'])


@settings(max_examples=300, deadline=None)
@given(st.text(), CODES, st.sampled_from(CONVENTIONS), SIDES)
def test_folding_twice_is_folding_once_and_tokens_are_whole(text, language, convention, side):
    once = fold(text, language, convention, side)
    assert fold(once, language, convention, side) == once
    cut = tokens(text, language, convention, side)
    assert all(token and not any(sign.isspace() for sign in token) for token in cut)
    assert tokens(once, language, convention, side) == cut
    if policy(language).cut == 'characters': assert ''.join(cut) == once and all(len(token) == 1 for token in cut)


@settings(max_examples=300, deadline=None)
@given(st.text(), CODES)
def test_our_convention_knows_no_sides_and_no_ways_of_writing(text, language):
    assert fold(text, language, side='hypothesis') == fold(text, language, side='reference')
    for form in ('NFC', 'NFD', 'NFKC', 'NFKD'): assert fold(unicodedata.normalize(form, text), language) == fold(text, language)


@settings(max_examples=300, deadline=None)
@given(st.text(), CODES)
def test_words_are_stable_and_hold_no_punctuation(text, language):
    found = words(text, language)
    assert words(' '.join(found), language) == found
    assert all(unicodedata.category(sign)[0] in 'LMN' for word in found for sign in word)


def test_every_code_point_alone():
    for sign in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(sign) in ('Lo', 'Co', 'Cn', 'Cs') and unicodedata.is_normalized('NFKC', sign): continue   # nothing can happen to it
        for language in ('zh', 'de', 'en'):
            once = fold(sign, language)
            assert fold(once, language) == once, hex(ord(sign))
        found = words(sign)
        assert words(' '.join(found)) == found, hex(ord(sign))


def test_codes_and_demands_that_are_unknown():
    assert primary(' ZH_hans ') == 'zh' and policy('xx').cut == '13a' and policy('xx').language == ''
    with pytest.raises(UserError, match='convention'): tokens('a', 'en', 'theirs')
    with pytest.raises(UserError, match='side'): tokens('a', 'en', side='both')


@pytest.mark.skipif(not (DATA/'published_predictions').is_dir(), reason='SIGNBOOK_DATA holds no published predictions')
@pytest.mark.parametrize('name, language, expected',
                         [('csl_daily.dev', 'zh', 25.27), ('csl_daily.test', 'zh', 25.70), ('how2sign.test', 'en', 14.50)])
def test_published_predictions_score_what_they_scored(name, language, expected):
    from sacrebleu.metrics import BLEU

    def read(kind, word):
        return dict(re.findall(rf'^sample: (.*?), {word}: (.*)$', (DATA/'published_predictions'/f'{name}.{kind}.txt').read_text('utf-8'), re.M))
    said, meant = read('hyp', 'prediction'), read('ref', 'ground-truth')
    hypotheses = [' '.join(tokens(said[sample], language, 'upstream', 'hypothesis')) for sample in meant]
    references = [' '.join(tokens(text, language, 'upstream')) for text in meant.values()]
    assert round(BLEU(tokenize='none', force=True).corpus_score(hypotheses, [references]).score, 2) == expected
    if language == 'en': assert round(BLEU().corpus_score([said[s] for s in meant], [list(meant.values())]).score, 2) == expected
