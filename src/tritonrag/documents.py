"""Files and folders to documents: finds them, reads them, hands them to the parser of their kind.

Every fault of a file is an error about that file alone, with its reason.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonrag.errors import InvalidRequest
from tritonrag.formats import SUFFIXES, parse
from tritonrag.formats.outline import Block, Outline
from tritonrag.metadata import Metadata

MAX_FILE_BYTES = 32 * 1024 * 1024
"""A larger file is refused: it is a data set rather than a document."""

PARSER_VERSION = 2
"""Raised when the same file gives other blocks than before, so that it is indexed again."""


_REASON_CHARS = 300


@dataclass(frozen=True)
class SourceFile:
    """A file to index; ``source`` is its name in citations, relative to the folder given.

    ``stamp`` changes whenever the file does, and is empty where nothing but its content tells;
    ``metadata`` is said of it from outside and goes before what the file says of itself.
    """

    path: Path
    source: str
    stamp: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


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


def find_files(paths: Iterable[Path]) -> tuple[list[SourceFile], list[Failure]]:
    """Return the files to index under ``paths``, sorted by source, and what cannot be.

    A folder gives the files of known kinds below it, named relative to it; hidden ones and linked
    folders are left out. A file stands for itself, under its own name.
    """
    found: dict[str, SourceFile] = {}
    failures: list[Failure] = []
    for path in paths:
        for one in _candidates(path):
            earlier = found.get(one.source) if isinstance(one, SourceFile) else None
            if isinstance(one, Failure):
                failures.append(one)
            elif earlier is None:
                found[one.source] = one
            elif not earlier.path.samefile(one.path):
                failures.append(_namesake(one, earlier))
    return [found[source] for source in sorted(found)], failures


def read_file(file: SourceFile) -> bytes:
    """Return the bytes of a file.

    It is read once, so that a file which changes meanwhile is one version or a failure; one that is
    too large, or not a regular file, is not read at all.

    Raises:
        InvalidRequest: it cannot be read, is too large, or its name is not UTF-8.
    """
    try:
        file.source.encode()
        about = file.path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise InvalidRequest("cannot be read: not a regular file")
        content = b""
        if about.st_size <= MAX_FILE_BYTES:
            with file.path.open("rb") as opened:
                content = opened.read(MAX_FILE_BYTES + 1)
    except UnicodeEncodeError:
        raise InvalidRequest("its name is not UTF-8; rename it") from None
    except OSError as error:
        raise InvalidRequest(f"cannot be read: {error.strerror or error}") from error
    if max(len(content), about.st_size) > MAX_FILE_BYTES:
        raise InvalidRequest(f"over {MAX_FILE_BYTES >> 20} MiB; split it into smaller files")
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
    metadata = Metadata.read({**outline.metadata, **file.metadata})
    title = str(file.metadata.get("title") or outline.title or file.path.stem)
    return Document(file.source, title, outline.text, outline.blocks, metadata)


def content_hash(content: bytes) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _candidates(path: Path) -> Iterator[SourceFile | Failure]:
    if path.is_dir():
        yield from _folder(path)
    elif not path.exists():
        yield Failure(str(path), "no such file or folder")
    elif path.suffix.lower() not in SUFFIXES:
        yield Failure(str(path), f"not a kind that can be indexed ({', '.join(SUFFIXES)})")
    else:
        yield SourceFile(path, path.name)


def _folder(root: Path) -> Iterator[SourceFile | Failure]:
    empty = True
    unreadable: list[OSError] = []
    for folder, folders, names in os.walk(root, onerror=unreadable.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith(".") and path.is_file():
                empty = False
                yield SourceFile(path, path.relative_to(root).as_posix())
    for error in unreadable:
        empty = False
        yield Failure(str(error.filename), f"cannot be read: {error.strerror}")
    if empty:
        yield Failure(str(root), f"holds no file that can be indexed ({', '.join(SUFFIXES)})")


def _namesake(file: SourceFile, earlier: SourceFile) -> Failure:
    return Failure(
        str(file.path),
        f"has the same name {file.source!r} as {earlier.path}; index their common folder instead",
    )


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
