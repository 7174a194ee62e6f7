"""Whole-body corpora: equality with upstream, folders as users have them, damage, and the real label files."""

import gzip
import json
import os
import pickle
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from signbook.corpora import sentences
from signbook.corpora.listings import counts
from signbook.corpora.wholebody import (
    CSL_DAILY,
    CSL_NEWS,
    HOW2SIGN,
    OPENASL,
    SPLITS,
    WLASL,
    read_labels,
    read_whole_body,
    write_csl_daily,
    write_how2sign,
    write_wlasl,
)
from signbook.errors import CorpusError, UserError
from signbook.poses.clips import Clip
from signbook.poses.parts import PARTS, parts_frame_by_frame, parts_of, whole_body_parts


def bodies(frames=5, real=np.float32, persons=1):
    rng = np.random.default_rng(frames)
    return dict(keypoints=[*rng.random((frames, persons, 133, 2)).astype(real)], scores=[*rng.uniform(0, 1.2, (frames, persons, 133)).astype(real)])


def pose_file(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path


def label_file(path, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(pickle.dumps(labels)))
    return path


def entry(id, **changes):
    return dict(name=id, gloss="", text="a b", video_path=f"{id}.mp4") | changes


# Equality with upstream


@pytest.fixture(scope="module")
def upstream():
    folder = os.environ.get("SIGNBOOK_PARITY")
    if not folder:
        pytest.skip("SIGNBOOK_PARITY is not set; the fixtures of upstream numbers are needed")
    from safetensors.numpy import load_file

    return load_file(Path(folder) / "geosign" / "inputs.safetensors")


def padded(part, frames):
    "Upstream batches repeat the last frame."
    return np.concatenate([part, np.repeat(part[-1:], frames - len(part), 0)])


@pytest.mark.parametrize("compute", [whole_body_parts, parts_frame_by_frame])
def test_geosign_parity_of_the_four_parts(upstream, compute):
    numbers = sorted({int(name.split(".")[1]) for name in upstream if name.startswith("raw.")})
    assert len(numbers) == 3
    for i in numbers:
        parts = compute(upstream[f"raw.{i}.keypoints"][:, 0], upstream[f"raw.{i}.scores"][:, 0])
        for name in PARTS:
            wanted = upstream[f"src.{name}"][i]
            made = padded(parts[name], len(wanted))
            assert made.dtype == wanted.dtype and made.tobytes() == wanted.tobytes(), (i, name)


def test_geosign_parity_through_a_pose_file(upstream, tmp_path):
    "Written as users have it, read as a clip with its scores clipped: still the same bits."
    for i in range(3):
        content = dict(keypoints=[*upstream[f"raw.{i}.keypoints"]], scores=[*upstream[f"raw.{i}.scores"]])
        clip = read_whole_body(pose_file(tmp_path / f"{i}.pkl", content))
        assert clip.confidence.max() == 1 and "to 1." in clip.source
        for name, part in parts_of(clip).items():
            wanted = upstream[f"src.{name}"][i]
            assert padded(part, len(wanted)).tobytes() == wanted.tobytes()


@pytest.mark.parametrize("real", [np.float32, np.float64])
@pytest.mark.parametrize("frames", [1, 2, 31, 256])
def test_parts_equal_the_loop_in_both_precisions(real, frames):
    rng = np.random.default_rng(frames)
    for spread in (0, 1e-30, 0.1, 1e6):
        points = (0.5 + spread * rng.standard_normal((frames, 133, 2))).astype(real)
        scores = rng.choice([-0.1, 0, 0.3, np.nextafter(np.float32(0.3), 1), 0.9, 1.3], (frames, 133)).astype(real)
        given = points.copy(), scores.copy()
        fast, slow = whole_body_parts(points, scores), parts_frame_by_frame(points, scores)
        for name in PARTS:
            assert fast[name].dtype == real and fast[name].tobytes() == slow[name].tobytes(), (spread, name)
        assert points.tobytes() == given[0].tobytes() and scores.tobytes() == given[1].tobytes(), "the input was changed"


def test_parts_clear_what_is_unseen_even_where_it_is_no_number():
    rng = np.random.default_rng(0)
    points, scores = rng.random((9, 133, 2), np.float32), np.ones((9, 133), np.float32)
    points[3, 5], scores[3, 5] = np.nan, 0
    points[4, 100], scores[4, 100] = np.inf, np.nan
    for part in whole_body_parts(points, scores).values():
        assert np.isfinite(part).all()


def test_parts_take_mixed_precision_and_depth():
    rng = np.random.default_rng(0)
    points, scores = rng.random((4, 133, 3)), rng.random((4, 133), np.float32)
    assert whole_body_parts(points, scores)["body"].dtype == np.float64
    assert np.array_equal(whole_body_parts(points, scores)["left"], whole_body_parts(points[..., :2].copy(), scores)["left"])


# Pose files


@pytest.mark.parametrize("real", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("persons", [1, 3])
def test_lists_and_packed_arrays_are_the_same_clip(tmp_path, real, persons):
    content = bodies(6, real, persons)
    packed = {key: np.stack(frames) for key, frames in content.items()}
    ways = [content, packed] + ([{key: frames[:, 0] for key, frames in packed.items()}] if persons == 1 else [])
    clips = [read_whole_body(pose_file(tmp_path / f"{n}.pkl", way)) for n, way in enumerate(ways)]
    for clip in clips:
        assert np.array_equal(clip.points, packed["keypoints"][:, 0].astype(np.float32)) and clip.points.dtype == np.float32
        assert np.array_equal(clip.confidence, np.clip(packed["scores"][:, 0].astype(np.float32), 0, 1))
        assert "to 1." in clip.source and clip.layout == "coco133"


def test_a_frame_without_anybody_stays_a_frame(tmp_path):
    content = bodies(6)
    content["keypoints"][2], content["scores"][2] = np.zeros((0, 133, 2)), np.zeros((0, 133))
    clip = read_whole_body(pose_file(tmp_path / "a.pkl", content))
    assert len(clip) == 6 and not clip.confidence[2].any() and not clip.points[2].any() and clip.confidence[3].any()


@pytest.mark.parametrize(
    "change, field",
    [
        (dict(scores=None), "scores"),
        (dict(keypoints=None), "keypoints"),
        (dict(keypoints=[]), "keypoints"),
        (dict(keypoints={}), "keypoints"),
        (dict(keypoints=bodies(4)["keypoints"]), "scores"),
        (dict(keypoints=bodies(5, persons=2)["keypoints"]), "scores[0]"),
        (dict(scores=[np.zeros((1, 132))] * 5), "scores[0]"),
        (dict(scores=[*bodies(5)["scores"][:4], [0.0] * 133]), "scores[4]"),
        (dict(keypoints=np.zeros((5, 1, 133, 3))), "keypoints[0]"),
        (dict(keypoints=np.float32(1)), "keypoints"),
        (dict(start=-1), "start"),
        (dict(start=5), "start"),
        (dict(end=6), "end"),
        (dict(end="3"), "end"),
        (dict(end=None, start=True), "start"),
    ],
)
def test_damage_names_file_and_field(tmp_path, change, field):
    path = pose_file(tmp_path / "S000020_P0004_T00.pkl", {key: value for key, value in (bodies(5) | change).items() if value is not None})
    with pytest.raises(CorpusError) as error:
        read_whole_body(path)
    assert error.value.field == field and path.name in str(error.value)


def test_numbers_that_are_none_are_missing(tmp_path):
    content = bodies(3, np.float64)
    content["keypoints"][0][0, 1], content["scores"][1][0, 2], content["keypoints"][2][0, 3, 0] = 1e300, np.inf, -np.inf
    clip = read_whole_body(pose_file(tmp_path / "a.pkl", content))
    assert not clip.confidence[[0, 1, 2], [1, 2, 3]].any() and np.isfinite(clip.points).all()
    nothing = read_whole_body(pose_file(tmp_path / "b.pkl", content | dict(scores=[np.full((1, 133), np.nan)] * 3)))
    assert not nothing.confidence.any() and nothing.source == "b.pkl; no scores"


def test_a_small_file_cannot_ask_for_many_frames(tmp_path):
    for persons in (0, 1):
        frames = [np.zeros((persons, 133, 2), np.float32)] * 400_000
        path = pose_file(tmp_path / "a.pkl", dict(keypoints=frames, scores=[np.zeros((persons, 133), np.float32)] * 400_000))
        assert path.stat().st_size < 3 << 20
        with pytest.raises(CorpusError, match="do not fit"):
            read_whole_body(path)


# Folders


@pytest.mark.parametrize("home", ["poses", "pose_format"])
def test_poses_lie_in_either_folder(tmp_path, home):
    pose_file(tmp_path / home / "S000020_P0004_T00.pkl", bodies())
    label_file(tmp_path / "labels.dev", {"S000020_P0004_T00": entry("S000020_P0004_T00", gloss=["a", "b"], text="他今年四岁。")})
    (item,) = CSL_DAILY.items(tmp_path)
    clip = CSL_DAILY.clip(tmp_path, item)
    assert (clip.id, clip.gloss, clip.text, clip.signer, clip.split, clip.language) == (
        "S000020_P0004_T00",
        "a b",
        "他今年四岁。",
        "P0004",
        "dev",
        "zh",
    )


def test_how2sign_keeps_recordings_apart(tmp_path):
    names = ["-fZc293MpJk_0-1-rgb_front", "-fZc293MpJk_10-1-rgb_front", "--7E2sU6zP4_10-5-rgb_front"]
    label_file(tmp_path / "labels.test", {f"{name}.mp4": entry(name) for name in names})
    items = HOW2SIGN.items(tmp_path)
    assert [item.id for item in items] == names and [item.source for item in items] == ["-fZc293MpJk", "-fZc293MpJk", "--7E2sU6zP4"]
    pose_file(tmp_path / items[0].path, bodies())
    assert HOW2SIGN.clip(tmp_path, items[0]).source.split("; ")[0] == "-fZc293MpJk"


def test_names_with_colons_are_names(tmp_path):
    name = "rMDfnKK5G7g-00:10:20.800-00:10:24.000"
    label_file(tmp_path / "labels.test", {name: entry(name)})
    (item,) = OPENASL.items(tmp_path)
    assert item.path == f"poses/{name}.pkl" and item.id == name and item.source == "rMDfnKK5G7g"


@pytest.mark.parametrize("phase", ["dev", "val"])
@pytest.mark.parametrize("labels", ["labels", "labels-2000"])
def test_wlasl_has_a_folder_a_split(tmp_path, phase, labels):
    label_file(tmp_path / f"{labels}.dev", {"64550": entry("64550", text="book")})
    pose_file(tmp_path / "poses" / phase / "64550.pkl", bodies(9) | dict(start=2, end=6))
    (item,) = WLASL.items(tmp_path)
    clip = WLASL.clip(tmp_path, item)
    assert (clip.gloss, clip.text, clip.split, len(clip)) == ("book", "book", "dev", 4)
    assert np.array_equal(clip.points, np.concatenate(bodies(9)["keypoints"])[2:6])


def test_news_are_split_by_place(tmp_path):
    rows = [dict(video=f"a/{n}.mp4", pose=f"a/{n}.pkl", text="今天") for n in range(1000)]
    (tmp_path / "CSL_News_Labels.json").write_text(json.dumps(rows), encoding="utf-8")
    items = CSL_NEWS.items(tmp_path)
    assert counts(items) == {"train": 990, "dev": 10} and items[0].path == "a/0.pkl" and items[0].id == "a/0"
    pose_file(tmp_path / "poses" / "a" / "3.pkl", bodies())
    assert CSL_NEWS.items(tmp_path)[3].path == "poses/a/3.pkl"


@pytest.mark.parametrize("change", [dict(text=None), dict(gloss=[1]), dict(gloss=None), dict(video_path=7), dict(text="\ud800"), dict(name=b"x")])
def test_labels_of_wrong_types_name_the_entry(tmp_path, change):
    path = label_file(tmp_path / "labels.train", {"S1": entry("S1"), "S2": entry("S2", **change)})
    with pytest.raises(CorpusError, match="S2") as error:
        CSL_DAILY.items(tmp_path)
    assert next(iter(change)) in error.value.field and path.name in str(error.value)


def test_one_text_in_many_entries_is_refused_for_its_room(tmp_path):
    "A text of a megabyte stands once in the file and in twenty thousand entries."
    text = random.Random(0).randbytes(500_000).hex()
    path = label_file(tmp_path / "labels.train", {f"{n}": entry("x", text=text) for n in range(20_000)})
    with pytest.raises(CorpusError, match="room"):
        list(read_labels(path))


def test_readers_travel_between_processes():
    for reader in (CSL_DAILY, CSL_NEWS, HOW2SIGN, OPENASL, WLASL):
        assert pickle.loads(pickle.dumps(reader)).motion == reader.motion


# There and back


@pytest.fixture(scope="module")
def signed():
    "A few embedded sentences of each split, one language, whole bodies."
    some = {}
    for clip in sentences.clips("smoke", layout="coco133"):
        some.setdefault(clip.split, []).append(clip)
    assert set(some) == set(SPLITS)
    return [clip for clips in some.values() for clip in clips[:3]]


@pytest.mark.parametrize("write, reader", [(write_csl_daily, CSL_DAILY), (write_how2sign, HOW2SIGN), (write_wlasl, WLASL)])
def test_embedded_sentences_go_there_and_back(tmp_path, signed, write, reader):
    passed = []

    def stream():
        for clip in signed:
            yield clip
            passed.append(len(list(tmp_path.rglob("*.pkl"))))

    write(stream(), tmp_path / "corpus")
    assert passed == [*range(1, len(signed) + 1)], "a clip is on disk before the next one is asked for"
    items = reader.items(tmp_path / "corpus")
    assert counts(items) == counts(signed)
    for made, item in zip(sorted(signed, key=lambda clip: SPLITS.index(clip.split)), items, strict=True):
        clip = reader.clip(tmp_path / "corpus", item)
        assert np.array_equal(clip.points, made.points[..., :2]) and np.array_equal(clip.confidence, made.confidence)
        assert clip.text == (made.gloss if reader is WLASL else made.text) and clip.split == made.split
        if reader is not HOW2SIGN:
            assert clip.gloss == made.gloss
        if reader is CSL_DAILY:
            assert int(clip.signer[1:]) == int(made.signer[-2:])


def test_legal_names_stay_and_others_do_not_collide(tmp_path, signed):
    named = [replace(signed[0], id=f"S{n:06d}_P0003_T00") for n in range(3)]
    write_csl_daily(named, tmp_path / "a")
    assert [item.id for item in CSL_DAILY.items(tmp_path / "a")] == [clip.id for clip in named]
    again = [replace(signed[0], id="x", signer=signer) for signer in ("ann", "bob", "signer01", "s1", "ann", "ann")]
    write_csl_daily(again, tmp_path / "b")
    items = CSL_DAILY.items(tmp_path / "b")
    assert len({item.signer for item in items}) == 4 and [item.id[-3:] for item in items] == ["T00"] * 4 + ["T01", "T02"]


def test_the_same_clips_make_the_same_bytes(tmp_path, signed):
    for name in ("a", "b"):
        write_wlasl(signed, tmp_path / name)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_what_cannot_be_written_is_said(tmp_path, signed):
    for wrong in (replace(signed[0], split=""), replace(signed[0], layout="holistic75"), replace(signed[0], split="../x")):
        with pytest.raises(UserError, match="split|layout"):
            write_how2sign([wrong], tmp_path)
    with pytest.raises(UserError, match="second clip"):
        write_wlasl([signed[0], signed[0]], tmp_path)
    clip = Clip(np.zeros((2, 133, 2), np.float32), np.ones((2, 133), np.float32), "coco133", 25.0, id="../../x", gloss="A", split="train")
    write_wlasl([clip], tmp_path / "odd")
    assert [item.id for item in WLASL.items(tmp_path / "odd")] == ["-..-x"]


# Real labels


@pytest.mark.parametrize(
    "name, reader, numbers",
    [("csl_daily", CSL_DAILY, dict(train=18401, dev=1077, test=1176)), ("how2sign", HOW2SIGN, dict(train=31086, test=2349))],
)
def test_real_labels_are_read_whole(data, name, reader, numbers):
    if not (data / name).is_dir():
        pytest.skip(f"SIGNBOOK_DATA holds no {name}")
    items = reader.items(data / name)
    assert counts(items) == numbers and all(item.text for item in items) and len({item.path for item in items}) == len(items)
    if name == "csl_daily":
        assert len({item.text for item in items if item.split == "train"}) == 6578 and len({item.signer for item in items}) == 10
        assert all(item.gloss for item in items)
    else:
        assert all(item.source and item.source in item.id for item in items) and not any(item.id.endswith(".mp4") for item in items)
