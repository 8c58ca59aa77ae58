"""What an answer may cite, and where it does: claims and their marks, as places in its text.

The server knows which text an LLM wrote and which numbers are marks, so that nobody after it has to
read marks out of a text. Knows neither Triton nor an engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

from sentencex import segment

from tritonrag.contract import MAX_CITATIONS_BYTES, MAX_TOP_K
from tritonrag.errors import InvalidRequest

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


@dataclass(frozen=True)
class Citations:
    """The citations of a prompt: ``text`` as they came, and ``passages`` by mark number."""

    text: str = ""
    passages: tuple[tuple[int, str], ...] = ()
    _items: tuple[tuple[int | None, str], ...] = ()
    """Mark and JSON of each."""

    @classmethod
    def parse(cls, text: str) -> Citations:
        """Read the JSON list that ``prompt`` writes; an empty text is none.

        Raises:
            InvalidRequest: it is too long, or not such a list.
        """
        size = len(text.encode())
        if size > MAX_CITATIONS_BYTES:
            raise InvalidRequest(
                f"citations: {size} bytes, at most {MAX_CITATIONS_BYTES}; send fewer"
            )
        try:
            listed = json.loads(text or "[]")
            if len(listed) > MAX_TOP_K:
                raise InvalidRequest(f"citations: {len(listed)}, at most {MAX_TOP_K}")
            marks = [_mark(each) for each in listed]
            found = [(mark, each["text"]) for mark, each in zip(marks, listed, strict=True) if mark]
            "".join(passage for _, passage in found)  # each is a text
            items = [_without_spans(each) for each in listed]
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            raise InvalidRequest(
                'citations: expected a JSON list of {"mark": number, "text": …} as `prompt` gives '
                "it"
            ) from error
        return cls(text, tuple(found), tuple(zip(marks, items, strict=True)))

    def located(self, answer: str, *, quoted: bool) -> str:
        """Return them as JSON, each with its ``spans`` in an answer; empty where there are none."""
        found = spans(answer, (mark for mark, _ in self._items if mark), quoted=quoted)
        items = (
            f'{item[:-1]}, "spans": {json.dumps(found[mark] if mark else [])}}}'
            for mark, item in self._items
        )
        return f"[{', '.join(items)}]" if self.text else ""


def _mark(citation: dict[str, Any]) -> int | None:
    mark = citation["mark"]
    if mark is None:
        return None
    if type(mark) is not int or mark < 1:  # True is an int too
        raise ValueError(f"mark {mark!r}")
    return mark


def _without_spans(citation: dict[str, Any]) -> str:
    own = {name: value for name, value in citation.items() if name != "spans"}
    item = json.dumps(own, ensure_ascii=False, allow_nan=False)
    item.encode()  # half of a surrogate pair is JSON, but no text
    return item


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
