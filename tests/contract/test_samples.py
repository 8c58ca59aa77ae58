"""The sample questions are about the sample handbook, word for word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[2] / "samples"
ROWS = [
    json.loads(line)
    for line in (SAMPLES / "questions.jsonl").read_text(encoding="utf-8").splitlines()
]


@pytest.mark.parametrize("row", [row for row in ROWS if row["answer"]])
def test_the_answer_stands_on_its_page(row: dict[str, str]) -> None:
    assert row["answer"] in (SAMPLES / "handbook" / row["source"]).read_text(encoding="utf-8")


def test_some_questions_have_no_answer() -> None:
    assert len([row for row in ROWS if row["answer"] is None]) >= 3
