"""A padded batch in runs of like length, so that little of a graph's work is padding.

Triton joins requests of equal shape only, so that `tokenize` pads short and long texts to one
length. A mask says what is padding, and an encoder's result does not depend on it: rows may
be run in any company, cut to the longest of their own run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
Run = Callable[[dict[str, Array]], Sequence[Array]]
"""Inputs by name, ``[batch, …]``, to outputs, ``[batch, …]`` too."""

AtOnce = Callable[[list[dict[str, Array]]], Iterable[Sequence[Array]]]
"""The inputs of several runs to the outputs of each, in their order."""

LENGTH_STEP = 8
"""Lengths of runs are rounded up to this: kernels and memory plans are kept for each shape."""

RUN_COST = 8
"""What a run costs by itself on a CPU, in tokens: weights are read and threads woken once more."""

RUN_TOKENS = 512
"""Most tokens of a run on a CPU: more do not fit its caches, and take memory for good."""

FEW_TOKENS = 128
"""Fewer are not worth a run of their own where there are others for each thread."""

PARTS = 3
"""Runs for each thread: with more of them all threads end nearly at the same time."""


@dataclass(frozen=True)
class Cut:
    """How a batch is cut into runs: what one costs by itself and holds at most, in tokens.

    ``at_once`` is how many runs can go on at a time; rows of like length are cut for as many.
    """

    run_cost: int = RUN_COST
    run_tokens: int = RUN_TOKENS
    at_once: int = 1


ONE_BY_ONE = Cut()


def run_by_length(
    run: Run,
    inputs: Mapping[str, Array],
    mask: str,
    cut: Cut = ONE_BY_ONE,
    at_once: AtOnce | None = None,
) -> list[Array]:
    """Return the outputs of ``run`` for a padded batch, rows in their order.

    Args:
        run: called once for each run of rows; no output has an axis of the length.
        inputs: all ``[batch, length]``; padding comes last in each row.
        mask: the name of the input that is 0 where there is padding.
        cut: how to cut the batch.
        at_once: makes several runs at a time; without it, ``run`` makes one after another.
    """
    runs = pieces(lengths(inputs[mask]), inputs[mask].shape[1], cut)
    feeds = [
        {name: np.ascontiguousarray(each[rows, :width]) for name, each in inputs.items()}
        for rows, width in runs
    ]
    found = list(at_once(feeds)) if at_once and len(feeds) > 1 else [run(feed) for feed in feeds]
    back = np.argsort(np.concatenate([rows for rows, _ in runs]))
    return [np.concatenate(parts)[back] for parts in zip(*found, strict=True)]


def pieces(of: npt.NDArray[np.int64], width: int, cut: Cut) -> list[tuple[Rows, int]]:
    """Split rows of these lengths as :func:`split` does, and cut runs that are too long.

    The longest comes first, so that those which go on at once end together.
    """
    runs = split(of, width, cut.run_cost)
    share = -(-sum(len(rows) * size for rows, size in runs) // cut.at_once)
    most = min(cut.run_tokens, max(share // PARTS, min(share, FEW_TOKENS)))
    parts = [
        (part, size)
        for rows, size in runs
        for part in np.array_split(rows, min(len(rows), -(-len(rows) * size // most)))
    ]
    return sorted(parts, key=lambda part: -len(part[0]) * part[1])


def lengths(mask: Array) -> npt.NDArray[np.int64]:
    """Return how long each row is up to its last token, at least 1; ``mask`` is [batch, length]."""
    width = mask.shape[1]
    last = np.argmax(mask[:, ::-1] != 0, axis=1)
    return np.where(mask.any(axis=1), width - last, 1).astype(np.int64)


def split(
    of: npt.NDArray[np.int64], width: int, run_cost: int = RUN_COST
) -> list[tuple[Rows, int]]:
    """Split rows of these lengths into runs; return each run's rows and the length to cut it to.

    The runs cost least in all, where one costs its rows times its length, and ``run_cost`` more.
    """
    rounded = np.minimum(-(-of // LENGTH_STEP) * LENGTH_STEP, width)
    sizes, counts = np.unique(rounded, return_counts=True)
    ends = np.concatenate([[0], np.cumsum(counts)])
    # costs[n] is that of the rows of the n shortest lengths; the last run among them begins there.
    costs, begins = [0], [0]
    for last, size in enumerate(sizes.tolist(), start=1):
        choices = [
            costs[first] + int(ends[last] - ends[first]) * size + run_cost for first in range(last)
        ]
        best = min(range(last), key=choices.__getitem__)
        costs.append(choices[best])
        begins.append(best)
    order = np.argsort(rounded, kind="stable")
    runs, last = [], len(sizes)
    while last:
        first = begins[last]
        runs.append((order[ends[first] : ends[last]], int(sizes[last - 1])))
        last = first
    return runs
