"""Tables of Geo-Sign: the paper's numbers as they were typed, ours from synthetic runs, and never the one for the other."""

import csv
import json
import random
import re
import shutil
import subprocess
from collections import Counter

import numpy as np
import pytest

from signbook.corpora.languages import tokens
from signbook.corpora.sentences import records
from signbook.geosign.scoring import Answers, compared, joined_scores, metrics_of, over_runs, record, texts_of
from signbook.workbook.runs import write_json
from signbook.workbook.tables import read_reported

SKILL = dict(unisign_pose=0.3, unisign_steps=0.35, euclid_pooled=0.4, euclid_token=0.4, hyp_pooled=0.42, hyp_token=0.9)


@pytest.fixture(scope="module")
def texts():
    "Training, validation and test sentences of the embedded corpus."
    listed = records("smoke")
    train, dev = (
        texts_of([s.text for _, split, s in listed if split == name], [s.language for _, split, s in listed if split == name])
        for name in ("train", "dev")
    )
    return train, dev, [(f"{name}/{i}", split, s) for i in range(4) for name, split, s in listed if split.startswith("test")]


def answers_of(texts, skill, seed):
    train, _, clips = texts
    draw = random.Random(seed)
    said = [s.text if draw.random() < skill else draw.choice(train[s.language]) for *_, s in clips]
    groups = dict(split=[split for _, split, _ in clips], signer=[f"signer{i % 3}" for i in range(len(clips))])
    return Answers(
        said, [s.text for *_, s in clips], [s.language for *_, s in clips], [n for n, *_ in clips], groups, [s.gloss for *_, s in clips]
    )


def evaluated(folder, texts, variant, seed, skill=None, more=None):
    "A finished evaluation with invented answers."
    train, dev, _ = texts
    answers = answers_of(texts, SKILL[variant] if skill is None else skill, f"{variant}{seed}")
    splits = {
        split: record(answers.where(split=split), train, dev, variant, brief=split != "test")
        for split in ("test", "test_signers", "test_sentences")
    }
    regulariser = 0 if variant.startswith("unisign") else 5000
    parts = dict(streams=20_000, language=100_000, regulariser=regulariser, total=120_000 + regulariser)
    operations = parts | dict(clips=8, frames=700, pieces=90)
    config = dict(dim=64, curvature=1.5, alpha=0.7, mode="token", text="decoder", smoothing=0.2)
    told = dict(variant=variant, seed=seed, corpus="pocket", splits=splits, parameters=parts, operations=operations, config=config)
    told["recipe"] = dict(epochs=3, seed=seed)
    write_json(folder / "metrics.json", told | (more or {}))
    write_json(folder / "answers.json", answers.as_json())
    times = dict(without_ms=10.0) | (dict(with_ms=10.2, added_percent=2.0) if regulariser else {})
    write_json(folder / "timing_values.json", times)
    write_json(folder / "done.json", dict(stamp={}, results={}))
    return folder


def run_notebook(path, **parameters):
    "The names that an experiment leaves behind when it runs in this process."
    names = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        exec("".join(cell["source"]), names)
        if "parameters" in cell["metadata"].get("tags", []):
            names.update(parameters)
    return names


@pytest.fixture(scope="module")
def made(project, texts, tmp_path_factory):
    "The folder of tables from six variants with two seeds."
    root = tmp_path_factory.mktemp("geosign")
    inputs = {f"{variant}_s{seed}": str(evaluated(root / f"{variant}{seed}", texts, variant, seed)) for variant in SKILL for seed in (0, 1)}
    run_notebook(project / "nbs" / "experiments" / "geosign" / "tables.ipynb", out=str(root / "out"), inputs=inputs)
    return root / "out"


