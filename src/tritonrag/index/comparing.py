"""A listed file beside the record of its document: whether they differ, before the file is read."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress

from tritonrag.documents import SourceFile
from tritonrag.errors import InvalidRequest
from tritonrag.index.manifest import DocumentRecord


def given_hash(file: SourceFile) -> str:
    """Return the SHA-256 of what is said of a file from outside; empty where nothing is."""
    if not file.metadata:
        return ""
    return hashlib.sha256(json.dumps(dict(file.metadata), sort_keys=True).encode()).hexdigest()


def stamp_unchanged(file: SourceFile, record: DocumentRecord, recipe: str) -> bool:
    """Tell whether indexing a file would change nothing, by its stamp; False where it has none."""
    before = (record.stamp, record.recipe, record.given)
    return bool(file.stamp) and before == (file.stamp, recipe, given_hash(file))


def check_same_file(file: SourceFile, record: DocumentRecord) -> None:
    """Refuse a file whose name is that of a document from another file.

    A document whose file is gone may be replaced: a folder that was moved keeps its names.

    Raises:
        InvalidRequest: that other file is still there, or in a store.
    """
    if record.path in ("", file.place):
        return
    if "://" in record.path or (os.path.exists(record.path) and not _same_local(file, record)):
        raise InvalidRequest(
            f"the collection has another document called {file.source!r}, from {record.path}; name "
            "the source of one (NAME=PLACE), or remove that document first"
        )


def _same_local(file: SourceFile, record: DocumentRecord) -> bool:
    with suppress(OSError):  # one of them has gone since it was listed
        return not file.url and os.path.samefile(file.path, record.path)
    return False
