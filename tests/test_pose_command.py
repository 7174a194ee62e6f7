"""`signbook pose`: what it writes, and the one sentence it has for each mistake; and the systems that commands find in a run."""

import ast
import contextlib
import importlib
import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from signbook.corpora.formats import read_pose
from signbook.corpora.sentences import clips as sentence_clips
from signbook.errors import UserError
from signbook.gloss2pose.training import configure, load, made_ready, train
from signbook.poses.clips import normalise
from signbook.training.checkpoints import save_weights
from signbook.workbook.cli import main
from signbook.workbook.posing import WRITERS, writer_of
from signbook.workbook.systems import HOUSE, module_of, system_of, systems

LONGEST = 96  # frames of the runs below
KNOWN, OTHER = "RAIN TOMORROW", "NORTH WIND STRONG"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A signer that has seen a few sentences once."
    (model, losses, training), folder = configure("smoke", {"epochs": 1, "dev_clips": 4}), tmp_path_factory.mktemp("run")
    shown, checked = (list(sentence_clips("smoke", split=split, count=number)) for split, number in (("train", 48), ("dev", 4)))
    ready, _ = made_ready(shown + checked, model, training)
    assert set(f"{KNOWN} {OTHER}".split()) <= {word for clip in shown for word in clip.gloss.split()}
    train(ready[: len(shown)], ready[len(shown) :], (model, losses, training), folder)
    return folder


def signbook(*words):
    "Code, standard output and standard error of the command, as its entry point leaves them."
    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", ["signbook", *map(str, words)]), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code or 0
    return code, out.getvalue(), err.getvalue()


def pose(*words):
    "The paths and the lines that are told of a command that works."
    code, out, err = signbook("pose", *words)
    assert code == 0, err
    return out.splitlines(), err.splitlines()


def refused(folder, words, *parts):
    "One sentence, code 2, no output, nothing new in the folder."
    before = sorted(folder.rglob("*"))
    code, out, err = signbook("pose", *words)
    assert code == 2 and not out and err.count("\n") == 1 and err.startswith("signbook: "), (code, out, err)
    for part in parts:
        assert part in err, err
    assert sorted(folder.rglob("*")) == before


# what works


def test_every_ending_holds_the_same_clip(run, tmp_path):
    (clip,) = load(run).poses([KNOWN], [20])
    for ending in WRITERS:
        paths, told = pose(KNOWN, "--run", run, "-o", tmp_path / f"out{ending}", "--frames", 20)
        assert paths == [str(tmp_path / f"out{ending}")]
        assert told == [f"out{ending}: {KNOWN}, 20 frames at 12.5 a second, stated length"]
    with np.load(tmp_path / "out.npz") as numbers:  # refuses pickles
        assert np.array_equal(numbers["points"], clip.points) and np.array_equal(numbers["confidence"], clip.confidence)
        assert (str(numbers["layout"]), float(numbers["fps"]), str(numbers["gloss"])) == ("holistic75", 12.5, KNOWN)
    with Image.open(tmp_path / "out.gif") as moving:
        assert moving.n_frames <= 20 and moving.info["loop"] == 0  # equal frames in a row are one
        lasts = 0
        for frame in range(moving.n_frames):
            moving.seek(frame)
            lasts += moving.info["duration"]
        assert lasts == 1600
    with Image.open(tmp_path / "out.png") as strip:
        assert strip.width > 3 * strip.height
    back = read_pose(tmp_path / "out.pose")
    assert (len(back), back.fps) == (20, 12.5) and np.array_equal(back.confidence > 0, clip.confidence > 0)
    seen = clip.confidence > 0
    assert np.abs(normalise(back).points[seen][:, :2] - normalise(clip).points[seen]).max() < 1e-3


def test_the_length_is_predicted_unless_it_is_stated(run, tmp_path):
    (clip,) = load(run).poses([KNOWN])
    _, told = pose(KNOWN, "--run", run, "-o", tmp_path / "out.npz")
    assert told == [f"out.npz: {KNOWN}, {len(clip)} frame{'s' if len(clip) > 1 else ''} at 12.5 a second, predicted length"]
    for frames in (1, LONGEST):
        pose(KNOWN, "--run", run, "-o", tmp_path / "out.npz", "--frames", frames)
        assert len(np.load(tmp_path / "out.npz")["points"]) == frames


