"""Files to documents: reads them, hands them to the parser of their kind.

Every fault of a file is an error about that file alone, with its reason. Where files come from is
the matter of :mod:`tritonrag.corpus`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tritonrag.errors import InvalidRequest
from tritonrag.formats import parse
from tritonrag.formats.outline import Block, Outline
from tritonrag.metadata import MAX_TITLE_CHARS, Metadata

MAX_FILE_BYTES = 32 * 1024 * 1024
"""A larger file is refused: it is a data set rather than a document."""

TOO_LARGE = f"over {MAX_FILE_BYTES >> 20} MiB; split it into smaller files"

OUTSIDE = "is a link that leads out of its folder; --follow-links indexes what such links lead to"

PARSER_VERSION = 2
"""Raised when the same file gives other blocks than before, so that it is indexed again."""

_REASON_CHARS = 300


class Reader(Protocol):
    """Reads a file that is not on this machine."""

    def read(self, limit: int) -> bytes:
        """Return the file's first ``limit`` bytes.

        Raises:
            InvalidRequest: this file cannot be read.
            Unavailable: no file of its source can be read now.
        """
        ...


@dataclass(frozen=True)
class SourceFile:
    """A file to index; ``source`` is its name in citations, relative to the folder given.

    ``stamp`` changes whenever the file does, and is empty where nothing but its content tells;
    ``metadata`` is said of it from outside, in JSON values, and goes before what the file says of
    itself. A file that is not on this machine has a ``url`` and a ``reader``; its ``path`` is then
    that within its store. Sent to another process it goes without the reader: it is read here.
    Where there is a ``root``, an absolute path without links, the file must lie below it, wherever
    links lead.
    """

    path: Path
    source: str
    stamp: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    url: str = ""
    reader: Reader | None = field(default=None, compare=False, repr=False)
    root: Path | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields to pickle."""
        return {**vars(self), "reader": None}

    @property
    def shown(self) -> str:
        """Where it is, as the user wrote it."""
        return self.url or str(self.path)

    @property
    def place(self) -> str:
        """Where it is: its URL or absolute path."""
        return self.url or os.path.abspath(self.path)


@dataclass(frozen=True)
class Failure:
    """A file or folder that could not be indexed, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Document:
    """A parsed document; offsets of its blocks are characters of ``text``."""

    source: str
    title: str
    text: str
    blocks: list[Block]
    metadata: Metadata = field(default_factory=Metadata)


def read_file(file: SourceFile) -> bytes:
    """Return the bytes of a file.

    It is read once, so that a file which changes meanwhile is one version or a failure; one that is
    too large, or not a regular file, is not read at all.

    Raises:
        InvalidRequest: it cannot be read, is too large, or its name is not UTF-8.
        Unavailable: no file of its source can be read now.
    """
    try:
        file.source.encode()
        content = _read(file, MAX_FILE_BYTES + 1)
    except UnicodeEncodeError:
        raise InvalidRequest("its name is not UTF-8; rename it") from None
    except OSError as error:
        raise InvalidRequest(f"cannot be read: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise InvalidRequest(TOO_LARGE)
    return content


def parse_document(file: SourceFile, content: bytes) -> Document:
    """Parse what :func:`read_file` read.

    Offsets are characters of :attr:`Document.text`: the file's own text where it is Markdown,
    reStructuredText, HTML or plain text (a byte order mark is not counted), and otherwise the text
    that was extracted. The title is said from outside, or else what the file says of itself (its
    first top heading, front matter, ``<title>``, a property), or else its name.

    Raises:
        InvalidRequest: it cannot be read, holds no text, or its metadata is malformed.
        MemoryError: it takes more memory than there is.
    """
    outline = _parsed(file.path.suffix.lower(), content)
    if not outline.blocks:
        raise InvalidRequest("holds no text")
    metadata = Metadata.joined(outline.metadata, file.metadata)
    title = str(file.metadata.get("title") or outline.title or file.path.stem)[:MAX_TITLE_CHARS]
    return Document(file.source, title, outline.text, outline.blocks, metadata)


def content_hash(content: bytes) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _read(file: SourceFile, limit: int) -> bytes:
    if file.reader is not None:
        return file.reader.read(limit)
    # What is checked is what is open: a link may be put there at any moment. Without waiting, as
    # opening a pipe would.
    with open(os.open(file.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as opened:
        about = os.fstat(opened.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise InvalidRequest("cannot be read: not a regular file")
        if about.st_size > MAX_FILE_BYTES:
            raise InvalidRequest(TOO_LARGE)
        if file.root is not None and not _lies_below(opened.fileno(), file.root):
            raise InvalidRequest(OUTSIDE)
        return opened.read(limit)


def _lies_below(descriptor: int, root: Path) -> bool:
    return Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(root)


def _parsed(suffix: str, content: bytes) -> Outline:
    try:
        return parse(suffix, content)
    except (InvalidRequest, MemoryError):
        raise
    except RecursionError:
        raise InvalidRequest("nested too deeply to parse") from None
    except Exception as error:  # Parsers of other people, on files of other people.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InvalidRequest(f"cannot be parsed: {reason[:_REASON_CHARS]}") from error
