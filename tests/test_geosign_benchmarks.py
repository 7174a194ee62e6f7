"""Both orders of an evaluation find the same texts; the committed tables are held to what is claimed of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from signbook.corpora.benchmarks import in_turns
from signbook.geosign import benchmarks
from signbook.geosign.benchmarks import GROWN, LENGTHS, OURS, SIZES, UPSTREAM, Order, drawn, evaluated, ladder, steps, translator, work_of
from signbook.layers.language import Pieces, train_sentencepiece

FOLDER = Path(__file__).parents[1] / "outputs" / "reference" / "benchmarks"
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpus():
    "Seven clips of random numbers, of unlike lengths."
    texts = [f"morgen regnet es im {where} , am {day} ." for where in ("norden", "westen") for day in ("montag", "freitag", "sonntag", "abend")][:7]
    pieces = Pieces.from_bytes(train_sentencepiece([*texts, "Translate sign language video to Chinese: "], 60))
    lengths = [9, 23, 5, 14, 14, 1, 30]
    clips = [{part: x[0, :frames].numpy() for part, x in drawn(SIZES["laptop"], [frames]).items() if x.ndim == 4} for frames in lengths]
    return benchmarks.TestSet(clips, texts, pieces)


def model_for(order):
    return translator(replace(SIZES["laptop"], vocabulary=60, padding=order.padding)).eval()


def test_every_order_that_reads_real_frames_finds_the_same(corpus):
    orders = [replace(order, batch=3) if order.batch == 8 else order for order in ladder().values()]
    (texts, loss), *others = [evaluated(model_for(order), corpus, order, 8) for order in orders if order.padding == "skip"]
    assert len(texts) == 7 and np.isfinite(loss) and len(others) == 4
    for found, value in others:
        assert found == texts and abs(value - loss) < 1e-5 * loss


def test_the_two_ends_count_what_they_claim(corpus):
    def counted(order):
        model = model_for(order)
        return work_of(model, lambda: evaluated(model, corpus, order, 4))

    upstream, ours = counted(UPSTREAM), counted(OURS)
    assert upstream["frames"] == 7 * 30 and ours["frames"] == sum(corpus.lengths) == 96
    assert upstream["encoder places"] == 2 * ours["encoder places"]
    alone = [
        evaluated(model_for(OURS), benchmarks.TestSet([clip], [text], corpus.pieces), OURS, 8)[0][0]
        for clip, text in zip(corpus.clips, corpus.texts)
    ]
    assert alone == evaluated(model_for(OURS), corpus, OURS, 8)[0]


def test_only_the_padding_ties_a_clip_to_its_batch(corpus):
    frames = corpus.lengths[0]
    for padding, tied in (("skip", False), ("upstream", True)):
        model = model_for(Order(padding))
        with torch.inference_mode():
            alone, beside = (model.encode(corpus.batch(places, model.config)).parts["body"][0, :frames] for places in ([0], [0, 6]))
        assert (float((alone - beside).abs().max() / alone.abs().max()) > 1e-4) == tied


def test_steps_leave_the_model_with_its_regulariser():
    config = SIZES["laptop"]
    model, count = translator(config), []
    ways = steps(model, drawn(config, [6, 4]))
    regulariser = model.regulariser
    model.regulariser.register_forward_hook(lambda *_: count.append(1))
    for name, calls in (("without", 0), ("with", 1), ("alone", 1)):
        count.clear()
        assert np.isfinite(ways[name](0)) and len(count) == calls and model.regulariser is regulariser


def test_another_clock_is_read():
    ticks = iter(range(100))
    assert (in_turns({"one": lambda number: None}, 3, lambda: next(ticks))["one"] == 1).all()


def table(name):
    found = pd.read_csv(FOLDER / f"{name}.csv")
    assert (FOLDER / f"{name}.md").exists() and found.isna().sum().sum() == 0 and found.get("rounds", pd.Series([5])).min() >= 5
    return found


def test_evaluation_table():
    found = table("evaluation").set_index(["size", "way"])
    laptop, full = found.loc["laptop"], found.loc["full"]
    assert list(laptop.index) == list(ladder())
    assert laptop["times faster"].iloc[-1] >= 3 and full["times faster"].iloc[-1] >= 1.2
    for rows in (laptop, full):
        assert (rows["texts that differ"].iloc[1:] == 0).all()
        assert rows["loss"].iloc[1:].nunique() == 1 and abs(rows["loss"].iloc[0] / rows["loss"].iloc[-1] - 1) < 1e-3
        assert rows["frames"].iloc[-1] < 0.75 * rows["frames"].iloc[0] and rows["encoder places"].iloc[-1] < 0.6 * rows["encoder places"].iloc[0]


def test_share_table():
    found = table("regulariser_share").set_index(["size", "mode", "dim"]).sort_index()
    assert set(found.index) == {(size, mode, dim) for size, dim in (("laptop", 32), ("laptop", 64), ("full", 256)) for mode in ("pooled", "token")}
    assert found.loc["full", "share (%)"].max() <= 2 and found.loc["laptop", "share (%)"].max() <= 4   # narrow streams: above the aim of 2
    assert found["operations added (%)"].max() <= 1
    assert (found.loc["laptop", "frames"] == sum(LENGTHS["laptop"])).all()


def test_growth_table():
    found = table("step_growth")
    assert [tuple(row) for row in found[["size", "grows", "clips", "frames"]].to_numpy()] == [(size, *row) for size in GROWN for row in GROWN[size]]
    for _, rows in found.groupby(["size", "grows"]):
        operations, seconds = (np.log(rows[name].to_numpy()) for name in ("million multiply–adds forward", "step (ms)"))
        assert (np.diff(operations) > 0).all() and (np.diff(operations) <= np.log(2.2)).all()
        assert seconds[-1] - seconds[0] <= 1.15 * (operations[-1] - operations[0])
