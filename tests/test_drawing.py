"Drawings of awkward clips: every layout, holes, single frames, wild estimates; the same bytes in another process."
import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from signbook.errors import UserError
from signbook.poses import drawing
from signbook.poses.clips import Clip
from signbook.poses.skeletons import LAYOUTS


def toy(layout='holistic75', frames=10, seen=1.0):
    random, V = np.random.default_rng(0), len(LAYOUTS[layout])
    points = random.normal(size=(1, V, 3)) + random.normal(size=(frames, V, 3)).cumsum(0)*.05
    confidence = (random.random((frames, V)) < seen).astype(np.float32)
    return Clip(points.astype(np.float32), confidence, layout, 25.0, id='toy', segments=((1, 4, 'A'),))


@pytest.mark.parametrize('seen', [1.0, .7])
@pytest.mark.parametrize('layout', sorted(LAYOUTS))
def test_every_layout_with_and_without_holes(tmp_path, layout, seen):
    clip = toy(layout, seen=seen)
    for made in (drawing.strip(clip, hands=True, weights=np.ones(10), beside=clip), drawing.trajectories(clip, beside=clip)):
        assert drawing.png(made).startswith(b'\x89PNG')
    with Image.open(drawing.gif(clip, tmp_path/'a.gif')) as file: assert file.size[1] == 200


@pytest.mark.parametrize('frames', [1, 2, 3])
def test_short_clips_and_hands_that_are_never_seen(tmp_path, frames):
    clip = toy(frames=frames)
    clip.confidence[:, clip.table.indices('left_hand')] = 0
    assert drawing.png(drawing.strip(clip, hands=True, weights=np.zeros(frames)))
    assert drawing.png(drawing.trajectories(clip))
    with Image.open(drawing.gif(clip, tmp_path/'a.gif')) as file: assert file.n_frames <= frames


def test_missing_points_leave_no_ink_and_nan_is_missing():
    clip = toy(); other = replace(clip, points=clip.points.copy(), confidence=clip.confidence.copy())
    clip.confidence[:, 40] = 0
    other.points[:, 40] = np.nan
    other.confidence[:, 40] = 0
    moved = replace(clip, points=clip.points.copy()); moved.points[:, 40] += 1000
    assert drawing.png(drawing.strip(clip)) == drawing.png(drawing.strip(other)) == drawing.png(drawing.strip(moved))


def test_nothing_to_draw_and_wrong_frames_are_one_sentence(tmp_path):
    empty = toy(seen=0)
    for draw in (drawing.strip, drawing.trajectories, lambda clip: drawing.gif(clip, tmp_path/'x.gif')):
        with pytest.raises(UserError, match='nothing to draw'): draw(empty)
    with pytest.raises(UserError, match='frames 0 to 9'): drawing.strip(toy(), frames=[-1])
    with pytest.raises(UserError, match='one number of at least 0'): drawing.strip(toy(), weights=-np.ones(10))
    (tmp_path/'file').write_text('')
    with pytest.raises(UserError, match='cannot be written'): drawing.gif(toy(), tmp_path/'file'/'x.gif')
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_the_figure_keeps_the_limits_and_aspect_of_its_window():
    clip = toy(); left, right, top, bottom = drawing.limits([clip])
    made = drawing.strip(clip, frames=4)
    ax = made.axes[0]
    (x0, x1), (y0, y1), (wide, high) = ax.get_xlim(), ax.get_ylim(), made.get_size_inches()
    assert np.isclose((x1 - x0)/wide, (y1 - y0)/high) and np.isclose(x1 - x0, 4*(right - left)/(bottom - top))


MAKE = '''
import sys, hashlib, pathlib, numpy as np, matplotlib
matplotlib.rcParams.update({'font.size': float(sys.argv[2]), 'axes.spines.top': True, 'savefig.dpi': 77, 'lines.linewidth': 5})
from signbook.poses import drawing
from signbook.poses.clips import Clip
random = np.random.default_rng(0)
clip = Clip(random.normal(size=(9, 75, 3)).astype('f4'), np.ones((9, 75), 'f4'), 'holistic75', 25.0)
folder = pathlib.Path(sys.argv[1])
drawing.save(drawing.strip(clip, hands=True, weights=np.arange(9)), folder/'strip')
drawing.save(drawing.trajectories(clip), folder/'paths')
drawing.gif(clip, folder/'clip.gif')
print('pyplot' if 'matplotlib.pyplot' in sys.modules else 'clean')
'''


def test_other_processes_and_other_settings_give_the_same_bytes(tmp_path):
    hashes = []
    for place, size in (('a', '30'), ('b', '6')):
        done = subprocess.run([sys.executable, '-c', MAKE, str(tmp_path/place), size], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == 'clean' and done.stderr == ''
        hashes.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path/place).iterdir()})
    assert hashes[0] == hashes[1] and sorted(hashes[0]) == ['clip.gif', 'paths.pdf', 'paths.png', 'strip.pdf', 'strip.png']


def test_importing_is_light():
    code = "import sys, signbook.poses.drawing; print([m for m in ('torch', 'pandas', 'datasets', 'matplotlib.pyplot') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
