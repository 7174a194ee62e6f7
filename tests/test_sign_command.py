"""`signbook sign`: what it writes, what it tells about the dictionary, and the one sentence it has for each mistake."""

import ast
import contextlib
import io
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import av
import numpy as np
import pytest
from PIL import Image

from signbook.corpora.formats import read_pose
from signbook.corpora.sentences import clips as sentence_clips
from signbook.corpora.sentences import dictionary as isolated_clips
from signbook.layers.decoding import Sampling
from signbook.soke.training import configure, load, train, train_tokens
from signbook.workbook.cli import main
from signbook.workbook.posing import WRITERS
from signbook.workbook.systems import systems

TEXT = "Turn the box slowly."


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A signer that has seen a few sentences once."
    folder = tmp_path_factory.mktemp("soke")
    configs = configure("smoke", {"epochs": 1, "token_epochs": 1, "dev_clips": 4, "longest": 12})
    shown, checked = (list(sentence_clips("smoke", split=split, count=number)) for split, number in (("train", 48), ("dev", 4)))
    tokens = train_tokens(shown, checked, configs, folder / "tokens")
    signer = train(shown, checked, list(isolated_clips(per_gloss=1)), tokens, configs, folder / "run")
    assert {"box", "turn", "slowly"} <= set(signer.dictionary.words["en"])
    return folder / "run"


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


def sign(*words, language="en"):
    "The paths and the lines that are told of a command that works."
    code, out, err = signbook("sign", *words, "--language", language)
    assert code == 0, err
    return out.splitlines(), err.splitlines()


def refused(folder, words, *parts):
    "One sentence, code 2, no output, nothing new in the folder."
    before = sorted(folder.rglob("*"))
    code, out, err = signbook("sign", *words)
    assert code == 2 and not out and err.count("\n") == 1 and err.startswith("signbook: "), (code, out, err)
    for part in parts:
        assert part in err, err
    assert sorted(folder.rglob("*")) == before


def points(path):
    with np.load(path) as numbers:
        return numbers["points"]


# what works


def test_every_ending_holds_the_same_clip(run, tmp_path):
    (clip,) = load(run).signs([TEXT], ["en"])
    for ending in WRITERS:
        paths, told = sign(TEXT, "--run", run, "-o", tmp_path / f"out{ending}")
        assert paths == [str(tmp_path / f"out{ending}")]
        assert told == [f"out{ending}: “{TEXT}”; from the dictionary: turn → TURN, box → BOX, slowly → SLOW; "
                        f"{len(clip)} frames at 25 a second, {len(clip) / 25:.1f} s"]  # fmt: skip
    with np.load(tmp_path / "out.npz") as numbers:
        assert np.array_equal(numbers["points"], clip.points) and np.array_equal(numbers["smplx"], clip.streams["smplx"])
    with Image.open(tmp_path / "out.gif") as moving:
        assert 1 <= moving.n_frames <= len(clip)
    with av.open(tmp_path / "out.mp4") as film:
        assert len(list(film.decode(video=0))) == len(clip) and float(film.streams.video[0].average_rate) == 25
    assert len(read_pose(tmp_path / "out.pose")) == len(clip)


def test_what_is_told_about_the_dictionary(run, tmp_path):
    out = ["--run", run, "-o", tmp_path / "out.npz"]
    for text, language, told in (
        ("🙂", "en", "no word of it found"),
        ("Guten Morgen", "de", "morgen → TOMORROW"),
        ("我们在老师家。", "zh", "老师 → TEACHER"),
        ("\x1b[31mqq", "en", "no word of it found"),
    ):
        assert told in sign(text, *out, language=language)[1][0]
    assert "\x1b" not in sign("\x1b[31mqq", *out)[1][0]
    assert "dictionary not used" in sign(TEXT, *out, "--no-retrieval")[1][0]


def test_the_dictionary_reaches_the_model(run, tmp_path):
    signer = load(run)
    with_words, without = (signer.codes([TEXT], ["en"], retrieval, Sampling(seed=5))[0] for retrieval in (True, False))
    assert len(with_words) != len(without) or (with_words != without).any()
    sign(TEXT, "--run", run, "-o", tmp_path / "off.npz", "--no-retrieval", "--sample", "--seed", 5)
    assert np.array_equal(points(tmp_path / "off.npz"), signer.signs([TEXT], ["en"], False, Sampling(seed=5))[0].points)


def test_chance_only_where_it_is_asked_for(run, tmp_path):
    names = {}
    for name, words in dict(a=[], b=[], s0=["--sample"], s00=["--sample", "--seed", 0], s1=["--sample", "--seed", 1]).items():
        sign(TEXT, "--run", run, "-o", tmp_path / f"{name}.npz", *words)
        names[name] = points(tmp_path / f"{name}.npz")
    assert np.array_equal(names["a"], names["b"]) and np.array_equal(names["s0"], names["s00"])
    assert names["s1"].shape != names["s0"].shape or not np.array_equal(names["s1"], names["s0"])


def test_several_sentences_are_numbered_and_signed_as_if_alone(run, tmp_path):
    texts = ["Turn the box.", "Cut the paper and fold it slowly, please.", "🙂"]
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    paths, told = sign("--file", tmp_path / "texts.txt", "--run", run, "-o", tmp_path / "new" / "out.npz")
    assert [Path(path).name for path in paths] == ["out-001.npz", "out-002.npz", "out-003.npz"]
    assert all(text in line for text, line in zip(texts, told))
    for path, text in zip(paths, texts):
        sign(text, "--run", run, "-o", tmp_path / "alone.npz")
        assert np.allclose(points(path), points(tmp_path / "alone.npz"), atol=1e-4)


