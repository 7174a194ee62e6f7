"""Corpora in their own files: real ones against numbers taken from their bytes, written ones against the clips that were written."""

import gc
import os
import struct
import weakref
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from signbook.corpora import citizen, holistic, isign, pocket, skels, smplx
from signbook.corpora.formats import read_pose
from signbook.corpora.listings import counts
from signbook.errors import CorpusError, UserError
from signbook.poses.clips import normalise, resample
from signbook.poses.skeletons import layout

DATA = Path(os.environ["SIGNBOOK_DATA"]) if os.environ.get("SIGNBOOK_DATA") else None


def real(name):
    return pytest.mark.skipif(
        DATA is None or not (DATA / name).is_dir(), reason=f"needs real files: set SIGNBOOK_DATA to a folder that holds {name}/"
    )


# Real files


class Bytes:
    "A .pose file taken apart by hand, from the description of the format."

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, form):
        values = struct.unpack_from("<" + form, self.data, self.at)
        self.at += struct.calcsize("<" + form)
        return values

    def text(self):
        (size,) = self.take("H")
        self.at += size
        return self.data[self.at - size : self.at].decode()

    def numbers(self, *shape):
        count = int(np.prod(shape))
        self.at += 4 * count
        return np.frombuffer(self.data, "<f4", count, self.at - 4 * count).reshape(shape)


def taken_apart(path):
    "Frame rate, components (name → first point, points), values (T, P, C) and confidence (T, P) of the first person."
    file = Bytes(path.read_bytes())
    (version,), _, (count,) = file.take("f"), file.take("HHH"), file.take("H")
    parts, total = {}, 0
    for _ in range(count):
        name, form, (points, limbs, colours) = file.text(), file.text(), file.take("HHH")
        for _ in range(points):
            file.text()
        file.take("H" * (2 * limbs + 3 * colours))
        parts[name], total = (total, points), total + points
    dims = len(form) - 1
    if version > 0.15:
        (fps,), (frames,), (people,) = file.take("f"), file.take("I"), file.take("H")
    else:
        fps, frames, *rest = file.take("HH") if version == 0 else file.take("HHH")
        people = rest[0] if rest else None
    if people is None:
        values = np.zeros((frames, total, dims + 1), np.float32)
        for frame in range(frames):
            for person in range(file.take("H")[0]):
                file.take("h")
                read = np.concatenate([file.numbers(points, dims + 1) for _, points in parts.values()])
                values[frame] = read if person == 0 else values[frame]
        points, confidence = values[..., :dims], values[..., dims]
    else:
        points, confidence = file.numbers(frames, people, total, dims)[:, 0], file.numbers(frames, people, total)[:, 0]
    assert file.at == len(file.data)
    return fps, parts, points, confidence


TEN = {
    "hand_estimation/0ff215ef4f1f111e217e2cefee0adc77": ("holistic75", 121, 29.8904),
    "hand_estimation/6fb01565da31c5500d1ef2cd2906b06b": ("holistic75", 5, 25),
    "hand_estimation/7731febd6afbbe90f806a4434c282016": ("holistic75", 18, 25),
    "hand_estimation/7bd6dd48722def3cf84258b96371cb1e": ("holistic75", 91, 30.0071),
    "hand_estimation/84322c38ff23406f222641da30d0a49b": ("holistic75", 47, 25),
    "mediapipe": ("holistic75", 170, 24),
    "mediapipe_hand_normalized": ("holistic75", 170, 24),
    "mediapipe_long": ("holistic75", 278, 24),
    "mediapipe_long_hand_normalized": ("holistic75", 278, 24),
    "openpose": ("skels50", 93, 24),
}


