"""`signbook translate`: what it says about one clip, and the one sentence it has for each mistake."""

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from signbook.corpora.catalog import made
from signbook.corpora.formats import read_pose, write_pose
from signbook.corpora.wholebody import pose_file, write_csl_daily
from signbook.errors import UserError
from signbook.geosign.model import PoseTranslator, save_translator
from signbook.geosign.training import configure, make_pieces, write_run
from signbook.poses.clips import Clip
from signbook.poses.faces import MESH, VERTICES
from signbook.poses.parts import PARTS
from signbook.poses.skeletons import LAYOUTS, coco133
from signbook.workbook.cli import app

TEXTS = ["morgen regnet es im norden .", "天气很好。", "put the lid on the pot .", "heute scheint die sonne .", "明天下雨。"] * 4


def signing(layout="coco133", frames=40, **words):
    "A standing signer who draws circles with both hands."
    table, rng = LAYOUTS[layout], np.random.default_rng(0)
    points = rng.uniform(0.4, 0.6, (frames, len(table), 3)).astype(np.float32)
    moment = np.linspace(0, 6, frames, dtype=np.float32)
    for side, x in (("left", 0.65), ("right", 0.35)):
        hand = [table.index(name) for name in table.points if name.startswith(f"{side}_hand_")]
        points[:, hand, 0] += (x - 0.5 + 0.1 * np.cos(moment))[:, None]
        points[:, hand, 1] += (0.2 + 0.1 * np.sin(moment))[:, None]
        points[:, table.index(f"{side}_shoulder"), :2] = (x, 0.4)
    return Clip(points, np.full(points.shape[:2], 0.9, np.float32), layout, 25.0, **{"id": "one", **words})


def make_run(folder, texts=TEXTS):
    "A run whose translator has learned nothing yet."
    config, training = configure("smoke", {"manifold": "none", "tokens": 8})
    pieces = make_pieces(texts, ["de", "zh", "en"], 150)
    torch.manual_seed(0)
    model = PoseTranslator(replace(config, vocabulary=pieces.size))
    folder.mkdir(parents=True, exist_ok=True)
    save_translator(model, folder / "best.safetensors", pieces.hash)
    write_run(folder, model.config, training, pieces)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


def translate(*words):
    return CliRunner().invoke(app, ["translate", *map(str, words)])


def translated(*words):
    "Scores, languages and texts on standard output; the lines on standard error."
    done = translate(*words)
    assert done.exit_code == 0, (done.exception, done.output)
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    return [float(row[0]) for row in rows], {row[1] for row in rows}, done.stderr.splitlines()


def refused(done, *parts):
    "One sentence with these words; `main` prints it and ends with code 2."
    assert isinstance(done.exception, UserError) and not done.stdout, done.output
    for part in parts:
        assert part in str(done.exception), done.exception
    assert "\n" not in str(done.exception)


def signbook(*words):
    launch = "from signbook.workbook.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", launch, *map(str, words)], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture
def whole(tmp_path):
    path = tmp_path / "whole.pkl"
    path.write_bytes(pose_file(signing()))
    return path


# what works


def test_a_pickle_is_translated_in_the_language_that_was_asked_for(run, whole):
    scores, languages, told = translated(whole, "--run", run, "--language", "zh", "--beams", 5, "--best", 4)
    assert len(scores) == 4 and scores == sorted(scores, reverse=True) and languages == {"zh"}
    assert "40 frames at 25 a second (assumed" in told[0] and "layout coco133" in told[0]
    assert told[1] == "shown: 20 of 40 frames (12.5 a second)"


def test_the_language_changes_the_prompt_and_with_it_the_scores(run, whole):
    first, second = (translated(whole, "--run", run, "--language", language)[0] for language in ("de", "en"))
    assert first != second


