"""Pickles that mean harm, pickles that are noise, and pickles as other versions of Python and NumPy wrote them."""

import gzip
import json
import os
import pickle
import pickletools
import random
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from signbook.corpora.pickles import CONSTANTS, FOLLOWED, NAMES, PUSH, read_gzip_pickle, read_pickle, unpickled
from signbook.errors import CorpusError

WHERE = Path("foreign.pkl")


class Call:
    def __init__(self, function, *given):
        self.function, self.given = function, given

    def __reduce__(self):
        return self.function, self.given


class WithState:
    def __init__(self):
        self.a = 1


@pytest.mark.parametrize("protocol", range(6))
def test_commands_are_refused_by_name_in_every_protocol_and_place(protocol, tmp_path):
    marker = tmp_path / "it ran"
    command = Call(os.system, f"touch '{marker}'")
    for value in (command, [command], {"keypoints": command}, {"a": {"text": [1, (2, command)]}}, (np.zeros(2), command)):
        for path, content, read in (("a.pkl", bytes, read_pickle), ("labels.train", gzip.compress, read_gzip_pickle)):
            (tmp_path / path).write_bytes(content(pickle.dumps(value, protocol)))
            with pytest.raises(CorpusError, match="system") as error:
                read(tmp_path / path)
            assert error.value.field in ("posix.system", "nt.system") and path in error.value.file
    assert not marker.exists()


@pytest.mark.parametrize("function", [eval, exec, getattr, print, open, subprocess.Popen, os.remove, np.load, np.frombuffer, np.zeros])
def test_no_function_is_reached(function):
    with pytest.raises(CorpusError, match=function.__name__.lstrip("_")):
        unpickled(pickle.dumps(Call(getattr(function, "__wrapped__", function), "x")) if function is not open else b"cio\nopen\n(Vx\ntR.", WHERE)


def test_classes_and_instances_are_refused_by_name():
    for protocol in range(6):
        with pytest.raises(CorpusError, match="WithState|_reconstructor"):
            unpickled(pickle.dumps(WithState(), protocol), WHERE)


def test_known_names_do_nothing_but_make_arrays():
    "Every allowed name, called with arguments that are not an array's."
    strange = [(), ("x",), (1 << 40,), ([], {}), ("rm -rf /", "rot13"), ((1 << 40,), "f8"), (None,) * 4, ("O8", False, True)]
    for words in NAMES:
        for given in strange:
            name = f"c{words.replace(' ', chr(10))}\n".encode()
            data = b"\x80\x02" + name + pickle.dumps(given, 2)[2:-1] + b"R."
            try:
                value = unpickled(data, WHERE)
            except CorpusError:
                continue
            assert value == b"", (words, given)


def test_both_generations_of_numpy_are_read():
    values = dict(points=np.arange(6, dtype=np.float32).reshape(2, 3), one=np.float64(0.5), columns=np.asfortranarray(np.eye(3)[:2]))
    for protocol in range(4):
        new = pickle.dumps(values, protocol)
        names = [arg for op, arg, _ in pickletools.genops(new) if op.name == "GLOBAL"]
        assert any("numpy._core" in name for name in names) or protocol > 3
        old = new.replace(b"numpy._core.", b"numpy.core.")
        for data in (new, old):
            back = unpickled(data, WHERE)
            assert all(np.array_equal(back[key], value) and back[key].dtype == value.dtype for key, value in values.items())
    for protocol in (4, 5):
        new = pickle.dumps(values, protocol)
        old = new.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray").replace(
            b"\x8c\x13numpy._core.numeric", b"\x8c\x12numpy.core.numeric"
        )
        assert old != new and np.array_equal(unpickled(old, WHERE)["points"], values["points"])


@pytest.mark.parametrize("dtype", ["?", "i1", "u2", "<i8", ">i4", "f2", "<f4", ">f8", "c8", "c16"])
def test_numbers_of_every_kind_come_back(dtype):
    for shape in ((), (0,), (3,), (2, 0, 3), (2, 3, 4)):
        value = (np.arange(int(np.prod(shape))) % 2).reshape(shape).astype(dtype)
        for protocol in range(6):
            back = unpickled(pickle.dumps([value, value.T, value], protocol), WHERE)
            assert back[0].dtype == value.dtype and back[0].shape == shape and np.array_equal(back[0], value) and back[2] is back[0]
            assert np.array_equal(back[1], value.T)


