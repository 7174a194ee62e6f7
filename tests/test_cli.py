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


@pytest.fixture
def folder(tmp_path):
    "Five clips as a folder of .pose files, of which two are gone and one is cut."
    from signbook.corpora import catalog
    from signbook.corpora.formats import write_pose_folder

    home = write_pose_folder(list(catalog.made("pocket", number=5)), tmp_path / "letters")
    files = sorted(home.rglob("*.pose"))
    files[0].unlink(), files[3].unlink(), files[4].write_bytes(files[4].read_bytes()[:-500])
    return home


def test_check_says_what_is_missing_and_how_it_ended(folder, tmp_path):
    done = signbook("corpus", "check", "pose_folder", "--root", folder, "--list", tmp_path / "faults.csv", "--names", 1)
    assert done.returncode == 1 and "missing: 2: none/00000.pose; and 1 more" in done.stdout, done.stdout + done.stderr
    assert "damaged: 1: none/00004.pose" in done.stdout and done.stdout.splitlines()[-2] == "not complete: 3 of 5 motion files present"
    rows = (tmp_path / "faults.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "kind,id,path,told" and [row.split(",")[0] for row in rows[1:]] == ["missing", "missing", "damaged"]
    quick = signbook("corpus", "check", "pose_folder", "--root", folder, "--quick")
    assert quick.returncode == 1 and "damaged" not in quick.stdout
    refused(signbook("corpus", "check", "pose_folder", "--root", tmp_path / "nowhere"), "does not exist", "index.csv")
    for sound in ("pocket", "pocket_sentences"):
        assert signbook("corpus", "check", sound).returncode == 0


def test_build_records_what_is_missing_only_if_that_is_allowed(folder, tmp_path):
    (folder / "none" / "00004.pose").unlink()
    refused(signbook("corpus", "build", "pose_folder", tmp_path / "store", "--root", folder), "3 of the 5 files", "--allow-missing")
    done = signbook("corpus", "build", "pose_folder", tmp_path / "store", "--root", folder, "--allow-missing", "--packing", "float16")
    assert done.returncode == 0 and "2 clips" in done.stdout and "3 clips were missing" in done.stdout and "none/00000" in done.stdout
    refused(signbook("corpus", "build", "pose_folder", tmp_path / "other", "--root", folder, "--allow-missing", "--packing", "zip"), "zip")


def test_export_writes_a_new_folder_and_nothing_else(tmp_path):
    done = signbook("corpus", "export", "pocket", "--as", "phoenix_skels", tmp_path / "out", "--number", 6)
    assert done.returncode == 0 and "6 clips" in done.stdout and "precision: coordinates" in done.stdout, done.stdout + done.stderr
    assert "train.skels" in {path.name for path in (tmp_path / "out").iterdir()} and [path.name for path in tmp_path.iterdir()] == ["out"]
    refused(signbook("corpus", "export", "pocket", "--as", "phoenix_skels", tmp_path / "out", "--number", 6), "is not empty")
    refused(signbook("corpus", "export", "fingerspelling", "--as", "isign", tmp_path / "x"), "only pocket is exported")
    refused(signbook("corpus", "export", "pocket", "--as", "mpeg", tmp_path / "x"), "'mpeg' is unknown", "holistic_npy")


def test_get_asks_first_and_says_what_must_be_requested(tmp_path):
    launch = [sys.executable, "-c", "from signbook.workbook.cli import main; main()", "corpus", "get", "csl_daily", "--root", str(tmp_path)]
    done = subprocess.run([*launch, "--mirror", "http://127.0.0.1:9"], input="n\n", capture_output=True, text=True)
    assert done.returncode == 1 and "3 files, 0.6 MB, from 127.0.0.1" in done.stdout and "nothing was fetched" in done.stdout
    assert "agreement with USTC" in done.stdout and not list(tmp_path.iterdir())
    done = subprocess.run([*launch, "--mirror", "http://127.0.0.1:9", "--yes"], capture_output=True, text=True)
    refused(done, "broke off at byte 0", "run the same command again")
    refused(signbook("corpus", "get", "isign", "--root", tmp_path, "--yes"), "ask for access at huggingface.co")


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
