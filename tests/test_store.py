"The store under faults: killed writers and builds, full disks, foreign folders, flipped bits, worker processes, and a clean home."
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from signbook.corpora import shards, store
from signbook.errors import CorpusError, UserError
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
    monkeypatch.setattr(shards, 'BATCH_BYTES', 20_000)   # several record batches in each of several shards
    monkeypatch.setattr(shards.write_shard, '__defaults__', (None, None, 60_000))
    random = np.random.default_rng(0)
    clips = [toy(n, frames=3 + n % 5) for n in range(30)]
    for clip in clips:
        clip.streams = {'frames': random.integers(0, 255, (len(clip), 4, 5, 3), dtype=np.uint8),
                        'features/hand': random.normal(size=(len(clip), 7))}
    table = store.write(clips, tmp_path/'s')
    assert len(table.contract['shards']) > 2 and table.dataset.data.table.column('points').num_chunks > 8
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


@pytest.mark.parametrize('name', ['data-00000.arrow', 'words-00000.arrow', 'state.json', 'dataset_info.json'])
def test_a_missing_file(tmp_path, name):
    store.write([toy(0)], tmp_path/'s'); (tmp_path/'s'/name).unlink()
    with pytest.raises(CorpusError, match='build the store again') as error: store.read(tmp_path/'s')
    assert error.value.file.endswith(name)


def test_an_unknown_layout(tmp_path):
    store.write([toy(0)], tmp_path/'s')
    told = json.loads((tmp_path/'s'/'store.json').read_text()); told['layouts']['holistic75']['landmarks'] = 76
    (tmp_path/'s'/'store.json').write_text(json.dumps(shards.seal(told)))
    with pytest.raises(UserError, match='76 landmarks'): store.read(tmp_path/'s')


def test_the_home_stays_clean_and_nothing_is_printed(tmp_path):
    home = tmp_path/'home'; home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith(('HF_', 'XDG_'))} | dict(HOME=str(home))
    code = WRITER.replace("print('ready', flush=True); ", '') + "t = store.read(sys.argv[1]); t[0]; t.fingerprint; t.where(split='')"
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path/'s'), '0'], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == '' and list(home.rglob('*')) == []
    assert len(list((tmp_path/'s').iterdir())) == 5


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


def as_version_1(folder):
    "The store in the form in which stores were written before there were shards."
    told = json.loads((folder/'store.json').read_text())
    for key in ('missing', 'files', 'shards', 'checksum'): del told[key]
    (folder/'store.json').write_text(json.dumps(told | dict(version=1)))
    (folder/'words-00000.arrow').unlink()
    (folder/'data-00000.arrow').rename(folder/'data-00000-of-00001.arrow')
    (folder/'state.json').write_text((folder/'state.json').read_text().replace('data-00000.arrow', 'data-00000-of-00001.arrow'))


def test_a_store_of_version_1_is_read(tmp_path):
    clips = [toy(n) for n in range(5)]
    mark = store.write(clips, tmp_path/'s', packing='float16').fingerprint; as_version_1(tmp_path/'s')
    table = store.read(tmp_path/'s')
    assert table.fingerprint == mark and store.verify(table) == 5 and len(table.dataset) == 5 and 'missing' not in repr(table)
    assert all(np.abs(a.points - b.points).max() < 2e-3 and a.id == b.id for a, b in zip(table, clips))


def test_the_fingerprint_does_not_depend_on_the_cut(tmp_path, monkeypatch):
    clips = [toy(n) for n in range(20)]
    whole = store.write(clips, tmp_path/'a')
    monkeypatch.setattr(shards.write_shard, '__defaults__', (None, None, 50_000))
    cut = store.write(clips, tmp_path/'b')
    assert len(cut.contract['shards']) > 3 and cut.fingerprint == whole.fingerprint == cut.contract['fingerprint']
    assert [clip.id for clip in cut[[19, 0, 7]]] == ['c19', 'c0', 'c7'] and store.verify(cut) == 20


def test_packing_keeps_what_is_missing_missing(tmp_path):
    clip = toy(0); clip.confidence[2] = 0; clip.confidence[3] = 1e-9; clip.points[2] = np.nan; clip.points *= 900
    for packing in ('float16', 'int16'):
        back = store.write([clip], tmp_path/'s', packing=packing)[0]
        assert np.array_equal(back.confidence == 0, clip.confidence == 0) and np.array_equal(np.isnan(back.points), np.isnan(clip.points))


def first_ids(table, places, answers): answers.put([table[place].id for place in places])


@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_other_processes_read_the_same_store(tmp_path, method):
    table = store.write([toy(n) for n in range(6)], tmp_path/'s'); table[0]   # open before the fork
    context = multiprocessing.get_context(method); answers = context.SimpleQueue()
    workers = [context.Process(target=first_ids, args=(table, [place, 5 - place], answers)) for place in (0, 1)]
    for worker in workers: worker.start()
    told = sorted(answers.get() for _ in workers)
    for worker in workers: worker.join()
    assert told == [['c0', 'c5'], ['c1', 'c4']]


# Builds that are killed