def test_several_sentences_are_numbered_and_signed_as_if_alone(run, tmp_path):
    (tmp_path / "glosses.txt").write_text(f"{KNOWN}\n{OTHER}\n", encoding="utf-8")
    paths, told = pose("--file", tmp_path / "glosses.txt", "--run", run, "-o", tmp_path / "new" / "out.npz")
    assert [Path(path).name for path in paths] == ["out-001.npz", "out-002.npz"] and [KNOWN in told[0], OTHER in told[1]] == [True, True]
    for path, gloss in zip(paths, (KNOWN, OTHER)):
        pose(gloss, "--run", run, "-o", tmp_path / "alone.npz")
        with np.load(path) as one, np.load(tmp_path / "alone.npz") as alone:
            assert str(one["gloss"]) == gloss and np.allclose(one["points"], alone["points"], atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out-001.npz", "out-002.npz"]


def test_one_line_of_a_windows_file_is_one_sentence(run, tmp_path):
    (tmp_path / "glosses.txt").write_bytes(b"\xef\xbb\xbf" + f"{KNOWN}\r\n".encode())
    paths, _ = pose("--file", tmp_path / "glosses.txt", "--run", run, "-o", tmp_path / "OUT.NPZ")
    assert [Path(path).name for path in paths] == ["OUT.NPZ"] and str(np.load(tmp_path / "OUT.NPZ")["gloss"]) == KNOWN


def test_what_stands_there_is_replaced_by_the_same_bytes_every_time(run, tmp_path):
    for ending in WRITERS:
        path = tmp_path / f"out{ending}"
        path.write_text("something else")
        made = []
        for _ in range(2):
            pose(KNOWN, "--run", run, "-o", path, "--frames", 5)
            made.append(path.read_bytes())
        assert made[0] == made[1] != b"something else"
    assert sorted(path.suffix for path in tmp_path.iterdir()) == sorted(WRITERS)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    "A recogniser that knows a few sentences by heart, and two of them."
    from signbook.recognition.continuous import configure, train

    known = list(sentence_clips("smoke", split="train", count=12))
    folder = tmp_path_factory.mktemp("reader")
    return train(known, known[:2], configure("smoke", {"batch_size": 4, "epochs": 40}), folder, progress=False), known[:2]


def test_a_pose_file_says_what_its_clip_says(reader, tmp_path):
    "The recogniser reads the flat, enlarged clip of the file as it reads the recorded one, through the command."
    judge, known = reader
    for clip, sentence in zip(known, judge.reads(known)):
        writer_of(Path("one.pose"))(replace(clip, points=clip.points[..., :2]), tmp_path / "one.pose")
        code, out, err = signbook("recognise", tmp_path / "one.pose", "--run", judge.folder)
        assert (code, out) == (0, f"{sentence}\n") and len(set(sentence.split()) & set(clip.gloss.split())) >= 2, (out, clip.gloss, err)


def test_commands_refuse_the_runs_of_others(run, reader, tmp_path):
    pose(KNOWN, "--run", run, "-o", tmp_path / "out.pose")
    for command, needs in (("recognise", "reads signs"), ("translate", "translates clips")):
        code, out, err = signbook(command, tmp_path / "out.pose", "--run", run)
        assert code == 2 and not out, err
        assert f"a run of gloss2pose, which signs glosses; signbook {command} needs a run that {needs}" in err
    refused(tmp_path, [KNOWN, "--run", reader[0].folder, "-o", tmp_path / "new.gif"], "a run of continuous recognition, which reads signs")


def test_from_outside(run, tmp_path):
    launch = "from signbook.workbook.cli import main; main()"
    words = [KNOWN, "--run", str(run), "-o", str(tmp_path / "out.gif")]
    done = subprocess.run([sys.executable, "-c", launch, "pose", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'out.gif'}\n" and done.stderr.count("\n") == 1, done.stderr
    done = subprocess.run([sys.executable, "-c", launch, "pose", "PIZZA", *words[1:]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1 and "PIZZA" in done.stderr, done.stderr


# mistakes


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["RAIN PIZZA"], ("PIZZA",)),
        (["RAYN"], ("RAYN", "RAIN")),
        (["  "], ("empty",)),
        ([""], ("empty",)),
        ([], ("--file",)),
        ([" ".join(["RAIN"] * 500)], ("500 glosses", "14")),
        (["\x1b[31mRAIN"], ("does not know",)),
        ([KNOWN, "--frames", 0], ("--frames 0",)),
        ([KNOWN, "--frames", -3], ("--frames -3",)),
        ([KNOWN, "--frames", LONGEST + 1], ("97", "96")),
    ],
)
def test_words_that_nobody_can_sign(run, tmp_path, words, parts):
    refused(tmp_path, [*words, "--run", run, "-o", tmp_path / "new" / "out.gif"], *parts)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", ("glosses.txt", "empty")),
        (b"\n", ("glosses.txt", "empty")),
        (b"RAIN\n\nWIND\n", ("glosses.txt", "line 2")),
        ("RAIN SÜD\n".encode("latin-1"), ("glosses.txt", "UTF-8")),
        ("RAIN\n".encode("utf-16"), ("glosses.txt", "UTF-8")),
        (b"RAIN\nRAIN PIZZA\n", ("PIZZA",)),
        (b"RAIN\n" + b" ".join([b"RAIN"] * 500), ("500 glosses",)),
        (b"RAIN\n" * 10_001, ("10,001 sentences", "10,000")),
        (b"RAIN\x00\n", ("does not know",)),
        (bytes(range(256)), ("UTF-8",)),
    ],
)
def test_files_that_nobody_can_sign(run, tmp_path, data, parts):
    (tmp_path / "glosses.txt").write_bytes(data)
    refused(tmp_path, ["--file", tmp_path / "glosses.txt", "--run", run, "-o", tmp_path / "new" / "out.gif"], *parts)


