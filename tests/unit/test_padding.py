"""A padded batch in runs of like length: the same results, less work."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonrag.padding import (
    FEW_TOKENS,
    LENGTH_STEP,
    RUN_COST,
    RUN_TOKENS,
    Array,
    Cut,
    lengths,
    pieces,
    run_by_length,
    split,
)

MASK = "attention_mask"


def padded(rows: list[int], width: int) -> dict[str, Array]:
    """Return inputs with rows of these lengths; the ids are never 0, not even in the padding."""
    mask = (np.arange(width) < np.array(rows)[:, None]).astype(np.int64)
    ids = np.arange(1, mask.size + 1, dtype=np.int64).reshape(mask.shape)
    return {"input_ids": ids, MASK: mask}


class Encoder:
    """Sums up each row's ids without its padding, and keeps the shapes that it was given."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, inputs: dict[str, Array]) -> list[Array]:
        self.shapes.append(inputs["input_ids"].shape)
        assert inputs[MASK].shape == inputs["input_ids"].shape
        assert all(each.flags.c_contiguous for each in inputs.values())
        summed = (inputs["input_ids"] * inputs[MASK]).sum(axis=1, keepdims=True)
        return [summed, summed * np.array([[1.0, 2.0]])]


@given(st.lists(st.integers(1, 96), min_size=1, max_size=80), st.integers(0, 40))
def test_the_results_are_those_of_the_whole_batch_in_its_order(rows: list[int], more: int) -> None:
    inputs = padded(rows, max(rows) + more)
    whole = Encoder()(inputs)

    found = run_by_length(Encoder(), inputs, MASK)

    assert len(found) == len(whole)
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one, other)


@given(st.lists(st.integers(1, 96), min_size=1, max_size=80), st.integers(1, 5))
def test_runs_that_go_on_at_once_give_the_same_results(rows: list[int], threads: int) -> None:
    inputs = padded(rows, max(rows))
    together: list[int] = []

    def at_once(feeds: list[dict[str, Array]]) -> list[list[Array]]:
        together.append(len(feeds))
        return [Encoder()(feed) for feed in feeds]

    found = run_by_length(Encoder(), inputs, MASK, Cut(at_once=threads), at_once)

    for one, other in zip(found, Encoder()(inputs), strict=True):
        np.testing.assert_array_equal(one, other)
    count = len(pieces(np.array(rows), max(rows), Cut(at_once=threads)))
    assert together == ([count] if count > 1 else [])


@given(st.lists(st.integers(1, 512), min_size=1, max_size=80), st.integers(1, 5))
def test_a_batch_is_cut_for_all_threads_into_runs_that_fit_the_caches(
    rows: list[int], threads: int
) -> None:
    runs = pieces(np.array(rows), 512, Cut(at_once=threads))
    tokens = [len(numbers) * length for numbers, length in runs]

    assert sorted(np.concatenate([numbers for numbers, _ in runs]).tolist()) == [*range(len(rows))]
    assert all(len(numbers) == 1 or used <= 2 * RUN_TOKENS
               for (numbers, _), used in zip(runs, tokens, strict=True))  # fmt: skip
    assert tokens == sorted(tokens, reverse=True)
    assert len(runs) >= min(2, threads, len(rows))


def test_a_few_short_rows_are_not_cut_into_more_than_there_are_threads() -> None:
    assert len(pieces(np.array([16] * 8), 16, Cut(at_once=2))) == 2
    assert FEW_TOKENS >= 8 * 16


@given(st.lists(st.integers(1, 96), min_size=1, max_size=80), st.integers(0, 40))
def test_runs_hold_every_row_once_and_whole_and_cost_no_more_than_one(
    rows: list[int], more: int
) -> None:
    width = max(rows) + more
    runs = split(np.array(rows), width)

    assert sorted(np.concatenate([numbers for numbers, _ in runs]).tolist()) == [*range(len(rows))]
    for numbers, length in runs:
        assert max(rows[number] for number in numbers) <= length <= width
    assert all(one > other for (_, one), (_, other) in pairwise(runs))
    spent = sum(len(numbers) * length + RUN_COST for numbers, length in runs)
    assert spent <= len(rows) * width + RUN_COST


@pytest.mark.parametrize(
    ("rows", "width", "shapes"),
    [
        ([5], 64, [(1, 8)]),
        ([64, 64], 64, [(2, 64)]),
        ([30], 30, [(1, 30)]),  # wider than what was given there is nothing
        ([5, 60, 6, 8], 64, [(1, 64), (3, 8)]),
        ([16, 17], 32, [(2, 24)]),  # one more run would cost as much as it saves
    ],
)
def test_rows_of_like_length_share_a_run(
    rows: list[int], width: int, shapes: list[tuple[int, int]]
) -> None:
    encoder = Encoder()

    run_by_length(encoder, padded(rows, width), MASK)

    assert encoder.shapes == shapes


def test_padding_that_comes_first_is_left_where_it_is() -> None:
    mask = np.array([[0, 0, 1], [0, 1, 1], [0, 0, 0]])

    assert lengths(mask).tolist() == [3, 3, 1]
    assert LENGTH_STEP > 1
