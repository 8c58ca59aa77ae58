"""Ranked passages, a row for each question, to the tensors of a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tritonrag import contract
from tritonrag.backend.conversions import Array, response, tensor


def write_rows(rows: Sequence[tuple[Sequence[bytes], Array]]) -> Any:
    """Return the response for rows of passages and scores.

    Shorter rows are padded with ``""`` and a score of -inf.
    """
    width = max((len(found) for found, _ in rows), default=0)
    passages = np.full((len(rows), width), b"", dtype=np.object_)
    scores = np.full((len(rows), width), -np.inf, dtype=np.float32)
    for row, (found, their_scores) in enumerate(rows):
        passages[row, : len(found)] = found
        scores[row, : len(found)] = their_scores
    return response(tensor(contract.PASSAGES, passages), tensor(contract.SCORES, scores))
