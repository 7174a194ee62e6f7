"""The recogniser under stress: interruption, determinism, every switch, damaged folders."""
import hashlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from signbook.errors import UserError
from signbook.poses.clips import Clip
from signbook.recognition import isolated
from signbook.recognition.isolated import ENCODER, PRESETS, Encoder, IsolatedConfig, Recogniser, configure, load, train, write_reports
from signbook.training.checkpoints import load_weights

torch.set_num_threads(1)
TINY = dict(features='relative', hidden=8, embedding=8, epochs=3, batch_size=8, frames=24)


def made(count: int, seed: int) -> list[Clip]:
    "Clips of four glosses: a wrist that circles at one of four speeds."
    rng, clips = np.random.default_rng(seed), []
    for number in range(count):
        T = int(rng.integers(8, 22))
        points = np.zeros((T, 75, 3), np.float32)
        points[:, 11], points[:, 12] = (.5, 0, 0), (-.5, 0, 0)
        angle = (1 + number % 4)*np.linspace(0, 3, T)
        points[:, 54:, 0], points[:, 54:, 1] = np.sin(angle)[:, None], np.cos(angle)[:, None]
        points[:, 55:] += rng.standard_normal((20, 3))*.1
        clips.append(Clip(points + .01*rng.standard_normal(points.shape).astype(np.float32), np.ones((T, 75), np.float32), 'holistic75', 25.0,
                          id=f'{seed}-{number}', gloss='ABCD'[number % 4], signer=str(seed)))
    return clips


TRAIN, DEV = made(24, 1), made(12, 2)


def written(folder) -> dict[str, str]:
    files = [path for path in folder.rglob('*') if path.is_file() and 'generation' not in str(path) and path.name not in ('timing.json', 'LATEST')]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_run_twice_writes_the_same_bytes(tmp_path):
    config = configure('smoke', dict(TINY, warp=.2, noise=.1, copies=1, turn=5.))
    for name in 'ab': write_reports(train(TRAIN, DEV, config, tmp_path/name, progress=False), DEV)
    assert written(tmp_path/'a') == written(tmp_path/'b')
    text = ''.join(path.read_text() for path in (tmp_path/'a').rglob('*.json') if path.name != 'timing.json' and 'generation' not in str(path))
    assert str(tmp_path) not in text and not re.search(r'20\d\d-\d\d-\d\d', text)


def test_an_interrupted_run_ends_like_an_undisturbed_one(tmp_path, monkeypatch):
    config = configure('smoke', dict(TINY, dropout=.3, noise=.1))
    train(TRAIN, DEV, config, tmp_path/'whole', progress=False)
    evaluate, calls = isolated.evaluation, []

    def dies(*given):
        inner = evaluate(*given)
        def wrapped(model):
            calls.append(1)
            if len(calls) == 2: raise KeyboardInterrupt
            return inner(model)
        return wrapped

    monkeypatch.setattr(isolated, 'evaluation', dies)
    with pytest.raises(KeyboardInterrupt): train(TRAIN, DEV, config, tmp_path/'cut', progress=False)
    assert not (tmp_path/'cut'/'training_config.json').exists()
    train(TRAIN, DEV, config, tmp_path/'cut', progress=False)
    assert written(tmp_path/'whole') == written(tmp_path/'cut')


def test_a_finished_run_is_not_trained_again(tmp_path):
    config = configure('smoke', TINY)
    train(TRAIN, DEV, config, tmp_path, progress=False)
    before = written(tmp_path)
    train(TRAIN, DEV, config, tmp_path, progress=False)
    assert written(tmp_path) == before
    with pytest.raises(UserError, match='hidden'): train(TRAIN, DEV, replace(config, hidden=16), tmp_path, progress=False)


@pytest.mark.parametrize('settings', [dict(encoder='cnn'), dict(masking='none'), dict(masking='mask'), dict(pooled='mean'), dict(pooled='max'),
                                      dict(pooled='last'), dict(normaliser='none'), dict(features='points+shape'),
                                      dict(encoder='cnn', masking='none')])