def test_python_2_kept_arrays_as_text():
    raw = np.float32([1, -2]).tobytes()
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03(K\x01K\x02\x85cnumpy\ndtype\nq\x04"
    tail = b"U\x02f4K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08" + raw + b"tb."
    assert unpickled(head + tail, WHERE).tolist() == [1, -2]


def test_every_cut_is_refused():
    data = pickle.dumps(dict(keypoints=[np.zeros((1, 3, 2), np.float32)] * 2, text="他今年四岁。", n=[1, 2.5, None, True, 1 << 50]))
    for size in range(len(data)):
        with pytest.raises(CorpusError) as error:
            unpickled(data[:size], WHERE)
        assert error.value.field


def greedy():
    "Small pickles that ask for much memory or time."
    int32, count = struct.pack("<i", (1 << 31) - 1), struct.pack("<Q", 1 << 40)
    yield "memo", b"\x80\x04Nr" + int32 + b"."
    yield "memo in steps", b"\x80\x04" + b"".join(b"Nr" + struct.pack("<I", 1 << n) for n in range(31)) + b"."
    for name, code in dict(bytes8=b"\x8e", text8=b"\x8d", bytearray8=b"\x96", frame=b"\x95").items():
        yield name, b"\x80\x05" + code + count + b"N."
    yield "long4", b"\x80\x04\x8b" + int32 + b"\x00."
    yield "digits", b"L" + b"9" * 100_000 + b"L\n."
    array = pickle.dumps(np.zeros(4, np.float32), 2)
    yield "shape", array.replace(b"K\x04\x85", b"J" + int32 + b"\x85")
    yield "many axes", array.replace(b"K\x04\x85", b"(" + b"K\x01" * 70 + b"t")
    wide = pickle.dumps("x" * 400_000, 2)[2:-1].replace(b"q\x00", b"q\x00")
    encode = b"\x80\x02c_codecs\nencode\nq\x01(" + wide[: -len(b"q\x00")] + b"V" + b"latin1\ntq\x02" + b"R" + b"h\x01h\x02R" * 50_000 + b"."
    yield "encode", encode
    laughs = b"\x80\x04](]\x94" + b"".join(b"](" + b"h%c" % n * 10 + b"e\x94" for n in range(60)) + b"e."
    yield "laughs", laughs
    key = b"\x80\x04\x8c\x01a\x94" + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(60)) + b"}h%cK\x01s." % 60
    yield "key", key
    yield "key name", b"\x80\x04\x8c\x01a\x94" + b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(60)) + b"h%ch%c\x93." % (60, 60)
    state = b"".join(b"h%ch%c\x86\x94" % (n, n) for n in range(60)) + b"cnumpy\ndtype\nVf4\n\x89\x88\x87R(K\x03h%cNNNK\x00K\x00K\x00tb." % 60
    yield "state", b"\x80\x04\x8c\x01a\x94" + state
    collide = b"".join(b"\x8a\x0b" + (n * ((1 << 61) - 1) + (1 << 80)).to_bytes(11, "little") + b"N" for n in range(1, 20_000))
    yield "equal hashes", b"\x80\x04}(" + collide + b"u."
    yield "deep list", b"\x80\x04" + b"]" * 300_000 + b"a" * 299_999 + b"."
    yield "deep tuple", b"\x80\x04)" + b"\x85" * 300_000 + b"."
    yield "marks", b"\x80\x04" + b"(" * 300_000 + b"."
    yield "sets", b"\x80\x04" + b"\x8f" * 300_000 + b"."
    yield "lists", b"\x80\x04" + b"]" * 300_000 + b"."


KNOWN = [op for op in pickletools.opcodes if op.name in PUSH or op.name in FOLLOWED or op.name in CONSTANTS]
VALUES = [b"K\x01", b"N", b")", b"]", b"}", b"(", b"\x8c\x02f4", b"C\x04abcd", b"h\x00", b"\x85", b"\x94", b"cnumpy\ndtype\n"]


