"""The batch as a whole, on a project of three small notebooks: killed at any moment, run twice at once, changed in code and in prose."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PLAN = """
first = step('demo', 'prepare', 'demo/prepare.ipynb', parameters=dict(size=20))
second = step('demo', 'train', 'demo/train.ipynb', inputs=dict(corpus=first), parameters=dict(epochs=12))
step('demo', 'tables', 'demo/tables.ipynb', inputs=dict(train=second))
"""
PREPARE = """import time
from signbook.workbook.runs import open_run
run = open_run(out, dict(size=size), inputs)
time.sleep(1.5)
run.write('metrics.json', dict(numbers=list(range(size))))"""
TRAIN = """import time
import torch
from signbook.training.fit import FitConfig, fit
from signbook.workbook.runs import open_run, read_metrics
torch.set_num_threads(1)
run = open_run(out, dict(epochs=epochs), inputs)
x = torch.tensor(read_metrics(run.input('corpus'))['numbers'])[:, None].float()
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
def batches(epoch):
    time.sleep(0.25)  # long enough to be killed in
    return [dict(x=x, y=3*x + 1)]
def loss(model, batch): return ((model(batch['x']) - batch['y'])**2).mean(), {}
def score(model): return dict(loss=float(((model(x) - 3*x - 1)**2).mean()))
history = fit(model, batches, loss, score, FitConfig(epochs=epochs, learning_rate=0.05, progress=False), run.folder/'fit')
run.write('metrics.json', dict(loss=history.best_row['loss'], epochs=len(history.rows)))"""
TABLES = """from signbook.workbook.runs import open_run, read_metrics
from signbook.workbook.tables import Column, Table, write_table
run = open_run(out, {}, inputs)
found = read_metrics(run.input('train'))
write_table(Table('demo', 'A demonstration.', [Column('loss', 'loss')], [dict(loss=found['loss'])]), run.folder/'tables')
run.write('metrics.json', found)"""
DEFAULTS = dict(prepare="out = ''\ninputs = {}\nsize = 3", train="out = ''\ninputs = {}\nepochs = 1", tables="out = ''\ninputs = {}")


def write_notebook(path, name, source, prose="A demonstration."):
    cells = [new_markdown_cell(prose), new_code_cell(DEFAULTS[name], metadata={"tags": ["parameters"]}), new_code_cell(source)]
    nbformat.write(new_notebook(cells=cells), path)


@pytest.fixture
def demo(tmp_path, project):
    "A checkout of its own with three steps."
    home = tmp_path / "demo"
    (home / "nbs" / "experiments" / "demo").mkdir(parents=True)
    (home / "settings.ini").write_text("[DEFAULT]\n")
    shutil.copy(project / "nbs" / "experiments" / "Snakefile", home / "nbs" / "experiments")
    (home / "nbs" / "experiments" / "demo" / "plan.smk").write_text(PLAN)
    for name, source in (("prepare", PREPARE), ("train", TRAIN), ("tables", TABLES)):
        write_notebook(home / "nbs" / "experiments" / "demo" / f"{name}.ipynb", name, source)
    return home


def command(home, *words):
    launch = "from signbook.workbook.cli import main; main()"
    return [sys.executable, "-c", launch, *words, "--project", str(home)]


def run(home, *words, check=0):
    done = subprocess.run(command(home, *words), capture_output=True, text=True, timeout=300)
    assert done.returncode == check, done.stdout + done.stderr
    return done.stdout + done.stderr


def outcome(home):
    "The bytes of everything that must repeat."
    root = home / "outputs"
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.name == "metrics.json" or "tables" in p.parent.parts and p.is_file()
    }


def writers(home):
    "Processes of this machine that have the project's folder in their command line or working directory."
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes().decode(errors="replace") + os.readlink(entry / "cwd")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(home) in text and state != "Z":
                found.append((int(entry.name), text[:120]))
    return found


def wait_for(condition, seconds, what):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, project):
    home = demo.__wrapped__(tmp_path_factory.mktemp("undisturbed"), project)
    run(home, "reproduce", "--cores", "1")
    return outcome(home)


MOMENTS = {
    "the runner alone, while the first step works": ("runner", "demo/prepare-pocket-s0/started.json"),
    "the runner alone, in the middle of training": ("runner", "demo/train-main-s0/fit/checkpoints/LATEST"),
    "the whole process group, in the middle of training": ("group", "demo/train-main-s0/fit/checkpoints/LATEST"),
}


@pytest.mark.skipif(sys.platform != "linux", reason="looks for orphans in /proc, which only Linux has")
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_batch_goes_on_and_ends_with_the_same_bytes(demo, undisturbed, moment):
    who, mark = MOMENTS[moment]
    mark = demo / "outputs" / "laptop" / "pocket" / mark.replace("prepare-pocket", "prepare-main")
    batch = subprocess.Popen(
        command(demo, "reproduce", "--cores", "1"), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    wait_for(mark.exists, 120, f"{mark.name} to appear")
    time.sleep(0.6)
    os.kill(batch.pid, signal.SIGKILL) if who == "runner" else os.killpg(batch.pid, signal.SIGKILL)
    batch.wait()
    wait_for(lambda: not writers(demo), 20, f"orphans to end: {writers(demo)}")
    assert not (demo / "outputs" / "laptop" / "pocket" / "demo" / "tables-main-s0" / "done.json").exists(), (
        "the kill came too late to test anything"
    )
    run(demo, "reproduce", "--cores", "1")
    assert outcome(demo) == undisturbed


def test_second_run_does_nothing_and_status_says_why_something_would(demo):
    home = demo / "nbs" / "experiments" / "demo"
    run(demo, "reproduce", "--cores", "1")
    marks = {p: p.stat().st_mtime_ns for p in (demo / "outputs").rglob("done.json")}
    begin = time.monotonic()
    assert "all 3 steps are up to date" in run(demo, "reproduce", "--cores", "1")
    assert time.monotonic() - begin < 10
    assert {p: p.stat().st_mtime_ns for p in marks} == marks
    assert "all 3 steps are up to date" in run(demo, "status")

    write_notebook(
        home / "train.ipynb", "train", TRAIN.replace("# long enough to be killed in", "# another comment"), prose="Better prose."
    )
    assert "all 3 steps are up to date" in run(demo, "status"), "prose and comments must not re-run anything"

    write_notebook(home / "train.ipynb", "train", TRAIN.replace("0.05", "0.06"))
    told = run(demo, "status")
    assert "would run demo/train-main-s0  because: code of demo/train.ipynb" in told
    assert "would run demo/tables-main-s0  because: reads demo/train-main-s0" in told and "done      demo/prepare-main-s0" in told


def test_a_change_in_a_module_names_the_module(demo):
    package = demo / "signbook"
    package.mkdir()
    (package / "arithmetic.py").write_text('"Sums."\n\n\ndef double(x):\n    "Twice the number."\n    return 2*x\n')
    extra = PREPARE + "\ndef unused():\n    from signbook.arithmetic import double\n    return double(1)"
    write_notebook(demo / "nbs" / "experiments" / "demo" / "prepare.ipynb", "prepare", extra)
    run(demo, "reproduce", "--cores", "1")
    (package / "arithmetic.py").write_text(
        '"Sums, better told."\n\n\ndef double(x):  # a number\n    "Two times the number."\n    return 2*x\n'
    )
    assert "all 3 steps are up to date" in run(demo, "status")
    (package / "arithmetic.py").write_text("def double(x):\n    return x + x\n")
    assert "would run demo/prepare-main-s0  because: code of signbook.arithmetic" in run(demo, "status")


def test_two_batches_in_one_root_the_second_leaves(demo):
    batch = subprocess.Popen(command(demo, "reproduce", "--cores", "1"), stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        wait_for(
            (demo / "outputs" / "laptop" / "pocket" / "demo" / "prepare-main-s0" / "started.json").exists, 60, "the first batch to start"
        )
        told = run(demo, "reproduce", "--cores", "1", check=2)
        assert re.search(r"in use by process \d+", told) and "Traceback" not in told
    finally:
        assert batch.wait(timeout=120) == 0


def test_a_failed_step_is_told_with_its_log_and_the_rest_goes_on(demo):
    write_notebook(demo / "nbs" / "experiments" / "demo" / "train.ipynb", "train", "raise ValueError('no such gloss')")
    told = run(demo, "reproduce", "--cores", "1", check=1)
    assert "FAILED" in told and "demo/tables-main-s0" in told
    page = (demo / "outputs" / "laptop" / "pocket" / "report.html").read_text()
    assert "Failed: demo/train-main-s0" in page and "ValueError: no such gloss" in page
    assert (
        json.loads((demo / "outputs" / "laptop" / "pocket" / "demo" / "train-main-s0" / "failed.json").read_text())["error"] == "ValueError"
    )
    write_notebook(demo / "nbs" / "experiments" / "demo" / "train.ipynb", "train", TRAIN)
    run(demo, "reproduce", "--cores", "1")


@pytest.mark.parametrize(
    "words, sentence",
    [
        (("reproduce", "--preset", "huge"), "preset 'huge': choose one of smoke, laptop, paper"),
        (("reproduce", "--set", "epoch=3"), "--set epoch: no such field"),
        (("reproduce", "--set", "epochs"), "expected field=value"),
        (("reproduce", "geese"), "target 'geese': corpus pocket offers"),
        (("reproduce", "--seeds", "0"), "--seeds 0: at least one seed is needed"),
        (("reproduce", "--output", "/proc/none"), "cannot be written"),
    ],
)
def test_bad_words_are_one_sentence(project, words, sentence):
    done = subprocess.run(command(project, *words), capture_output=True, text=True)
    assert done.returncode == 2 and sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_bad_data_are_one_sentence(project, data, tmp_path):
    home, source = tmp_path / "fingerspelling", data / "fingerspelling"
    rows = (source / "index.csv").read_text(encoding="utf-8").splitlines()[:3]
    paths = [row.split(",")[0] for row in rows[1:]]

    def index_only():
        (home / "index.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")

    def truncated():
        for number, path in enumerate(paths):
            (home / path).parent.mkdir(exist_ok=True)
            (home / path).write_bytes((source / path).read_bytes()[: 9000 if number else None])

    output = tmp_path / "outputs"
    words = ("reproduce", "--corpus", "fingerspelling", "--root", str(tmp_path), "--output", str(output))
    cases = ((lambda: None, "does not exist"), (home.mkdir, "no index.csv"), (index_only, paths[0]), (truncated, paths[1].split("/")[1]))
    for make, sentence in cases:
        make()
        done = subprocess.run(command(project, *words), capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert not list(output.rglob("done.json")) and not list(output.rglob("*.arrow")), "nothing half-written"
