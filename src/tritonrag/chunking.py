"""Documents to passages: by heading first, then whole sentences up to a budget of tokens.

The heading path is embedded together with the text and counts in the budget. The same file and
settings always give the same passages and ids. Knows neither files nor vectors.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from sentencex import segment
from tokenizers import Tokenizer

from tritonrag.artifacts import EmbedderManifest, embedder_dir
from tritonrag.documents import PARSER_VERSION, Document
from tritonrag.errors import InvalidRequest
from tritonrag.formats.outline import Block

MIN_CHUNK_TOKENS, MAX_CHUNK_TOKENS = 16, 4096
DEFAULT_CHUNK_TOKENS, DEFAULT_CHUNK_OVERLAP = 128, 24

MAX_CHARS_PER_TOKEN = 10
"""A text counts at least its length over this: some tokenizers make one token of any long word."""

HEADING_SEPARATOR = " > "

_LINEWISE = ("code", "table")
_LINE = re.compile(r"[^\n]*\S[^\n]*")


@dataclass(frozen=True)
class ChunkSettings:
    """Tokens of a chunk with its heading path, and how many of them the next one repeats."""

    tokens: int = DEFAULT_CHUNK_TOKENS
    overlap: int = DEFAULT_CHUNK_OVERLAP

    @property
    def recipe(self) -> str:
        """All that decides how a file is cut, for comparison with how it was cut earlier."""
        return f"parser {PARSER_VERSION}, chunks of {self.tokens} tokens, {self.overlap} overlap"

    def check(self, max_tokens: int) -> None:
        """Check the settings against the longest text the embedder takes, in tokens.

        Raises:
            InvalidRequest: a value is out of its range.
        """
        most = min(max_tokens, MAX_CHUNK_TOKENS)
        if not MIN_CHUNK_TOKENS <= self.tokens <= most:
            raise InvalidRequest(
                f"--chunk-tokens: {self.tokens} is not in {MIN_CHUNK_TOKENS} to {most}, "
                f"the embedder's limit being {max_tokens}"
            )
        if not 0 <= self.overlap <= self.tokens // 2:
            raise InvalidRequest(
                f"--chunk-overlap: {self.overlap} is not in 0 to {self.tokens // 2}, "
                "half of --chunk-tokens"
            )


@dataclass(frozen=True)
class Passage:
    """A chunk as it is stored and cited; ``start`` and ``end`` are characters of the file."""

    id: str
    text: str
    source: str
    title: str
    heading_path: tuple[str, ...]
    start: int
    end: int

    @property
    def location(self) -> str:
        """The title and the headings above the passage: ``Title > Heading > Sub-heading``."""
        return HEADING_SEPARATOR.join((self.title, *self.heading_path))

    def to_json(self) -> bytes:
        """Return one line of ``passages.jsonl`` without its newline."""
        values = {
            "id": self.id,
            "text": self.text,
            "source": self.source,
            "title": self.title,
            "location": self.location,
            "heading_path": self.heading_path,
            "start": self.start,
            "end": self.end,
        }
        return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, line: bytes) -> Passage:
        """Read what :meth:`to_json` wrote."""
        values: dict[str, Any] = json.loads(line)
        del values["location"]
        return cls(**{**values, "heading_path": tuple(values["heading_path"])})


@dataclass(frozen=True)
class _Unit:
    """A sentence, or a line of code or of a table: what a chunk is made of.

    It is ``block.text[start:end]``, with the block's marker where it begins one. ``before`` is the
    white space between it and the unit before, and counts in ``tokens``.
    """

    block: Block
    before: str
    marker: str
    start: int
    end: int
    tokens: int = 0

    @property
    def text(self) -> str:
        return self.marker + self.block.text[self.start : self.end]

    def source_range(self, source: str) -> tuple[int, int]:
        start, end = self.block.source_range(source, self.start, self.end)
        return (start - len(self.marker) if source.endswith(self.marker, 0, start) else start), end


class Chunker:
    """Cuts documents for one embedder. Not thread-safe, as its tokenizer is not."""

    def __init__(
        self, tokenizer: Tokenizer, settings: ChunkSettings, max_tokens: int, prefix: str = ""
    ) -> None:
        """Take the embedder's tokenizer, limit of tokens, and prefix of a passage.

        Raises:
            InvalidRequest: the settings do not suit the embedder.
        """
        settings.check(max_tokens)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.settings = settings
        self._tokenizer = tokenizer
        self._headings: dict[str, str] = {}
        self._budget = settings.tokens - tokenizer.num_special_tokens_to_add(is_pair=False)
        self._budget -= self._count([prefix])[0]
        if self._budget < MIN_CHUNK_TOKENS // 2:
            raise InvalidRequest(
                f"--chunk-tokens: {settings.tokens} leave no room beside the embedder's prefix "
                f"{prefix[:80]!r}; allow more"
            )

    @classmethod
    def of(cls, repository: Path, settings: ChunkSettings, version: int) -> Chunker:
        """Return the chunker for a version of the embedder in a model repository.

        Raises:
            SetupError: it is not installed.
            InvalidRequest: the settings do not suit the embedder.
        """
        manifest = EmbedderManifest.load(repository, version)
        path = repository / embedder_dir(version) / "tokenizer.json"
        tokenizer = Tokenizer.from_file(str(path))
        prefix = manifest.prefixes.get("passage", "")
        return cls(tokenizer, settings, manifest.max_tokens, prefix)

    def passages(self, document: Document) -> Iterator[Passage]:
        """Yield the passages of a document in reading order.

        A passage lies under one heading and starts where a sentence starts, unless that sentence
        alone is over the budget.
        """
        seen: Counter[str] = Counter()
        for path, blocks in groupby(document.blocks, key=lambda block: block.heading_path):
            room = self._budget - self._count([self._heading(document.title, path) + "\n"])[0]
            for chunk in self._pack(self._units(blocks, room), room):
                yield _passage(document, path, chunk, seen)

    def embedded_text(self, passage: Passage) -> str:
        """Return what is embedded for a passage: its heading path, a newline and its text."""
        return f"{self._heading(passage.title, passage.heading_path)}\n{passage.text}"

    def _heading(self, title: str, path: tuple[str, ...]) -> str:
        """Return the heading path, cut where it would take over half of the budget."""
        heading = HEADING_SEPARATOR.join((title, *path))
        if heading not in self._headings:
            start, end = next(self._cut(heading, 0, len(heading), self._budget // 2), (0, 0))
            self._headings[heading] = heading[start:end]
        return self._headings[heading]

    def _units(self, blocks: Iterable[Block], room: int) -> Iterator[_Unit]:
        """Yield the units of a section, each at most ``room`` tokens."""
        for unit in self._counted(list(_units(blocks))):
            if unit.tokens <= room:
                yield unit
            else:
                yield from self._counted(list(self._pieces(unit, room)))

    def _counted(self, units: list[_Unit]) -> Iterator[_Unit]:
        counts = self._count([unit.before + unit.text for unit in units])
        return (replace(unit, tokens=count) for unit, count in zip(units, counts, strict=True))

    def _pieces(self, unit: _Unit, room: int) -> Iterator[_Unit]:
        """Split a unit that is over the budget by itself at words."""
        text = unit.block.text
        room = max(1, room - self._count([unit.before + unit.marker])[0])
        before, marker = unit.before, unit.marker
        for start, end in self._cut(text, unit.start, unit.end, room):
            yield _Unit(unit.block, before, marker, start, end)
            before, marker = (" " if text[end : end + 1].isspace() else ""), ""

    def _cut(self, text: str, start: int, end: int, room: int) -> Iterator[tuple[int, int]]:
        """Split ``text[start:end]`` at words, or within one that is over ``room`` tokens."""
        while start < end:
            window = text[start : min(end, start + room * MAX_CHARS_PER_TOKEN)]
            stop = start + self._fitting(window, room, whole=start + len(window) == end)
            yield start, stop
            start = _after_blanks(text, stop)

    def _fitting(self, window: str, room: int, *, whole: bool) -> int:
        """Return how many characters of ``window`` fit; ``whole`` if the text ends with it."""
        if whole and self._count([window])[0] <= room:
            return len(window)
        offsets = self._tokenizer.encode(window, add_special_tokens=False).offsets
        limit = max(1, offsets[room][0]) if len(offsets) > room else len(window) - 1
        blanks = (at for at in range(limit, 0, -1) if window[at].isspace())
        return next(blanks, limit)

    def _pack(self, units: Iterable[_Unit], room: int) -> Iterator[list[_Unit]]:
        chunk: list[_Unit] = []
        for unit in units:
            if chunk and _size(chunk) + unit.tokens > room:
                yield chunk
                chunk = _tail(chunk, min(self.settings.overlap, room - unit.tokens))
            chunk.append(unit)
        if chunk:
            yield chunk

    def _count(self, texts: list[str]) -> list[int]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [
            max(len(encoding.ids), len(text) // MAX_CHARS_PER_TOKEN)
            for text, encoding in zip(texts, encodings, strict=True)
        ]


def _units(blocks: Iterable[Block]) -> Iterator[_Unit]:
    """Yield the sentences and lines of a section with the white space between them."""
    above = None
    for block in blocks:
        before = "\n" if above and above.kind == block.kind == "item" else "\n\n"
        marker, last = block.marker, None
        for start, end in _lines(block) if block.kind in _LINEWISE else _sentences(block):
            if last is not None:
                before, marker = block.text[last:start], ""
            yield _Unit(block, before, marker, start, end)
            last = end
        above = block


def _sentences(block: Block) -> Iterator[tuple[int, int]]:
    """Yield where each sentence of each line starts and ends, white space around it left out."""
    for line in _LINE.finditer(block.text):
        start = line.start()
        for sentence in segment("en", line.group()):
            bare = sentence.strip()
            if bare:
                first = start + sentence.index(bare)
                yield first, first + len(bare)
            start += len(sentence)


def _lines(block: Block) -> Iterator[tuple[int, int]]:
    for line in _LINE.finditer(block.text):
        yield line.start(), line.start() + len(line.group().rstrip())


def _after_blanks(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _size(chunk: list[_Unit]) -> int:
    return sum(unit.tokens for unit in chunk)


def _tail(chunk: list[_Unit], tokens: int) -> list[_Unit]:
    """Return the last units of a chunk that together have at most ``tokens``."""
    kept = len(chunk)
    while kept and _size(chunk[kept - 1 :]) <= tokens:
        kept -= 1
    return chunk[kept:]


def _passage(
    document: Document, path: tuple[str, ...], chunk: list[_Unit], seen: Counter[str]
) -> Passage:
    text = chunk[0].text + "".join(unit.before + unit.text for unit in chunk[1:])
    start, _ = chunk[0].source_range(document.text)
    _, end = chunk[-1].source_range(document.text)
    identity = f"{document.source}\0{start}\0{text}"
    seen[identity] += 1
    again = f"\0{seen[identity]}" if seen[identity] > 1 else ""
    return Passage(
        id=hashlib.blake2b((identity + again).encode(), digest_size=10).hexdigest(),
        text=text,
        source=document.source,
        title=document.title,
        heading_path=path,
        start=start,
        end=max(start, end),
    )
