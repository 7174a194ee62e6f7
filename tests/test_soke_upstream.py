"""The table of deviations, whose switches exist, and a published run that signs."""

import ast
import importlib
import inspect
import json
import os
import pickle
import shutil
from dataclasses import is_dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from signbook.errors import UserError
from signbook.soke.dictionary import keyword_ids, read_dictionary
from signbook.soke.rows import padded, source
from signbook.soke.training import load
from signbook.soke.upstream import DEVIATIONS, deviations_markdown, heads_told, import_run, statistic
from signbook.workbook.systems import system_of

FOLDER = Path(os.environ.get("SIGNBOOK_PARITY", "")) / "soke"
parity = pytest.mark.skipif(not os.environ.get("SIGNBOOK_PARITY"), reason="SIGNBOOK_PARITY is not set; the fixtures of upstream numbers are needed")
TEXTS = {"there is a customer service hotline": "en", "am montag kommt regen": "de", "今天 天气 很 好": "zh"}


# the table


def test_every_peculiarity_has_a_row():
    assert [row.number for row in DEVIATIONS] == [f"P{number}" for number in range(1, 22)]
    assert all(row.upstream and row.here and row.why for row in DEVIATIONS)
    assert len(deviations_markdown().splitlines()) == 23 and "|" not in "".join(row.upstream + row.here + row.why for row in DEVIATIONS)


def place_of(switch):
    "What a switch names, its home and the arguments that it gives."
    place, _, given = switch.partition(": ")
    names = place.split(".")
    home = importlib.import_module("signbook." + ".".join(names[:2]))
    thing = home
    for name in names[2:]:
        thing = getattr(thing, name)
    call = ast.parse(f"f({given})", mode="eval").body
    values = {one.arg: getattr(home, one.value.id) if isinstance(one.value, ast.Name) else ast.literal_eval(one.value) for one in call.keywords}
    return thing, values


@pytest.mark.parametrize("row", [row for row in DEVIATIONS if row.switch], ids=lambda row: row.number)
def test_every_switch_exists(row):
    thing, values = place_of(row.switch)
    assert callable(thing) and set(values) <= set(inspect.signature(thing).parameters), row.switch
    if is_dataclass(thing) and values:
        assert replace(thing(), **values) != thing(), f"{row.switch} is the default"
    if not is_dataclass(thing) and values:
        defaults = {name: parameter.default for name, parameter in inspect.signature(thing).parameters.items()}
        assert all(defaults[name] is not inspect.Parameter.empty and defaults[name] != value for name, value in values.items())


# a published run


@cache
def published_state():
    "What a checkpoint of the published code holds: generator and tokenizers, and things that nobody reads."
    tensors, tokens = load_file(FOLDER / "lm_state_dict.safetensors"), load_file(FOLDER / "tokenizer_small_state_dict.safetensors")
    aliases = json.loads((FOLDER / "lm_state_dict_aliases.json").read_text())
    generator = {f"lm.{name}": tensor for name, tensor in (tensors | {name: tensors[other] for name, other in aliases.items()}).items()}
    return {**tokens, **generator, "_losses.total": torch.zeros(1)}


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    "The five things of a published run."
    folder, told = tmp_path_factory.mktemp("published"), json.loads((FOLDER / "lm.json").read_text(encoding="utf-8"))
    torch.save({"state_dict": published_state(), "epoch": 149}, folder / "last.ckpt")
    shutil.copytree(FOLDER / "lm_tokenizer", folder / "mbart", copy_function=shutil.copyfile)
    (folder / "mbart").chmod(0o755)
    (folder / "mbart" / "map_ids.pkl").write_bytes(pickle.dumps({int(number): row for number, row in told["map_ids_base"].items()}))
    generator = torch.Generator().manual_seed(0)
    torch.save(torch.randn(179, generator=generator) * 0.1, folder / "mean.pt")
    torch.save(torch.rand(179, generator=generator) * 0.2, folder / "std.pt")
    (folder / "word2code.json").write_text(json.dumps(told["word2code"]), encoding="utf-8")
    return folder


def imported(assets, folder, **settings):
    files = dict(checkpoint=assets / "last.ckpt", language_model=assets / "mbart", mean=assets / "mean.pt", deviation=assets / "std.pt")
    return import_run(**(files | settings), folder=folder)


