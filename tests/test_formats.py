"""Readers under stress: every cut of a file, every byte flipped, every real fixture."""
import os
import warnings
from pathlib import Path

import numpy as np
import pytest

from signbook.corpora.formats import (holistic_lengths, read_holistic_array, read_index, read_pose, read_pose_folder, velocity_gaps,
                                      write_holistic_array, write_pose, write_pose_folder)
from signbook.errors import UserError
from signbook.poses.clips import Clip
from signbook.poses.skeletons import holistic75

DATA = Path(os.environ['SIGNBOOK_DATA']) if os.environ.get('SIGNBOOK_DATA') else None
real = pytest.mark.skipif(DATA is None, reason='needs real .pose files: set SIGNBOOK_DATA')


@pytest.fixture
def clip() -> Clip:
    rng = np.random.default_rng(0)
    points = (250 + 50*rng.standard_normal((6, 75, 3))).astype(np.float32)
    points[:, 11, :2], points[:, 12, :2] = (300, 200), (200, 200)
    confidence = np.ones((6, 75), np.float32)
    confidence[2, 54:] = 0
    points[2, 54:] = 0
    return Clip(points, confidence, 'holistic75', 25.0, id='a', gloss='A')


def test_every_cut_of_a_file_is_one_sentence(tmp_path, clip):
    data = write_pose(clip, tmp_path/'whole.pose').read_bytes()
    for size in [0, 1, 5, 11, 12, 40, 400, 3000, len(data)//2, len(data) - 4, len(data) - 1]:
        (tmp_path/'cut.pose').write_bytes(data[:size])
        with pytest.raises(UserError, match='cut.pose'): read_pose(tmp_path/'cut.pose')


def test_no_damage_gives_anything_but_a_clip_or_a_sentence(tmp_path, clip):
    data, rng = write_pose(clip, tmp_path/'whole.pose').read_bytes(), np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(0, 500 if rng.random() < .7 else len(data), 4): damaged[place] = rng.integers(256)
        (tmp_path/'damaged.pose').write_bytes(bytes(damaged))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')   # numpy comments on absurd numbers before they are refused
            try: read_pose(tmp_path/'damaged.pose')
            except UserError: pass


def test_missing_points_stay_missing_and_confidence_is_clipped(tmp_path, clip):
    clip.confidence[0, 5] = 1.5
    back = read_pose(write_pose(clip, tmp_path/'a.pose'))
    assert not back.confidence[2, 54:].any() and back.confidence.max() == 1 and 'to 1.5' in back.source


def test_folder_rows_that_share_a_file_are_all_read(tmp_path, clip):
    home = write_pose_folder([clip], tmp_path/'home')
    text = (home/'index.csv').read_text()
    (home/'index.csv').write_text(text + text.splitlines()[1].replace(',none,', ',other,') + '\n')
    clips = read_pose_folder(home)
    assert [c.language for c in clips] == ['none', 'other'] and len({c.id for c in clips}) == 2 and len({c.source for c in clips}) == 1


@pytest.mark.parametrize('text', ['', 'path\n', 'path,spoken_language,signed_language,words\n,,x,A\n', 'path,words\na.pose,A\n', '\x00\xff'])
def test_a_broken_index_is_named(tmp_path, text):
    (tmp_path/'index.csv').write_bytes(text.encode('latin-1'))
    with pytest.raises(UserError, match='index.csv'): read_index(tmp_path)


def test_arrays_of_other_shapes_are_refused_and_padding_is_found():
    for shape in [(450,), (2, 10, 225), (2, 0, 450), (2, 3, 4, 450)]:
        with pytest.raises(UserError, match='450'): read_holistic_array(np.zeros(shape))
    array = np.zeros((2, 9, 450), np.float16)
    array[0, :4, 3], array[1, 6, 0] = 1, 1
    assert holistic_lengths(array).tolist() == [4, 7]
    with pytest.raises(UserError, match='1 glosses for 2 clips'): read_holistic_array(array, glosses=['A'])
    assert [len(c) for c in read_holistic_array(array, lengths=[200, 3])] == [9, 3]


def test_velocities_survive_the_processed_layout(clip):
    array = write_holistic_array([clip], frames=8)
    clips = read_holistic_array(array)
    assert velocity_gaps(array, clips)[0] < .02 and not array[0, 2:4, 225 + 3*54:].any()


@real
def test_real_fixtures_of_three_versions():
    expected = {'mediapipe.pose': ('holistic75', 170, 48), 'mediapipe_long.pose': ('holistic75', 278, 50), 'openpose.pose': ('skels50', 93, 50),
                'hand_estimation/0ff215ef4f1f111e217e2cefee0adc77.pose': ('holistic75', 121, 75)}
    for name, (table, frames, landmarks) in expected.items():
        clip = read_pose(DATA/'pose_files'/name, face=True)
        assert (clip.layout, len(clip)) == (table, frames) and (clip.confidence > 0).any(0).sum() <= landmarks and clip.confidence.max() <= 1
        assert clip.streams['features/face'].shape[0] == frames
    assert '1.006' in read_pose(DATA/'pose_files'/'openpose.pose').source


@real
def test_a_version_0_1_file_that_lost_its_end_is_noticed(tmp_path):
    data = (DATA/'pose_files'/'mediapipe.pose').read_bytes()
    (tmp_path/'half.pose').write_bytes(data[:len(data)//2])
    with pytest.raises(UserError, match='86 frames'): read_pose(tmp_path/'half.pose')


@real
def test_the_whole_alphabet_folder():
    clips = read_pose_folder(DATA/'fingerspelling')
    assert len(clips) == 338 and len({c.id for c in clips}) == 338 and len({c.source for c in clips}) == 312
    assert {len(c.table) for c in clips} == {len(holistic75)}
    fsl, ase = ({c.gloss: c for c in clips if c.language == language} for language in ('fsl', 'ase'))
    assert all(np.array_equal(fsl[letter].points, ase[letter].points) for letter in fsl)