PACKER = '''
import sys, time
import numpy as np
from signbook.corpora.listings import Item
from signbook.corpora.packing import pack
from signbook.poses.clips import Clip
folder, log, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
def read(item):
    with open(log, 'a') as file: file.write(item.id + '\\n')
    time.sleep(pause)
    points = np.random.default_rng(int(item.id)).normal(size=(8, 75, 3)).astype(np.float32)
    return Clip(points, np.ones((8, 75), np.float32), 'holistic75', 25.0, id=item.id, text='ein Satz')
pack([Item(str(n)) for n in range(60)], read, folder, about=dict(corpus='toy'), missing=[Item('60')], shard_bytes=40_000)
'''


def packer(folder, log, pause=0.0):
    return subprocess.Popen([sys.executable, '-c', PACKER, str(folder), str(log), str(pause)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def lines(path): return path.read_text().split() if path.exists() else []


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    place = tmp_path_factory.mktemp('undisturbed')
    assert packer(place/'s', place/'log').wait() == 0 and len(lines(place/'log')) == 60
    return files(place/'s')


@pytest.mark.parametrize('moment', [3, 45, 60])
def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(tmp_path, undisturbed, moment):
    old = store.write([toy(0)], tmp_path/'s').fingerprint
    killed = packer(tmp_path/'s', tmp_path/'first', .004)
    while len(lines(tmp_path/'first')) < moment: time.sleep(.001)
    killed.send_signal(signal.SIGKILL); killed.wait()
    done = files(tmp_path/'s') == undisturbed   # a kill behind the last clip may come too late
    assert done or store.read(tmp_path/'s').fingerprint == old
    again = packer(tmp_path/'s', tmp_path/'second'); assert again.wait() == 0, again.stderr.read().decode()
    assert files(tmp_path/'s') == undisturbed and store.verify(store.read(tmp_path/'s')) == 60
    read = len(lines(tmp_path/'second'))
    if moment > 3 and not done: assert read <= 60 - moment + 12, 'less than a shard of what was read is read again'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['first', 's', 'second']


def test_a_build_that_is_killed_again_and_again_still_ends(tmp_path, undisturbed):
    for moment in (10, 25, 40):
        killed = packer(tmp_path/'s', tmp_path/f'log{moment}', .002); start = time.time()
        while len(lines(tmp_path/f'log{moment}')) < 13 and killed.poll() is None and time.time() < start + 20: time.sleep(.001)
        killed.send_signal(signal.SIGKILL); killed.wait()
    assert packer(tmp_path/'s', tmp_path/'last').wait() == 0
    assert files(tmp_path/'s') == undisturbed and len(lines(tmp_path/'last')) < 45


def test_two_builds_of_one_store_do_not_mix(tmp_path, undisturbed):
    one = packer(tmp_path/'s', tmp_path/'one', .01)
    while not lines(tmp_path/'one'): time.sleep(.001)
    two = packer(tmp_path/'s', tmp_path/'two')
    assert two.wait() == 1 and b'another process is writing this store; wait for it' in two.stderr.read()
    assert one.wait() == 0 and files(tmp_path/'s') == undisturbed and lines(tmp_path/'two') == []


def items_of(count):
    from signbook.corpora.listings import Item
    return [Item(str(n)) for n in range(count)]


def test_a_full_disk_keeps_finished_shards(tmp_path, monkeypatch):
    from signbook.corpora.packing import pack
    if not os.path.exists('/dev/full'): pytest.skip('no /dev/full on this system')
    real = open
    monkeypatch.setattr('builtins.open', lambda path, *a, **k: real('/dev/full' if str(path).endswith('data-00002.arrow') else path, *a, **k))
    with pytest.raises(UserError, match='No space left.*; 10 clips in 2 finished shards are kept'):
        pack(items_of(20), lambda item: toy(int(item.id)), tmp_path/'s', shard_bytes=70_000)
    monkeypatch.undo(); heard, read = [], []
    table = pack(items_of(20), lambda item: read.append(item.id) or toy(int(item.id)), tmp_path/'s', shard_bytes=70_000, tell=heard.append)
    assert len(table) == 20 and read[0] == '10' and heard == [f'{tmp_path/"s"}: going on after 10 of 20 clips']


def test_an_interrupt_keeps_finished_shards(tmp_path):
    from signbook.corpora.packing import pack
    def read(item):
        if item.id == '15': raise KeyboardInterrupt
        return toy(int(item.id))
    with pytest.raises(KeyboardInterrupt): pack(items_of(20), read, tmp_path/'s', shard_bytes=70_000)
    seen = []
    pack(items_of(20), lambda item: seen.append(item.id) or toy(int(item.id)), tmp_path/'s', shard_bytes=70_000, tell=seen.append)
    assert seen[1] == '15' and [path.name for path in tmp_path.iterdir()] == ['s']


def test_a_clip_with_other_streams_is_named_after_the_resume_too(tmp_path):
    from signbook.corpora.packing import pack
    def read(item):
        clip = toy(int(item.id))
        if item.id == '13': clip.streams = {'features/x': clip.confidence}
        return clip
    for _ in range(2):
        with pytest.raises(UserError, match='clip c13: its streams.* 10 clips in 2 finished'):
            pack(items_of(20), read, tmp_path/'s', shard_bytes=70_000, tell=lambda line: None)


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    code = '''
import sys
import numpy as np
from signbook.corpora import store
from signbook.poses.clips import Clip
def clips(count):
    for n in range(count): yield Clip(np.full((16, 75, 3), n, np.float32), np.ones((16, 75), np.float32), 'holistic75', 25.0, id=str(n))
def peak(): return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))
store.write(clips(500), sys.argv[1]); first = peak()
store.write(clips(5000), sys.argv[1]); print(first, peak())
'''
    if not os.path.exists('/proc/self/status'): pytest.skip('peak memory is read from /proc')
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path/'s')], capture_output=True, text=True, check=True)
    first, last = map(int, done.stdout.split())
    assert last - first < 40_000, f'10 times the clips took {last - first} KB more'


