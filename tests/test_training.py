"""What a chapter cannot show: real kills, damage between two renames, several processes."""
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from signbook.errors import UserError
from signbook.training import checkpoints
from signbook.training.checkpoints import generations, load_checkpoint, load_weights, save_checkpoint, save_weights
from signbook.training.fit import FitConfig, fit, seed_all

COMPARED = ('history.csv', 'best.safetensors', 'last.safetensors')
CONFIG = FitConfig(epochs=4, learning_rate=.01, accumulation=2, checkpoint_steps=3, patience=3, monitor='top1', mode='max', tie='loss',
                   device='cpu', progress=False)


class Reader(nn.Module):
    """A recurrent classifier with dropout, so that random numbers matter."""
    def __init__(self):
        super().__init__()
        self.drop, self.recurrent, self.head = nn.Dropout(.3), nn.GRU(5, 12, batch_first=True), nn.Linear(12, 3)

    def forward(self, x):
        return self.head(self.recurrent(self.drop(x))[1][0])


def examples(count, seed):
    x = torch.randn(count, 9, 5, generator=torch.Generator().manual_seed(seed))
    return x, (x.sum((1, 2)) > 0).long() + (x[:, 0, 0] > 1).long()


def batches(epoch, pause=0.0):
    x, y = examples(66, 0)
    for part in torch.randperm(66, generator=torch.Generator().manual_seed(epoch)).split(6):
        time.sleep(pause)
        yield {'x': x[part], 'y': y[part]}


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch['x']), batch['y']), {}


def evaluate(model):
    x, y = examples(40, 1)
    logits = model(x)
    return {'loss': nn.functional.cross_entropy(logits, y), 'top1': (logits.argmax(1) == y).float().mean()}


def train(folder, seed=0, config=CONFIG, pause=0.0):
    torch.set_num_threads(1)
    seed_all(seed)
    return fit(Reader(), lambda epoch: batches(epoch, pause), loss, evaluate, config, folder)


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed')
    return folder, train(folder)


def same(one, other):
    return all((one/name).read_bytes() == (other/name).read_bytes() for name in COMPARED)


def environment():
    return os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join([str(Path(__file__).parent), *sys.path])}


def test_kill_9_twice_then_resume(undisturbed, tmp_path):
    folder, history = undisturbed
    for checkpoints_seen in (2, 7):    # inside the first epoch; inside a later one
        code = f'import test_training as t; t.train({str(tmp_path)!r}, pause=.02)'
        child = subprocess.Popen([sys.executable, '-c', code], env=environment())
        deadline = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < deadline:
            found = generations(tmp_path/'checkpoints')
            if found and int(found[0].name[-6:]) >= checkpoints_seen: break
            time.sleep(.005)
        assert child.poll() is None, 'the run ended before it could be killed'
        child.send_signal(signal.SIGKILL); child.wait()
        assert not (tmp_path/'best.safetensors').exists()
    assert train(tmp_path, seed=7) == history
    assert same(folder, tmp_path)


@pytest.mark.parametrize('epochs', [1, 2, 3])
def test_stopping_after_any_epoch_changes_nothing(undisturbed, tmp_path, epochs):
    folder, history = undisturbed
    left = iter(range(epochs))

    def stopping(model):
        if next(left, None) is None: raise KeyboardInterrupt
        return evaluate(model)
    seed_all(0)
    with pytest.raises(KeyboardInterrupt): fit(Reader(), batches, loss, stopping, CONFIG, tmp_path)
    assert train(tmp_path, seed=3) == history and same(folder, tmp_path)


def test_checkpoint_options_change_no_number(undisturbed, tmp_path):
    folder, history = undisturbed
    assert train(tmp_path, config=replace(CONFIG, checkpoint_steps=0, checkpoint_seconds=.001)) == history
    assert same(folder, tmp_path)


def test_damaged_newest_generation_costs_only_the_steps_since(undisturbed, tmp_path):
    folder, history = undisturbed
    train(tmp_path)
    newest = generations(tmp_path/'checkpoints')[0]
    (newest/'state.json').write_bytes((newest/'state.json').read_bytes()[:-20])
    with pytest.warns(UserWarning, match=f'{newest.name} in checkpoints is damaged'):
        assert train(tmp_path, seed=5) == history
    assert same(folder, tmp_path)


