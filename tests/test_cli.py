"""The command line on real files: what it prints, and the one sentence it has for each mistake."""

import subprocess
import sys

import pytest


def signbook(*words):
    launch = "from signbook.workbook.cli import main; main()"
    return subprocess.run([sys.executable, "-c", launch, *map(str, words)], capture_output=True, text=True, timeout=120)


def refused(done, *parts):
    "One sentence on standard error, exit code 2, no traceback."
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("signbook: "), done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "A recogniser of twelve glosses, trained for an instant."
    from signbook.corpora import pocket
    from signbook.recognition.isolated import configure, train

    clips = pocket.build("smoke")
    glosses = sorted({clip.gloss for clip in clips})[:12]
    known, validation = ([clip for clip in clips if clip.split == split and clip.gloss in glosses] for split in ("train", "dev"))
    folder = tmp_path_factory.mktemp("run")
    train(known, validation, configure("smoke", {"epochs": 1}), folder, progress=False)
    return folder


@pytest.fixture
def letter(data):
    return sorted((data / "fingerspelling" / "ase").glob("*.pose"))[0]


def test_recognise_prints_five_glosses_with_probabilities(trained, letter):
    done = signbook("recognise", letter, "--run", trained)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    shares = [float(line[0]) for line in lines]
    assert len(lines) == 5 and shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 100.3


def test_recognise_refuses_a_truncated_clip_and_a_folder_that_is_no_run(trained, letter, tmp_path):
    cut = tmp_path / "cut.pose"
    cut.write_bytes(letter.read_bytes()[:5000])
    refused(signbook("recognise", cut, "--run", trained), "cut.pose")
    (tmp_path / "empty.pose").write_bytes(b"")
    refused(signbook("recognise", tmp_path / "empty.pose", "--run", trained), "empty.pose")
    refused(signbook("recognise", tmp_path / "none.pose", "--run", trained), "none.pose")
    refused(signbook("recognise", letter, "--run", tmp_path), "train first")


def test_audit_finds_the_traps_of_the_fingerspelling_index(data):
    told = signbook("corpus", "audit", "fingerspelling", "--root", data).stdout
    for trap in ("fsl", "ukl", "9 of 11 languages share 26 single Latin letters, in 234 of 338 clips"):
        assert trap in told


def test_an_index_row_without_its_file_is_named(data, tmp_path):
    (tmp_path / "fingerspelling").mkdir()
    text = (data / "fingerspelling" / "index.csv").read_text(encoding="utf-8")
    (tmp_path / "fingerspelling" / "index.csv").write_text("\n".join(text.splitlines()[:3]) + "\n", encoding="utf-8")
    done = signbook("corpus", "build", "fingerspelling", tmp_path / "store", "--root", tmp_path)
    refused(done, "2 of the 2 files", ".pose")
    assert not (tmp_path / "store").exists()


def test_a_truncated_clip_stops_the_build_and_leaves_nothing(data, tmp_path):
    home = tmp_path / "fingerspelling"
    home.mkdir()
    rows = (data / "fingerspelling" / "index.csv").read_text(encoding="utf-8").splitlines()[:4]
    (home / "index.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for number, row in enumerate(rows[1:]):
        path = home / row.split(",")[0]
        path.parent.mkdir(exist_ok=True)
        content = (data / "fingerspelling" / row.split(",")[0]).read_bytes()
        path.write_bytes(content if number else content[:-7000])
    done = signbook("corpus", "build", "fingerspelling", tmp_path / "store", "--root", tmp_path)
    refused(done, rows[1].split(",")[0].split("/")[1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fingerspelling"]


def test_unknown_words_name_the_known_ones():
    refused(signbook("corpus", "show", "geese"), "geese", "pocket")
    assert "fingerspelling" in signbook("corpus", "list").stdout
    assert "MIT" in signbook("corpus", "show", "fingerspelling").stdout


def test_clean_shows_asks_and_deletes_only_what_a_batch_wrote(tmp_path, project):
    run = tmp_path / "smoke" / "pocket"
    run.mkdir(parents=True)
    (run / "request.json").write_text("{}")
    (tmp_path / "mine").mkdir()
    launch = [sys.executable, "-c", "from signbook.workbook.cli import main; main()", "clean", "--output", str(tmp_path)]
    kept = subprocess.run(launch, input="n\n", capture_output=True, text=True)
    assert "smoke" in kept.stdout and "mine" not in kept.stdout and run.exists()
    subprocess.run(launch, input="y\n", capture_output=True, text=True, check=True)
    assert not run.exists() and (tmp_path / "mine").exists()


def test_doctor_has_a_fix_for_whatever_is_wrong(tmp_path):
    told = signbook("doctor", "--root", tmp_path / "none").stdout.splitlines()
    wrong = [number for number, line in enumerate(told) if line.startswith("wrong")]
    assert any("data" in told[number] for number in wrong)
    assert all(told[number + 1].strip().startswith("→") for number in wrong)