def test_a_missing_file_and_both_ways_at_once(run, tmp_path):
    out = ["--run", run, "-o", tmp_path / "out.gif"]
    refused(tmp_path, ["--file", tmp_path / "none.txt", *out], "none.txt")
    refused(tmp_path, ["--file", tmp_path, *out], tmp_path.name)
    refused(tmp_path, [KNOWN, "--file", tmp_path / "none.txt", *out], "not both")


@pytest.mark.parametrize(("name", "told"), [("out.mp3", ".mp3"), ("out", "none"), (".gif", "none"), ("out.gif.", "."), ("out.gif/", "a folder")])
def test_an_output_without_a_writer(run, tmp_path, name, told):
    (tmp_path / "out.gif").mkdir()
    refused(tmp_path, [KNOWN, "--run", run, "-o", f"{tmp_path}/{name}"], told)


def test_places_where_nothing_can_be_written(run, tmp_path):
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    for place in ("file", "lost"):
        refused(tmp_path, [KNOWN, "--run", run, "-o", tmp_path / place / "deep" / "out.gif"], "cannot be written")
    refused(tmp_path, [KNOWN, "--run", run, "-o", tmp_path / f"{'a' * 300}.gif"], "cannot be written")
    refused(tmp_path, [KNOWN, "--run", run, "-o", "/proc/out.gif"], "cannot be written")


def test_a_folder_that_is_write_protected(run, tmp_path, monkeypatch):
    tmp_path.chmod(0o500)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    refused(tmp_path, [KNOWN, "--run", run, "-o", tmp_path / "new" / "out.gif"], "may not be written to")