# Flipped bits

FUZZ = '''
import random, resource, shutil, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
from signbook.corpora import store
from signbook.errors import UserError
source, place, count, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
chance, refused, names = random.Random(seed), 0, sorted(path.name for path in source.iterdir())
def mutate(data):
    data, at, size = bytearray(data), chance.randrange(len(data)), chance.choice((1, 4, 64, 4096))
    match chance.randrange(6):
        case 0: data[at] ^= 1 << chance.randrange(8)
        case 1: del data[at:]
        case 2: del data[at:at + size]
        case 3: data[at:at + size] = bytes(len(data[at:at + size]))
        case 4: data[at:at] = data[at:at + size]
        case 5: data[at:at + 4] = chance.choice((b'\\xff\\xff\\xff\\x7f', b'9999', b'\\xff'*4))
    return bytes(data)
for turn in range(count):
    name = chance.choice(names); whole = (source/name).read_bytes(); (place/name).write_bytes(mutate(whole))
    try:
        table = store.read(place)
        for row in (0, len(table)//2, -1): table[row]
        if sys.argv[5] == 'all': store.verify(table); table.dataset.select([0, 5])['text']
    except UserError as error:
        refused += 1; assert name in str(error) or place.name in str(error), (name, error)
    (place/name).write_bytes(whole)
assert store.verify(store.read(place)) == 12
print(refused)
'''


def fuzzed(tmp_path, count, seed, depth):
    shutil.copytree(tmp_path/'s', tmp_path/'place')
    done = subprocess.run([sys.executable, '-c', FUZZ, str(tmp_path/'s'), str(tmp_path/'place'), str(count), str(seed), depth],
                          capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


@pytest.mark.parametrize('depth, packing, share', [('opened', None, .7), ('all', 'int16', .7), ('opened', 'version 1', .2)])
def test_no_mutation_of_a_store_does_harm(tmp_path, depth, packing, share, pytestconfig):
    store.write([toy(n) for n in range(12)], tmp_path/'s', packing=None if packing == 'version 1' else packing)
    if packing == 'version 1': as_version_1(tmp_path/'s')
    count = 5000 if pytestconfig.getoption('--slow') else 300
    assert fuzzed(tmp_path, count, 0, depth) > share*count   # the others hit a stream, which a view does not look at


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
    from signbook.corpora.checks import check
    data = os.environ.get('SIGNBOOK_DATA')
    if not data or not os.path.isdir(os.path.join(data, 'fingerspelling')):
        pytest.skip('SIGNBOOK_DATA is not set or holds no fingerspelling')
    assert check('fingerspelling').faults == ()


def test_listing_the_catalog_is_light():
    code = "import sys; from signbook.corpora.catalog import entries; entries(); print([m for m in ('datasets', 'torch') if m in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


# The benchmarks as a program

def test_a_benchmark_runs_as_a_program_and_names_no_machine(tmp_path):
    command = [sys.executable, '-m', 'signbook.corpora.benchmarks']
    done = subprocess.run([*command, 'normalisation', '--output', str(tmp_path/'out')], capture_output=True, text=True, check=True)
    assert done.stderr == '' and sorted(path.name for path in (tmp_path/'out').iterdir()) == ['normalisation.csv', 'normalisation.md']
    assert (tmp_path/'out'/'normalisation.md').read_text() == done.stdout and os.uname().nodename not in done.stdout
    assert subprocess.run([*command, 'everything'], capture_output=True).returncode == 2


def test_the_committed_benchmarks_keep_their_promises(project):
    import pandas as pd
    told = {path.stem: pd.read_csv(path) for path in (project/'outputs'/'reference'/'benchmarks').glob('*.csv')}
    assert {'large_store', 'normalisation', 'padding', 'reading'} <= set(told)
    assert told['reading']['times faster'][1:3].min() >= 6 and told['normalisation']['times faster'][1] >= 18
    assert told['padding']['wasted (%)'][1:].max() <= 12 < told['padding']['wasted (%)'][0]
    large = told['large_store'].iloc[-1]
    assert large['clips'] == 100_000 and large['peak memory to build (MB)'] < 1500 and large['copy, ratio'] <= 1.25
