"""What the writer of a collection remembers from run to run, beside its snapshots.

Documents that are embedded but not in a snapshot yet, and single embeddings of documents that were
not complete, so that an interrupted run goes on where it was; and files that failed, so that they
are not tried again as they are. Readers never look here, and without it a run only has more to do.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tritonrag.errors import SetupError
from tritonrag.index.manifest import DocumentRecord
from tritonrag.index.snapshot import Floats

LEDGER = "ledger.sqlite3"

_SCHEMA = """
PRAGMA auto_vacuum = FULL;
CREATE TABLE IF NOT EXISTS staged (
    embedder TEXT, source TEXT, record BLOB, lines BLOB, vectors BLOB,
    PRIMARY KEY (embedder, source)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS embedded (
    embedder TEXT, text BLOB, vector BLOB, PRIMARY KEY (embedder, text)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failed (source TEXT PRIMARY KEY, failure TEXT) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Failed:
    """A file that could not be indexed, as it then was; the fields are those of its record."""

    source: str
    sha256: str
    recipe: str
    given: str
    stamp: str
    reason: str


class Ledger:
    """The ledger of one collection, for one embedder; used by its only writer, in one thread."""

    def __init__(self, database: sqlite3.Connection, embedder: str, dimension: int) -> None:
        """``embedder`` is its SHA-256; :meth:`open` is how to get one."""
        self._database = database
        self._embedder = embedder
        self._dimension = dimension

    @classmethod
    @contextmanager
    def open(cls, folder: Path, embedder: str, dimension: int) -> Iterator[Ledger]:
        """Yield the ledger in a collection's folder; one that is damaged is begun anew.

        Raises:
            SetupError: it cannot be read or written, for example because the disk is full.
        """
        folder.mkdir(exist_ok=True)
        path = folder / LEDGER
        try:
            database = _connected(path)
            try:
                yield cls(database, embedder, dimension)
            finally:
                database.close()
        except sqlite3.Error as error:
            raise SetupError(f"{path}: {error}; free the disk, or remove the file") from error

    def staged(self) -> dict[str, DocumentRecord]:
        """Return the records of the embedded documents by source."""
        found = self._database.execute(
            "SELECT record FROM staged WHERE embedder = ?", (self._embedder,)
        )
        records = (DocumentRecord.from_json(line) for (line,) in found)
        return {record.source: record for record in records}

    def stage(self, documents: Iterable[tuple[DocumentRecord, Sequence[bytes], Floats]]) -> None:
        """Keep documents with the lines of their passages and their vectors, all or none."""
        rows = (
            (self._embedder, record.source, record.to_json(), b"\n".join(lines), vectors.tobytes())
            for record, lines, vectors in documents
        )
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO staged VALUES (?, ?, ?, ?, ?)", rows)

    def lines(self, source: str) -> list[bytes]:
        """Return the passages of a staged document."""
        lines = self._column("lines", source)
        return lines.split(b"\n") if lines else []

    def vectors(self, source: str) -> Floats:
        """Return the embeddings of a staged document, float32 ``[passages, dimension]``."""
        values = np.frombuffer(self._column("vectors", source), np.float32)
        return values.reshape(-1, self._dimension)

    def keep(self, vectors: Mapping[str, Floats]) -> None:
        """Keep the embeddings ``[dimension]`` of texts whose documents are not complete."""
        rows = [(self._embedder, _digest(text), row.tobytes()) for text, row in vectors.items()]
        with self._database:
            self._database.executemany("INSERT OR REPLACE INTO embedded VALUES (?, ?, ?)", rows)

    def kept(self) -> KeptVectors:
        """Return what :meth:`keep` kept."""
        found = self._database.execute(
            "SELECT text, vector FROM embedded WHERE embedder = ?", (self._embedder,)
        )
        return KeptVectors({text: np.frombuffer(row, np.float32) for text, row in found})

    def unstage(self) -> None:
        """Forget what is embedded: it is in a snapshot."""
        with self._database:
            for table in ("staged", "embedded"):
                self._database.execute(f"DELETE FROM {table} WHERE embedder = ?", (self._embedder,))

    def failed(self) -> dict[str, Failed]:
        """Return the files that failed, by source."""
        found = self._database.execute("SELECT failure FROM failed")
        failures = (Failed(**json.loads(text)) for (text,) in found)
        return {failure.source: failure for failure in failures}

    def fail(self, failure: Failed) -> None:
        """Remember that a file failed."""
        row = (failure.source, json.dumps(vars(failure)))
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO failed VALUES (?, ?)", row)

    def _column(self, name: str, source: str) -> bytes:
        (value,) = self._database.execute(
            f"SELECT {name} FROM staged WHERE embedder = ? AND source = ?",
            (self._embedder, source),
        ).fetchone()
        return bytes(value)


class KeptVectors:
    """Embeddings ``[dimension]`` by the texts that were embedded, of which only hashes are kept."""

    def __init__(self, vectors: Mapping[bytes, Floats]) -> None:
        """Hold vectors by the hash of their text."""
        self._vectors = vectors

    def of(self, texts: Iterable[str]) -> dict[str, Floats]:
        """Return the embeddings of those of ``texts`` that there are."""
        if not self._vectors:
            return {}
        digests = {text: _digest(text) for text in texts}
        vectors = self._vectors
        return {text: vectors[key] for text, key in digests.items() if key in vectors}


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def forget(folder: Path, sources: Collection[str]) -> None:
    """Delete what is kept of documents, whoever embedded them, from a collection's ledger, if any.

    Raises:
        SetupError: it cannot be written.
    """
    path = folder / LEDGER
    if not path.exists():
        return
    try:
        with closing(_connected(path)) as database, database:
            rows = [(source,) for source in sources]
            database.executemany("DELETE FROM staged WHERE source = ?", rows)
            database.executemany("DELETE FROM failed WHERE source = ?", rows)
            database.execute("DELETE FROM embedded")  # whose, nothing tells
    except sqlite3.Error as error:
        raise SetupError(f"{path}: {error}; free the disk, or remove the file") from error


def _connected(path: Path) -> sqlite3.Connection:
    try:
        return _prepared(path)
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError:
        path.unlink()
        path.with_name(f"{path.name}-journal").unlink(missing_ok=True)
        return _prepared(path)


def _prepared(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    try:
        database.executescript(_SCHEMA)
    except BaseException:
        database.close()
        raise
    return database
