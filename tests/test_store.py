"The store under faults: killed writers, concurrent writers, full disks, foreign folders, worker processes, and a clean home."
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from signbook.corpora import store
from signbook.errors import UserError
from signbook.poses.clips import Clip
from signbook.poses.skeletons import LAYOUTS


def toy(number, layout='holistic75', frames=12):
    random, V = np.random.default_rng(number), len(LAYOUTS[layout])
    return Clip(random.normal(size=(frames, V, 3)).astype(np.float32), np.ones((frames, V), np.float32), layout, 25.0, id=f'c{number}',
                gloss='A', split='train' if number % 2 else 'dev')


def files(folder): return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('layout', sorted(LAYOUTS))
def test_every_layout_comes_back(tmp_path, layout):
    clips = [toy(n, layout, frames=n + 1) for n in range(5)]
    for mine, back in zip(clips, store.write(clips, tmp_path/'s')):
        assert back.layout == layout and np.array_equal(back.points, mine.points) and np.array_equal(back.confidence, mine.confidence)


def test_many_batches_and_types_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(store, 'BATCH_BYTES', 20_000)   # several record batches, so that rows are looked up across chunks
    random = np.random.default_rng(0)
    clips = [toy(n, frames=3 + n % 5) for n in range(30)]
    for clip in clips:
        clip.streams = {'frames': random.integers(0, 255, (len(clip), 4, 5, 3), dtype=np.uint8),
                        'features/hand': random.normal(size=(len(clip), 7))}
    table = store.write(clips, tmp_path/'s')
    assert table.dataset.data.table.column('points').num_chunks > 3
    for place in random.permutation(30):
        back = table[int(place)]
        for name, stream in clips[place].streams.items():
            assert back.streams[name].dtype == stream.dtype and np.array_equal(back.streams[name], stream)
    assert store.verify(table[::-1]) == 30


def test_missing_points_that_are_nan_survive(tmp_path):
    clip = toy(0); clip.points[2, 3] = np.nan; clip.confidence[2, 3] = 0
    back = store.write([clip], tmp_path/'s', packing='float16')[0]
    assert np.isnan(back.points[2, 3]).all() and np.isnan(back.points).sum() == 3


def test_a_failing_source_leaves_the_old_store(tmp_path):
    store.write([toy(0)], tmp_path/'s'); before = files(tmp_path/'s')
    def source(): yield toy(1); raise RuntimeError('the generator broke')
    with pytest.raises(RuntimeError): store.write(source(), tmp_path/'s')
    with pytest.raises(UserError, match='NaN'): store.write([toy(1), bad_clip()], tmp_path/'s')
    assert files(tmp_path/'s') == before and [p.name for p in tmp_path.iterdir()] == ['s']


def bad_clip():
    clip = toy(2); clip.points[0, 0] = np.nan
    return clip


WRITER = '''
import sys, time
import numpy as np
from signbook.corpora import store
from signbook.poses.clips import Clip
def source():
    for n in range(4):
        yield Clip(np.full((5, 75, 3), n, np.float32), np.ones((5, 75), np.float32), 'holistic75', 25.0, id=str(n))
        print('ready', flush=True); time.sleep(float(sys.argv[2]))
store.write(source(), sys.argv[1])
'''


def test_killed_writer_leaves_nothing_and_the_next_one_finishes(tmp_path):
    writer = subprocess.Popen([sys.executable, '-c', WRITER, str(tmp_path/'s'), '60'], stdout=subprocess.PIPE)
    writer.stdout.readline()
    with pytest.raises(UserError, match='another process is writing'): store.write([toy(0)], tmp_path/'s')
    writer.send_signal(signal.SIGKILL); writer.wait()
    assert not (tmp_path/'s').exists()
    subprocess.run([sys.executable, '-c', WRITER, str(tmp_path/'s'), '0'], check=True, stdout=subprocess.DEVNULL)
    assert len(store.read(tmp_path/'s')) == 4 and [p.name for p in tmp_path.iterdir()] == ['s']


def test_a_store_whose_replacement_died_half_way_is_put_back(tmp_path):
    store.write([toy(0)], tmp_path/'s')
    (tmp_path/'s').rename(tmp_path/'.s.replaced'); (tmp_path/'.s.building').mkdir()
    def source(): raise RuntimeError; yield
    with pytest.raises(RuntimeError): store.write(source(), tmp_path/'s')
    assert store.read(tmp_path/'s')[0].id == 'c0'


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('x')
    with pytest.raises(UserError, match='cannot be written'): store.write([toy(0)], tmp_path/'file'/'s')
    with pytest.raises(UserError, match='is not a store'): store.write([toy(0)], tmp_path/'file')
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'notes.txt').write_text('keep me')
    with pytest.raises(UserError, match='is not a store'): store.write([toy(0)], tmp_path/'mine')
    assert (tmp_path/'mine'/'notes.txt').read_text() == 'keep me'


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full on this system')
def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    real = open
    monkeypatch.setattr('builtins.open', lambda path, *a, **k: real('/dev/full' if str(path).endswith('.arrow') else path, *a, **k))
    with pytest.raises(UserError, match='No space left'): store.write([toy(0)], tmp_path/'s')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('content', ['', '[]', '{}', 'null', '{"format": "signbook clips", "version": 99}', '\x00'])
def test_a_damaged_contract(tmp_path, content):
    store.write([toy(0)], tmp_path/'s'); (tmp_path/'s'/'store.json').write_text(content)
    with pytest.raises(UserError, match='damaged or from another version'): store.read(tmp_path/'s')


