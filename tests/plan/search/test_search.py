"""The search: what it compiles, when it ends, that it goes on, what it writes."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest

from maxlm.config.load import load_config
from maxlm.errors import CompileError, ConfigError
from maxlm.plan.result import Collective
from maxlm.plan.search.candidates import Space, find_candidates
from maxlm.plan.search.refine import Corrections
from maxlm.plan.search.report import search_table, status_line, winning_yaml
from maxlm.plan.search.search import Row, SearchResult, search
from maxlm.plan.topology import parse_topology

OVERRIDES = [
    "model.num_layers=4",
    "model.embed_dim=512",
    "model.num_heads=4",
    "model.vocab_size=8192",
    "data.length=512",
    "data.batch_size=64",
    "train.duration=1000 steps",
    "optimizer.learning_rate=3e-4",
]
CONFIG = load_config(["hardware/v5e"], OVERRIDES)
CANDIDATES = find_candidates(CONFIG, parse_topology("v5e-8"), Space(accumulations=(1,)))
# A compiler that dislikes some axes: what arithmetic does not know.
FACTORS = {"replica": 1.6, "fsdp": 1.1, "tensor": 1.0, "context": 1.5, "stage": 1.3}


MADE = Collective(
    name="all-gather",
    kind="all-gather",
    axes=("fsdp",),
    size=8,
    times=1,
    payload_bytes=1.0,
    wire_bytes=1.0,
    seconds=0.0,
    is_overlapped=True,
    network=False,
)


class Compiler:
    """Stands in for the real one: a step is a factor of the mesh times the arithmetic's."""

    def __init__(self, store=None, interrupt_at=None, fails=(), capacity=None):
        self.calls: list[str] = []
        self.store = {} if store is None else store
        self.interrupt_at = interrupt_at
        self.fails = fails
        self.capacity = capacity

    def __call__(self, config, told):
        told("compiling", 0.0)
        key = json.dumps(config.model_dump(mode="json"), sort_keys=True)
        candidate = next(c for c in CANDIDATES.fitting if c.config == config)
        if key not in self.store:
            self.calls.append(candidate.label)
            if self.interrupt_at is not None and len(self.calls) > self.interrupt_at:
                raise KeyboardInterrupt
            if any(word in candidate.label for word in self.fails):
                raise CompileError("the compiler failed")
            self.store[key] = self.compiled(candidate)
        return self.store[key]

    def compiled(self, candidate):
        plan = candidate.analytic
        factor = max(FACTORS[axis] for axis in plan.mesh)
        blocking = plan.time.blocking + (factor - 1) * plan.time.total
        memory = dataclasses.replace(plan.memory, capacity=self.capacity or plan.memory.capacity)
        return dataclasses.replace(
            plan,
            method="compiled",
            time=dataclasses.replace(plan.time, blocking=blocking),
            memory=memory,
            versions={"jax": "0.0.1"},
        )


def exhaustive_best():
    compiler = Compiler()
    return min(compiler.compiled(c).time.total for c in CANDIDATES.fitting)


def test_the_best_of_an_exhaustive_compile_is_found_with_a_part_of_it():
    compiler = Compiler()
    result = search(CANDIDATES, compiler, workers=1)
    assert result.best is not None
    assert result.best.seconds == pytest.approx(exhaustive_best(), rel=0.03)
    assert len(compiler.calls) < len(CANDIDATES.fitting) / 3
    assert "no other layout" in result.ended


@pytest.mark.parametrize("workers", [1, 2])
def test_the_layout_as_given_is_compiled_first(workers):
    compiler = Compiler()
    result = search(CANDIDATES, compiler, workers=workers)
    assert compiler.calls[0].endswith("as given")
    (given,) = [row for row in result.rows if row.candidate.is_given]
    assert result.best.seconds <= given.seconds


def test_several_at_once_find_the_same():
    alone, together = (search(CANDIDATES, Compiler(), workers=n).best for n in (1, 3))
    assert together.seconds == pytest.approx(alone.seconds, rel=0.03)


def test_a_search_that_was_interrupted_goes_on_with_what_it_has():
    store = {}
    with pytest.raises(KeyboardInterrupt):
        search(CANDIDATES, Compiler(store, interrupt_at=2), workers=1)
    assert len(store) == 2
    again, fresh = Compiler(store), Compiler()
    result = search(CANDIDATES, again, workers=1)
    whole = search(CANDIDATES, fresh, workers=1)
    assert len(again.calls) == len(fresh.calls) - 2
    assert result.best.candidate.label == whole.best.candidate.label


def test_the_budget_ends_a_search_and_its_compiles():
    ended = []

    def slow(config, told):
        try:
            while True:
                time.sleep(0.05)
                told("compiling", 0.0)
        finally:
            ended.append(config)

    start = time.monotonic()
    result = search(CANDIDATES, slow, workers=2, budget_minutes=0.02)
    assert time.monotonic() - start < 10
    assert len(ended) == 2
    assert result.rows == [] and result.best is None
    assert "budget of 0.02 minutes" in result.ended


def test_nothing_is_begun_that_would_not_end_within_the_budget():
    compiler = Compiler()

    def slow(config, told):
        time.sleep(2.0)
        return compiler(config, told)

    result = search(CANDIDATES, slow, workers=1, budget_minutes=0.06)
    assert len(result.rows) == 1 and result.seconds < 3.6
    assert "would be by another compile" in result.ended


def test_what_is_kept_from_an_earlier_search_is_begun_however_long_it_took_then():
    compiler = Compiler()

    def kept(config, told):
        return dataclasses.replace(compiler(config, told), compile_seconds=300.0)

    assert len(search(CANDIDATES, kept, workers=1, budget_minutes=2).rows) > 3