def test_a_stated_frame_rate_decides_which_frames_are_shown(run, whole):
    _, _, told = translated(whole, "--run", run, "--language", "de", "--fps", 50)
    assert "assumed" not in told[0] and told[1] == "shown: 10 of 40 frames (12.5 a second)"


def test_a_pose_file_says_that_its_face_is_lost(run, tmp_path):
    path = write_pose(signing("holistic75"), tmp_path / "one.pose")
    _, _, told = translated(path, "--run", run, "--language", "de")
    assert "layout holistic75" in told[0]
    assert told[1] == "converted: holistic75 → coco133; lost, read as not seen: 18 of 18 in face_all"


def test_a_pose_file_with_a_mesh_brings_a_face(run, data):
    path = sorted((data / "fingerspelling" / "ase").glob("*.pose"))[0]
    _, _, told = translated(path, "--run", run, "--language", "en")
    assert told[1] == "converted: holistic75 → coco133, the face from the nearest 18 vertices of its mesh"


CORNERS = dict(mouth_right=61, mouth_left=291, right_eye_outer=33, right_eye_inner=133, left_eye_inner=362, left_eye_outer=263, nose=4)


@pytest.fixture(scope="module")
def faces(data):
    "Recorded faces in face widths: the mesh (468, 2), and its `CORNERS` as the body model sees them (7, 2)."
    found = []
    for path in sorted((data / "fingerspelling").glob("*/*.pose"))[::24]:
        clip = read_pose(path, face=True)
        mesh = clip.streams["features/face"].reshape(len(clip), -1, 4)
        frame = int(mesh[:, 0, 3].argmax())
        if mesh.shape[1] >= MESH and mesh[frame, 0, 3] > 0:
            width = np.linalg.norm(mesh[frame, 234, :2] - mesh[frame, 454, :2])
            places = [clip.table.index(name) for name in CORNERS]
            found.append((mesh[frame, :MESH, :2] / width, clip.points[frame, places, :2] / width))
    assert len(found) > 8
    return found


def test_the_mesh_lies_where_the_body_model_sees_the_same_corners(faces):
    apart = [np.linalg.norm(mesh[list(CORNERS.values())] - corners, axis=1) for mesh, corners in faces]
    assert (np.median(apart, 0) < 0.1).all(), dict(zip(CORNERS, np.median(apart, 0)))


def test_the_chosen_vertices_form_the_face_of_the_layout(faces):
    """After the best similarity, recorded faces differ from the one of the embedded corpus by a few hundredths of their width,
    and by far more when left and right, or jaw and lips, are exchanged."""
    whole = next(made("pocket_sentences", "smoke", "test", "coco133"))
    places = [coco133.index(name) for name in VERTICES]
    wanted = np.median(whole.points[:, places, :2], 0)
    wanted = wanted / np.linalg.norm(wanted[0] - wanted[8])
    shown = np.median([mesh[list(VERTICES.values())] for mesh, _ in faces], 0)

    def apart(points):
        a, b = points - points.mean(0), wanted - wanted.mean(0)
        turn = (a[:, 0] + 1j * a[:, 1]).conj() @ (b[:, 0] + 1j * b[:, 1]) / (a**2).sum()
        return np.abs(turn * (a[:, 0] + 1j * a[:, 1]) - (b[:, 0] + 1j * b[:, 1])).mean()

    twins = [list(VERTICES).index(coco133.points[coco133.mirror[place]]) for place in places]
    assert apart(shown) < 0.08 < 2 * apart(shown) < apart(shown[twins]) and apart(np.roll(shown, 9, 0)) > 0.15, (apart(shown), apart(shown[twins]))


def test_a_foreign_pose_file_without_a_nose_is_translated(run, data):
    "Of the body it holds shoulders, elbows, wrists and hips."
    scores, _, told = translated(data / "pose_files" / "mediapipe.pose", "--run", run, "--language", "en", "--best", 1)
    assert len(scores) == 1 and "170 frames at 24 a second" in told[0]