def rows_of(made, name):
    with (made / "tables" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def reported(project):
    return read_reported(project / "nbs" / "experiments" / "geosign" / "reported.csv")


def test_every_reported_number_is_there_and_only_once(project):
    rows = reported(project)
    counts = Counter(row["table"] for row in rows)
    # Table 1: six own rows and six of the prior art with dev and test, CV-SLT without BLEU-1 on dev, four with test only
    assert counts["Table 1"] == 6 * 6 + 5 * 6 + 5 + 4 * 3 + 6
    # Table 2: eleven systems, three without ROUGE-L; Table 3: eleven systems
    assert (counts["Table 2"], counts["Table 3"]) == (11 * 3 - 3, 11 * 2)
    assert (counts["Table 4a"], counts["Table 4b"], counts["Table 4c"]) == (6 * 2, 4 * 2, 6 * 2)
    keys = [(row["table"], row["row"], row["split"], row["metric"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert all(row["block"] in ("prior art", "Uni-Sign", "Geo-Sign") for row in rows)


@pytest.mark.parametrize(
    "key, value",
    {
        ("Table 1", "hyperbolic, token", "test", "BLEU-4"): 27.42,
        ("Table 1", "hyperbolic, token", "dev", "BLEU-1"): 55.57,
        ("Table 1", "hyperbolic, pooled", "test", "ROUGE-L (SLT)"): 57.75,
        ("Table 1", "Euclidean, token", "dev", "BLEU-4"): 25.91,
        ("Table 1", "Euclidean, pooled", "test", "BLEU-1"): 53.06,
        ("Table 1", "Uni-Sign (pose)", "test", "BLEU-4"): 25.61,
        ("Table 1", "CV-SLT", "test", "BLEU-4"): 28.94,
        ("Table 1", "C2RL", "test", "ROUGE-L (SLT)"): 48.21,
        ("Table 2", "hyperbolic, token", "test", "BLEU-4"): 15.1,
        ("Table 2", "SSVP-SLT", "test", "ROUGE-L (SLT)"): 38.4,
        ("Table 3", "hyperbolic, token", "test", "top-1 per class"): 61.89,
        ("Table 4a", "c = 2.0", "test", "ROUGE-L (SLT)"): 58.08,
        ("Table 4b", "alpha = 0.9", "test", "BLEU-4"): 26.92,
        ("Table 4c", "hyperbolic, token, noise 0.05", "test", "BLEU-4"): 5.98,
        ("Table 4c", "Uni-Sign (pose), noise 0", "test", "BLEU-4"): 26.25,
        ("Table 5", "hyperbolic, token", "", "added latency (%)"): 513,
        ("Table 6", "SignLLM", "", "parameters (M)"): 6750.1,
        ("Table 7", "paper", "", "learning rate"): 3e-5,
        ("Uni-Sign", "CSL-Daily glosses", "test", "WER"): 26.0,
    }.items(),
)
def test_reported_numbers_are_those_of_the_paper(project, key, value):
    found = {(row["table"], row["row"], row["split"], row["metric"]): row["value"] for row in reported(project)}
    assert float(found[key]) == value


def test_inconsistencies_of_the_paper_are_noted(project):
    noted = {(row["table"], row["row"]): row["caveat"] for row in reported(project) if row["metric"] == "BLEU-4"}
    assert "25.91" in noted["Table 4a", "c = 0.001"] and "25.61" in noted["Table 4c", "Uni-Sign (pose), noise 0"]


def test_joined_bleu_is_sacrebleu_of_all_tokens(texts):
    from sacrebleu.metrics import BLEU

    answers = answers_of(texts, 0.5, "joined")
    cut = [
        [" ".join(tokens(text, language)) for text, language in zip(column, answers.languages)] for column in (answers.hypotheses, answers.references)
    ]
    for order in (1, 4):
        expected = BLEU(max_ngram_order=order, tokenize="none", smooth_method="exp", force=True).corpus_score(cut[0], [cut[1]]).score
        assert joined_scores(answers)[f"BLEU-{order}"].value == pytest.approx(expected, abs=1e-9)


def test_a_language_is_scored_by_its_own_rules_wherever_its_clips_stand(texts):
    answers = answers_of(texts, 0.5, "order")
    order = np.random.default_rng(0).permutation(len(answers.references))
    mixed = Answers(*([column[i] for i in order] for column in (answers.hypotheses, answers.references, answers.languages)))
    for name, metric in joined_scores(answers).items():
        assert joined_scores(mixed)[name].value == pytest.approx(metric.value, abs=1e-9)
        assert np.array_equal(joined_scores(mixed)[name].rows, metric.rows[order])


def test_seeds_are_no_further_clips(texts):
    one, other = answers_of(texts, 0.7, "a"), answers_of(texts, 0.5, "b")
    clips = len(one.references)
    single, thrice = (compared([("a", "b")], metrics_of({"a": [one] * n, "b": [other] * n}), clips)[0] for n in (1, 3))
    assert single["p"] == pytest.approx(thrice["p"], abs=0.005) and single["difference"]["low"] == pytest.approx(thrice["difference"]["low"])


def test_tables_never_mix_reported_and_obtained(project, made):
    told = {row["value"] for row in reported(project)}
    names = sorted(path.stem for path in (made / "tables").glob("*.json"))
    expected = "controls languages mistakes slices splits table1 table10 table2 table3 table5 table5_timing table6 table7 table8 table9 tests".split()
    assert names == sorted(expected)
    for name in names:
        table = json.loads((made / "tables" / f"{name}.json").read_text(encoding="utf-8"))
        for column in table["columns"]:
            cells = [row[column["key"]] for row in table["rows"] if column["key"] in row]
            if column["group"].startswith("reported"):
                assert cells and all(cell in told for cell in cells), f"{name}: column {column['title']} has a number that the paper does not"
            elif column["group"].startswith("obtained") and re.match("table[126]$", name):
                assert not told & {cell for cell in cells if re.fullmatch(r"\d+\.\d+", str(cell))}, f"{name}: {column['title']} repeats the paper"


def test_rows_that_we_did_not_run_are_reported_only(made):
    rows = {row["system"]: row for row in rows_of(made, "table1")}
    assert len(rows) == 11 + 6 + 1
    ours = [name for name in rows["SLRT"] if name.startswith("obtained")]
    assert len(ours) == 4 and all(rows["SLRT"][name] == "–" for name in ours) and all(rows["hyperbolic, token"][name] != "–" for name in ours)
    assert all(cell == "–" for name, cell in rows["Uni-Sign (pose), equal steps"].items() if name.startswith("reported"))


def test_seeds_become_mean_and_deviation(made):
    runs = [json.loads((made.parent / f"hyp_token{seed}" / "metrics.json").read_text(encoding="utf-8")) for seed in (0, 1)]
    values = [one["splits"]["test"]["scores"]["BLEU-4"]["value"] for one in runs]
    text = over_runs(runs, "test", "BLEU-4")
    assert text == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} (2 seeds)"
    row = next(row for row in rows_of(made, "table1") if row["system"] == "hyperbolic, token")
    assert row["obtained (embedded corpus): test BLEU-4"] == text


def test_the_verdict_is_that_of_the_corrected_test(made):
    tests = json.loads((made / "metrics.json").read_text(encoding="utf-8"))["tests"]
    verdict = {(row["first"], row["second"]): row["obtained (embedded corpus): verdict"] for row in rows_of(made, "tests")}
    assert len(tests) == 6 and Counter(one["family"] for one in tests) == {"matched control": 2, "equal steps": 4}
    assert verdict["hyperbolic, token", "Euclidean, token"] == "differs"
    for one in tests:
        assert (verdict[one["first"], one["second"]] == "differs") == (one["p_holm"] < 0.05)


def test_examples_show_what_they_say(made):
    assert all(row["obtained (embedded corpus): mistakes"] != "none" for row in rows_of(made, "table8"))
    assert all(row["obtained (embedded corpus): prediction"] == row["reference"] for row in rows_of(made, "table9"))
    assert 0 < len(rows_of(made, "table10")) <= 10


@pytest.fixture(scope="module")
def ablated(project, texts, tmp_path_factory):
    "The folder of the ablation tables from a sweep of two fields."
    root, inputs = tmp_path_factory.mktemp("ablations"), {}
    inputs["full"] = str(evaluated(root / "full", texts, "hyp_token", 0, more=dict(curvature=1.42)))
    for field, value, skill in (("curvature", 0.1, 0.4), ("curvature", 0.5, 0.88), ("alpha", 0.9, 0.6), ("manifold", "lorentz", 0.9)):
        told = dict(ablation=dict(field=field, value=value), curvature=0.2, config=dict(curvature=1.5, alpha=0.7, manifold="poincare"))
        inputs[f"{field}_{value}"] = str(evaluated(root / f"{field}{value}", texts, "hyp_token", f"{field}{value}", skill, told))
    full = json.loads((root / "full" / "metrics.json").read_text(encoding="utf-8"))
    write_json(root / "full" / "metrics.json", full | dict(config=full["config"] | dict(manifold="poincare")))
    run_notebook(project / "nbs" / "experiments" / "geosign" / "ablation_tables.ipynb", out=str(root / "out"), inputs=inputs)
    return root / "out"


def test_a_sweep_stands_beside_the_paper_s(project, ablated):
    rows = {row["setting"]: row for row in rows_of(ablated, "table4a")}
    assert list(rows) == ["c = 0.001", "c = 0.1", "c = 0.5", "c = 1.0", "c = 1.5", "c = 2.0"]
    paper, ours = "reported (CSL-Daily, test): BLEU-4", "obtained (embedded corpus): BLEU-4"
    assert [rows[name][paper] for name in ("c = 0.1", "c = 1.5")] == ["26.56", "27.42"]
    assert [rows[name][ours] == "–" for name in rows] == [True, False, False, True, False, True]
    verdicts = {name: row["obtained (embedded corpus): against the full model"] for name, row in rows.items()}
    assert verdicts["c = 0.1"].startswith("differs (-") and verdicts["c = 0.5"].startswith("cannot") and verdicts["c = 1.5"] == "the full model"
    assert {row["manifold"] for row in rows_of(ablated, "ablation_manifold")} == {"poincare", "lorentz"}
    assert all((ablated / "figures" / f"{name}.pdf").stat().st_size > 1000 for name in ("curvature", "alpha"))


@pytest.fixture(scope="module")
def drawn(project, tmp_path_factory):
    "The folder of figures from invented points."
    import torch

    from signbook.geosign.geometry import BOXES, PARTS, geometry_of
    from signbook.geosign.regulariser import Regularised
    from signbook.layers.manifolds import manifold_of

    root, inputs, draw = tmp_path_factory.mktemp("figures"), {}, torch.Generator().manual_seed(0)
    for variant in ("euclid_pooled", "euclid_token", "hyp_pooled", "hyp_token"):
        space = manifold_of("euclidean" if variant.startswith("euclid") else "poincare", 1.5)
        points = {part: space.expmap0(0.5 * torch.randn(12, 8, generator=draw)) for part in PARTS}
        text, attention = space.expmap0(torch.randn(12, 3, 8, generator=draw)), torch.full((12, 4, 3), 1 / 3)
        token = variant.endswith("token")
        zero, mean, weights = torch.zeros(()), points["body"], torch.full((4, 12), 0.25)
        found = Regularised(zero, points, *((None, None, text, attention) if token else (mean, weights, text[:, 0], None)), {})
        geometry = geometry_of(found, space, [f"clip{i}" for i in range(12)], [["今", "天", "。"], ["es", "regnet", "."]] * 6)
        geometry.write(root / f"{variant}" / "geometry.npz")
        write_json(root / variant / "shapes.json", {stage: (4, 8) for stage in BOXES})
        columns = ["epoch", "train_curvature", *(f"train_radius/{part}" for part in PARTS)]
        table = [",".join(columns), *(",".join(map(str, [epoch, 1.5 - 0.01 * epoch, 0.1, 0.2, 0.3, 0.2])) for epoch in (1, 2, 3))]
        (root / variant / "history.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
        write_json(root / variant / "done.json", dict(stamp={}, results={}))
        inputs |= {f"{variant}_s0": str(root / variant), f"train_{variant}": str(root / variant)}
    run_notebook(project / "nbs" / "experiments" / "geosign" / "geometry.ipynb", out=str(root / "out"), inputs=inputs, umap=False)
    return root / "out"


def test_every_figure_is_drawn_with_its_caption(drawn):
    names = {path.stem for path in (drawn / "figures").glob("*.png")}
    expected = "figure1_pooled figure1_token figure3 figure4 attention_euclid_token attention_hyp_token"
    assert names == {*expected.split(), *(f"figure5_{v}" for v in ("euclid_pooled", "euclid_token", "hyp_pooled", "hyp_token"))}
    for name in names:
        assert len((drawn / "figures" / f"{name}.txt").read_text(encoding="utf-8")) > 60 and (drawn / "figures" / f"{name}.pdf").exists()
    rows = {row["system"]: row for row in rows_of(drawn, "radius")}
    assert rows["Euclidean, token"]["obtained (embedded corpus): c"] == "0.000" and len(rows) == 4


def compiled(paths, place):
    "Exit code and log of pdflatex on some tables."
    body = "\n".join(f"\\input{{{path}}}\\clearpage" for path in paths)
    head = "\\documentclass{article}\\usepackage[T1]{fontenc}\\usepackage{booktabs}\\usepackage[paperwidth=300cm,paperheight=100cm]{geometry}"
    (place / "all.tex").write_text(f"{head}\\begin{{document}}\n{body}\n\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=place, capture_output=True, text=True)
    return done.returncode, done.stdout[-1500:]


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_tables_compile(made, ablated, drawn, tmp_path):
    chinese = ("table8", "table9", "table10")
    paths = [path for folder in (made, ablated, drawn) for path in sorted((folder / "tables").glob("*.tex")) if path.stem not in chinese]
    assert len(paths) == 13 + 3 + 1
    code, log = compiled(paths, tmp_path)
    assert code == 0, log
