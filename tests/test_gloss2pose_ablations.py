"""Ablations of gloss to pose: every switch is a real field, and a row switches what it says and nothing else."""

from dataclasses import asdict, fields
from functools import cache

import numpy as np
import pytest
import torch

from signbook.corpora.sentences import clips as sentences
from signbook.errors import UserError
from signbook.gloss2pose.ablations import ABLATIONS, BASE, ablation_rows, configured, prepares, rows_for, settings_of
from signbook.gloss2pose.losses import LossConfig, pose_loss, unit_of
from signbook.gloss2pose.models import GlossToPose, Made
from signbook.gloss2pose.targets import target
from signbook.gloss2pose.training import PRESETS, Epochs, Examples, groups_of, made_ready, words_for

# what a row must change; everything else has to stay as it is
CHANGES = dict(
    no_velocity="loss",
    bones="loss",
    bones_in_frame="loss",
    acceleration="loss",
    no_shapes="loss",
    padded="loss batches",
    equal_hands="loss",
    no_length="loss",
    no_attention="parameters outputs",
    not_aligned="parameters outputs",
    counter="parameters outputs loss",
    own_frames="parameters outputs batches",
    teacher_forcing="batches",
    scheduled_sampling="batches",
    linear_schedule="batches",
    noise="taught",
    residual="outputs",
    attached="slopes",
    counter_fed_back="parameters outputs loss",
    counter_stops="ends",
    bf16="recipe",
    fp16="recipe",
    not_mirrored="clips batches",
    every_frame="clips batches",
    cropped="clips batches",
    transformer="parameters outputs",
    bert="parameters outputs",
    bert_seed_rate="rates",
    bert_two_rates="rates",
)


@cache
def corpus():
    return list(sentences(40, split="train", layout="holistic75"))


@cache
def ready(fps, longer, mirrored):
    model, _, training = configured("base", "smoke", dict(fps=fps, longer=longer, mirrored=mirrored))
    return made_ready(corpus(), model, training)[0]


def digest(*tensors):
    doubles = [one.detach().double() for one in tensors]
    return tuple((tuple(one.shape), round(float(one.abs().sum()), 6), round(float(one.square().sum()), 6)) for one in doubles)


@cache
def seen_in(name):
    "What a row amounts to: its clips, batches, parameters, outputs, losses, slopes, ends and rates."
    model, losses, training = configured(name, "smoke")
    clips = ready(training.fps, training.longer, training.mirrored)
    vocabulary = words_for(model, [clip.gloss for clip in clips])
    data, plain = Examples(clips, vocabulary, model), Examples(ready(12.5, "resample", True), vocabulary, model)
    epoch = Epochs(data, training)(1)
    told = [[batch[key] for key in sorted(batch) if key != "fed" or model.feedback] for batch in epoch]
    torch.manual_seed(0)
    system = GlossToPose(model, len(vocabulary)).eval()
    of_bert = {id(weights) for key, weights in system.named_parameters() if key.startswith("reader.encoder.bert.")}
    rates = {(id(weights) in of_bert, round(group["lr"], 12)) for group in groups_of(system, training) for weights in group["params"]}
    batch = plain.batch([3, 7, 11, 20])
    fed = torch.rand(batch["frames"].shape, generator=torch.Generator().manual_seed(5)) < 0.5
    given = [batch[key] for key in ("ids", "mask", "lengths", "values")]
    made = system(*given, fed)
    made.values.square().sum().backward()
    slopes = digest(*(weights.grad for weights in system.parameters() if weights.grad is not None))
    system.train()
    torch.manual_seed(1)
    taught = digest(system.taught(batch["values"], batch["lengths"]))
    with torch.no_grad():
        ends = system.eval().generate(batch["ids"], batch["mask"])[1].tolist()
    generator = torch.Generator().manual_seed(2)
    answer = Made(torch.randn(batch["values"].shape, generator=generator), torch.rand(batch["frames"].shape, generator=generator), torch.rand(4))
    answer.log_length.fill_(3.0)
    answer.counter = answer.counter if model.counter else None
    loss = pose_loss(answer, batch, target(model.target), unit_of(plain.rows, plain.seen, plain.normaliser), losses)[0]
    return dict(
        clips=tuple((len(clip), clip.fps, round(float(np.abs(clip.points).sum()), 2), round(float(clip.points.sum()), 2)) for clip in clips),
        batches=tuple(digest(*tensors) for tensors in told),
        parameters=tuple((key, tuple(weights.shape)) for key, weights in system.named_parameters()),
        outputs=digest(made.values),
        taught=taught,
        slopes=slopes,
        ends=ends,
        loss=float(loss),
        rates=rates,
        recipe={key: value for key, value in asdict(training).items() if key in ("precision", "epochs", "clip_norm", "warmup", "patience")},
    )