@real("pose_files")
@pytest.mark.parametrize("name", TEN)
def test_the_ten_fixtures_have_the_shapes_rates_points_and_confidences_of_their_bytes(name):
    path = DATA / "pose_files" / f"{name}.pose"
    clip, (fps, parts, points, confidence) = read_pose(path), taken_apart(path)
    table, frames, rate = TEN[name]
    assert (clip.layout, clip.points.shape, round(clip.fps, 4)) == (table, (frames, len(layout(table)), 3), rate) and round(fps, 4) == rate
    assert clip.points.dtype == clip.confidence.dtype == np.float32
    hands = {"LEFT_HAND_LANDMARKS": "left_hand", "RIGHT_HAND_LANDMARKS": "right_hand"}
    hands |= {"hand_left_keypoints_2d": "left_hand", "hand_right_keypoints_2d": "right_hand"}
    places = {part: (clip.table.indices(hands[part]), np.arange(first, first + count)) for part, (first, count) in parts.items() if part in hands}
    if parts.get("POSE_LANDMARKS", (0, 0))[1] == 33:
        places["body"] = np.arange(33), np.arange(33)
    if "pose_keypoints_2d" in parts:
        places["body"] = np.arange(8), np.arange(8)   # of OpenPose's 25 points the first eight, in the same order
    assert places
    for ours, theirs in places.values():
        sure = confidence[:, theirs].clip(0, 1)
        assert (clip.confidence[:, ours] == sure).all()
        seen = sure > 0
        assert (clip.points[:, ours, : points.shape[-1]][seen] == points[:, theirs][seen]).all()
    absent = np.setdiff1d(np.arange(len(clip.table)), np.concatenate([ours for ours, _ in places.values()]))
    if "POSE_LANDMARKS" not in parts:
        assert not clip.confidence[:, absent].any()


@real("pose_files")
def test_the_dictionary_of_four_signs():
    read = {path.stem: read_pose(path) for path in (DATA / "pose_files" / "dictionary_sgg" / "sgg").glob("*.pose")}
    assert {name: (len(clip), clip.fps) for name, clip in read.items()} == dict(essen=(73, 24), kinder=(45, 24), kleine=(68, 25), pizza=(53, 24))


@real("phoenix_skels")
def test_the_ten_real_sentences_of_phoenix():
    folder = DATA / "phoenix_skels"
    items = skels.PHOENIX_SKELS.items(folder)
    read = [skels.PHOENIX_SKELS.clip(folder, item) for item in items]
    assert counts(items) == {"train": 5, "dev": 5}
    assert [len(clip) for clip in read] == [86, 126, 168, 185, 71, 42, 111, 148, 142, 93]
    for item, clip in zip(items, read):
        assert clip.points.shape[1:] == (50, 3) and clip.fps == 25 and clip.confidence.all()
        assert item.text.endswith(".") and item.gloss.isupper() and not item.id.startswith(item.split)
    assert (items[5].id, items[5].gloss) == ("11August_2010_Wednesday_tagesschau-2", "DRUCK TIEF KOMMEN")
    first = (folder / "dev.skels").read_text().split()[:6]
    assert np.array_equal(read[5].points[0, :2].ravel(), np.array(first, np.float32))
    counter = skels.read_skels(folder, items[5], counter=True).streams["features/counter"]
    assert np.abs(counter[:, 0] - np.arange(42) / 42).max() < 1e-4


@real("phoenix14t")
def test_the_real_sentences_of_phoenix_are_all_there():
    items = skels.PHOENIX14T.items(DATA / "phoenix14t")
    assert counts(items) == {"train": 7096, "dev": 519, "test": 642}
    assert (items[0].gloss, items[0].text) == ("__ON__ LIEB ZUSCHAUER ABEND", "liebe zuschauer guten abend .")
    train = {item.text for item in items if item.split == "train"}
    assert sum(item.text in train for item in items if item.split == "test") == 32


# Round trips