def program(rng):
    "A random but well-formed pickle: any instruction, small arguments, names of arrays now and then."
    out = [b"\x80\x04", *(rng.choice(VALUES) for _ in range(rng.randrange(10)))]
    for _ in range(rng.randrange(1, 40)):
        out.append(rng.choice(VALUES))
        op = rng.choice(KNOWN if rng.random() < 0.98 else pickletools.opcodes)
        if op.name in ("PROTO", "STOP"):
            continue
        code, kind = op.code.encode("latin-1"), op.arg.name if op.arg else ""
        if op.name in ("GLOBAL", "INST"):
            words = rng.choice([*NAMES, "os system", "builtins eval", "x y"])
            out.append(code + words.replace(" ", "\n").encode() + b"\n")
        elif not op.arg:
            out.append(code)
        elif kind.endswith("nl") or kind in ("stringnl", "stringnl_noescape", "unicodestringnl", "floatnl"):
            out.append(code + rng.choice([b"1", b"'a'", b"0", b"1.5", b"latin1", b"nan", b"\\u12"]) + b"\n")
        elif op.arg.n > 0:
            out.append(code + bytes(rng.choice((0, 0, 1, 2, 255)) for _ in range(op.arg.n)))
        else:
            width = {-3: 1, -2: 4, -4: 4, -5: 8}.get(op.arg.n, 1)
            body = rng.choice([b"", b"f4", b"<", b"latin1", bytes(4), bytes(16), b"numpy", b"dtype"])
            out.append(code + len(body).to_bytes(width, "little") + body)
    return b"".join(out) + b"."


def attack():
    "In a process of its own with little memory: what went wrong."
    held = next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (held + (200 << 20),) * 2)
    wrong, rng = [], random.Random(0)
    cases = [*greedy(), *((f"program {n}", program(rng)) for n in range(8000))]
    for name, data in cases:
        start = time.process_time()
        try:
            unpickled(data, WHERE)
        except CorpusError as error:
            if not error.field:
                wrong.append(f"{name}: no field")
        except BaseException as error:
            wrong.append(f"{name}: {type(error).__name__} {str(error)[:100]}")
        if time.process_time() - start > 3:
            wrong.append(f"{name}: {time.process_time() - start:.1f} s")
    print(json.dumps([len(cases), wrong]))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from /proc, which this system has not")
def test_hostile_pickles_and_random_programs_end_in_a_value_or_a_sentence():
    done = subprocess.run([sys.executable, "-W", "ignore", __file__], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    cases, wrong = json.loads(done.stdout)
    assert cases > 8000 and not wrong


def test_what_must_be_refused_of_these_is():
    fine = {"frame", "laughs", "deep list", "deep tuple"}
    for name, data in greedy():
        if name in fine:
            unpickled(data, WHERE)
        else:
            with pytest.raises(CorpusError):
                unpickled(data, WHERE)


def test_gzip_bombs_stop_early(tmp_path):
    (tmp_path / "labels.train").write_bytes(gzip.compress(bytes(1 << 28), 1))
    start = time.process_time()
    with pytest.raises(CorpusError, match="unpacks"):
        read_gzip_pickle(tmp_path / "labels.train")
    assert time.process_time() - start < 10
    inner = gzip.compress(gzip.compress(bytes(1 << 20)))
    (tmp_path / "labels.train").write_bytes(inner)
    with pytest.raises(CorpusError, match="pickle"):
        read_gzip_pickle(tmp_path / "labels.train")


@pytest.mark.parametrize("kind", ["folder", "absent", "empty", "text"])
def test_files_that_are_no_pickles_are_named(kind, tmp_path):
    path = tmp_path / "x.pkl"
    if kind == "folder":
        path.mkdir()
    elif kind != "absent":
        path.write_text("" if kind == "empty" else "<html>Not found</html>")
    for read in (read_pickle, read_gzip_pickle):
        with pytest.raises(CorpusError, match="x.pkl"):
            read(path)


if __name__ == "__main__":
    attack()
