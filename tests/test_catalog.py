"""Corpora by name: entries, folders, checks, downloads over the loopback address, exports that are read back."""

import contextlib
import hashlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from signbook.corpora import catalog, checks, downloads
from signbook.corpora.entries import PublicFile, entries, entry, public_files, reader
from signbook.corpora.formats import write_pose_folder
from signbook.corpora.listings import Item, Reader
from signbook.errors import UserError
from signbook.poses.clips import Clip

IDS = """pocket pocket_sentences pocket_dictionary fingerspelling csl_daily csl_news how2sign openasl wlasl phoenix14t phoenix_skels
how2sign_smplx csl_daily_smplx phoenix_smplx isign asl_citizen asl_citizen_200 pose_folder holistic_npy""".split()


def clip(number, **words):
    rng = np.random.default_rng(number)
    points = (250 + 50 * rng.standard_normal((5, 75, 3))).astype(np.float32)
    return Clip(points, np.ones((5, 75), np.float32), "holistic75", 25.0, **dict(id=f"c{number}", gloss="AB"[number % 2], language="ase") | words)


@pytest.fixture
def letters(tmp_path):
    "A folder of corpora with eight letters under `pose_folder`."
    write_pose_folder([clip(number) for number in range(8)], tmp_path / "root" / "pose_folder")
    return tmp_path / "root"


# Entries


def test_every_corpus_has_an_entry_and_a_reader():
    assert sorted(each.id for each in entries()) == sorted(IDS)
    for each in entries():
        found = reader(each.id)
        assert found is None and not each.reader or isinstance(found, Reader)
        if found and found.clip:
            assert found.motion, f"{each.id}: without a pattern nobody finds surplus files"


def test_listing_the_catalog_imports_nothing_heavy():
    code = (
        "import sys; from signbook.workbook.cli import main; sys.argv = ['signbook', 'corpus', 'list']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('numpy', 'torch', 'datasets', 'pose_format', 'pooch', 'pyarrow') if m in sys.modules])"
    )
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(lines) == len(IDS) + 1 and lines[-1] == "[]"


# Where it lies


def test_an_own_folder_is_taken_only_where_it_is_named(letters, monkeypatch):
    own = letters / "pose_folder"
    assert catalog.locate("pose_folder", own) == own
    monkeypatch.setenv("SIGNBOOK_DATA", str(own))
    with pytest.raises(UserError, match="does not exist"):
        catalog.locate("pose_folder")
    with pytest.raises(UserError, match="does not exist"):
        catalog.locate("csl_daily", own)


# Checks


def test_a_check_names_each_kind_of_fault_once(letters):
    home = letters / "pose_folder"
    files = sorted(home.rglob("*.pose"))
    shutil.copy(files[0], home / "ase" / "more.pose")
    files[1].unlink(), files[2].write_bytes(b""), files[3].write_bytes(files[3].read_bytes()[:-9])
    found = checks.check("pose_folder", letters)
    assert [(fault.kind, fault.path) for fault in found.faults] == [
        ("missing", "ase/00001.pose"),
        ("damaged", "ase/00002.pose"),
        ("damaged", "ase/00003.pose"),
        ("surplus", "ase/more.pose"),
    ]
    assert [fault.path for fault in checks.check("pose_folder", letters, quick=True).of("damaged")] == ["ase/00002.pose"]
    assert checks.report(found).splitlines()[-1] == "not complete: 7 of 8 motion files present"


def test_a_sound_corpus_is_complete_and_its_check_writes_nothing(letters):
    before = {path: path.stat().st_mtime_ns for path in letters.rglob("*")}
    found = checks.check("pose_folder", letters)
    assert found.complete and checks.report(found).splitlines()[-1] == "complete: 8 of 8 motion files present"
    assert before == {path: path.stat().st_mtime_ns for path in letters.rglob("*")}


def test_unverified_numbers_are_remarks():
    faults, remarks = checks.differences("wlasl", [Item("a", "train"), Item("b", "test")])
    assert not faults and len(remarks) == 4 and all("not verified" in told for told in remarks)
    faults, remarks = checks.differences("phoenix14t", [Item("a", "train")])
    assert faults == ["1 train, the catalog knows 7,096", "0 dev, the catalog knows 519", "0 test, the catalog knows 642"] and not remarks


def test_a_mutilated_listing_is_one_fault(letters):
    (letters / "pose_folder" / "index.csv").write_bytes(b"\xff\xfe")
    found = checks.check("pose_folder", letters)
    assert [(fault.kind, fault.path) for fault in found.faults] == [("damaged", "index.csv")]