@lru_cache(maxsize=8)
def sample(frames_per_second=25.0, name=None):
    "Clips of the embedded corpus with all that a listing can hold."
    texts = ('Morgen "regnet" es, sagt man.', "他今年四岁。", "", "  two  spaces ", "it's | fine")
    clips = []
    for split in ("train", "dev", "test"):
        for number, (clip, text) in enumerate(zip(pocket.clips(3, split=split), texts)):
            clip = resample(clip, frames_per_second)
            clips.append(replace(clip if name is None else pocket.in_layout(clip, name), text=text, split="test_signers" if number == 4 else split))
    return clips


def zeroed(clip):
    return np.where(clip.confidence[..., None] > 0, clip.points, 0)


def phoenix_case():
    return sample(name="skels50"), skels.write_phoenix_skels, skels.PHOENIX_SKELS, "id text gloss split", lambda clip: clip.points, 1e-5


def smplx_case():
    return sample(24.0, "smplx55"), smplx.write_smplx, smplx.HOW2SIGN_SMPLX, "id text split", lambda clip: clip.points, 0


def isign_case():
    return sample(), isign.write_isign, isign.ISIGN, "id text", zeroed, 0


def citizen_case():
    return sample(), citizen.write_asl_citizen_200, citizen.ASL_CITIZEN_200, "gloss split signer", lambda clip: normalise(clip).points, 2e-3


def holistic_case():
    return sample(), holistic.write_holistic_npy, holistic.HOLISTIC_NPY, "gloss", zeroed, 0


CASES = dict(phoenix_skels=phoenix_case, smplx=smplx_case, isign=isign_case, asl_citizen_200=citizen_case, holistic_npy=holistic_case)


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_is_read(name, tmp_path):
    clips, write, reader, fields, wanted, tolerance = CASES[name]()
    home = write(iter(clips), tmp_path / "made")
    assert not [path for path in home.rglob("*") if path.name.startswith(".") or ".part" in path.name], "an unfinished file is left"
    items = {item.id: item for item in reader.items(home)}
    assert len(items) == len(clips)
    moving = {path for pattern in reader.motion for path in home.glob(pattern)}
    assert moving, "the patterns of the reader find none of its files"
    for clip in clips:
        (item,) = [item for key, item in items.items() if key == clip.id or key.endswith("/" + clip.id)]
        back = reader.clip(home, item)
        assert back.id == item.id and back.fps == clip.fps and back.split == item.split
        for field in fields.split():
            assert getattr(back, field) == getattr(clip, field) == getattr(item, field), field
        assert np.abs(back.points - wanted(clip)).max() <= tolerance
        assert ((back.confidence > 0) == (clip.confidence > 0)).all()


@pytest.mark.parametrize("name", CASES)
def test_writers_let_go_of_clips(name, tmp_path):
    clips, write, *_ = CASES[name]()
    alive, most = weakref.WeakSet(), 0

    class Counted(type(clips[0])):
        __hash__ = object.__hash__

    def stream():
        nonlocal most
        for number in range(140):
            clip = clips[number % len(clips)]
            one = Counted(**{**vars(clip), "id": f"{clip.id}-{number}", "split": "train"})
            alive.add(one)
            most = max(most, len(alive))
            yield one
            del one

    write(stream(), tmp_path / "made")
    gc.collect()
    assert most <= (129 if name == "asl_citizen_200" else 4), f"{most} clips were held at once"


@pytest.mark.parametrize("name", CASES)
def test_a_clip_that_is_gone_is_named(name, tmp_path):
    clips, write, reader, *_ = CASES[name]()
    home = write(iter(clips[:2]), tmp_path / "made")
    item = reader.items(home)[0]
    for path in [path for pattern in reader.motion for path in home.glob(pattern)]:
        path.unlink()
    with pytest.raises(CorpusError) as caught:
        reader.clip(home, item)
    assert item.path.split("/")[0] in caught.value.file and caught.value.field


