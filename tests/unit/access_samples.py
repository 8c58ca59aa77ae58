"""Collections whose documents have metadata, written without a parser or an embedder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from index_samples import DIMENSION, manifest, vector

from tritonrag.index import EmbedderId
from tritonrag.index.manifest import DocumentRecord, SnapshotManifest
from tritonrag.index.snapshot import Snapshot
from tritonrag.index.store import Contents, publish, writing
from tritonrag.metadata import Metadata


def record(source: str, passages: int = 1, title: str = "", **metadata: object) -> DocumentRecord:
    made = Metadata.read(metadata)
    return DocumentRecord(source, title or source, "0" * 64, "r", passages, made)


def text(document: DocumentRecord, number: int) -> str:
    return f"{document.source}#{number}"


def save(
    index_dir: Path,
    documents: Sequence[DocumentRecord],
    collection: str = "default",
    sha256: str = "ab" * 32,
    *,
    current: bool = True,
) -> SnapshotManifest:
    """Publish `documents`; the vector of a passage is that of its `text`."""
    texts = [text(each, number) for each in documents for number in range(each.passages)]
    owners = [each.source for each in documents for _ in range(each.passages)]
    vectors = np.stack([vector(each) for each in texts]) if texts else np.empty((0, DIMENSION))
    contents = Contents(
        embedder=EmbedderId.of(manifest(sha256)),
        dimension=DIMENSION,
        recipe="r",
        documents=documents,
        passages=[
            json.dumps({"id": each, "text": each, "source": owner, "location": ""}).encode()
            for each, owner in zip(texts, owners, strict=True)
        ],
        vectors=[vectors.astype(np.float32)] if texts else [],
    )
    with writing(index_dir, collection) as folder:
        return publish(folder, contents, current=current)


def opened(index_dir: Path, documents: Sequence[DocumentRecord]) -> Snapshot:
    return Snapshot.open(index_dir / "default" / save(index_dir, documents).snapshot)
