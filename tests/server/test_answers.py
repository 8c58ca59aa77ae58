"""The demo LLM through the whole graph: the questions of samples/ over the sample handbook."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from statistics import median

import pytest
from servers import ROOT, Served

from tritonrag.client import Answer, Client
from tritonrag.quoting import REFUSAL

QUESTIONS = [
    json.loads(line)
    for line in (ROOT / "samples" / "questions.jsonl").read_text(encoding="utf-8").splitlines()
]


@dataclass(frozen=True)
class Asked:
    row: dict[str, str | None]
    answer: Answer
    first_s: float
    total_s: float


@pytest.fixture(scope="module")
def asked(served: Served) -> list[Asked]:
    found = []
    with Client(served.grpc, timeout=60) as client:
        client.ask("Is anybody there?").read()
        for row in QUESTIONS:
            began = time.perf_counter()
            stream = client.ask(row["question"])
            next(stream)
            first = time.perf_counter() - began
            found.append(Asked(row, stream.read(), first, time.perf_counter() - began))
    return found


def test_most_questions_are_answered_from_the_right_page(asked: list[Asked]) -> None:
    answerable = [each for each in asked if each.row["answer"]]
    right = [each for each in answerable if str(each.row["answer"]) in each.answer.text]
    wrong = {each.row["question"]: each.answer.text for each in answerable if each not in right}
    assert len(right) >= 9, wrong
    for each in right:
        assert each.row["source"] in {citation.source for citation in each.answer.cited}


def test_what_is_not_in_the_handbook_is_mostly_refused(asked: list[Asked]) -> None:
    unanswerable = [each for each in asked if not each.row["answer"]]
    assert sum(each.answer.text == REFUSAL for each in unanswerable) >= 2


def test_answers_come_quickly(asked: list[Asked]) -> None:
    assert median(each.first_s for each in asked) < 0.15
    assert median(each.total_s for each in asked) < 0.7
