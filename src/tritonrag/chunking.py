"""Documents to passages: by structure first, then whole sentences up to a budget of tokens.

A passage lies on one page, slide or sheet and under one heading. Tables and code stay whole where
they fit, and a table that does not fit repeats its header in every piece. Where a passage stands
is embedded together with its text and counts in the budget. The same file and settings always give
the same passages and ids. Knows neither files nor vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tritonrag.artifacts import EmbedderManifest, embedder_dir
from tritonrag.documents import PARSER_VERSION, Document
from tritonrag.errors import InvalidRequest
from tritonrag.formats.outline import Block
from tritonrag.units import LINEWISE, Unit, units_of

MIN_CHUNK_TOKENS, MAX_CHUNK_TOKENS = 16, 4096
DEFAULT_CHUNK_TOKENS, DEFAULT_CHUNK_OVERLAP = 128, 24

MAX_CHARS_PER_TOKEN = 10
"""A text counts at least its length over this: some tokenizers make one token of any long word."""

HEADING_SEPARATOR, PLACE_SEPARATOR = " > ", ", "


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
    """A chunk as it is stored and cited.

    ``start`` and ``end`` are characters of :attr:`tritonrag.documents.Document.text`; ``place`` is
    the page, slide or sheet, such as ``page 4``, and empty where a file has none.
    """

    id: str
    text: str
    source: str
    title: str
    heading_path: tuple[str, ...]
    start: int
    end: int
    place: str = ""

    @property
    def location(self) -> str:
        """Where the passage stands: ``Title > Heading`` or ``Title, page 4, Heading``."""
        return _location(self.title, self.place, self.heading_path)

    def to_json(self) -> bytes:
        """Return one line of ``passages.jsonl`` without its newline."""
        values = {
            "id": self.id,
            "text": self.text,
            "source": self.source,
            "title": self.title,
            "location": self.location,
            "heading_path": self.heading_path,
            "place": self.place,
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

        A passage starts where a sentence starts, unless that sentence alone is over the budget.
        """
        seen: Counter[str] = Counter()
        for (place, path), blocks in groupby(document.blocks, key=_section):
            heading = self._heading(_location(document.title, place, path))
            room = self._budget - self._count([heading + "\n"])[0]
            for chunk in self._pack(_together(self._units(blocks, room), room), room):
                yield _passage(document, chunk, seen)

    def embedded_text(self, passage: Passage) -> str:
        """Return what is embedded for a passage: its location, a newline and its text."""
        return f"{self._heading(passage.location)}\n{passage.text}"

    def _heading(self, heading: str) -> str:
        """Return a location, cut where it would take over half of the budget."""
        if heading not in self._headings:
            start, end = next(self._cut(heading, 0, len(heading), self._budget // 2), (0, 0))
            self._headings[heading] = heading[start:end]
        return self._headings[heading]

    def _units(self, blocks: Iterable[Block], room: int) -> Iterator[Unit]:
        """Yield the units of a section, each at most ``room`` tokens with its header."""
        for unit in map(self._under_header(room), self._counted(list(units_of(blocks)))):
            fitting = room - unit.header_tokens
            if unit.tokens <= fitting:
                yield unit
            else:
                yield from self._counted(list(self._pieces(unit, fitting)))

    def _under_header(self, room: int) -> Callable[[Unit], Unit]:
        """Return what counts a row's header, and drops one that takes over half of ``room``."""
        counts = {"": 0}

        def counted(unit: Unit) -> Unit:
            if unit.header not in counts:
                counts[unit.header] = self._count([unit.header])[0]
            tokens = counts[unit.header]
            kept = unit.header if tokens <= room // 2 else ""
            return replace(unit, header=kept, header_tokens=tokens if kept else 0)

        return counted

    def _counted(self, units: list[Unit]) -> Iterator[Unit]:
        counts = self._count([unit.before + unit.text for unit in units])
        return (replace(unit, tokens=count) for unit, count in zip(units, counts, strict=True))

    def _pieces(self, unit: Unit, room: int) -> Iterator[Unit]:
        """Split a unit that is over the budget by itself at words."""
        text = unit.block.text
        room = max(1, room - self._count([unit.before + unit.marker])[0])
        before, marker = unit.before, unit.marker
        for start, end in self._cut(text, unit.start, unit.end, room):
            yield replace(unit, before=before, marker=marker, start=start, end=end)
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

    def _pack(self, groups: Iterable[list[Unit]], room: int) -> Iterator[list[Unit]]:
        chunk: list[Unit] = []
        for group in groups:
            if chunk and _size(chunk + group) > room:
                yield chunk
                chunk = _tail(chunk, min(self.settings.overlap, room - _size(group)))
            chunk += group
        if chunk:
            yield chunk

    def _count(self, texts: list[str]) -> list[int]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [
            max(len(encoding.ids), len(text) // MAX_CHARS_PER_TOKEN)
            for text, encoding in zip(texts, encodings, strict=True)
        ]


def _section(block: Block) -> tuple[str, tuple[str, ...]]:
    return block.place, block.heading_path


def _location(title: str, place: str, path: tuple[str, ...]) -> str:
    if not place:
        return HEADING_SEPARATOR.join((title, *path))
    return PLACE_SEPARATOR.join(filter(None, (title, place, HEADING_SEPARATOR.join(path))))


def _together(units: Iterable[Unit], room: int) -> Iterator[list[Unit]]:
    """Yield tables and code that fit into one chunk whole, and everything else by the unit."""
    for _, group in groupby(units, key=lambda unit: id(unit.block)):
        block = list(group)
        if block[0].block.kind in LINEWISE and _size(block) <= room:
            yield block
        else:
            yield from ([unit] for unit in block)


def _after_blanks(text: str, at: int) -> int:
    while text[at : at + 1].isspace():
        at += 1
    return at


def _size(chunk: list[Unit]) -> int:
    return chunk[0].header_tokens + sum(unit.tokens for unit in chunk) if chunk else 0


def _tail(chunk: list[Unit], tokens: int) -> list[Unit]:
    """Return the last units of a chunk that together have at most ``tokens``."""
    kept = len(chunk)
    while kept and _size(chunk[kept - 1 :]) <= tokens:
        kept -= 1
    return chunk[kept:]


def _passage(document: Document, chunk: list[Unit], seen: Counter[str]) -> Passage:
    first, block = chunk[0], chunk[0].block
    rest = "".join(unit.before + unit.text for unit in chunk[1:])
    text = first.header + first.text + rest
    start, _ = first.source_range(document.text)
    _, end = chunk[-1].source_range(document.text)
    identity = f"{document.source}\0{start}\0{text}"
    seen[identity] += 1
    again = f"\0{seen[identity]}" if seen[identity] > 1 else ""
    return Passage(
        id=hashlib.blake2b((identity + again).encode(), digest_size=10).hexdigest(),
        text=text,
        source=document.source,
        title=document.title,
        heading_path=block.heading_path,
        start=start,
        end=max(start, end),
        place=block.place,
    )
