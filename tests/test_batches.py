"Batches for any lengths: nothing lost, nothing twice, limits kept, the same order again in another process."
import json
import subprocess
import sys

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from signbook.corpora.batches import BatchOrder, buckets, computed_frames, mask, pad

lengths = st.lists(st.integers(1, 400), min_size=1, max_size=200)


@settings(deadline=None, max_examples=60)
@given(lengths, st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 50), st.none() | st.integers(1, 2000), st.integers(1, 60))
def test_every_clip_exactly_once_and_limits_kept(frames, size, seed, epoch, budget, pool):
    batches = buckets(frames, size, seed, epoch, budget, pool)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(frames)))
    for batch in batches:
        longest = max(frames[i] for i in batch)
        assert 1 <= len(batch) <= size and (budget is None or len(batch) == 1 or longest*len(batch) <= budget)
    padded, packed = computed_frames(batches, frames)
    assert packed == sum(frames) <= padded


@settings(deadline=None, max_examples=30)
@given(lengths, st.integers(1, 20), st.integers(1, 5), st.integers(0, 400))
def test_processes_share_an_epoch_and_resume_anywhere(frames, size, world, stop):
    shares = [BatchOrder(frames, size, 3, rank=rank, world=world).batches(1) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert {int(i) for share in shares for batch in share for i in batch} == set(range(len(frames)))
    run, seen = BatchOrder(frames, size, 3, world=world), []
    for batch in run:
        seen.append(batch.tolist())
        if run.position == stop: break
    rest = BatchOrder(frames, size, 3, world=world); rest.restore(json.loads(json.dumps(run.state())))
    if rest.epoch == 0: seen += [batch.tolist() for batch in rest]
    assert seen == [batch.tolist() for batch in BatchOrder(frames, size, 3, world=world).batches(0)]


def test_the_order_is_the_same_in_another_process():
    code = 'from signbook.corpora.batches import buckets; print([b.tolist() for b in buckets(range(1, 90), 8, 4, 7)])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([batch.tolist() for batch in buckets(range(1, 90), 8, 4, 7)])


def test_read_only_clips_are_padded_without_a_warning(recwarn):
    clip = np.ones((3, 2), np.float32); clip.flags.writeable = False
    x, n = pad([clip, clip[:1]])
    x += 1
    assert clip.sum() == 6 and not recwarn.list and torch.equal(mask(n), torch.tensor([[True]*3, [True, False, False]]))