@parity
def test_soke_parity_a_published_run_signs(assets, tmp_path):
    run = imported(assets, tmp_path / "run", word_codes=assets / "word2code.json")
    assert system_of(tmp_path / "run") == "soke" and set(run.dictionary.signs) == set(read_dictionary(assets / "word2code.json").signs)
    assert run.config.heads == 4 and run.config.d_model == 64 and run.tokens.tokenizer.config.width == 32
    texts, languages = list(TEXTS), list(TEXTS.values())
    codes, again = run.codes(texts, languages), load(tmp_path / "run").codes(texts, languages)
    assert all(np.array_equal(one, other) for one, other in zip(codes, again))
    for clip, one in zip(run.signs(texts, languages), codes):
        assert len(clip) == max(4 * len(one), 1) and np.isfinite(clip.points).all()
    assert [run.words_found(text, language) for text, language in TEXTS.items()] == [[(word, word)] for word in ("hotline", "regen", "天气")]


@parity
@torch.no_grad()
def test_soke_parity_losses_of_a_published_run(assets, tmp_path):
    "Teacher-forced, one sentence at a time, with the published hints: what upstream computes for a sentence that is alone."
    run, told, tensors = imported(assets, tmp_path / "run", word_codes=assets / "word2code.json"), *stored()
    for number, (text, name, src) in enumerate(zip(told["train.texts"], told["train.names"], told["train.src"])):
        language = dict(how2sign="en", csl="zh", phoenix="de")[src]
        signs = [run.dictionary.signs[word] for word in told["name2kws"][name][:3]]
        ids, mask = padded([source(run.words, text, language, keyword_ids(signs, language, run.words.pieces, run.words.rows.first))])
        made = run.model.targets([tensors["train.motion_tokens"][number, : told["train.lengths"][number]]], [language])
        logits = run.model.logits(ids, mask, made)
        wanted = [tensors[key] for key in sorted(tensors) if key.startswith(f"train_single.{number}.") and "logits" in key]
        assert len(wanted) == 3
        for ours, theirs in zip(logits, wanted):
            finite = theirs[..., theirs[0, 0] > -1e29]
            assert torch.allclose(ours, finite.reshape(ours.shape), atol=1e-4)


def stored():
    return json.loads((FOLDER / "lm.json").read_text(encoding="utf-8")), load_file(FOLDER / "lm.safetensors")


@parity
def test_soke_parity_runs_without_a_dictionary_and_other_regimes(assets, tmp_path):
    one, other = imported(assets, tmp_path / "c"), imported(assets, tmp_path / "a", regime="a")
    assert one.dictionary is None and one.words_found("hotline", "en") == []
    assert [(run.config.scale_encoder, run.config.scale_decoder) for run in (one, other)] == [(True, True), (True, False)]
    assert any(not np.array_equal(a, b) for a, b in zip(one.codes(list(TEXTS), list(TEXTS.values())), other.codes(list(TEXTS), list(TEXTS.values()))))


@parity
@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (dict(checkpoint="none.ckpt"), "none.ckpt"),
        (dict(checkpoint="word2code.json"), "word2code.json"),
        (dict(checkpoint="half.ckpt"), "main_lm"),
        (dict(language_model="none"), "none"),
        (dict(mean="none.pt"), "none.pt"),
        (dict(mean="word2code.json"), "word2code.json"),
        (dict(word_codes="none.json"), "none.json"),
        (dict(regime="d"), "'d'"),
    ],
)
def test_assets_that_are_wrong_leave_no_run(assets, tmp_path, setting, told):
    torch.save({"state_dict": {name: tensor for name, tensor in published_state().items() if "main_lm" not in name}}, assets / "half.ckpt")
    with pytest.raises(UserError, match=told) as error:
        imported(assets, tmp_path / "run", **{name: value if name == "regime" else assets / value for name, value in setting.items()})
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_statistics_and_heads(tmp_path):
    np.save(tmp_path / "mean.npy", np.ones((1, 179)))
    assert statistic(tmp_path / "mean.npy").shape == (179,)
    np.save(tmp_path / "wrong.npy", np.full(179, np.nan))
    (tmp_path / "noise.pt").write_bytes(b"noise")
    for name in ("wrong.npy", "noise.pt"):
        with pytest.raises(UserError, match=name):
            statistic(tmp_path / name)
    (tmp_path / "config.json").write_text('{"decoder_attention_heads": "4"}')
    with pytest.raises(UserError, match="decoder_attention_heads"):
        heads_told(tmp_path)