@pytest.mark.parametrize(
    "name, counted, motion",
    [
        ("csl_daily", dict(train=18401, dev=1077, test=1176), 20654),
        ("how2sign", dict(train=31086, test=2349), 33435),
        ("phoenix14t", dict(train=7096, dev=519, test=642), 0),
    ],
)
def test_the_real_listings_are_those_of_the_catalog(data, name, counted, motion):
    if not (data / name).is_dir():
        pytest.skip(f"{name} is not there")
    found = checks.check(name, data, quick=True)
    assert found.clips == counted and found.files == motion and not [fault for fault in found.faults if fault.kind != "missing"]
    assert checks.report(found).count("\n") == 1
    tail = f"listing complete, 0 of {motion:,} motion files present" if motion else "complete: texts only"
    assert checks.report(found).endswith(tail)


# Missing clips


def test_missing_clips_are_refused_then_recorded_by_name(letters, tmp_path):
    for name in ("00002", "00005", "00006"):
        (letters / "pose_folder" / "ase" / f"{name}.pose").unlink()
    with pytest.raises(UserError, match="3 of the 8 files") as error:
        catalog.build("pose_folder", "laptop", tmp_path / "store", letters)
    assert "00002.pose, ase/00005.pose, ase/00006.pose" in str(error.value) and "--allow-missing" in str(error.value)
    assert not (tmp_path / "store").exists()
    table = catalog.build("pose_folder", "laptop", tmp_path / "store", letters, allow_missing=True)
    assert len(table) == 5 and table.contract["missing"] == dict(count=3, ids=["ase/00002", "ase/00005", "ase/00006"])
    (tmp_path / "packed").mkdir(), (tmp_path / "store").rename(tmp_path / "packed" / "pose_folder")
    again = checks.check("pose_folder", tmp_path / "packed")   # whoever gets the store alone is told
    assert [fault.id for fault in again.of("missing")] == ["ase/00002", "ase/00005", "ase/00006"] and not again.complete


def test_any_number_of_embedded_clips(tmp_path):
    table = catalog.build("pocket", "laptop", tmp_path / "store", number=7)
    assert len(table) == 7 and table.contract["splits"] == dict(train=4, dev=2, test=1)
    assert table.contract["about"] == dict(corpus="pocket", number="7")
    other = catalog.build("pocket", "laptop", tmp_path / "other", number=7, seed=1)
    assert other.fingerprint != table.fingerprint and other.contract["about"]["seed"] == "1"