@pytest.mark.parametrize('name', ['data-00000-of-00001.arrow', 'state.json', 'dataset_info.json'])
def test_a_missing_file(tmp_path, name):
    store.write([toy(0)], tmp_path/'s'); (tmp_path/'s'/name).unlink()
    with pytest.raises(UserError, match='build the store again'): store.read(tmp_path/'s')


def test_an_unknown_layout(tmp_path):
    store.write([toy(0)], tmp_path/'s')
    told = json.loads((tmp_path/'s'/'store.json').read_text()); told['layouts']['holistic75']['landmarks'] = 76
    (tmp_path/'s'/'store.json').write_text(json.dumps(told))
    with pytest.raises(UserError, match='76 landmarks'): store.read(tmp_path/'s')


def test_the_home_stays_clean_and_nothing_is_printed(tmp_path):
    home = tmp_path/'home'; home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(('HF_', 'XDG_'))} | dict(HOME=str(home))
    code = WRITER.replace("print('ready', flush=True); ", '') + "t = store.read(sys.argv[1]); t[0]; t.fingerprint; t.where(split='')"
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path/'s'), '0'], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == '' and list(home.rglob('*')) == []
    assert len(list((tmp_path/'s').iterdir())) == 4


def test_importing_the_store_is_light():
    code = "import sys, signbook.corpora.store; print([m for m in ('datasets', 'pyarrow', 'torch', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_the_folder_may_move_and_the_working_directory_may_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = store.write([toy(0), toy(1)], 's'); mark = table.fingerprint
    monkeypatch.chdir('/')
    assert table[1].id == 'c1'
    (tmp_path/'s').rename(tmp_path/'moved')
    assert store.read(tmp_path/'moved').fingerprint == mark


def test_reading_is_fast(tmp_path):
    table = store.write([toy(n, frames=35) for n in range(200)], tmp_path/'s'); table[0]
    start = time.perf_counter()
    assert sum(len(clip.points) for clip in table) == 200*35
    assert (time.perf_counter() - start)/200 < 2e-3   # about 0.05 ms on an idle core


# The catalog between real files and the store

@pytest.fixture
def alphabet(tmp_path):
    "A data root with a tiny corpus in the place and the format of the real alphabets."
    from signbook.corpora.formats import write_pose_folder
    clips = [toy(n) for n in range(4)]
    for clip, letter in zip(clips, 'ABAB'): clip.gloss = clip.text = letter; clip.language = 'ase'
    write_pose_folder(clips, tmp_path/'root'/'fingerspelling')
    return tmp_path/'root'


def test_a_corpus_is_read_and_packed_without_touching_its_folder(alphabet, tmp_path):
    from signbook.corpora import catalog
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in alphabet.rglob('*') if path.is_file()}
    clips = catalog.load('fingerspelling', root=alphabet)
    table = catalog.build('fingerspelling', 'laptop', tmp_path/'packed', root=alphabet)
    assert [clip.gloss for clip in clips] == table.columns(['gloss'])['gloss'] == list('ABAB')
    assert all(np.array_equal(a.points, b.points) for a, b in zip(clips, table))
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in alphabet.rglob('*') if path.is_file()}
    with pytest.raises(UserError, match='is not a store'): catalog.build('fingerspelling', 'laptop', alphabet/'fingerspelling', root=alphabet)


def test_broken_corpora_are_one_sentence_and_leave_no_store(alphabet, tmp_path):
    from signbook.corpora import catalog
    files = sorted((alphabet/'fingerspelling').rglob('*.pose'))
    files[1].write_bytes(files[1].read_bytes()[:-100])
    with pytest.raises(UserError, match=files[1].name): catalog.build('fingerspelling', 'laptop', tmp_path/'packed', root=alphabet)
    files[1].unlink(); files[2].unlink()
    with pytest.raises(UserError, match='2 of the 4 files') as error: catalog.build('fingerspelling', 'laptop', tmp_path/'packed', root=alphabet)
    assert files[1].name in str(error.value) and files[2].name in str(error.value)
    with pytest.raises(UserError, match="no split 'dev'; its splits: none of its own"):
        for file in files[1:3]: file.write_bytes(files[0].read_bytes())
        catalog.load('fingerspelling', 'dev', root=alphabet)
    assert not (tmp_path/'packed').exists() and [p.name for p in tmp_path.iterdir()] == ['root']


def test_the_data_root_comes_from_the_argument_before_the_environment(alphabet, tmp_path, monkeypatch):
    from signbook.corpora import catalog
    monkeypatch.setenv('SIGNBOOK_DATA', str(tmp_path/'elsewhere'))
    assert catalog.locate('fingerspelling', alphabet) == alphabet/'fingerspelling'
    with pytest.raises(UserError, match='does not exist; take the folder'): catalog.locate('fingerspelling')
    monkeypatch.delenv('SIGNBOOK_DATA')
    with pytest.raises(UserError, match='set SIGNBOOK_DATA or give --root'): catalog.locate('fingerspelling')


def test_the_real_alphabets_are_those_of_the_catalog():
    from signbook.corpora import catalog
    data = os.environ.get('SIGNBOOK_DATA')
    if not data or not os.path.isdir(os.path.join(data, 'fingerspelling')):
        pytest.skip('SIGNBOOK_DATA is not set or holds no fingerspelling')
    assert catalog.differences('fingerspelling') == []


def test_listing_the_catalog_is_light():
    code = "import sys; from signbook.corpora.catalog import entries; entries(); print([m for m in ('datasets', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'
