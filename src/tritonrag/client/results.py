"""What a client gets back: frozen, typed, and free of any protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tritonrag.contract import MODELS


@dataclass(frozen=True)
class Passage:
    """One passage of a document.

    ``location`` is the title, the page, slide or sheet if there is one, and the headings above it;
    ``score`` what the search ranked it by: the cosine similarity to the question, in other modes
    the BM25 score or the fused ranks, or what a reranker made of it. ``extra`` holds what else is
    known of it, such as the ``place`` (``page 4``), the character offsets ``start`` and ``end``,
    and after a reranker the score before, ``retrieval_score``.
    """

    id: str
    text: str
    source: str
    title: str
    location: str
    score: float
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Span:
    """A claim of an answer and the mark behind it.

    All are places in the answer's text, in characters, ends exclusive: ``text[start:end]`` is the
    claim, ``text[mark_start:mark_end]`` its mark.
    """

    start: int
    end: int
    mark_start: int
    mark_end: int


@dataclass(frozen=True)
class Citation(Passage):
    """A passage that the LLM was given, or was to be given.

    ``mark`` is its number in the answer (``[1]``). A passage that did not fit has no mark and
    ``dropped`` says why, for instance ``context``. ``spans`` is where the answer cites it; known
    at the end of the answer, empty before.
    """

    mark: int | None = None
    dropped: str | None = None
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class SearchResult:
    """Passages, best first; iterable, with a length."""

    passages: tuple[Passage, ...]

    def __iter__(self) -> Iterator[Passage]:
        """Iterate over the passages, best first."""
        return iter(self.passages)

    def __len__(self) -> int:
        """Return the number of passages."""
        return len(self.passages)

    def __getitem__(self, rank: int) -> Passage:
        """Return the passage at ``rank``, from 0."""
        return self.passages[rank]


@dataclass(frozen=True)
class Usage:
    """What an answer cost: tokens, and milliseconds on the server.

    A number of tokens is None where the LLM's side did not report it.
    """

    prompt_tokens: int | None = 0
    cached_tokens: int | None = 0
    generated_tokens: int | None = 0
    time_to_first_token_ms: float = 0.0
    total_ms: float = 0.0


@dataclass(frozen=True)
class Answer:
    """A whole answer. ``finish_reason`` is ``stop``, ``length``, ``cancelled`` or ``error``."""

    text: str
    citations: tuple[Citation, ...]
    finish_reason: str
    usage: Usage

    @property
    def cited(self) -> tuple[Citation, ...]:
        """The citations that the text cites, in the order of the marks."""
        return tuple(citation for citation in self.citations if citation.spans)


@dataclass(frozen=True)
class Health:
    """What the server says of itself.

    ``live``: it answers; else ``reason`` says why not. ``versions`` maps each model to the versions
    of it that are loaded; a model that is not ready is missing.
    """

    live: bool
    versions: Mapping[str, Sequence[int]] = field(default_factory=dict, hash=False)
    reason: str = ""

    @property
    def ready(self) -> bool:
        """Whether every model of the contract is loaded but those that only a variant serves."""
        return self.versions.keys() >= {name for name, spec in MODELS.items() if not spec.variant}
