"""Chapters are tests: every notebook under nbs/ is one item, run in a process of its own by nbdev's test runner."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
SKIPPED = {"experiments", ".ipynb_checkpoints"}
RUN = """import sys
from pathlib import Path
from nbdev.test import test_nb
ok, _ = test_nb(Path(sys.argv[1]), skip_flags=set(sys.argv[2].split()), force_flags=[])
sys.exit(not ok)"""


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the cells that chapters flag as slow")


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb" and not SKIPPED & set(file_path.relative_to(ROOT).parts):
        return Notebook.from_parent(parent, path=file_path)


class Notebook(pytest.File):
    def collect(self):
        yield Chapter.from_parent(self, name="chapter")


class Chapter(pytest.Item):
    def runtest(self):
        from signbook.workbook.runs import ENVIRONMENT

        flags = "gpu" if self.config.getoption("--slow") else "slow gpu"
        done = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", RUN, str(self.path), flags],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT, "IPYTHONDIR": str(ROOT / ".pytest_cache" / "ipython")},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise ChapterError((done.stdout + done.stderr)[-4000:])

    def repr_failure(self, excinfo):
        return str(excinfo.value) if isinstance(excinfo.value, ChapterError) else super().repr_failure(excinfo)

    def reportinfo(self):
        return self.path, 0, str(self.path.relative_to(ROOT))


class ChapterError(Exception):
    "A cell of a chapter failed."


def pytest_collection_modifyitems(items):
    def rank(item):
        name = str(item.path)
        return next(
            (i for i, word in enumerate(("test_house",)) if word in name),
            3 if "test_batch" in name else 2 if name.endswith(".ipynb") else 1,
        )

    items.sort(key=rank)
