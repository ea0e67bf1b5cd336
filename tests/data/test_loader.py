"""The loader's promise: example i of a run is the same however, wherever and whenever it is read."""

import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import assert_equal, documents_of, loader_of, random_documents

from maxlm.batch import Batch
from maxlm.data.rows import InMemoryTokens
from maxlm.errors import DataError

SOURCES = {"books": random_documents(0, 30), "web": random_documents(1, 50, first=100_000)}
PHASES = [
    {"duration": "5 steps", "weights": {"books": 3}},
    {"duration": "20 steps", "length": 24, "batch_size": 16},
    {"weights": {"web": 0}},
]


def joined(batches: list[Batch]) -> Batch:
    return Batch(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))


def targets_of(batch: Batch) -> list[int]:
    return batch.targets[batch.segment_ids > 0].tolist()


@pytest.mark.parametrize("packing", ["cut", "whole"])
def test_examples_do_not_depend_on_the_batch_size(packing: str) -> None:
    whole = loader_of(SOURCES, packing=packing).batch(1200, 960)
    for batch_size in (1, 8, 96, 480):
        loader = loader_of(SOURCES, packing=packing, batch_size=batch_size, total="8k examples")
        parts = [loader.batch(1200 + at, batch_size) for at in range(0, 960, batch_size)]
        assert_equal(joined(parts), whole)


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_hosts_together_read_the_same_rows_in_the_same_order(hosts: int) -> None:
    loader = loader_of(SOURCES, phases=PHASES)
    for step in (0, 4, 5, 24, 25, 900):
        at = loader.timeline.at_step(step)
        share = at.batch_size // hosts
        parts = [
            loader.batch(at.cursor, at.batch_size, slice(host * share, (host + 1) * share))
            for host in range(hosts)
        ]
        assert_equal(joined(parts), loader.batch(at.cursor))


def test_rows_come_in_the_order_asked_for() -> None:
    loader = loader_of(SOURCES)
    rows = np.array([7, 0, 3, 3])
    whole = loader.batch(16)
    assert_equal(loader.batch(16, rows=rows), Batch(*(array[rows] for array in whole)))
    assert loader.batch(16, rows=np.array([], np.int64)).tokens.shape == (0, 16)


@pytest.mark.parametrize(("workers", "prefetch"), [(0, 4), (1, 1), (2, 4), (8, 3)])
def test_threads_give_the_same_batches_from_any_cursor(workers: int, prefetch: int) -> None:
    loader = loader_of(SOURCES, phases=PHASES, total="40 steps", workers=workers, prefetch=prefetch)
    for first in (0, 3, 5, 24, 39, 40):
        with loader.iterate(loader.timeline.at_step(first).cursor) as batches:
            got = list(batches)
        assert len(got) == 40 - first
        for step, batch in enumerate(got, start=first):
            assert_equal(batch, loader.batch(loader.timeline.at_step(step).cursor))


@settings(derandomize=True, max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 40), min_size=2, max_size=25).filter(lambda n: sum(n) > 16),
    length=st.integers(2, 15),
    whole=st.booleans(),
    seed=st.integers(0, 5),
)
def test_every_epoch_has_every_target_once_and_its_own_order(lengths, length, whole, seed) -> None:
    split = documents_of(lengths)
    packing = "whole" if whole else "cut"
    loader = loader_of(
        {"a": split}, "3 epochs", batch_size=1, length=length, packing=packing, seed=seed
    )
    rows = loader.timeline.total_examples // 3
    epochs = [targets_of(loader.batch(epoch * rows, rows)) for epoch in range(3)]
    firsts = set(split.document_starts.tolist())
    expected = [t for t in range(1, split.num_tokens) if not (whole and t in firsts)]
    for targets in epochs:
        assert sorted(targets) == expected
    if rows > 6:
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert loader.epochs(2 * rows) == {"a": 2.0}


def test_epochs_stay_whole_when_weights_and_batch_change_between_phases() -> None:
    phases = [
        {"duration": "3 steps", "weights": {"books": 5}},
        {"duration": "4 steps", "weights": {"books": 0}, "batch_size": 6},
        {"duration": "2 steps", "weights": {"web": 2}, "batch_size": 32},
        {"duration": "60 steps"},
    ]
    loader = loader_of(SOURCES, total="69 steps", phases=phases)
    seen: dict[str, list[int]] = {"books": [], "web": []}
    for batch in loader.iterate():
        for row in range(len(batch.targets)):
            targets = batch.targets[row][batch.segment_ids[row] > 0].tolist()
            seen["web" if targets[0] >= 100_000 else "books"] += targets
    for name, split in SOURCES.items():
        size, first = split.num_tokens - 1, int(split.read(0, 1)[0])
        assert len(seen[name]) > size
        # Rows cannot fall on an epoch's edge only by their size: the last window is short.
        assert sorted(seen[name][:size]) == list(range(first + 1, first + size + 1))