@pytest.mark.parametrize("name", CASES)
def test_an_empty_folder_is_no_corpus(name, tmp_path):
    with pytest.raises(CorpusError):
        CASES[name]()[2].items(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_names_that_leave_the_folder_are_not_written(name, tmp_path):
    clips, write, *_ = CASES[name]()
    if name == "phoenix_skels":
        with pytest.raises(UserError):
            write([replace(clips[0], text="two\nlines")], tmp_path / "made")
        with pytest.raises(UserError):
            write([replace(clips[0], split="../out")], tmp_path / "made")
    else:
        with pytest.raises(UserError):
            write([replace(clips[0], id="../out")], tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] in ([], ["made"])


# Damage that mutation finds too rarely


def test_every_cut_of_a_skels_file_spares_the_lines_before_it(tmp_path):
    clips = [replace(clip, split="train") for clip in sample(name="skels50")[:3]]
    home = skels.write_phoenix_skels(clips, tmp_path / "made")
    data, items = (home / "train.skels").read_bytes(), skels.PHOENIX_SKELS.items(home)
    ends = skels.line_offsets(home / "train.skels")[1:]
    for size in np.linspace(0, len(data) - 2, 60).astype(int):
        (home / "train.skels").write_bytes(data[:size])
        os.utime(home / "train.skels", ns=(int(size), int(size)))
        for item, clip, end in zip(items, clips, ends):
            if end <= size:
                assert np.abs(skels.PHOENIX_SKELS.clip(home, item).points - clip.points).max() < 1e-5
            elif size < end - 1000:
                with pytest.raises(CorpusError, match="train.skels"):
                    skels.PHOENIX_SKELS.clip(home, item)


def test_every_cut_of_a_shard_is_refused(tmp_path):
    home = citizen.write_asl_citizen_200(sample()[:2], tmp_path / "made")
    path = next((home / "features").glob("*.npy"))
    data, item = path.read_bytes(), citizen.ASL_CITIZEN_200.items(home)[0]
    for size in [*range(0, 140), len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(CorpusError, match="features"):
            citizen.ASL_CITIZEN_200.clip(home, item)
    path.write_bytes(data + b"\0")
    with pytest.raises(CorpusError, match="do not agree"):
        citizen.ASL_CITIZEN_200.clip(home, item)


def test_a_video_that_stands_twice_in_one_split_keeps_both_rows(tmp_path):
    home = citizen.write_asl_citizen_200(sample()[:2], tmp_path / "made")
    table = home / "metadata" / "train_manifest.csv"
    table.write_text(table.read_text() + table.read_text().splitlines()[1] + "\n")
    items = citizen.ASL_CITIZEN_200.items(home)
    assert len({item.id for item in items}) == 3 and len({item.source for item in items}) == 2
    assert len(citizen.official_split(items, home)[0]) == 2


def test_pseudo_glosses_are_marked_whatever_the_text():
    rng = np.random.default_rng(0)
    letters = list("abcdesingxyz 'ßé漢0123,.!?-\n")
    for _ in range(500):
        text = "".join(rng.choice(letters, 30))
        tokens = isign.pseudo_gloss(text).split(" ") if isign.pseudo_gloss(text) else []
        assert all(token.startswith(isign.PSEUDO) and len(token) > 1 and token == token.upper() for token in tokens), text


def test_the_published_rules_of_how2sign():
    for frames in (1, 7, 50, 333):
        for fps in (12, 24, 24.0001, 25, 29.97, 59.94, 240):
            kept = smplx.thinned(frames, fps)
            assert len(kept) == (int(24 * frames / fps) if fps > 24 else frames)
            assert (np.diff(kept) > 0).all() and (len(kept) == 0 or (kept[0] == 0 and kept[-1] < frames))
    for frames in range(1, 1000):
        indices = smplx.fit_length(frames)
        assert 40 <= len(indices) <= 400 and len(indices) % 4 == 0 and (np.diff(indices) >= 0).all() and 0 <= indices[0] <= indices[-1] < frames
