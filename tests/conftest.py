"""One thread per process, as in the batch: two threads on a busy core are many times slower, and sums must not depend on them."""

import os

import pytest

from signbook.workbook.runs import ENVIRONMENT

os.environ.update({**ENVIRONMENT, "MPLBACKEND": "agg"})


@pytest.fixture(scope="session")
def project():
    "The checkout."
    from signbook.workbook.plan import find_project

    return find_project()


@pytest.fixture(scope="session")
def data():
    "The folder of real corpora; tests that need it are skipped where it is not set."
    from pathlib import Path

    root = os.environ.get("SIGNBOOK_DATA")
    if not root:
        pytest.skip("SIGNBOOK_DATA is not set: no real corpora in reach")
    return Path(root)
