"""Damaged, hostile and incomplete corpora: every reader ends in a clip or in one sentence that names file and field.

Run as a program, this file tries the mutations of one format in a process of its own, with little memory and little time a case."""

import argparse
import gzip
import itertools
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from signbook.errors import CorpusError, printable
from signbook.poses.clips import Clip, check
from signbook.poses.skeletons import layout

MEMORY = 256 << 20  # bytes that a reader may need on top of what is there before the first case
SECONDS = 2  # of computing a case


# Small corpora of every format


def tiny(name, number=0, frames=4, **words):
    "A clip of a few frames in any layout, with everything that a writer may want."
    rng, table = np.random.default_rng(number), layout(name)
    left, right = table.shoulders
    points = 0.5 + 0.1 * rng.standard_normal((frames, len(table), len(table.features)))
    points[:, left, :2], points[:, right, :2] = (0.6, 0.4), (0.4, 0.4)
    confidence = np.full((frames, len(table)), 0.9, np.float32)
    smplx = 0.1 * rng.standard_normal((frames, 179)).astype(np.float32)
    given = dict(id=f"clip-{number}", text=("Regen", "sun")[number % 2], gloss="RAIN", signer="P01", language="en")
    given["split"] = ("train", "test")[number % 2]
    return Clip(points.astype(np.float32), confidence, name, 25.0, **given | words, streams={"smplx": smplx})


def pair(name, **words):
    return [tiny(name, 0, **words), tiny(name, 1, **words)]


def pose_folder(folder):
    from signbook.corpora.formats import POSE_FOLDER, write_pose_folder

    write_pose_folder(pair("holistic75"), folder)
    return POSE_FOLDER


