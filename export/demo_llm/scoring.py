"""What an answer is worth, and baselines that need no model. Pure: knows neither torch nor a file.

An answer is a list of quotes, ``sentence [n]``; the refusal is an empty list.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tritonrag.overlap import words
from tritonrag.quoting import mark, quotes, sentences

_MARK = re.compile(r" \[(\d+)\]$")
Row = dict[str, Any]
Quotes = list[str]


def scores(rows: list[Row], answers: Sequence[Quotes]) -> dict[str, float]:
    """Return the figures of one way of answering; empty where no row has an answer."""
    pairs = list(zip(rows, answers, strict=True))
    answerable = [(row, answer) for row, answer in pairs if row["answer"] is not None]
    if not answerable:
        return {}
    given = [(row, answer) for row, answer in answerable if answer]
    refused = sum(not answer for _, answer in pairs)
    rightly = sum(not answer for row, answer in pairs if row["answer"] is None)
    unanswerable = len(pairs) - len(answerable)
    return {
        "containment": share(contains(row, answer) for row, answer in answerable),
        "exact": share(exact(row, answer) for row, answer in answerable),
        "citation": share(cites(row, answer) for row, answer in given),
        "citation_all": share(cites(row, answer) for row, answer in answerable),
        "refusal_precision": round(rightly / refused, 4) if refused else 0.0,
        "refusal_recall": round(rightly / unanswerable, 4) if unanswerable else 0.0,
        "refusal_f1": round(2 * rightly / (refused + unanswerable), 4) if unanswerable else 0.0,
        "sentences": round(sum(len(answer) for _, answer in given) / max(1, len(given)), 3),
    }


def contains(row: Row, answer: Quotes) -> bool:
    """Return whether the answer holds the whole gold span, but for case and punctuation."""
    said = " ".join(_MARK.sub("", quote) for quote in answer)
    return f" {_plain(row['answer'])} " in f" {_plain(said)} "


def exact(row: Row, answer: Quotes) -> bool:
    """Return whether the answer is just the sentences that the gold span touches."""
    gold = " ".join(row["answer"].split())
    said = [_MARK.sub("", quote) for quote in answer]
    for passage in row["passages"]:
        found = sentences(passage)
        start = " ".join(found).find(gold)
        if start >= 0:
            return said == touched(found, start, start + len(gold))
    return False


def touched(found: list[str], start: int, end: int) -> list[str]:
    """Return the sentences between two places of the sentences joined by spaces."""
    kept, begin = [], 0
    for sentence in found:
        if begin < end and start < begin + len(sentence):
            kept.append(sentence)
        begin += len(sentence) + 1
    return kept


def cites(row: Row, answer: Quotes) -> bool:
    """Return whether the first mark is of a passage that holds the gold span."""
    gold = " ".join(row["answer"].split())
    holding = {
        mark(number)
        for number, text in enumerate(row["passages"], 1)
        if gold in " ".join(sentences(text)) or gold in " ".join(text.split())
    }
    return bool(answer) and answer[0].rpartition(" ")[2] in holding


def share(values: Iterable[bool]) -> float:
    """Return the share of true values."""
    found = list(values)
    return round(sum(found) / len(found), 4) if found else 0.0


def following(row: Row, best: Callable[[str, list[str]], int], most: int) -> Quotes:
    """Return the quote that a baseline picks and those after it in its passage, ``most`` in all."""
    allowed = list(quotes(enumerate(row["passages"], 1)))
    first = best(row["question"], [_MARK.sub("", quote) for quote in allowed])
    cited = allowed[first].rpartition(" ")[2]
    found = allowed[first : first + most]
    return [quote for quote in found if quote.rpartition(" ")[2] == cited]


def _plain(text: str) -> str:
    return " ".join(words(text.lower()))