def test_a_layout_that_fails_is_told_and_another_wins():
    result = search(CANDIDATES, Compiler(fails=("fsdp 8",)), workers=1)
    failed = [row for row in result.rows if row.compiled is None]
    assert all(row.error == "the compiler failed" for row in failed)
    assert result.best is not None
    assert "fsdp 8" not in result.best.candidate.label


def test_a_layout_that_does_not_fit_after_all_does_not_win():
    sizes = sorted(c.analytic.memory.total for c in CANDIDATES.fitting)
    limit = sizes[len(sizes) // 3]
    result = search(CANDIDATES, Compiler(capacity=limit), workers=1)
    assert result.best is not None
    assert result.best.compiled.memory.total <= limit


def test_nothing_that_fits_is_an_error_that_says_how_much_is_missing():
    none = dataclasses.replace(CANDIDATES, fitting=[])
    with pytest.raises(ConfigError, match=r"the smallest .* needs about .* GiB"):
        search(none, Compiler())
    with pytest.raises(ConfigError, match="layouts divides"):
        search(dataclasses.replace(none, smallest=None, divided=0), Compiler())


def test_a_ratio_is_carried_to_the_same_mesh_first():
    first, second = CANDIDATES.fitting[0], next(
        c for c in CANDIDATES.fitting[1:] if c.analytic.mesh == CANDIDATES.fitting[0].analytic.mesh
    )  # fmt: skip
    other = next(c for c in CANDIDATES.fitting if c.analytic.mesh != first.analytic.mesh)
    corrections = Corrections()
    assert corrections.outlook(second).seconds == second.seconds
    plans = {1.5: first, 0.5: other}
    for factor, candidate in plans.items():
        total = candidate.analytic.time.total
        time = dataclasses.replace(
            candidate.analytic.time,
            blocking=candidate.analytic.time.blocking + (factor - 1) * total,
        )
        corrections.add(candidate, dataclasses.replace(candidate.analytic, time=time))
    outlook = corrections.outlook(second)
    assert outlook.seconds == pytest.approx(1.5 * second.seconds)
    assert outlook.bound < outlook.seconds


def test_memory_is_expected_of_what_was_seen_of_the_same_mesh():
    first = CANDIDATES.fitting[0]
    memory = first.analytic.memory
    corrections = Corrections()
    assert corrections.outlook(first).bytes == pytest.approx(0.9 * memory.total)
    larger = dataclasses.replace(memory, temporaries=memory.temporaries + 0.3 * memory.total)
    corrections.add(first, dataclasses.replace(first.analytic, memory=larger))
    ratio = larger.total / memory.total
    assert ratio > 1.2
    assert corrections.outlook(first).bytes == pytest.approx(0.98 * ratio * memory.total)


def test_the_winning_config_loads_as_what_was_measured(tmp_path):
    result = search(CANDIDATES, Compiler(), workers=1)
    path = tmp_path / "winner.yaml"
    path.write_text(winning_yaml(result, ["hardware/v5e"], OVERRIDES, command="maxlm plan x"))
    assert load_config(str(path)) == result.best.candidate.config
    text = path.read_text()
    assert "jax 0.0.1" in text
    assert f"of {len(CANDIDATES.fitting)} ranked" in text


def test_the_table_marks_the_best_and_says_how_far_arithmetic_was():
    result = search(CANDIDATES, Compiler(fails=("fsdp 8",)), workers=1)
    lines = search_table(result).splitlines()
    assert lines[1].startswith("→")
    assert result.best.candidate.label in lines[1]
    assert any(line.startswith("compiled ÷ arithmetic: step time 1.") for line in lines)
    assert len(lines) == 1 + len(result.rows) + 3  # the layout as given, fsdp 8, failed


def test_the_best_is_held_against_the_layout_as_given():
    result = search(CANDIDATES, Compiler(), workers=1)
    (given,) = [row for row in result.rows if row.candidate.is_given]
    share = f"{result.best.seconds / given.seconds:.1%}"
    assert search_table(result).endswith(f"the best takes {share} of the given layout's")
    assert f"# A step of the best takes {share} of" in winning_yaml(result, ["x"], [])
    alone = dataclasses.replace(result, rows=[given])
    assert "the layout as given is the best" in search_table(alone)


def test_progress_tells_what_is_done_and_what_is_left():
    told = []
    search(CANDIDATES, Compiler(), workers=1, progress=told.append)
    assert told[-1].left == 0
    assert [status.compiled for status in told] == sorted(status.compiled for status in told)
    assert "best 0.0" in status_line(told[-1])


def test_of_equal_steps_the_one_that_sends_least_is_best():
    fast, slow = (Compiler().compiled(c) for c in CANDIDATES.fitting[:2])

    def row(plan, factor, sent):
        exposed = (
            plan.time.exposed + (factor - 1) * fast.time.total + fast.time.total - plan.time.total
        )
        time = dataclasses.replace(plan.time, exposed=exposed)
        collectives = [dataclasses.replace(MADE, wire_bytes=sent)]
        compiled = dataclasses.replace(plan, time=time, collectives=collectives)
        return Row(CANDIDATES.fitting[0], compiled)

    def best(*rows):
        return SearchResult(list(rows), CANDIDATES, Corrections(), "", 0.0).best

    first, frugal, late = row(fast, 1.0, 9e9), row(slow, 1.002, 4e9), row(slow, 1.02, 1e9)
    assert best(first, frugal, late) is frugal
    assert best(first, late) is first
    given = dataclasses.replace(first.candidate, is_given=True)
    as_it_is = dataclasses.replace(first, candidate=given)
    assert best(as_it_is, frugal, late) is as_it_is  # nobody changes a layout for nothing