def pose_versions(folder):
    "The three versions of the .pose format, of few points."
    import io

    from pose_format.pose_header import PoseHeader, PoseHeaderComponent, PoseHeaderDimensions

    from signbook.corpora.formats import POSE_FOLDER

    rng, buffer, hand = np.random.default_rng(0), io.BytesIO(), [f"POINT_{n}" for n in range(21)]
    parts = [PoseHeaderComponent("POSE_LANDMARKS", ["NOSE", "LEFT_SHOULDER", "RIGHT_SHOULDER"], [(1, 2)], [(255, 0, 0)], "XYZC")]
    parts += [PoseHeaderComponent("LEFT_HAND_LANDMARKS", hand, [], [], "XYZC")]
    PoseHeader(0.2, PoseHeaderDimensions(300, 200, 0), parts).write(buffer)
    header, frames, points = buffer.getvalue()[4:], 3, 24
    xyz, sure = rng.random((frames, 1, points, 3), np.float32), np.ones((frames, 1, points), np.float32)
    counts = np.array([25, frames], "<u2").tobytes()
    person = [np.uint16(1).tobytes() + np.int16(0).tobytes() + np.concatenate([x, c[..., None]], -1).tobytes() for x, c in zip(xyz[:, 0], sure[:, 0])]
    bodies = {
        0.0: counts + b"".join(person),
        0.1: counts + np.uint16(1).tobytes() + xyz.tobytes() + sure.tobytes(),
        0.2: np.float32(25).tobytes() + np.uint32(frames).tobytes() + np.uint16(1).tobytes() + xyz.tobytes() + sure.tobytes(),
    }
    folder.mkdir()
    for version, body in bodies.items():
        (folder / f"v{version}.pose").write_bytes(np.float32(version).tobytes() + header + body)
    rows = ["path,spoken_language,signed_language,words", *(f"v{version}.pose,de,gsg,Regen" for version in bodies)]
    (folder / "index.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return POSE_FOLDER


def phoenix_skels(folder):
    from signbook.corpora.skels import PHOENIX_SKELS, write_phoenix_skels

    write_phoenix_skels(pair("skels50"), folder)
    return PHOENIX_SKELS


def phoenix14t(folder):
    from signbook.corpora.skels import PHOENIX14T

    folder.mkdir()
    for split, rows in (("train", 3), ("dev", 2), ("test", 1)):
        (folder / f"phoenix2014T.{split}.de").write_text("am tag 12 grad .\n" * rows, encoding="utf-8")
        (folder / f"phoenix2014T.{split}.gloss").write_text("TAG ZWOELF GRAD\n" * rows, encoding="utf-8")
        lines = ["name|video|start|end|speaker|orth|translation"]
        lines += [f"01April_2010_Thursday-{split}{n}|v/{n}/*.png|-1|-1|Signer08|TAG ZWOELF GRAD|am tag 12 grad ." for n in range(rows)]
        (folder / f"PHOENIX-2014-T.{split}.corpus.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return PHOENIX14T


def exported(name):
    "A small corpus in the files of one export format."

    def build(folder):
        from signbook.corpora.exports import FORMATS, named

        found = FORMATS[name]
        named(found.writer)(pair(found.layout, frames=6), folder)  # fewer than 4 after thinning would be refused
        return named(found.reader)

    return build


def csl_news(folder):
    from signbook.corpora.wholebody import CSL_NEWS, write_csl_daily

    write_csl_daily(pair("coco133"), folder / "made")
    poses = sorted(path for path in (folder / "made").rglob("*.pkl"))
    rows = []
    for number, path in enumerate(poses * 2):
        shutil.copy(path, folder / f"news_{number}.pkl")
        rows.append(dict(video=f"news_{number}.mp4", pose=f"news_{number}.pkl", text="今天12度"))
    shutil.rmtree(folder / "made")
    (folder / "CSL_News_Labels.json").write_text(json.dumps(rows), encoding="utf-8")
    return CSL_NEWS


def labelled(name):
    "The label files of csl_daily under another reader of the same files."

    def build(folder):
        from signbook.corpora import wholebody

        wholebody.write_how2sign(pair("coco133"), folder)
        return getattr(wholebody, name)

    return build


def smplx_of(name):
    "SMPL-X folders under a listing of gzip-compressed pickles."

    def build(folder):
        from signbook.corpora import smplx

        smplx.write_smplx(pair("smplx55"), folder / "made")
        frames = sorted({path.parent for path in (folder / "made").rglob("*.pkl")})
        listing, home = {"CSL_DAILY_SMPLX": ("csl_clean", folder / "poses"), "PHOENIX_SMPLX": ("phoenix14t", folder)}[name]
        splits = ("train", "val", "test") if listing == "csl_clean" else ("train", "dev", "test")
        for split, source in zip(splits, itertools.cycle(frames)):
            id = f"{split}/S{split}" if listing == "phoenix14t" else f"S{split}"
            shutil.copytree(source, home / id)
            row = dict(name=id, text="am tag 12 grad .", gloss="TAG GRAD", num_frames=4)
            (folder / f"{listing}.{split}").write_bytes(gzip.compress(pickle.dumps([row])))
        shutil.rmtree(folder / "made")
        return getattr(smplx, name)

    return build


def asl_citizen(folder):
    from signbook.corpora.citizen import ASL_CITIZEN
    from signbook.corpora.formats import write_pose

    (folder / "splits").mkdir(parents=True)
    for split, clip in zip(("train", "val", "test"), map(lambda n: tiny("holistic75", n), range(3))):
        rows = f"Participant ID,Video file,Gloss,ASL-LEX Code\nP{len(split)},{clip.id}.mp4,RAIN1,A_01_{len(split):03d}\n"
        (folder / "splits" / f"{split}.csv").write_text(rows, encoding="utf-8")
        (folder / "poses").mkdir(exist_ok=True)
        write_pose(clip, folder / "poses" / f"{clip.id}.pose")
    return ASL_CITIZEN


def store(folder):
    from signbook.corpora.catalog import table_items
    from signbook.corpora.listings import Reader
    from signbook.corpora.store import read, verify, write

    write(pair("holistic75"), folder)

    def clip(home, item):
        table = read(home)
        verify(table)
        return table[table.columns(["id"])["id"].index(item.id)]

    return Reader(lambda home: table_items(read(home)), clip)


CORPORA = {
    "pose_folder": pose_folder,
    "pose_versions": pose_versions,
    "phoenix14t": phoenix14t,
    "phoenix_skels": phoenix_skels,
    "csl_daily": exported("csl_daily"),
    "csl_news": csl_news,
    "how2sign": exported("how2sign"),
    "openasl": labelled("OPENASL"),
    "wlasl": exported("wlasl"),
    "how2sign_smplx": exported("smplx"),
    "csl_daily_smplx": smplx_of("CSL_DAILY_SMPLX"),
    "phoenix_smplx": smplx_of("PHOENIX_SMPLX"),
    "isign": exported("isign"),
    "asl_citizen": asl_citizen,
    "asl_citizen_200": exported("asl_citizen_200"),
    "holistic_npy": exported("holistic_npy"),
    "store": store,
}


# Damage


def flip(data, rng):
    for _ in range(rng.choice((1, 1, 3, 20))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return "flipped bits"


def cut(data, rng):
    del data[rng.randrange(len(data)) :]
    return f"cut to {len(data)} bytes"


def block(data, rng):
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice((1, 2, 4, 8, 64, 1000)))


def drop(data, rng):
    start, end = block(data, rng)
    del data[start:end]
    return f"bytes {start}–{end} deleted"


def double(data, rng):
    start, end = block(data, rng)
    data[start:start] = data[start:end] * rng.choice((1, 1, 50))
    return f"bytes {start}–{end} doubled"


def clear(data, rng):
    start, end = block(data, rng)
    data[start:end] = bytes([rng.choice((0, 255))]) * (end - start)
    return f"bytes {start}–{end} overwritten"


def insert(data, rng):
    start = rng.randrange(len(data))
    data[start:start] = rng.randbytes(rng.choice((1, 4, 100)))
    return f"random bytes at {start}"


def number(data, rng):
    "A field of 2, 4 or 8 bytes becomes huge, negative, zero or not a number."
    start, width = rng.randrange(len(data)), rng.choice((2, 4, 8))
    values = [b"\xff" * width, b"\x00" * width, b"\xff" * (width - 1) + b"\x7f", b"\x00" * (width - 1) + b"\x80", b"\x00" * (width - 1) + b"\x40"]
    values += [np.float32("nan").tobytes(), np.float32("inf").tobytes(), np.float64("nan").tobytes()]
    data[start : start + width] = rng.choice(values)
    return f"number at {start}"


def digit(data, rng):
    "A digit of a text becomes another one, or a very long number."
    places = [n for n, byte in enumerate(data) if 48 <= byte < 58]
    if not places:
        return insert(data, rng)
    start = rng.choice(places)
    data[start : start + 1] = rng.choice((b"0", b"9", b"-", b"9" * 18, b"1e308", b"nan", b"9" * 5000))
    return f"digit at {start}"


def swap(data, rng):
    (a, b), (c, d) = sorted((block(data, rng), block(data, rng)))
    if b <= c:
        data[a:d] = data[c:d] + data[b:c] + data[a:b]
    return f"bytes {a}–{b} and {c}–{d} exchanged"


CHANGES = (flip, flip, cut, drop, double, clear, insert, number, number, digit, swap)


def mutate(content, rng):
    "Changed bytes, and what was done; a compressed file is also changed inside and compressed again."
    inside = content[:2] == b"\x1f\x8b" and rng.random() < 0.7
    data = bytearray(gzip.decompress(content) if inside else content)
    told = [rng.choice(CHANGES)(data, rng) for _ in range(rng.choice((1, 1, 1, 2, 4))) if data]
    return gzip.compress(bytes(data), 1) if inside else bytes(data), ("inside: " if inside else "") + ", ".join(told)


# One process that tries many cases


class TooSlow(BaseException):
    "No reader catches this."


def too_slow(*_):
    raise TooSlow


def little_memory():
    "From here on, this process may take a little more memory than it has."
    status = Path("/proc/self/status")
    if not status.exists():
        return
    held = next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + MEMORY, held + MEMORY))


