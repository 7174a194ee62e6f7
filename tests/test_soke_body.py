"""Bodies for rotations: where every number goes, the licensed package on made-up numbers, meshes and what is missing."""

import io
import os
import sys
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image

from signbook.corpora.smplx import restore_pose
from signbook.errors import UserError
from signbook.poses.clips import Clip
from signbook.poses.films import mp4
from signbook.poses.kinematics import PARENTS, SLICES, points_of, rest_joints
from signbook.scores.alignment import dtw_jpe
from signbook.soke.body import FILE, INPUTS, LABEL, VARIABLE, SmplxBody, SyntheticBody, body_model, draw_mesh, model_folder, write_mesh

VERTICES = 10475


def features(frames=9, seed=0):
    return (np.random.default_rng(seed).normal(size=(frames, 133)) * 0.3).astype(np.float32)


class Recorder(torch.nn.Module):
    "Keeps what it is given; its skin does not move."

    def __init__(self):
        super().__init__()
        self.J_regressor, self.faces, self.given = torch.zeros(55, VERTICES), np.zeros((1, 3), np.uint32), []

    def forward(self, **given):
        self.given.append(given)
        frames = len(given["betas"])
        return SimpleNamespace(vertices=torch.zeros(frames, VERTICES, 3), joints=torch.zeros(frames, 144, 3))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_bytes(b"licensed")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    return tmp_path


def test_every_number_goes_where_it_belongs(folder):
    asked = []
    package = SimpleNamespace(create=lambda path, **settings: asked.append((path, settings)) or Recorder())
    with patch.dict(sys.modules, smplx=package):
        body = body_model()
    settings = dict(model_type="smplx", gender="neutral", ext="npz", use_pca=False, use_face_contour=True)
    assert body.name == "SMPL-X" and body.comparable and asked == [(str(folder), settings)]
    values = features(9)
    body.piece = 4
    body.posed(values)
    given = {name: torch.cat([part[name] for part in body.model.given]).numpy() for name in body.model.given[0]}
    whole = restore_pose(values)
    assert [len(part["betas"]) for part in body.model.given] == [4, 4, 1]
    for name, source in INPUTS.items():
        assert np.array_equal(given[name], whole[:, SLICES[source]]), name
    assert not given["global_orient"].any() and not given["leye_pose"].any() and not given["body_pose"][:, :33].any()
    assert np.allclose(given["betas"][:, [0, 9]], [-0.07284723, 0.01108842]) and np.ptp(given["betas"], 0).max() == 0
    back = [given["body_pose"][:, 33:], given["left_hand_pose"], given["right_hand_pose"], given["jaw_pose"], given["expression"]]
    assert np.array_equal(np.concatenate(back, 1), values)


def test_the_real_package_on_made_up_numbers(folder):
    "A skin whose first vertices are our own joints, bound each to its joint: the package must move them as our kinematics does."
    pytest.importorskip("smplx", reason="the package smplx is not installed")
    rest, rng = rest_joints() * 0.33, np.random.default_rng(0)
    template = np.concatenate([rest, rng.normal(size=(VERTICES - 55, 3))])
    weights = np.zeros((VERTICES, 55))
    weights[np.arange(VERTICES), np.minimum(np.arange(VERTICES), 54)] = 1
    regressor = np.zeros((55, VERTICES))
    regressor[np.arange(55), np.arange(55)] = 1
    tree = np.array([np.array(PARENTS), np.arange(55)], np.int64)
    tree[0, 0] = 4294967295
    skin = dict(v_template=template, f=np.zeros((8, 3), np.uint32), shapedirs=np.zeros((VERTICES, 3, 400)), posedirs=np.zeros((VERTICES, 3, 486)))
    bones = dict(J_regressor=regressor, kintree_table=tree, weights=weights)
    hands = {f"hands_components{side}": np.eye(45) for side in "lr"} | {f"hands_mean{side}": np.zeros(45) for side in "lr"}
    face = dict(lmk_faces_idx=np.zeros(51, np.int64), lmk_bary_coords=np.full((51, 3), 1 / 3))
    contour = {f"dynamic_{name}": np.zeros((79, 17, *value.shape[1:]), value.dtype) for name, value in face.items()}
    np.savez(folder / FILE, **skin, **bones, **hands, **face, **contour)
    body, values = SmplxBody(piece=5), restore_pose(features(12), [0.0] * 10)
    vertices, points = body.skin(values)
    ours = points_of(values, "smplx55")
    assert points.shape == (12, 144, 3) and vertices.shape == (12, VERTICES, 3)
    still = rest[0] - ours[0, 0]
    assert np.allclose(points[:, :55], ours + still, atol=2e-5) and np.allclose(vertices[:, :55], ours + still, atol=2e-5)
    posed = body.posed(values)
    assert np.allclose(posed.left_hand[0][:, [0, 5, 6, 7]], (ours + still)[:, [20, 25, 26, 27]], atol=2e-5)  # wrist and index finger