def changes_of(name):
    row, other = seen_in(name), seen_in(ABLATIONS[name].against)
    found = {key for key in row if row[key] != other[key]}
    if "parameters" in found or "outputs" in found:
        found -= {"slopes", "ends"}  # they follow from it
    if "model" in ABLATIONS[name].settings:
        found -= {"rates"}  # a model may bring its own
    if "counter" in ABLATIONS[name].settings:
        found -= {"taught"}
    return found


def test_every_row_says_what_it_changes():
    assert set(CHANGES) == set(ABLATIONS) - {"base"}


@pytest.mark.parametrize("name", CHANGES)
def test_a_row_switches_what_it_says_and_nothing_else(name):
    assert changes_of(name) == set(CHANGES[name].split())


def test_switches_are_fields_that_one_part_has():
    parts = [{field.name for field in fields(config)} for config in PRESETS["paper"]]
    together = [name for part in parts for name in part]
    assert len(together) == len(set(together)), "a name means one thing"
    for name, row in ABLATIONS.items():
        assert set(row.settings) <= set(together), name
    assert {field.name for field in fields(LossConfig)} <= set(BASE) <= set(together), "no term comes in by a preset"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", ABLATIONS)
def test_every_row_is_allowed_and_differs_only_where_it_says(preset, name):
    configs, row = configured(name, preset), ABLATIONS[name]
    mine = {key: value for config in configs for key, value in asdict(config).items()}
    assert all(mine[key] == value for key, value in settings_of(name).items())
    if not row.against:
        return
    other = {key: value for config in configured(row.against, preset) for key, value in asdict(config).items()}
    differs = {key for key in mine if mine[key] != other[key]}
    implied = {"learning_rate"} if "model" in row.settings else set()  # the rate of the model
    assert set(row.settings) <= differs <= set(row.settings) | implied or preset == "paper" and row.settings.get("fps") == 25


def test_what_the_seed_lists_is_there():
    seed = [row.settings for row in ABLATIONS.values() if row.source == "seed"]
    for field, values in dict(velocity=[0.0], bones=[0.5], forcing=["teacher", "scheduled"], precision=["bf16", "fp16"], attention=[False]).items():
        assert [settings[field] for settings in seed if field in settings] == values
    assert {row.source for row in ABLATIONS.values()} == {"seed", "design"}


def test_rows_that_need_more():
    assert [name for name in ABLATIONS if prepares(name)] == ["not_mirrored", "every_frame", "cropped"]
    assert set(rows_for(True)) == set(ABLATIONS) and set(ABLATIONS) - set(rows_for(False)) == {"fp16"}


def test_unknown_rows_and_taken_fields_are_refused():
    with pytest.raises(UserError, match="not declared"):
        configured("everything")
    with pytest.raises(UserError, match="about"):
        configured("padded", "smoke", dict(masked=True))
    with pytest.raises(UserError, match="about"):  # it would be another row
        configured("noise", "smoke", dict(feedback=False))
    with pytest.raises(UserError, match="not declared"):
        ablation_rows({"everything": {}})
