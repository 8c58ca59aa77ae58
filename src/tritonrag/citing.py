"""Where an answer cites: the claims and their marks, as places in its text.

The server knows which text an LLM wrote and which numbers are marks, so that nobody after it has to
read marks out of a text. Knows neither Triton nor an engine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypedDict

from sentencex import segment

_MARKS = re.compile(r"\[(\d{1,4}(?:\s*,\s*\d{1,4})*)\]", re.ASCII)
"""A mark, or several in one pair of brackets, as some LLMs write them."""

_LEAD = re.compile(r"[\s.,;:!?)\]。，；：！？、*•-]*")
"""What stands between a mark and the next claim: the end of a sentence, the bullet of a list."""


CLAIM_CHARS = 2000
"""Longest text in which the beginning of a claim is looked for."""


class Span(TypedDict):
    """A claim and the mark behind it, in characters of the whole answer, ends exclusive."""

    start: int
    end: int
    mark_start: int
    mark_end: int


def spans(text: str, marks: Iterable[int], *, quoted: bool = False) -> dict[int, list[Span]]:
    """Return for each of ``marks`` the spans in which an answer cites it, in their order.

    In an answer that is ``quoted`` a claim is all that stands between two marks, in any other the
    last sentence there. Marks side by side have the same claim, and one that nothing stands before
    has an empty one.
    """
    found: dict[int, list[Span]] = {mark: [] for mark in marks}
    done, claim = 0, (0, 0)
    for match in _MARKS.finditer(text):
        cited = [number for number in map(int, match[1].split(",")) if number in found]
        if not cited:
            continue
        start, end = match.span()
        claim = _claim(text, done, start, quoted) or (claim if done else (start, start))
        done = end
        for number in dict.fromkeys(cited):
            found[number].append(Span(start=claim[0], end=claim[1], mark_start=start, mark_end=end))
    return found


def _claim(text: str, start: int, end: int, quoted: bool) -> tuple[int, int] | None:
    """Return where the claim in a part of the text lies; None where there is none."""
    part = text[start:end].rstrip()
    if not quoted:
        part = part[part.rfind("\n") + 1 :]
        part = part[-CLAIM_CHARS:]
        part = part[_end_of_lead(part) :]
        part = next(reversed(list(segment("en", part))), part)
    part = part.lstrip()
    stop = len(text[:end].rstrip())
    return (stop - len(part.rstrip()), stop) if part else None


def _end_of_lead(part: str) -> int:
    found = _LEAD.match(part)
    return found.end() if found else 0