def test_a_clip_of_an_embedded_corpus_knows_its_language(run):
    scores, languages, told = translated("pocket_sentences:test/00003", "--run", run)
    assert len(scores) == 3 and languages == {"de"} and "clip test/00003" in told[0] and "converted" not in "".join(told)


def test_a_clip_of_a_corpus_on_disk_needs_only_its_own_file(run, tmp_path):
    clips = [signing(id=name, split="test", text="天气很好。", signer=name[8:13]) for name in ("S000001_P0000_T00", "S000002_P0001_T00")]
    write_csl_daily(clips, tmp_path / "csl_daily")
    (tmp_path / "csl_daily" / "poses" / "S000002_P0001_T00.pkl").unlink()
    scores, languages, told = translated("csl_daily:S000001_P0000_T00", "--run", run, "--root", tmp_path)
    assert len(scores) == 3 and languages == {"zh"} and "at 30 a second, layout" in told[0]
    refused(translate("csl_daily:S000002_P0001_T00", "--run", run, "--root", tmp_path), "S000002_P0001_T00.pkl", "no such file")


# odd clips


def test_a_clip_without_hands_is_translated_and_named(run, tmp_path):
    clip = signing()
    for side in ("left", "right"):
        clip.confidence[:, PARTS[side].places] = 0
    (tmp_path / "one.pkl").write_bytes(pose_file(clip))
    scores, _, told = translated(tmp_path / "one.pkl", "--run", run, "--language", "de")
    assert len(scores) == 3 and np.isfinite(scores).all() and any(line.startswith("no hand:") for line in told)


def test_points_that_are_no_numbers_count_as_not_seen(run, tmp_path):
    clip, unseen = signing(), signing()
    lost = np.random.default_rng(1).random(clip.points.shape[:2]) < 0.3
    clip.points[lost], unseen.confidence[lost], unseen.points[lost] = np.nan, 0, 0
    told = []
    for name, one in (("nan", clip), ("unseen", unseen)):
        (tmp_path / f"{name}.pkl").write_bytes(pose_file(one))
        told.append(translated(tmp_path / f"{name}.pkl", "--run", run, "--language", "de")[0])
    assert told[0] == told[1] and np.isfinite(told[0]).all()


def test_a_clip_in_which_nobody_is_seen_is_refused(run, tmp_path):
    clip = signing()
    clip.points[:] = np.nan
    (tmp_path / "one.pkl").write_bytes(pose_file(clip))
    refused(translate(tmp_path / "one.pkl", "--run", run, "--language", "de"), "no body is seen", "40 frames")


def test_one_frame_is_a_clip(run, tmp_path):
    (tmp_path / "one.pkl").write_bytes(pose_file(signing(frames=1)))
    scores, _, told = translated(tmp_path / "one.pkl", "--run", run, "--language", "de")
    assert len(scores) == 3 and "1 frame at" in told[0] and len(told) == 1


def test_ten_thousand_frames_are_cut_evenly_and_it_is_said(run, tmp_path):
    (tmp_path / "one.pkl").write_bytes(pose_file(signing(frames=10_000)))
    scores, _, told = translated(tmp_path / "one.pkl", "--run", run, "--language", "de")
    assert len(scores) == 3 and told[1] == "shown: 256 of 10,000 frames (12.5 a second, then at most 256, spread evenly)"


# mistakes


def test_another_vocabulary_is_refused(run, whole, tmp_path):
    other, third = make_run(tmp_path / "run"), make_run(tmp_path / "third", [text + " !" for text in TEXTS])
    (other / "pieces.model").write_bytes((third / "pieces.model").read_bytes())
    refused(translate(whole, "--run", other, "--language", "de"), "best.safetensors", "tokenizer", "vocabulary")
    (other / "pieces.model").write_bytes(b"noise")
    refused(translate(whole, "--run", other, "--language", "de"), "pieces.model", "not a sentencepiece model")


