"""The figures of the demo LLM's evaluation, and its baseline by word overlap."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "export" / "demo_llm"))

from scoring import cites, contains, exact, following, scores  # noqa: E402

ROW = {
    "question": "How often are laptops replaced?",
    "passages": ["Ask the desk. Desks are tall.", "Laptops are replaced every 4 years. Return it."],
    "answer": "every 4 years",
}
RIGHT = ["Laptops are replaced every 4 years. [2]"]
NONE = {**ROW, "answer": None}


def test_containment_forgives_case_and_punctuation_alone() -> None:
    assert contains({**ROW, "answer": "Every 4 years."}, RIGHT)
    assert not contains({**ROW, "answer": "every 4 year"}, RIGHT)


def test_containment_of_a_span_over_two_quotes() -> None:
    row = {**ROW, "answer": "4 years. Return it."}
    assert contains(row, ["Laptops are replaced every 4 years. [2]", "Return it. [2]"])
    assert exact(row, ["Laptops are replaced every 4 years. [2]", "Return it. [2]"])
    assert not exact(row, RIGHT)


def test_a_citation_must_hold_the_span() -> None:
    assert cites(ROW, RIGHT)
    assert not cites(ROW, ["Ask the desk. [1]"])
    assert not cites(ROW, [])


def test_refusals_are_scored_over_all_rows() -> None:
    found = scores([ROW, ROW, NONE, NONE], [RIGHT, [], [], RIGHT])
    assert found["containment"] == 0.5
    assert found["citation"] == 1.0
    assert found["citation_all"] == 0.5
    assert (found["refusal_precision"], found["refusal_recall"]) == (0.5, 0.5)
    assert found["refusal_f1"] == pytest.approx(0.5)


def test_rows_without_answers_alone_have_no_figures() -> None:
    assert scores([NONE], [[]]) == {}


def test_a_baseline_quotes_its_best_sentence() -> None:
    assert following(ROW, lambda _, found: len(found) - 2, 1) == RIGHT


def test_a_longer_baseline_quotes_what_follows_in_the_passage() -> None:
    def desk(_: str, found: list[str]) -> int:
        return found.index("Ask the desk.")

    assert following(ROW, desk, 3) == ["Ask the desk. [1]", "Desks are tall. [1]"]