def test_another_length_begins_the_next_epoch_and_an_unread_source_goes_on() -> None:
    splits = {"a": documents_of([320]), "b": documents_of([320], first=1000)}  # 20 rows of 16
    phases = [
        {"duration": "15 examples", "weights": {"b": 1}},
        {"duration": "10 examples", "weights": {"b": 0}, "length": 32},
        {"duration": "32 examples", "weights": {"a": 0}},
    ]
    loader = loader_of(splits, "57 examples", batch_size=1, phases=phases)
    at = [phase.start_cursor for phase in loader.timeline.phases] + [57]
    assert loader.epochs(at[1] - 1)["a"] == pytest.approx(7 / 20)
    assert loader.epochs(at[1] + 1)["a"] == pytest.approx(1.1)
    assert sorted(targets_of(loader.batch(at[1], 10))) == list(range(1, 320))
    b = [t for t in targets_of(loader.batch(0, 15)) if t >= 1000]
    rest = targets_of(loader.batch(at[2], 20 - -(-len(b) // 16)))
    assert sorted(b + rest) == list(range(1001, 1320))


class CountingTokens(InMemoryTokens):
    """Counts what is read."""

    reads = 0

    def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
        self.reads += len(starts)
        return super().gather(starts, length)


def test_the_batch_at_a_billion_costs_what_the_first_does() -> None:
    split = CountingTokens([np.arange(50) for _ in range(200)])
    loader = loader_of({"a": split, "b": SOURCES["web"]}, total="1e12 examples", workers=2)
    costs = []
    for cursor in (0, 10**9, 10**12 - 8):
        split.reads = 0
        tracemalloc.start()
        first = loader.batch(cursor)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert_equal(first, loader.batch(cursor))
        costs.append((split.reads, peak))
    assert {reads for reads, _ in costs} == {8}  # four rows of it a batch, read twice
    assert max(peak for _, peak in costs) < 1.5 * min(peak for _, peak in costs) + 20_000
    with loader.iterate(10**9) as batches:  # nothing walks from 0 to the cursor
        assert_equal(next(batches), loader.batch(10**9))


def test_the_seed_changes_the_order_and_names_with_hashes_make_the_data_hash() -> None:
    loader = loader_of(SOURCES)
    other = loader_of(SOURCES, seed=1)
    assert (loader.batch(0).tokens != other.batch(0).tokens).any()
    assert loader.hash == loader_of(SOURCES, total="7 steps", batch_size=3).hash
    assert len({loader.hash, other.hash, loader_of(SOURCES, packing="whole").hash}) == 3


def test_no_more_batches_than_prefetch_are_made_ahead() -> None:
    loader = loader_of(SOURCES, workers=4, prefetch=3)
    made: list[int] = []
    enough = threading.Event()
    original = loader.batch

    def batch(cursor: int, *rest: object) -> Batch:
        made.append(cursor)
        if len(made) > 5:
            enough.set()
        return original(cursor, *rest)

    loader.batch = batch  # type: ignore[method-assign]
    with loader.iterate() as batches:
        next(batches)
        next(batches)
        assert not enough.wait(0.3)
    assert len(made) <= 2 + 3


def test_closing_ends_the_threads_and_the_iterator() -> None:
    before = set(threading.enumerate())
    batches = loader_of(SOURCES, workers=3).iterate()
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    batches.close()
    batches.close()
    for thread in started:
        thread.join(5)
        assert not thread.is_alive()
    with pytest.raises(StopIteration):
        next(batches)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_thread_comes_out_at_its_batch(workers: int) -> None:
    class Broken(InMemoryTokens):
        def gather(self, starts: np.ndarray, length: int) -> np.ndarray:
            if (starts == 0).any():
                raise DataError("block 0 of 00000.tokens is damaged")
            return super().gather(starts, length)

    loader = loader_of({"a": Broken([np.arange(1000)])}, batch_size=4, workers=workers)
    with pytest.raises(DataError, match=r"block 0 of 00000\.tokens"):
        for _ in loader.iterate():
            pass


def test_batches_outside_the_run_or_across_phases_are_refused() -> None:
    loader = loader_of(SOURCES, phases=PHASES, total="40 steps")
    with pytest.raises(DataError, match="batch of 8 examples at cursor 36 does not fit phase 0"):
        loader.batch(36, 8)
    with pytest.raises(DataError, match="outside the run"):
        loader.batch(10**9)
    with pytest.raises(DataError, match="batch of 0 examples"):
        loader.batch(0, 0)
    with pytest.raises(DataError, match="no step starts at cursor 3"):
        loader.iterate(3)


@pytest.mark.parametrize(
    ("split", "packing", "message"),
    [
        (documents_of([16]), "cut", "source 'a'.* has 16 tokens.*use a length of at most 15"),
        (documents_of([]), "cut", "source 'a'.* is empty: 0 tokens"),
        (documents_of([1, 1, 1]), "whole", "source 'a'.*none of the 3 documents"),
    ],
)
def test_a_source_too_short_for_a_row_is_refused(split, packing: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        loader_of({"a": split}, packing=packing)


def test_a_program_that_forgets_to_close_still_ends() -> None:
    program = (
        "from in_memory import loader_of, random_documents\n"
        "batches = loader_of({'a': random_documents(0, 30)}, workers=3).iterate()\n"
        "next(batches)\n"
        "print('read')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr
