"""Training of translators: the same run twice, starts that fit and starts that do not, clips of every length."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from signbook.corpora.sentences import clips as sentence_clips
from signbook.errors import UserError
from signbook.geosign.evaluation import at_rate
from signbook.geosign.pretraining import PRESETS as STAGES
from signbook.geosign.pretraining import pretrain, pretraining_for, stages_for
from signbook.geosign.training import Telemetry, configure, load, shown, train


@cache
def few():
    return [at_rate(clip, 12.5) for clip in sentence_clips(8, split="train", layout="coco133")]


def smoke(**settings):
    return configure("smoke", dict(epochs=2, batch_size=4, dev_clips=2, **settings))


def test_the_same_seed_gives_the_same_run(tmp_path):
    for name in ("one", "two"):
        train(few()[:6], few()[6:], *smoke(manifold="poincare", mode="pooled"), tmp_path / name)
    for file in ("history.csv", "telemetry.csv", "training.json", "pieces.model"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert len((tmp_path / "one" / "telemetry.csv").read_text().splitlines()) == 1 + 4


def test_every_variant_starts_from_the_same_weights(tmp_path):
    start = train(few()[:6], few()[6:], *smoke(manifold="none"), tmp_path / "start")
    still = dict(learning_rate=1e-12, regulariser_rate=1e-12)
    for manifold in ("none", "euclidean", "poincare"):
        settings = dict(manifold=manifold, mode="token", **still)
        tuned = train(few()[:6], few()[6:], *smoke(**settings), tmp_path / manifold, start=tmp_path / "start")
        for name, value in start.model.named_parameters():
            assert torch.allclose(dict(tuned.model.named_parameters())[name], value, atol=1e-6), name
    with pytest.raises(UserError, match="same shape"):
        train(few()[:6], few()[6:], *smoke(widths="4-4-8"), tmp_path / "other", start=tmp_path / "start")
    with pytest.raises(UserError, match="train first"):
        train(few()[:6], few()[6:], *smoke(), tmp_path / "other", start=tmp_path / "nowhere")


def test_another_vocabulary_is_refused(tmp_path):
    train(few()[:6], few()[6:], *smoke(manifold="none"), tmp_path / "run")
    other = train(few()[2:5], few()[6:], *smoke(manifold="none", vocabulary=120), tmp_path / "other")
    other.pieces.write(tmp_path / "run" / "pieces.model")
    with pytest.raises(UserError, match="tokenizer"):
        load(tmp_path / "run")


@pytest.mark.parametrize("frames, read", [(1, 1), (10_000, 256)])
def test_clips_of_any_length_are_shown(frames, read):
    clip, (config, training) = few()[0], smoke()
    places = np.resize(np.arange(len(clip)), frames)
    parts = shown(replace(clip, points=clip.points[places], confidence=clip.confidence[places], segments=()), config, training)
    assert {len(array) for array in parts.values()} == {read}


def test_signs_need_segments(tmp_path):
    bare = [replace(clip, segments=()) for clip in few()]
    with pytest.raises(UserError, match="sign_steps"):
        pretrain(bare[:6], bare[6:], *pretraining_for("smoke", dict(epochs=1)), stages_for("smoke", dict(text_steps=0)), tmp_path)


def test_a_corpus_without_glosses_is_pretrained_by_sentences_alone(tmp_path):
    bare = [replace(clip, segments=(), gloss="") for clip in few()]
    trained = pretrain(bare[:6], bare[6:], *pretraining_for("smoke"), STAGES["paper"], tmp_path)
    assert not (tmp_path / "signs").exists() and trained.config.manifold == "none"


def test_telemetry_survives_a_checkpoint():
    told = Telemetry([dict(curvature=1.0)])
    again = Telemetry()
    again.load_state_dict(told.state_dict())
    assert again.csv() == told.csv() == "step,curvature\n1,1\n"
