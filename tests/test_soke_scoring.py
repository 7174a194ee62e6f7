"""References score nothing, statues and slow copies are found out, and what does not belong together is refused."""
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from signbook.corpora.sentences import clips as sentences
from signbook.errors import UserError
from signbook.poses.drawing import png
from signbook.scores.alignment import dtw_jpe, dtw_pa_jpe, soke_average
from signbook.soke.figures import code_bars, joint_curves, latency_bars, retrieval_example, scaling_bars, strips, warping
from signbook.soke.motion import Scale, features_of
from signbook.soke.scoring import (BODY, JOINTS, MAIN, batches, cannot_tell, claims, code_use, compared, controls, families, motions_of,
                                   named, parted, plain, reconstructed, score_system, score_tokenizer, shown, verdicts, whole)
from signbook.soke.tokenizer import Tokenizer, TokenizerConfig


@pytest.fixture(scope='module')
def corpus():
    clips = list(sentences('smoke'))
    return [clip for clip in clips if clip.split == 'train'], [plain(clip) for clip in clips if clip.split == 'test'][:12]


class Ear:
    "Says the text of the clip that it knows by its length and its first frame; anything else is nonsense."
    def __init__(self, known): self.known = {self.key(shown(clip, place)): clip.text for place, clip in enumerate(known)}
    def key(self, clip): return len(clip), tuple(np.round(clip.points[len(clip)//2, 9], 5).tolist())
    def translates(self, clips):
        assert not any(clip.text or clip.gloss for clip in clips), 'a translator must not be told'
        return [self.known.get(self.key(clip), 'no idea') for clip in clips]


def played(references, make): return [plain(clip, make(features_of(clip)).astype(np.float32)) for clip in references]
def values(record): return {score: told['value'] for score, told in record['scores'].items()}


def test_references_score_nothing_and_everything_is_json(corpus):
    _, references = corpus
    record = score_system(references, references, Ear(references), 'ear', count=50)
    found = values(record)
    assert all(found[score] == 0 for score in found if 'JPE' in score or 'MJE' in score) and found['length error (%)'] == 0
    assert found['velocity ratio'] == found['finger velocity ratio'] == found['length ratio'] == 1 and found['BLEU-4'] == 100
    back = record['back_translation']
    assert back['ceiling']['value'] == 100 and back['gap']['value'] == 0 and back['gap']['p'] == 1
    assert set(back['languages']) == set(record['languages']) == {clip.language for clip in references}
    assert sum(of['clips'] for of in record['languages'].values()) == 12 and record['body'] == BODY
    overview, details = parted(record)
    assert whole(overview, details) == record == json.loads(json.dumps(record, allow_nan=False))
    assert len(json.dumps(overview)) < 5000 and 'details' not in overview and details['said'] == [clip.text for clip in references]


def test_distances_are_those_of_the_definition(corpus):
    _, references = corpus
    made, real = (motions_of(side) for side in (references[1:4], references[:3]))
    others = [replace(one, text=clip.text, language=clip.language) for one, clip in zip(references[1:4], references)]
    found = values(score_system(named(others, references[:3]), references[:3], count=20))
    for score, by in (('DTW-PA-JPE', dtw_pa_jpe), ('DTW-JPE', dtw_jpe)):
        for how in ('path_sum', 'per_frame'):
            body, left, right = (by(made, real, JOINTS[part], how) for part in JOINTS)
            assert np.isclose(found[f'{score} {how} body'], body.mean(), rtol=1e-4)
            assert np.isclose(found[f'{score} {how} hand'], ((left + right)/2).mean(), rtol=1e-4)
            assert np.isclose(found[f'{score} {how}'], soke_average(body, left, right).mean(), rtol=1e-4)


def test_slower_copies_gain_per_frame_only_and_the_record_says_so(corpus):
    _, references = corpus
    wrong = references[1:] + references[:1]
    fast, slow = ([plain(clip, np.repeat(features_of(one), times, 0)) for one, clip in zip(wrong, references)] for times in (1, 2))
    before, after = (score_system(side, references, count=20) for side in (fast, slow))
    a, b = values(before), values(after)
    assert b['DTW-PA-JPE per_frame'] < a['DTW-PA-JPE per_frame'] and b[MAIN] > a[MAIN] and b['nDTW-MJE'] > a['nDTW-MJE']
    assert np.isclose(b['length ratio'], 2*a['length ratio'], rtol=1e-4) and b['velocity ratio'] < .6*a['velocity ratio']
    assert 'last longer' in after['cannot_tell']['DTW-PA-JPE per_frame'] and 'nDTW-MJE' not in after['cannot_tell']
    assert 'stands still' in cannot_tell(MAIN) and not cannot_tell('DTW-JPE path_sum')


def test_statues_and_slow_signers_are_warnings(corpus):
    train, references = corpus
    ear, rng = Ear(references), np.random.default_rng(0)
    made, absent = controls(references, train)
    assert set(absent) == {'gloss dictionary', 'retrieved dictionary'} and set(made) == {'mean pose', 'random training clip', 'wrong clip',
                                                                                       'nearest training text', 'references'}
    systems = {'multihead': played(references, lambda x: x + .02*rng.standard_normal((1, 133))),
               'parallel': played(references, lambda x: x + .3*rng.standard_normal((1, 133))),
               'statue': played(references, lambda x: np.repeat(x.mean(0, keepdims=True), len(x), 0)),
               'asleep': played(references, lambda x: x[np.arange(len(x))//3])}
    records = {name: score_system(clips, references, count=50) for name, clips in (systems | made).items()}
    states = {row['system']: row['state'] for row in verdicts(records, list(made))}
    assert states['multihead'] == 'holds' and states['statue'] == states['asleep'] == 'warning'
    assert [row['state'] for row in claims(records)] == ['holds'] and families(list(records))['retrieval'] == []
    # the still pose that knows no sentence is nearer than real signing of other words, and only some scores notice
    still, wrong = values(records['mean pose']), values(records['wrong clip'])
    assert still['nDTW-MJE'] > wrong['nDTW-MJE'] and still['velocity ratio'] == 0
    # with a translator nothing holds that nobody understands
    few = {name: clips for name, clips in (systems | made).items() if name in ('multihead', 'mean pose', 'references')}
    heard = {name: score_system(clips, references, ear, 'ear', count=50) for name, clips in few.items()}
    assert [row['state'] for row in verdicts(heard, list(made))] == ['open']
    row, = compared(heard, [('references', 'multihead')], 'BLEU-4')
    assert row['value'] > 0 and row['p_holm'] == row['p'] < .05


def test_what_does_not_belong_together_is_refused(corpus):
    train, references = corpus
    with pytest.raises(UserError, match='11 made clips for 12'): score_system(references[:-1], references)
    with pytest.raises(UserError, match='give both in one order'): score_system(references[::-1], references)
    with pytest.raises(UserError, match='no references'): score_system([], [])
    with pytest.raises(UserError, match='no stream smplx'): score_system([replace(clip, streams={}) for clip in references], references)
    with pytest.raises(UserError, match='translates no clips'): score_system(references, references, object())
    class Mute:
        def translates(self, clips): return []
    with pytest.raises(UserError, match='0 translations of 12'): score_system(references, references, Mute())
    record = score_system(references, references, count=20)
    assert 'back_translation' not in record and 'BLEU-4' not in record['scores']
    with pytest.raises(UserError, match="no rows of 'BLEU-4'"): compared(dict(a=record, b=record), [('a', 'b')], 'BLEU-4')
    with pytest.raises(UserError, match="no record of 'c'"): compared(dict(a=record), [('a', 'c')])
    _, absent = controls(references[:1], train)
    assert 'one text' in absent['wrong clip']


def test_one_frame_can_be_scored(corpus):
    _, references = corpus
    record = values(score_system(played(references, lambda x: x[:1]), references, count=20))
    assert record['velocity ratio'] == 0 and record['length ratio'] < .05 and np.isfinite(list(record.values())).all()


def test_tokenizers_are_scored(corpus):
    train, references = corpus
    scale = Scale.fit([features_of(clip) for clip in train])
    torch.manual_seed(0)
    tokenizer = Tokenizer(TokenizerConfig(width=16, code_dim=8, codes_body=8, codes_left=8, codes_right=8, depth=1, resets='random'))
    with torch.no_grad(): tokenizer.train()(torch.from_numpy(scale(features_of(train[0]))[None, :40]))
    tokenizer.eval()
    record = score_tokenizer(references, tokenizer, scale, 20)
    json.dumps(record, allow_nan=False)
    assert all(record['scores'][f'{part} PA-MPJPE (mm)']['value'] > 0 for part in ('body', 'hand'))
    codes = np.concatenate([one for _, _, one in batches(tokenizer, scale, references, 5)])
    for column, of in enumerate(record['parts'].values()):
        assert of['used'] == len(np.unique(codes[:, column])) and sum(of['counts']) == len(codes) and of['codes'] == 8
    even = code_use(np.stack([np.arange(8)]*3, 1), tokenizer)
    assert all(of['used'] == 8 and np.isclose(of['perplexity'], 8, rtol=1e-4) for of in even.values())
    # a clip gets what it gets alone, and keeps its length up to a code
    alone, together = reconstructed(references[:1], tokenizer, scale)[0], reconstructed(references, tokenizer, scale)[0]
    assert np.allclose(features_of(alone), features_of(together), atol=1e-4) and 0 <= len(references[0]) - len(alone) < 4 and alone.text


def test_figures_can_be_drawn(corpus):
    train, references = corpus
    a, b = references[:2]
    part = dict(counts=[3, 0, 5], codes=3, used=2, perplexity=1.9, dead=1)
    for drawing in (joint_curves(a, {'copy': a}), code_bars(dict(body=part, left=part)), latency_bars({'sequential': [1, 2]}), warping(b, a, 'body'),
                    warping(plain(a, features_of(a)[:1]), a), strips({'reference': a}), retrieval_example(a, a, b, []),
                    scaling_bars({'en': {'en': dict(value=1, low=.5, high=2)}})):
        assert png(drawing, 30).startswith(b'\x89PNG')
    with pytest.raises(UserError, match='no part'): warping(a, b, 'foot')
    with pytest.raises(UserError, match='no clip'): strips({})
    with pytest.raises(UserError, match='no times'): latency_bars({})
    with pytest.raises(UserError, match='no scores'): scaling_bars({})