def test_a_run_without_a_dictionary(run, tmp_path):
    (tmp_path / "run").mkdir()
    for path in run.iterdir():
        if path.is_file() and path.name != "dictionary.json":
            (tmp_path / "run" / path.name).write_bytes(path.read_bytes())
    _, told = sign(TEXT, "--run", tmp_path / "run", "-o", tmp_path / "out.npz")
    assert "no word of it found" in told[0]


def test_from_outside(run, tmp_path):
    launch = "from signbook.workbook.cli import main; main()"
    words = ["--run", str(run), "-o", str(tmp_path / "out.gif"), "--language", "en"]
    done = subprocess.run([sys.executable, "-c", launch, "sign", TEXT, *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'out.gif'}\n" and done.stderr.count("\n") == 1, done.stderr
    done = subprocess.run([sys.executable, "-c", launch, "sign", "", *words], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1 and "empty" in done.stderr, done.stderr


# mistakes


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([""], ("empty",)),
        (["  \n"], ("empty",)),
        ([], ("--file",)),
        (["a " * 1000], ("1,999 characters", "1,000")),
        (["x" * 2000], ("2,000 characters",)),
        ([TEXT, "--seed", 3], ("--seed 3", "--sample")),
        ([TEXT, "--sample", "--seed", -1], ("--seed -1",)),
    ],
)
def test_texts_that_nobody_can_sign(run, tmp_path, words, parts):
    refused(tmp_path, [*words, "--language", "en", "--run", run, "-o", tmp_path / "new" / "out.gif"], *parts)


@pytest.mark.parametrize(
    ("language", "part"), [([], "--language"), (["--language", ""], "--language"), (["--language", "fr"], "fr"), (["--language", "🙂"], "🙂")]
)
def test_languages_that_nobody_knows(run, tmp_path, language, part):
    for more in ([], ["--no-retrieval"]):
        refused(tmp_path, [TEXT, *language, *more, "--run", run, "-o", tmp_path / "out.gif"], part)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", ("texts.txt", "empty")),
        (b"One.\n\nTwo.\n", ("texts.txt", "line 2")),
        ("Öffne es.\n".encode("latin-1"), ("texts.txt", "UTF-8")),
        ("One.\n".encode("utf-16"), ("texts.txt", "UTF-8")),
        (b"One.\n" + b"x" * 2000 + b"\n", ("line 2", "2,000 characters")),
        (b"One.\n" * 1_001, ("1,001 sentences", "1,000")),
    ],
)
def test_files_that_nobody_can_sign(run, tmp_path, data, parts):
    (tmp_path / "texts.txt").write_bytes(data)
    refused(tmp_path, ["--file", tmp_path / "texts.txt", "--language", "en", "--run", run, "-o", tmp_path / "new" / "out.gif"], *parts)


def test_a_missing_file_and_both_ways_at_once(run, tmp_path):
    out = ["--run", run, "--language", "en", "-o", tmp_path / "out.gif"]
    refused(tmp_path, ["--file", tmp_path / "none.txt", *out], "none.txt")
    refused(tmp_path, [TEXT, "--file", tmp_path / "none.txt", *out], "not both")


@pytest.mark.parametrize(("name", "told"), [("out.mp3", ".mp3"), ("out", "none"), ("out.gif/", "a folder"), ("texts.txt/out.gif", "no folder")])
def test_places_where_nothing_can_be_written(run, tmp_path, name, told):
    (tmp_path / "out.gif").mkdir()
    (tmp_path / "texts.txt").touch()
    refused(tmp_path, [TEXT, "--language", "en", "--run", run, "-o", f"{tmp_path}/{name}"], told)


def test_films_without_an_encoder(run, tmp_path):
    with patch.dict(sys.modules, {"av": None, "av.codec": None}):
        refused(tmp_path, [TEXT, "--language", "en", "--run", run, "-o", tmp_path / "out.mp4"], "pip install av")


def test_runs_that_cannot_sign_texts(run, tmp_path):
    out = ["--language", "en", "-o", tmp_path / "out.gif"]
    refused(tmp_path, [TEXT, "--run", tmp_path / "nothing", *out], "no such folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, [TEXT, "--run", tmp_path / "empty", *out], "train first")
    for command in ("pose", "translate", "recognise"):
        words = [TEXT] if command == "pose" else [tmp_path / "out.pose"]
        if command != "pose":
            sign(TEXT, "--run", run, "-o", tmp_path / "out.pose")
        code, printed, err = signbook(command, *words, "--run", run, *(["-o", tmp_path / "out.gif"] if command == "pose" else []))
        assert code == 2 and not printed and "a run of soke, which signs texts" in err and err.count("\n") == 1, err


@pytest.mark.parametrize("name", ["best.safetensors", "tokenizers.safetensors", "dictionary.json", "rows.json", "pieces.model"])
def test_damaged_runs_are_one_sentence(run, tmp_path, name):
    folder = tmp_path / "run"
    folder.mkdir()
    for path in run.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    out = [TEXT, "--language", "en", "--run", folder, "-o", tmp_path / "out.gif"]
    whole = (folder / name).read_bytes()
    for data in (b"", b"noise", whole[: len(whole) // 2]):
        (folder / name).write_bytes(data)
        refused(tmp_path, out)
    if name != "dictionary.json":
        (folder / name).unlink()
        refused(tmp_path, out)


def test_no_command_names_a_system(project):
    tree = ast.parse((project / "signbook" / "workbook" / "signing.py").read_text(encoding="utf-8"))
    words = {part for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for part in (node.module or "").split(".")}
    assert not words & set(systems())