# Downloads


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): ...

    def do_GET(self):
        server = self.server
        data = server.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        start = int(wanted[len("bytes=") : -1]) if wanted else 0
        server.asked.append((self.path, start))
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        with contextlib.suppress(OSError):
            for place in range(start, len(data), 8192):
                self.wfile.write(data[place : place + 8192])
                time.sleep(server.pause)


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.asked, server.pause = {}, [], 0
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server.address = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def published(server, monkeypatch):
    "Three files of which the server has all; they pass for the public files of phoenix14t."
    rng = np.random.default_rng(0)
    contents = {name: rng.bytes(size) for name, size in (("a.de", 300_000), ("b.de", 10), ("sub/c d.de", 5000))}
    server.files = {f"/phoenix14t/{name.replace(' ', '%20')}": data for name, data in contents.items()}
    known = tuple(PublicFile(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items())
    monkeypatch.setattr(downloads, "public_files", lambda name: known)
    return contents


def fetched(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_files_arrive_whole_and_once(server, published, tmp_path):
    offers = []
    assert downloads.get("phoenix14t", tmp_path, lambda told: offers.append(told) or True, mirror=server.address) == 3
    assert fetched(tmp_path / "phoenix14t") == published and "3 files, 0.3 MB, from 127.0.0.1" in offers[0] and "CC BY-NC-SA" in offers[0]
    server.asked.clear()
    assert downloads.get("phoenix14t", tmp_path, mirror=server.address) == 0 and not server.asked


def test_a_declined_licence_fetches_nothing(server, published, tmp_path):
    assert downloads.get("phoenix14t", tmp_path, lambda told: False, mirror=server.address) is None
    assert not server.asked and not list(tmp_path.iterdir())


def test_a_wrong_checksum_leaves_nothing(server, published, tmp_path):
    server.files["/phoenix14t/b.de"] = b"0123456788"
    with pytest.raises(UserError, match="b.de: is not the file that the catalog knows"):
        downloads.get("phoenix14t", tmp_path, lambda told: True, mirror=server.address)
    assert set(fetched(tmp_path / "phoenix14t")) == {"a.de"}


def test_a_file_that_is_not_ours_is_not_overwritten(server, published, tmp_path):
    (tmp_path / "phoenix14t").mkdir()
    (tmp_path / "phoenix14t" / "b.de").write_text("mine")
    with pytest.raises(UserError, match="move it away"):
        downloads.get("phoenix14t", tmp_path, lambda told: True, mirror=server.address)
    assert not server.asked


def test_a_killed_download_goes_on_where_it_stopped(server, published, tmp_path):
    server.pause = 0.02
    known = [(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in published.items()]
    code = (
        f"from signbook.corpora import downloads as d; from signbook.corpora.entries import PublicFile as F; from pathlib import Path\n"
        f"print(d.download([F(*told) for told in {known!r}], {server.address + '/phoenix14t'!r}, Path({str(tmp_path)!r})/'phoenix14t'))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    part = tmp_path / "phoenix14t" / ".incoming" / "a.de.part"
    for _ in range(500):
        time.sleep(0.02)
        if part.is_file() and part.stat().st_size > 50_000:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    had = part.stat().st_size
    assert 50_000 < had < 300_000
    server.pause = 0
    assert downloads.get("phoenix14t", tmp_path, lambda told: True, mirror=server.address) == 3
    assert fetched(tmp_path / "phoenix14t") == published and ("/phoenix14t/a.de", had) in server.asked


def test_the_real_alphabets_come_over_the_wire(data, server, tmp_path):
    "Three of them, and an index that has grown since: its known rows are the known index."
    if not (data / "fingerspelling").is_dir():
        pytest.skip("fingerspelling is not there")
    home = data / "fingerspelling"
    files = [file for file in public_files("fingerspelling") if file.path.startswith("ukl/")][:3]
    rows = (home / "index.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    mine = "".join(rows[:1] + [row for row in rows if row.split(",")[0] in {file.path for file in files}]).encode()
    files.append(PublicFile("index.csv", len(mine), hashlib.sha256(mine).hexdigest()))
    server.files = {f"/{file.path}": (home / file.path).read_bytes() for file in files}
    assert downloads.download(files, server.address, tmp_path / "fingerspelling") == 4
    assert checks.check("pose_folder", tmp_path / "fingerspelling").complete
    assert len(catalog.load("pose_folder", root=tmp_path / "fingerspelling")) == 3


@pytest.mark.parametrize("name", [name for name in IDS if name not in downloads.SOURCES])
def test_the_others_say_what_must_be_asked_for(name, tmp_path):
    with pytest.raises(UserError) as error:
        downloads.get(name, tmp_path, lambda told: True)
    assert str(error.value).endswith(entry(name).how_to_get)


# Exports


@pytest.mark.parametrize("name", "csl_daily how2sign phoenix_skels smplx isign wlasl asl_citizen_200 holistic_npy".split())
def test_an_export_is_a_whole_corpus_of_its_kind(name, tmp_path):
    "Nothing missing, damaged or surplus for the check of that corpus; only counts and labels are other ones."
    from signbook.corpora import exports

    corpus = {"smplx": "how2sign_smplx"}.get(name, name)
    result = exports.export("pocket", name, tmp_path / corpus, number=4, split="train")
    found = checks.check(corpus, tmp_path)
    public = {file.path for file in public_files(corpus)}  # labels of the real edition, which these are not
    assert not [fault for fault in found.faults if fault.kind != "counts" and fault.path not in public]
    assert sum(found.clips.values()) == result.clips > 0
    assert catalog.locate(corpus, tmp_path / corpus) == tmp_path / corpus
    table = catalog.build(corpus, "laptop", tmp_path / "store", tmp_path)
    assert len(table) == result.clips and [clip.id for clip in table] == [item.id for item in catalog.items(corpus, tmp_path)]


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    from signbook.corpora import exports

    def broken(clips, folder):
        (folder / "half").write_text("half")
        next(iter(clips))
        raise UserError("the disk is on fire")

    monkeypatch.setattr(exports, "named", lambda place: broken)
    with pytest.raises(UserError, match="on fire"):
        exports.export("pocket", "isign", tmp_path / "out", number=1)
    assert not list(tmp_path.iterdir())


def test_a_damaged_clip_ends_a_build_or_is_recorded(letters, tmp_path):
    broken = letters / "pose_folder" / "ase" / "00003.pose"
    broken.write_bytes(broken.read_bytes()[:2000])
    listed = len(catalog.items("pose_folder", letters))
    with pytest.raises(UserError, match="00003"):
        catalog.build("pose_folder", "laptop", tmp_path / "store", letters)
    assert not (tmp_path / "store").exists()
    said = []
    table = catalog.build("pose_folder", "laptop", tmp_path / "store", letters, allow_missing=True, tell=said.append)
    assert len(table) == listed - 1 and table.contract["missing"] == dict(count=1, ids=["ase/00003"])
    assert any("ase/00003: cannot be read" in line for line in said)
