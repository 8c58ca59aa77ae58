"""The threat model names tests that exist, and every file of attacks stands in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = [
    line for line in (ROOT / "docs/threat-model.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("|")
]  # fmt: skip
TESTS = sorted(set(re.findall(r"\(\.\./(tests/[^)]+)\)", "\n".join(TABLE))))


@pytest.mark.parametrize("path", TESTS)
def test_a_test_that_holds_a_line_exists(path: str) -> None:
    assert (ROOT / path).is_file()


def test_every_line_is_held_by_a_test_or_said_to_be_the_operators_task() -> None:
    head, _, *lines = (row[1:-1].split("|") for row in TABLE)
    assert head[-1].strip() == "held by"
    for line in lines:
        assert len(line) == len(head), line
        assert "../tests/" in line[-1] or line[-1].strip().startswith("your task: "), line


def test_every_file_of_attacks_holds_a_line() -> None:
    attacks = {f"tests/server/{path.name}" for path in (ROOT / "tests/server").glob("*_attacks_*")}
    assert attacks <= set(TESTS)