def test_missing_things_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert body_model().name == LABEL and not body_model().comparable
    with pytest.raises(UserError, match="is not set"):
        body_model("smplx")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "wrong"))
    for make in (body_model, model_folder):
        with pytest.raises(UserError, match=r"wrong.*SMPLX_NEUTRAL\.npz"):
            make()
    (tmp_path / "wrong" / "smplx").mkdir(parents=True)
    (tmp_path / "wrong" / FILE).write_bytes(b"not a model")
    with patch.dict(sys.modules, smplx=None), pytest.raises(UserError, match="pip install smplx"):
        body_model()

    def broken(folder, **settings):
        raise KeyError("v_template")

    with patch.dict(sys.modules, smplx=SimpleNamespace(create=broken)), pytest.raises(UserError, match="not a whole SMPL-X model"):
        body_model()


def test_poses_that_are_none():
    for wrong in (np.zeros((4, 132)), np.zeros((0, 133)), np.full((2, 133), np.inf), np.zeros((2, 2, 133))):
        with pytest.raises(UserError, match="body model"):
            SyntheticBody().posed(wrong)


def test_the_same_motion_costs_nothing_and_another_does():
    body = SyntheticBody()
    one, other = body.posed(features(seed=1)), body.posed(features(seed=2))
    for part in ("body", "left_hand", "right_hand"):
        (points, table), (others, _) = getattr(one, part), getattr(other, part)
        assert dtw_jpe(points, points, table)[0] == pytest.approx(0) and dtw_jpe(points, others, table)[0] > 0.01


def test_hands_do_not_feel_the_body():
    "The other hand moves, this one's score does not."
    moved = features()
    moved[:, 30:75] += 0.5  # left
    one, other = SyntheticBody().posed(features()), SyntheticBody().posed(moved)
    assert dtw_jpe(one.right_hand[0], other.right_hand[0], one.right_hand[1])[0] == pytest.approx(0)
    assert dtw_jpe(one.left_hand[0], other.left_hand[0], one.left_hand[1])[0] > 0.01


def test_meshes(tmp_path):
    corners, faces = np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1.0)]), np.array([(0, 1, 2), (0, 2, 3), (0, 3, 1), (1, 3, 2)])
    ply = write_mesh(corners, faces, tmp_path / "new" / "a.ply").read_text().splitlines()
    assert ply[:2] == ["ply", "format ascii 1.0"] and ply[ply.index("end_header") + 1 :][4] == "3 0 1 2" and len(ply) == ply.index("end_header") + 9
    obj = write_mesh(corners, faces, tmp_path / "a.OBJ").read_text().splitlines()
    assert obj[0] == "v 0.000000 0.000000 0.000000" and obj[-1] == "f 2 4 3"
    assert draw_mesh(corners, faces)._repr_png_()[:4] == b"\x89PNG"
    wedge = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 0.5, 0.01)])  # high where x is large: the signer's left, the viewer's right
    with Image.open(io.BytesIO(draw_mesh(wedge, np.array([(0, 1, 2), (0, 1, 3)]))._repr_png_())) as picture:
        drawn = np.asarray(picture.convert("L")) < 250
    across, down = drawn.any(0).nonzero()[0], drawn.any(1).nonzero()[0]
    shape = drawn[down[0] : down[-1] + 1, across[0] : across[-1] + 1]
    assert shape[:, -5:].sum() > 3 * shape[:, :5].sum() and shape[-5:].sum() > shape[:5].sum()
    for path in ("a.stl", "a"):
        with pytest.raises(UserError, match=r"\.obj"):
            write_mesh(corners, faces, tmp_path / path)


def test_a_film_without_an_encoder_is_one_sentence(tmp_path):
    clip = Clip(points_of(np.zeros((3, 179)), "holistic75").astype(np.float32), np.ones((3, 75), np.float32), "holistic75", 25)
    with patch.dict(sys.modules, {"av": None, "av.codec": None}), pytest.raises(UserError, match="pip install av"):
        mp4(clip, tmp_path / "clip.mp4")
    with patch("signbook.poses.films.CODECS", ("none",)), pytest.raises(UserError, match="none of the encoders"):
        mp4(clip, tmp_path / "clip.mp4")
    assert not os.listdir(tmp_path)
    with patch("signbook.poses.films.CODECS", ("none", "mpeg4")):
        assert mp4(clip, tmp_path / "clip.mp4").stat().st_size > 500
