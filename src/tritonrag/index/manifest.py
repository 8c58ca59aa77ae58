"""What a snapshot says about itself: ``manifest.json`` and the lines of ``documents.jsonl``.

Knows neither FAISS nor how a snapshot is written or served.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tritonrag.artifacts import EmbedderManifest
from tritonrag.contract import DEFAULT_MODE
from tritonrag.errors import SetupError
from tritonrag.index.layout import UNFINISHED
from tritonrag.metadata import Metadata

FORMAT_VERSION = 3
"""Version of the layout on disk; a reader takes this and older ones, and refuses a newer one."""

METRIC = "inner_product"
MANIFEST = "manifest.json"
DOCUMENTS = "documents.jsonl"
PASSAGES = "passages.jsonl"
OFFSETS = "passages.offsets.npy"
VECTORS = "vectors.faiss"
DATA_FILES = (DOCUMENTS, PASSAGES, OFFSETS, VECTORS)
"""The files that every snapshot has."""

ROWS = "vectors.npy"
"""The vectors as they were embedded, where ``vectors.faiss`` holds them quantised."""

FLAT = "Flat"
"""FAISS factory string of exact search."""


@dataclass(frozen=True)
class EmbedderId:
    """The vector space of a snapshot; only the very same embedder may search it."""

    model: str
    precision: str
    sha256: str

    @classmethod
    def of(cls, embedder: EmbedderManifest) -> EmbedderId:
        """Return the identity of an installed embedder."""
        return cls(embedder.model, embedder.precision, embedder.sha256)

    def __str__(self) -> str:
        """Name the embedder as its own manifest does."""
        return f"{self.model} {self.precision} (sha256 {self.sha256[:12]})"


@dataclass(frozen=True)
class DocumentRecord:
    """One indexed document.

    ``sha256`` is that of the file's bytes and ``recipe`` says how it was cut into ``passages``
    passages: if neither changed, indexing the file again would change nothing. ``stamp`` is what
    its source said of the file then, without reading it; empty where it says nothing. ``path`` is
    where the file lies, a URL or an absolute path, and ``given`` the hash of the metadata that was
    said of it from outside; both are empty in records of older releases.
    """

    source: str
    title: str
    sha256: str
    recipe: str
    passages: int
    metadata: Metadata = field(default_factory=Metadata)
    stamp: str = ""
    path: str = ""
    given: str = ""

    @classmethod
    def from_json(cls, line: str) -> DocumentRecord:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError, TypeError: it is something else.
        """
        values = json.loads(line)
        return cls(**{**values, "metadata": Metadata.from_json(values.get("metadata", {}))})

    def to_json(self) -> bytes:
        """Return one line of ``documents.jsonl`` without its newline."""
        values = {**vars(self), "metadata": self.metadata.to_json()}
        return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Probing:
    """How an approximate index is searched where ``share`` of the passages is allowed.

    So many inverted ``lists`` of it gave this ``recall`` @10 on held-out queries.
    """

    share: float
    lists: int
    recall: float


@dataclass(frozen=True)
class SnapshotManifest:
    """One immutable snapshot; ``files`` maps each data file to its SHA-256, ``sizes`` to its bytes.

    ``recipe`` is the chunking of the run that wrote it; documents kept from earlier runs state
    their own. ``mode`` is how it is searched when the caller does not say. ``analysis`` is the
    version of the terms in its BM25 index, 0 where it has none.
    """

    snapshot: str
    parent: str | None
    created: str
    embedder: EmbedderId
    dimension: int
    factory: str
    documents: int
    passages: int
    recipe: str
    files: dict[str, str]
    sizes: dict[str, int] = field(default_factory=dict)
    mode: str = DEFAULT_MODE
    probing: tuple[Probing, ...] = ()
    analysis: int = 0
    metric: str = METRIC
    format_version: int = FORMAT_VERSION

    @classmethod
    def load(cls, folder: Path) -> SnapshotManifest:
        """Read the manifest of the snapshot in ``folder``.

        Raises:
            SetupError: the snapshot is missing, damaged, or of a newer format.
        """
        path = folder / MANIFEST
        try:
            manifest = cls.parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SetupError(f"snapshot {folder.name} does not exist") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise damaged(folder.name, f"its {MANIFEST} cannot be read ({error})") from error
        _check_contents(manifest, folder.name)
        return manifest

    @classmethod
    def parse(cls, text: str) -> SnapshotManifest:
        """Read the text of a manifest.

        Raises:
            SetupError: it is of a newer format.
            ValueError, TypeError, KeyError: it is something else.
        """
        values = json.loads(text)
        _check_version(values)
        probing = tuple(Probing(**each) for each in values.get("probing", ()))
        parts = {"embedder": EmbedderId(**values["embedder"]), "probing": probing}
        return cls(**{**values, **parts})

    def save(self, folder: Path) -> None:
        """Write the manifest into ``folder``."""
        (folder / MANIFEST).write_text(self.to_json() + "\n", encoding="utf-8")

    def to_json(self) -> str:
        """Return what :meth:`parse` reads."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)


def damaged(snapshot: str, how: str) -> SetupError:
    """Return the error for a snapshot that is not as it was written."""
    return SetupError(
        f"snapshot {snapshot} is damaged: {how}; go back with `tritonrag index rollback`, or "
        "remove the collection's folder and index again"
    )


def _check_version(values: dict[str, Any]) -> None:
    version = values["format_version"]
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise SetupError(
            f"its format version is {version}, newer than {FORMAT_VERSION}, the newest that this "
            "tritonrag reads; update tritonrag, or go back with `tritonrag index rollback`"
        )


def _check_contents(manifest: SnapshotManifest, name: str) -> None:
    missing = [file for file in DATA_FILES if file not in manifest.files]
    missing += [file for file in manifest.files if Path(file).name != file]
    if missing or manifest.snapshot != name.removeprefix(UNFINISHED) or manifest.metric != METRIC:
        raise damaged(name, f"its {MANIFEST} contradicts its folder")