@pytest.mark.parametrize('victim', ['manifest.json', 'LATEST'])
def test_death_while_a_checkpoint_is_written(monkeypatch, tmp_path, victim):
    save_checkpoint(tmp_path, {'step': 1})
    real = checkpoints.write_atomic

    def dying(path, data):
        if Path(path).name == victim: raise KeyboardInterrupt
        return real(path, data)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, 'write_atomic', dying)
        with pytest.raises(KeyboardInterrupt): save_checkpoint(tmp_path, {'step': 2})
    assert load_checkpoint(tmp_path)['step'] == 1
    save_checkpoint(tmp_path, {'step': 3})
    assert load_checkpoint(tmp_path)['step'] == 3 and len(generations(tmp_path)) == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('.')]


def test_no_pickle_in_a_run_folder(undisturbed):
    folder, _ = undisturbed
    names = {path.name for path in folder.rglob('*') if path.is_file()}
    assert names == {'history.csv', 'timing.json', 'best.safetensors', 'last.safetensors', 'LATEST', 'state.json', 'tensors.safetensors',
                     'manifest.json'}
    assert 'seconds' not in (folder/'history.csv').read_text()
    assert len(json.loads((folder/'timing.json').read_text())['epochs']) == 4


@pytest.mark.parametrize('change, field', [({'learning_rate': .02}, 'config.learning_rate'), ({'epochs': 5}, 'config.epochs'),
                                           ({'accumulation': 1}, 'config.accumulation')])
def test_another_configuration_is_refused(undisturbed, change, field):
    folder, _ = undisturbed
    with pytest.raises(UserError, match=field): train(folder, config=replace(CONFIG, **change))


def test_another_model_or_contract_is_refused(undisturbed):
    folder, _ = undisturbed
    model = Reader(); model.head = nn.Linear(12, 4)
    with pytest.raises(UserError, match=r'model\.head\.'): fit(model, batches, loss, evaluate, CONFIG, folder)
    with pytest.raises(UserError, match='contract'): fit(Reader(), batches, loss, evaluate, CONFIG, folder, contract={'layout': 'coco133'})


def test_nan_stops_with_the_last_checkpoint_whole(tmp_path):
    def poisoned(epoch):
        for number, batch in enumerate(batches(epoch)):
            yield batch | {'x': batch['x']*float('nan')} if (epoch, number) == (2, 4) else batch
    with pytest.raises(UserError, match='epoch 3, batch 5, optimiser step 15'):
        fit(Reader(), poisoned, loss, evaluate, replace(CONFIG, checkpoint_steps=0), tmp_path)
    assert load_checkpoint(tmp_path/'checkpoints')['journal']['epoch'] == 2


def test_no_batches_and_no_such_score(tmp_path):
    with pytest.raises(UserError, match='gave nothing'): fit(Reader(), lambda epoch: [], loss, evaluate, CONFIG, tmp_path/'a')
    with pytest.raises(UserError, match='top5'): fit(Reader(), batches, loss, evaluate, replace(CONFIG, monitor='top5'), tmp_path/'b')


def test_training_without_evaluation(tmp_path):
    history = fit(Reader(), batches, loss, None, FitConfig(epochs=2, monitor='train_loss', device='cpu', progress=False), tmp_path)
    assert history.best in (1, 2) and set(history.rows[0]) == {'epoch', 'step', 'learning_rate', 'train_loss', 'gradient_norm'}


def test_weights_of_other_shapes_or_files_are_refused(tmp_path):
    path = save_weights(Reader(), tmp_path/'reader.safetensors', {'layout': 'holistic75'})
    with pytest.raises(UserError, match='drop|head|recurrent|weight'): load_weights(nn.Linear(2, 2), path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match='not a whole safetensors file'): load_weights(Reader(), path)


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Two processes with one batch each give the mean gradient of one process with two batches (without dropout)."""
    script = tmp_path/'pair.py'
    script.write_text(textwrap.dedent("""
        import sys
        import torch
        from dataclasses import replace
        import test_training as t
        torch.set_num_threads(1)
        torch.manual_seed(0)
        model = t.Reader(); model.drop.p = 0.0
        t.fit(model, t.batches, t.loss, t.evaluate, replace(t.CONFIG, accumulation=int(sys.argv[1]), epochs=2), sys.argv[2])
    """))
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    pair = subprocess.run([*launch, str(script), '1', str(tmp_path/'pair')], env=environment(), timeout=120)
    assert pair.returncode == 0
    torch.manual_seed(0)
    model = Reader(); model.drop.p = 0.0
    alone = fit(model, batches, loss, evaluate, replace(CONFIG, epochs=2), tmp_path/'one')
    rows = (tmp_path/'pair'/'history.csv').read_text().splitlines()
    assert len(rows) == 3
    pair_loss = float(rows[2].split(',')[rows[0].split(',').index('loss')])
    assert abs(pair_loss - alone.rows[1]['loss']) < 1e-4
