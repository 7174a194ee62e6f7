"""`signbook score` from outside: tables for good files, one sentence and exit code 2 for bad ones."""

import pickle
import subprocess
import sys

import numpy as np
import pytest


def score(*words):
    code = "from signbook.workbook.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "score", *map(str, words)], capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    return done


@pytest.fixture
def files(tmp_path):
    (tmp_path / "ref.txt").write_text("Take 3 eggs.\nDo not open it.\nIt rains.\n" * 5, encoding="utf-8")
    (tmp_path / "hyp.txt").write_text("Take 2 eggs.\nOpen it.\nIt rains.\n" * 5, encoding="utf-8")
    return tmp_path


def test_sentences_are_scored_and_written(files):
    done = score(files / "hyp.txt", files / "ref.txt", "--language", "en", "--output", files / "out", "--against", files / "ref.txt")
    assert done.returncode == 0 and "BLEU-4" in done.stdout and "with a negation" in done.stdout
    assert {"scores.csv", "comparison.tex", "metrics.json"} <= {path.name for path in (files / "out").iterdir()}


@pytest.mark.parametrize("case", ["latin", "short", "language", "no language", "no references", "twice"])
def test_bad_files_are_one_sentence(files, case):
    (files / "latin.txt").write_bytes("schön\n".encode("latin-1") * 15)
    (files / "short.txt").write_text("a\n")
    (files / "twice.txt").write_text("sample: a, prediction: b\n" * 2)
    hypotheses = files / f"{case}.txt" if case in ("latin", "short", "twice") else files / "hyp.txt"
    words = [hypotheses, files / "ref.txt", "--language", "klingon" if case == "language" else "en"]
    if case == "no language":
        words = words[:2]
    if case == "no references":
        words = [hypotheses]
    done = score(*words)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr


def test_generated_poses_are_scored(tmp_path):
    draw = np.random.default_rng(0)
    for name, frames in (("one", 12), ("two", 9)):
        pair = dict(feats_rst=0.1 * draw.normal(size=(frames, 133)), feats_ref=0.1 * draw.normal(size=(10, 133)), text="hello")
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(pair))
    done = score(tmp_path, "--output", tmp_path / "out")
    assert done.returncode == 0 and "DTW-PA-JPE" in done.stdout and (tmp_path / "out" / "pose_distances.csv").is_file()
    broken = dict(feats_rst=np.full((3, 133), np.nan), feats_ref=np.zeros((3, 133)))
    (tmp_path / "two.pkl").write_bytes(pickle.dumps(broken))
    done = score(tmp_path)
    assert done.returncode == 2 and "feats_rst" in done.stderr and "two.pkl" in done.stderr
    (tmp_path / "two.pkl").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    done = score(tmp_path)
    assert done.returncode == 2 and "system" in done.stderr and not (tmp_path / "hacked").exists()
