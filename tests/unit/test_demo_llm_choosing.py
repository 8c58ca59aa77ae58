"""How an answer is chosen among the allowed quotes."""

from __future__ import annotations

import sys
from math import log
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "export" / "demo_llm"))

from choosing import greedy, path_scores  # noqa: E402

QUOTES = [[7, 1, 9], [7, 2, 9], [8, 3, 9]]


def test_greedy_follows_the_likelier_token_at_each_branch() -> None:
    logprobs = [[log(0.6), log(0.1), 0], [log(0.6), log(0.2), 0], [log(0.4), log(0.9), 0]]
    assert greedy(QUOTES, logprobs) == 1


def test_greedy_with_one_candidate_or_equal_ones() -> None:
    assert greedy([[1, 2]], [[-1.0, -1.0]]) == 0
    assert greedy([[1, 2], [1, 2]], [[-1.0, -1.0]] * 2) == 0


def test_path_scores_are_probabilities_of_the_allowed_answers() -> None:
    logprobs = [[log(0.3), log(0.1), -9], [log(0.3), log(0.3), -9], [log(0.1), -50.0, -9]]
    found = path_scores(QUOTES, logprobs)
    expected = [0.75 * 0.25, 0.75 * 0.75, 0.25]
    assert found == pytest.approx([log(value) for value in expected])


def test_a_long_forced_tail_costs_nothing() -> None:
    found = path_scores([[1, 2, 3, 4], [5]], [[log(0.5), -9.0, -9.0, -9.0], [log(0.5)]])
    assert found == pytest.approx([log(0.5), log(0.5)])