def probe(reader, folder):
    "Listing and first clips: 'read', 'refused', or what went wrong."
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        for item in reader.items(folder)[:4]:
            if reader.clip:
                check(reader.clip(folder, item))
        return "read"
    except CorpusError as error:
        fine = str(error.file).startswith(str(folder)) and error.field and printable(Path(error.file).name) in str(error)
        return "refused" if fine else f"an error that names no file or field: {str(error)[:300]!r}"
    except TooSlow:
        return f"more than {SECONDS} seconds of computing"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def attack(name, seed, cases, folder):
    "The mutations of one format: how many were read, how many refused, and what went wrong."
    warnings.simplefilter("ignore")
    folder = Path(folder) / name
    reader = CORPORA[name](folder)
    assert probe(reader, folder) == "read", probe(reader, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    kinds = {}
    for path in files:
        kinds.setdefault("".join(path.suffixes) or path.name, []).append(path)
    signal.signal(signal.SIGPROF, too_slow)
    little_memory()
    found = dict(read=0, refused=0, wrong=[])
    for case in range(cases):
        rng = random.Random(f"{name}/{seed}/{case}")
        path = rng.choice(kinds[rng.choice(sorted(kinds))])
        whole = path.read_bytes()
        changed, told = mutate(whole, rng)
        path.write_bytes(changed)
        outcome = probe(reader, folder)
        path.write_bytes(whole)
        if outcome in found:
            found[outcome] += 1
        else:
            found["wrong"].append(f"case {case}, {path.relative_to(folder)}, {told}: {outcome}")
    found["most_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found


def attacked(name, seed, cases, folder):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    words = [sys.executable, __file__, name, str(seed), str(cases), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, f"{name}: the process died ({done.returncode}): {done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CORPORA)
def test_mutated_files_are_read_or_refused_by_name(name, tmp_path, request):
    slow = request.config.getoption("--slow")
    found = attacked(name, seed=1 if slow else 0, cases=10_000 if slow else 1000, folder=tmp_path)
    wrong = found["wrong"]
    assert not wrong, f"{len(wrong)} of {found['read'] + found['refused'] + len(wrong)} cases:\n" + "\n".join(wrong[:20])
    assert found["refused"] > 100, f"hardly anything was refused: {found}"


BAD = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, test_faults as faults
from signbook.corpora.listings import Item, Reader

def clip(folder, item):
    data = (folder/'a.bin').read_bytes()
    if len(data) < 900: raise ValueError('a crash')
    if len(data) > 1000: return np.ones(1 << 30)   # 8 GB
    while 0 in data: pass
    return faults.tiny('holistic75')

def build(folder):
    folder.mkdir()
    (folder/'a.bin').write_bytes(bytes(range(1, 251))*4)
    return Reader(lambda folder: [Item('a', path='a.bin')], clip)

faults.CORPORA['bad'], faults.SECONDS = build, .2
print(json.dumps(faults.attack('bad', 0, 150, sys.argv[2])))
"""


def test_the_attack_itself_notices_crashes_hangs_and_memory(tmp_path):
    "A reader with three faults is found out: otherwise the tests above would prove nothing."
    done = subprocess.run([sys.executable, "-c", BAD, str(Path(__file__).parent), str(tmp_path)], capture_output=True, text=True, timeout=200)
    wrong = json.loads(done.stdout.splitlines()[-1])["wrong"]
    for kind in ("ValueError", "MemoryError", "seconds of computing"):
        assert any(kind in told for told in wrong), f"{kind} was not noticed"


# Pickles that would run a command


class Command:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def pickles(folder):
    "The first pickle of each kind in a corpus, and how it is packed: a label dictionary, a pose file or frame."
    kinds = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if path.read_bytes()[:2] == b"\x1f\x8b":
            kinds.setdefault("labels", (path, gzip.compress))
        elif path.suffix == ".pkl":
            kinds.setdefault("motion", (path, bytes))
    return kinds.values()


def signbook(*words):
    launch = "from signbook.workbook.cli import main; main()"
    return subprocess.run([sys.executable, "-c", launch, *map(str, words)], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["csl_daily", "how2sign", "openasl", "wlasl", "csl_news", "how2sign_smplx", "csl_daily_smplx", "phoenix_smplx"])
def test_a_pickle_that_would_run_a_command_is_refused_by_name_and_does_not_run(name, tmp_path):
    folder, ran = tmp_path / name, tmp_path / "it ran"
    reader = CORPORA[name](folder)
    assert pickles(folder)
    for path, packed in pickles(folder):
        whole = path.read_bytes()
        path.write_bytes(packed(pickle.dumps({"keypoints": [Command(f"touch '{ran}'")], "scores": []})))
        with pytest.raises(CorpusError, match="system") as error:
            for item in reader.items(folder):
                reader.clip(folder, item)
        assert path.name in str(error.value) or path.parent.name in str(error.value)
        told = signbook("corpus", "check", name, "--root", tmp_path)
        assert told.returncode == 1 and "damaged" in told.stdout and "system" in told.stdout, told.stdout + told.stderr
        path.write_bytes(whole)
    assert not ran.exists()
    os.system(pickle.loads(pickle.dumps([f"touch '{ran}'"]))[0])
    assert ran.exists(), "the command itself does nothing, so its absence proved nothing"


# Killed builds


def test_a_killed_build_leaves_the_old_store_and_the_next_one_is_whole(tmp_path):
    from signbook.corpora.catalog import build
    from signbook.corpora.store import read

    home = tmp_path / "root" / "pose_folder"
    pose_folder(home)
    old = build("pose_folder", "laptop", tmp_path / "store", tmp_path / "root").fingerprint
    header, *rows = (home / "index.csv").read_text(encoding="utf-8").splitlines()
    (home / "index.csv").write_text("\n".join([header, *rows * 1000]) + "\n", encoding="utf-8")
    words = ("corpus", "build", "pose_folder", str(tmp_path / "store"), "--root", str(tmp_path / "root"))
    process = subprocess.Popen([sys.executable, "-c", "from signbook.workbook.cli import main; main()", *words], stdout=subprocess.DEVNULL)
    building = tmp_path / ".store.building"
    for _ in range(1000):
        time.sleep(0.01)
        if any(path.stat().st_size > 100_000 for path in building.glob("*.arrow")):
            break
    process.kill()
    assert process.wait() < 0, "the build ended before it was killed"
    assert read(tmp_path / "store").fingerprint == old
    told = signbook(*words)
    assert told.returncode == 0 and "2000 clips" in told.stdout, told.stdout + told.stderr
    assert len(read(tmp_path / "store")) == 2000 and not building.exists()


if __name__ == "__main__":
    words = argparse.ArgumentParser()
    words.add_argument("name"), words.add_argument("seed", type=int), words.add_argument("cases", type=int), words.add_argument("folder")
    given = words.parse_args()
    print(json.dumps(attack(given.name, given.seed, given.cases, given.folder)))