def test_a_full_disk_leaves_the_old_file(run, tmp_path):
    (tmp_path / "out.gif").write_text("old")
    launch = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); from signbook.workbook.cli import main; main()"
    words = ["pose", KNOWN, "--run", str(run), "-o", str(tmp_path / "out.gif")]
    done = subprocess.run([sys.executable, "-c", launch, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "cannot be written" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("out.gif", "old")]


def test_runs_that_are_none(run, tmp_path):
    out = ["-o", tmp_path / "out.gif"]
    refused(tmp_path, [KNOWN, "--run", tmp_path / "nothing", *out], "nothing", "no such folder")
    refused(tmp_path, [KNOWN, "--run", run / "best.safetensors", *out], "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, [KNOWN, "--run", tmp_path / "empty", *out], "empty", "train first")
    broken = tmp_path / "broken" / "best.safetensors"
    broken.parent.mkdir()
    whole = (run / "best.safetensors").read_bytes()
    for data in (b"", b"noise", whole[:5000], whole[:-1000]):
        broken.write_bytes(data)
        refused(tmp_path, [KNOWN, "--run", broken.parent, *out], "best.safetensors")


@pytest.mark.parametrize(
    ("contract", "parts"),
    [
        ({}, ("names no system",)),
        ({"system": 7}, ("names no system",)),
        ({"system": "os"}, ("'os'", "gloss2pose")),
        ({"system": "workbook.cli"}, ("'workbook.cli'",)),
        ({"system": "recognition.scoring"}, ("loads no run",)),
        ({"system": "gloss2pose"}, ("settings",)),
        ({"system": "recognition.isolated"}, ("train first",)),
    ],
)
def test_records_that_lead_nowhere(tmp_path, contract, parts):
    save_weights(nn.Linear(1, 1), tmp_path / "run" / "best.safetensors", contract)
    refused(tmp_path, [KNOWN, "--run", tmp_path / "run", "-o", tmp_path / "out.gif"], *parts)


@pytest.mark.parametrize("text", ["no json", "[]", "7", '{"contract": []}', "[" * 10_000 + "]" * 10_000])
def test_records_that_are_none(tmp_path, text):
    (tmp_path / "run").mkdir()
    save_file({"weight": torch.zeros(1)}, tmp_path / "run" / "best.safetensors", metadata={"signbook": text})
    refused(tmp_path, [KNOWN, "--run", tmp_path / "run", "-o", tmp_path / "out.gif"], "best.safetensors", "names no system")


# systems


def test_every_system_of_the_house_is_found_by_its_name(project):
    "Whatever a module on floor 4 writes into its weights leads back to a module that loads them."
    named = set()
    for package in systems():
        for path in sorted((project / "signbook" / package).glob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                for word in node.keywords if isinstance(node, ast.Call) else ():
                    if word.arg == "system" and isinstance(word.value, ast.Constant):
                        named.add(word.value.value)
    assert {"geosign", "gloss2pose", "recognition.continuous", "recognition.isolated"} <= named
    for name in named:
        module = importlib.import_module(module_of(name))
        assert callable(module.load), name
        assert name.partition(".")[0] == module.__name__.split(".")[1]


def test_the_house_and_its_systems_are_all_there_is(project):
    from test_house import FLOORS

    packages = {path.parent.name for path in (project / "signbook").glob("*/__init__.py")}
    assert packages == {*HOUSE, *systems()} and {FLOORS[name] for name in systems()} == {4} and 4 not in {FLOORS[name] for name in HOUSE}


def test_no_command_names_a_system(project):
    for name in ("cli", "translating", "posing", "systems"):
        tree = ast.parse((project / "signbook" / "workbook" / f"{name}.py").read_text(encoding="utf-8"))
        words = {part for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for part in (node.module or "").split(".")}
        assert not words & set(systems()), (name, words & set(systems()))


def test_the_name_of_a_run_is_read_from_its_best_weights(run, tmp_path):
    assert system_of(run) == "gloss2pose"
    save_weights(nn.Linear(1, 1), tmp_path / "checkpoints" / "last_one.safetensors", {"system": "recognition.isolated"})
    with pytest.raises(UserError, match="train first"):
        system_of(tmp_path)
    save_weights(nn.Linear(1, 1), tmp_path / "checkpoints" / "best_one.safetensors", {"system": "recognition.isolated"})
    assert system_of(tmp_path) == "recognition.isolated"
