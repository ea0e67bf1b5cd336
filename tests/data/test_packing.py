"""Rows of both kinds: every target once, boundaries right, whole documents uncut, plans kept."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_memory import assert_equal, documents_of, expected_row

from maxlm.data.packing import WholeRows, load_or_plan, plan_whole_documents
from maxlm.data.rows import assemble
from maxlm.data.windows import CutRows, eval_batches, num_eval_batches
from maxlm.errors import DataError

document_lengths = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(
    lambda lengths: max(lengths) > 1
)


def spans_by_row(spans, num_rows: int) -> list[list[tuple[int, int]]]:
    rows: list[list[tuple[int, int]]] = [[] for _ in range(num_rows)]
    for row, start, count in zip(spans.rows, spans.starts, spans.lengths, strict=True):
        rows[row].append((int(start), int(count)))
    return rows


@settings(derandomize=True, max_examples=120, deadline=None)
@given(lengths=document_lengths, length=st.integers(1, 24), whole=st.booleans(), data=st.data())
def test_rows_hold_what_their_spans_say_token_by_token(lengths, length, whole, data) -> None:
    split = documents_of(lengths, first=100)
    source = (
        WholeRows(plan_whole_documents(split.document_starts, length))
        if whole
        else CutRows(split, length)
    )
    some = data.draw(st.lists(st.integers(0, source.num_rows - 1), min_size=1, max_size=8))
    spans = source.spans(np.array(some))
    batch = assemble(split, spans, len(some), length)
    for number, pieces in enumerate(spans_by_row(spans, len(some))):
        for array, expected in zip(batch, expected_row(split, pieces, length), strict=True):
            assert array.shape == (len(some), length)
            assert array[number].tolist() == expected


@settings(derandomize=True, max_examples=60, deadline=None)
@given(lengths=document_lengths, length=st.integers(1, 24))
def test_cut_windows_predict_every_token_but_the_first_once(lengths, length) -> None:
    split = documents_of(lengths)
    rows = CutRows(split, length)
    batch = assemble(split, rows.spans(np.arange(rows.num_rows)), rows.num_rows, length)
    targets = batch.targets[batch.segment_ids > 0]
    assert targets.tolist() == list(range(1, split.num_tokens))
    weighted = set(batch.targets[batch.loss_weights > 0].tolist())
    assert weighted == set(range(1, split.num_tokens)) - set(split.document_starts.tolist())


@settings(derandomize=True, max_examples=60, deadline=None)
@given(lengths=document_lengths, length=st.integers(1, 24))
def test_whole_plans_hold_every_document_once_and_cut_only_longer_ones(lengths, length) -> None:
    split = documents_of(lengths)
    plan = plan_whole_documents(split.document_starts, length)
    rows = WholeRows(plan)
    spans = rows.spans(np.arange(rows.num_rows))
    batch = assemble(split, spans, rows.num_rows, length)
    expected = [
        token
        for start, stop in zip(split.document_starts, split.document_starts[1:], strict=False)
        for token in range(start + 1, stop)
    ]
    assert sorted(batch.targets[batch.segment_ids > 0].tolist()) == expected
    assert (batch.loss_weights == (batch.segment_ids > 0)).all()
    ends = spans.starts + spans.lengths + 1
    document = np.searchsorted(split.document_starts, spans.starts, side="right") - 1
    begins, stops = split.document_starts[document], split.document_starts[document + 1]
    cut = (spans.starts > begins) | (ends < stops)
    assert (stops - begins - 1)[cut].min(initial=length + 1) > length
    assert plan.num_skipped == sum(n < 2 for n in lengths)


def best_fit_decreasing_one_by_one(sizes: list[int], capacity: int) -> int:
    bins: list[int] = []
    for size in sorted(sizes, reverse=True):
        fitting = [number for number, space in enumerate(bins) if space >= size]
        if fitting:
            bins[min(fitting, key=lambda number: bins[number])] -= size
        else:
            bins.append(capacity - size)
    return len(bins)


@settings(derandomize=True, max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=80), capacity=st.integers(1, 30))
def test_packing_by_size_fills_as_well_as_best_fit_one_by_one(sizes, capacity) -> None:
    plan = plan_whole_documents(np.cumsum([0] + [size + 1 for size in sizes]), capacity)
    pieces = [min(capacity, size - at) for size in sizes for at in range(0, size, capacity)]
    assert plan.num_rows == best_fit_decreasing_one_by_one(pieces, capacity)
    assert plan.fill == pytest.approx(sum(sizes) / (plan.num_rows * capacity))


def test_documents_without_a_target_make_no_plan() -> None:
    with pytest.raises(DataError, match="none of the 3 documents has two tokens"):
        plan_whole_documents(np.array([0, 1, 2, 2]), 8)


def test_a_plan_is_kept_beside_the_store_and_made_again_when_damaged(tmp_path, caplog) -> None:
    split = documents_of([5, 9, 3, 30, 7])
    names = {"store": str(tmp_path), "store_hash": "abc", "split": "train"}
    plan = load_or_plan(split, 16, **names)
    (file,) = (tmp_path / "plans").iterdir()

    elsewhere = documents_of([2])  # a kept plan is read, not made: the documents are not looked at
    assert load_or_plan(elsewhere, 16, **names).hash == plan.hash
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    assert load_or_plan(split, 16, **names).hash == plan.hash
    assert "is damaged" in caplog.text
    file.write_bytes(content[:100])
    assert load_or_plan(split, 16, **names).hash == plan.hash

    load_or_plan(split, 8, **names)
    load_or_plan(split, 16, **{**names, "store_hash": "def"})
    assert len(list((tmp_path / "plans").iterdir())) == 3


def test_a_store_that_cannot_be_written_to_still_gives_a_plan(tmp_path, caplog) -> None:
    (tmp_path / "plans").write_text("a file where the folder should be")
    plan = load_or_plan(documents_of([5, 9]), 8, store=str(tmp_path), store_hash="", split="x")
    assert plan.num_rows == 2
    assert "not kept" in caplog.text


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    lengths=document_lengths,
    length=st.integers(1, 24),
    batch_size=st.integers(1, 6),
    max_tokens=st.none() | st.integers(1, 300),
)
def test_evaluation_sees_every_target_once_in_order(lengths, length, batch_size, max_tokens):
    split = documents_of(lengths)
    batches = list(eval_batches(split, length, batch_size, max_tokens))
    assert len(batches) == num_eval_batches(split, length, batch_size, max_tokens)
    assert {array.shape for batch in batches for array in batch} == {(batch_size, length)}
    targets = np.concatenate([batch.targets[batch.segment_ids > 0] for batch in batches])
    last = min(split.num_tokens - 1, max_tokens or split.num_tokens)
    assert targets.tolist() == list(range(1, last + 1))
    for batch in batches:
        for array in batch:
            assert not array[batch.segment_ids == 0].any()


@pytest.mark.parametrize("rows", [slice(2, 5), np.array([5, 0, 3]), np.array([], np.int64)])
def test_evaluation_rows_are_those_of_the_global_batch(rows) -> None:
    split = documents_of([30, 45, 12])
    for mine, whole in zip(
        eval_batches(split, 8, 6, rows=rows), eval_batches(split, 8, 6), strict=True
    ):
        assert_equal(mine, type(whole)(*(array[rows] for array in whole)))


def test_a_split_without_a_target_cannot_be_cut() -> None:
    with pytest.raises(DataError, match="has 1 tokens"):
        CutRows(documents_of([1]), 8)


def test_rows_outside_the_batch_are_refused() -> None:
    with pytest.raises(DataError, match="rows 0 to 6 asked of a batch of 6 rows"):
        next(eval_batches(documents_of([30]), 8, 6, rows=np.array([0, 6])))