def test_every_switch_trains_and_reads(tmp_path, settings):
    trained = train(TRAIN, DEV, configure('smoke', dict(TINY, epochs=1, **settings)), tmp_path, progress=False)
    again = load(tmp_path)
    assert np.array_equal(trained.probabilities(DEV), again.probabilities(DEV)) and np.allclose(again.probabilities(DEV).sum(1), 1)
    weights = again.attention(DEV[0])
    assert weights.shape == (len(DEV[0]),) and weights.min() >= 0 and weights.sum() <= 1 + 1e-5
    assert again.embeddings(DEV).shape == (len(DEV), 8) and again.probabilities([]).shape == (0, 4)


def test_reading_does_not_depend_on_company(tmp_path):
    trained = train(TRAIN, DEV, configure('smoke', dict(TINY, epochs=1)), tmp_path, progress=False)
    assert np.allclose(trained.probabilities(DEV)[3], trained.probabilities(DEV[3:4])[0], atol=1e-6)


def test_padded_and_packed_costs_are_counted(tmp_path):
    costs = {}
    for masking in ('none', 'pack'):
        train(TRAIN, DEV, configure('smoke', dict(TINY, epochs=2, masking=masking)), tmp_path/masking, progress=False)
        costs[masking] = json.loads((tmp_path/masking/'reports'/'final_metrics.json').read_text())['cost']
    assert costs['none']['frames_computed'] == 2*24*24 and costs['pack']['frames_computed'] == 2*sum(len(c) for c in TRAIN)


def test_the_encoder_alone_can_be_taken_over(tmp_path):
    config = configure('smoke', dict(TINY, epochs=1))
    trained = train(TRAIN, DEV, config, tmp_path, progress=False)
    encoder = Encoder(config, 170)
    told = load_weights(encoder, tmp_path/ENCODER, dict(layout='holistic75', columns=170))
    assert told['labels'] == ['A', 'B', 'C', 'D'] and torch.equal(encoder.proj.weight, trained.model.encoder.proj.weight)
    assert {name.split('.')[0] for name in encoder.state_dict()} == {'mean', 'deviation', 'input_norm', 'proj', 'gru'}


def test_damaged_or_foreign_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match='not a finished run'): load(tmp_path)
    train(TRAIN, DEV, configure('smoke', dict(TINY, epochs=1)), tmp_path, progress=False)
    labels = tmp_path/'metadata'/'label_to_id.json'
    labels.write_text(labels.read_text().replace('"D"', '"E"'))
    with pytest.raises(UserError, match='labels'): load(tmp_path)
    (tmp_path/'training_config.json').write_text('{"hidden": 8, "colour": "red"}')
    with pytest.raises(UserError, match='colour'): load(tmp_path)


def test_splits_that_do_not_fit_are_refused(tmp_path):
    config = configure('smoke', TINY)
    with pytest.raises(UserError, match='empty'): train([], DEV, config, tmp_path)
    with pytest.raises(UserError, match="'Z'"): train(TRAIN, [replace(DEV[0], gloss='Z')], config, tmp_path)
    with pytest.raises(UserError, match='no gloss'): train([replace(TRAIN[0], gloss='')], DEV, config, tmp_path)
    trained = train(TRAIN, DEV, replace(config, epochs=1), tmp_path, progress=False)
    with pytest.raises(UserError, match="'Z'"): write_reports(trained, [replace(DEV[0], gloss='Z')])


def test_unknown_words_are_refused():
    with pytest.raises(UserError, match='preset'): configure('tiny')
    with pytest.raises(UserError, match='colour'): configure('laptop', dict(colour='red'))
    for name in ('encoder', 'masking', 'pooled', 'normaliser', 'precision'):
        with pytest.raises(UserError, match=name): configure('laptop', {name: 'no such'})
    for name in ('hidden', 'epochs', 'batch_size'):
        with pytest.raises(UserError, match=name): configure('laptop', {name: 0})


def test_the_paper_preset_is_the_seed():
    paper = PRESETS['paper']
    assert replace(paper, masking='none') == IsolatedConfig()
    model = Recogniser(paper, 450, 200)
    assert sum(p.numel() for p in model.parameters()) == 2_519_629
    assert model.encoder.gru.gru.hidden_size == 256 and model.encoder.gru.gru.num_layers == 2 and model.encoder.gru.gru.bidirectional
