"""Reading the training text: question rows and folders of Markdown or reStructuredText.

Knows neither torch nor a tokenizer.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tritonrag.quoting import MAX_QUOTES, sentences

WORK = Path(__file__).parent / "work"
"""Where prepared data, checkpoints and the log go."""

_SHARED_SENTENCE = 40
_MARKUP = re.compile(r"\[([^\]]*)\]\([^)]*\)|``?([^`]*)``?(?:_+)?|:[\w:]+:`([^`]*)`|[*_]{2}")
_HEADING = re.compile(r"#+\s+(.*)")
_NOT_PROSE = re.compile(r"\s|\.\. |[|+=<>:{}#~@$-]|```|\d+\.\s|\*\s|!\[|\[\w")
_PROSE_END = (".", "!", "?", ":", ".)", '."')


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON Lines file, gzipped or not."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write objects as JSON Lines."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def answering(passage: list[str], answer: str) -> list[int]:
    """Return the indices of the sentences of a passage that a span ``answer`` overlaps.

    Empty where the span is not in the passage.
    """
    text = " ".join(passage)
    start = text.find(answer)
    if not answer or start < 0:
        return []
    found, begin = [], 0
    for index, sentence in enumerate(passage):
        end = begin + len(sentence)
        if begin < start + len(answer) and start < end:
            found.append(index)
        begin = end + 1
    return found


def annotated(row: dict[str, Any]) -> dict[str, Any] | None:
    """Return a question row with its passage as sentences and the indices of those that answer."""
    passage = sentences(row["passage"])
    answer = " ".join(row["answer"].split())
    targets = answering(passage, answer)
    if not targets:
        return None
    return {
        "question": " ".join(row["question"].split()),
        "sentences": passage,
        "answer": answer,
        "targets": targets[:MAX_QUOTES],
        "source": row["source"],
    }


def documents(passages: list[list[str]]) -> list[int]:
    """Return a document number per passage: passages that share a long sentence belong together."""
    parent = list(range(len(passages)))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    first: dict[str, int] = {}
    for number, passage in enumerate(passages):
        for sentence in passage:
            if len(sentence) >= _SHARED_SENTENCE:
                parent[root(number)] = root(first.setdefault(sentence.lower(), number))
    return [root(number) for number in range(len(passages))]


def held_back(rows: list[dict[str, Any]], share: float) -> set[int]:
    """Return the row numbers held back: whole documents, ``share`` of the rows of each source."""
    members: dict[tuple[str, int], list[int]] = {}
    for number, document in enumerate(documents([row["sentences"] for row in rows])):
        members.setdefault((rows[number]["source"], document), []).append(number)
    chosen: set[int] = set()
    for source in {row["source"] for row in rows}:
        wanted = share * sum(row["source"] == source for row in rows)
        groups = [group for (of, _), group in members.items() if of == source]
        taken = 0
        for group in sorted(groups, key=lambda group: _digest(rows[group[0]])):
            if taken + len(group) <= wanted:
                chosen.update(group)
                taken += len(group)
    return chosen


def _digest(row: dict[str, Any]) -> str:
    return hashlib.sha256(" ".join(row["sentences"]).encode()).hexdigest()


def archive_texts(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of the Markdown and reStructuredText files in a folder's archives."""
    for archive in sorted(folder.glob("*.tar.gz")):
        with tarfile.open(archive) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name.endswith((".md", ".rst")) else None
                if file:
                    yield member.name, file.read().decode("utf-8", "replace")


def prose(text: str) -> Iterator[tuple[str, str]]:
    """Yield (heading, paragraph) of a marked-up text: prose alone, inline markup taken off."""
    heading, fenced = "", False
    for block in re.split(r"\n\s*\n", text):
        fences = block.count("```")
        if fences or fenced:
            fenced ^= bool(fences % 2)
            continue
        if found := _HEADING.match(block):
            heading = plain(found[1])
            continue
        lines = block.strip("\n").split("\n")
        if len(lines) >= 2 and re.fullmatch(r"([=\-~'^\"*#])\1{2,}", lines[1].strip()):
            heading, lines = plain(lines[0]), lines[2:]
        paragraph = " ".join(lines)
        if lines and not _NOT_PROSE.match(lines[0]) and paragraph.rstrip().endswith(_PROSE_END):
            yield heading, plain(paragraph)


def plain(text: str) -> str:
    """Return text without inline markup, white space collapsed."""
    return " ".join(_MARKUP.sub(lambda m: m[1] or m[2] or m[3] or "", text).split())


def chunks(
    paragraphs: Iterable[tuple[str, str]], max_chars: int
) -> Iterator[tuple[str, list[str]]]:
    """Yield (heading, sentences) passages of at most about ``max_chars``, within one heading."""
    current: list[str] = []
    under = ""
    for heading, paragraph in paragraphs:
        for sentence in sentences(paragraph):
            if heading != under or sum(map(len, current)) + len(sentence) > max_chars:
                if len(current) > 1:
                    yield under, current
                current, under = [], heading
            current.append(sentence)
    if len(current) > 1:
        yield under, current
