"""Embeds the passages into a FAISS document store, as the FAISS integration's page shows."""

from __future__ import annotations

import json
import os
from pathlib import Path

from haystack import Document, Pipeline
from haystack.components.writers import DocumentWriter
from haystack_integrations.components.embedders.sentence_transformers import (
    SentenceTransformersDocumentEmbedder,
)
from haystack_integrations.document_stores.faiss import FAISSDocumentStore


def main() -> None:
    with open(os.environ["PASSAGES"], encoding="utf-8") as lines:
        passages = [json.loads(line) for line in lines]
    documents = [Document(id=each["id"], content=each["text"]) for each in passages]
    store = FAISSDocumentStore(embedding_dim=384)
    embedder = SentenceTransformersDocumentEmbedder(
        model=os.environ["MODEL"], normalize_embeddings=True
    )
    pipeline = Pipeline()
    pipeline.add_component("embedder", embedder)
    pipeline.add_component("writer", DocumentWriter(document_store=store))
    pipeline.connect("embedder", "writer")
    pipeline.run({"embedder": {"documents": documents}})
    store.save(Path(os.environ["STORE"]) / "passages")


if __name__ == "__main__":
    main()