def test_a_folder_that_is_no_run_is_refused_from_outside(run, whole, tmp_path):
    done = signbook("translate", whole, "--run", tmp_path, "--language", "de")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and "train first" in done.stderr, done.stderr


def test_a_pickle_with_code_runs_nothing_from_outside(run, tmp_path):
    path, proof = tmp_path / "one.pkl", tmp_path / "hacked"
    path.write_bytes(f"cos\nsystem\n(S'touch {proof}'\ntR.".encode())
    done = signbook("translate", path, "--run", run, "--language", "de")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and "os.system" in done.stderr, done.stderr
    assert not proof.exists()


def test_a_damaged_pickle_and_a_missing_file_are_named(run, whole, tmp_path):
    whole.write_bytes(whole.read_bytes()[:-1000])
    refused(translate(whole, "--run", run, "--language", "de"), "whole.pkl", "get the file again")
    refused(translate(tmp_path / "none.pkl", "--run", run, "--language", "de"), "none.pkl", "no such file")
    refused(translate(tmp_path / "none.pose", "--run", run, "--language", "de"), "none.pose")


def test_a_pickle_of_another_layout_is_refused(run, tmp_path):
    path, points = tmp_path / "one.pkl", np.zeros((1, 75, 2), np.float32)
    path.write_bytes(pickle.dumps({"keypoints": [points], "scores": [points[..., 0]]}))
    refused(translate(path, "--run", run, "--language", "de"), "keypoints[0]", "133")


def test_a_layout_without_fingertips_is_refused():
    from signbook.workbook.translating import whole_body

    empty = Clip(np.zeros((2, 55, 3), np.float32), np.ones((2, 55), np.float32), "smplx55", 25.0, "one")
    with pytest.raises(UserError, match="smplx55 has no left_hand_thumb_tip"):
        whole_body(empty)


@pytest.mark.parametrize("layout", ["holistic75", "skels50"])
def test_body_and_hands_survive_the_way_to_whole_bodies(layout):
    from signbook.workbook.translating import whole_body

    clip = signing(layout)
    body, lost = whole_body(clip)
    for name in ("left_shoulder", "right_wrist", "left_hand_index_tip", "right_hand_wrist"):
        assert np.array_equal(body.points[:, coco133.index(name)], clip.points[:, clip.table.index(name)])
    assert not body.confidence[:, PARTS["face_all"].places].any() and "18 of 18 in face_all" in lost
    assert ("2 of 9 in body" in lost) == (layout == "skels50")  # no ears


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ("language is not known", "--language")),
        (["--language", "tlh"], ("tlh", "de, en, zh")),
        (["--language", "de", "--best", 9], ("--best 9", "--beams")),
        (["--language", "de", "--beams", 0], ("--beams 0",)),
        (["--language", "de", "--fps", "-3"], ("--fps -3",)),
        (["--language", "de", "--fps", "nan"], ("--fps nan",)),
    ],
)
def test_wrong_words_on_the_line(run, whole, words, parts):
    refused(translate(whole, "--run", run, *words), *parts)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("pocket_sentences:test/99999", ("no clip 'test/99999'", "test/00000")),
        ("pocket_sentences:elsewhere", ("no clip 'elsewhere'", "train/00000")),
        ("pocket_sentences", ("names a corpus but no clip",)),
        ("nowhere:test/00003", ("nowhere:test/00003", "signbook corpus list")),
        ("video.mp4", ("video.mp4", ".pose")),
        ("phoenix14t:a", ("texts only",)),
        ("csl_daily:S9", ("no clip 'S9'", "S00")),
    ],
)
def test_clips_that_nobody_knows(run, data, name, parts):
    refused(translate(name, "--run", run, "--language", "de"), *parts)


def test_a_language_that_the_corpus_contradicts(run):
    refused(translate("pocket_sentences:test/00003", "--run", run, "--language", "zh"), "--language zh", "is in de")
