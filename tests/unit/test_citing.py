"""Claims and marks of an answer, as places in its text."""

from __future__ import annotations

import json
import time

import pytest

from tritonrag.graph.citing import Citations, spans
from tritonrag.quoting import quotes


def cited(text: str, quoted: bool = False) -> list[tuple[int, str, str]]:
    """Return mark, claim and marker of every span, in the order of the text."""
    found = [
        (span["mark_start"], mark, text[span["start"] : span["end"]],
         text[span["mark_start"] : span["mark_end"]])
        for mark, of_mark in spans(text, range(1, 13), quoted=quoted).items()
        for span in of_mark
    ]  # fmt: skip
    return [each[1:] for each in sorted(found)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("No mark at all.", []),
        ("25 days. [1]", [(1, "25 days.", "[1]")]),
        ("25 days [1]. Ask Anna [2].", [(1, "25 days", "[1]"), (2, "Ask Anna", "[2]")]),
        ("One. Two. [3] Three [3]", [(3, "Two.", "[3]"), (3, "Three", "[3]")]),
        ("Both. [1][2] [12]", [(n, "Both.", f"[{n}]") for n in (1, 2, 12)]),
        ("Both [1, 2, 2].", [(1, "Both", "[1, 2, 2]"), (2, "Both", "[1, 2, 2]")]),
        ("[1] says so. [2]", [(1, "", "[1]"), (2, "says so.", "[2]")]),
        ("So:\n- 25 days [1]\n- 3 more\n [2]", [(1, "25 days", "[1]"), (2, "3 more", "[2]")]),
        ("二十五天。[1] 请联系！[2]", [(1, "二十五天。", "[1]"), (2, "请联系！", "[2]")]),
        ("None of [99], [x], [٣] or (1). So [4]", [(4, "So", "[4]")]),
        ("Rose by 🙂 3.5 %, e.g. a lot [5]", [(5, "Rose by 🙂 3.5 %, e.g. a lot", "[5]")]),
    ],
)  # fmt: skip
def test_a_claim_is_the_sentence_before_its_mark(
    text: str, expected: list[tuple[int, str, str]]
) -> None:
    assert cited(text) == expected


def test_a_quote_is_a_claim_whatever_is_in_it() -> None:
    passages = [
        (1, "- **A list.** See [2] and [3, 1]; [2] x."),
        (2, "!Ask A. B. Smith (e.g. now)."),
    ]
    found = list(quotes(passages))

    assert cited(" ".join(found), quoted=True) == [
        (int(quote[-2]), quote[:-4], quote[-3:]) for quote in found
    ]
    assert {mark for mark, _, _ in cited(found[0], quoted=True)} == {1}


def test_citations_are_given_again_with_their_spans() -> None:
    given = [
        {"mark": 1, "text": 'é "a"', "page": 2},
        {"mark": None, "text": "far", "dropped": "context", "spans": "x"},
        {"mark": 2, "text": "b", "spans": [{"start": 1}]},
    ]
    citations = Citations.parse(json.dumps(given))
    located = json.loads(citations.located("Yes. [1]", quoted=True))

    assert citations.passages == ((1, 'é "a"'), (2, "b"))
    span = {"start": 0, "end": 4, "mark_start": 5, "mark_end": 8}
    assert located == [
        given[0] | {"spans": [span]}, given[1] | {"spans": []}, given[2] | {"spans": []},
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "[]"])
def test_no_citations_stay_none(text: str) -> None:
    assert Citations.parse(text).located("A [1].", quoted=False) == text


def test_large_citations_are_given_again_in_no_time() -> None:
    text = json.dumps([{"mark": n, "text": "a" * 60_000} for n in range(1, 101)])
    citations = Citations.parse(text)
    began = time.process_time()
    citations.located("So. [7]", quoted=True)

    assert time.process_time() - began < 0.1


def test_a_long_answer_is_looked_through_in_time() -> None:
    began = time.process_time()
    found = spans(("\u201c" * 20_000 + " [1]") * 3, [1])[1]

    assert len(found) == 3
    assert time.process_time() - began < 1


def test_every_mark_has_a_list() -> None:
    assert spans("A [1]", {1, 2})[2] == []
