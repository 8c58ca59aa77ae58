"""The query pipeline behind Hayhooks: ``POST /search/run``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hayhooks import BasePipelineWrapper
from haystack import Pipeline
from haystack_integrations.components.embedders.sentence_transformers import (
    SentenceTransformersTextEmbedder,
)
from haystack_integrations.components.retrievers.faiss import FAISSEmbeddingRetriever
from haystack_integrations.document_stores.faiss import FAISSDocumentStore


class PipelineWrapper(BasePipelineWrapper):
    def setup(self) -> None:
        path = str(Path(os.environ["STORE"]) / "passages")
        store = FAISSDocumentStore(index_path=path, embedding_dim=384)
        embedder = SentenceTransformersTextEmbedder(
            model=os.environ["MODEL"], normalize_embeddings=True, progress_bar=False
        )
        self.pipeline = Pipeline()
        self.pipeline.add_component("text_embedder", embedder)
        self.pipeline.add_component("retriever", FAISSEmbeddingRetriever(document_store=store))
        self.pipeline.connect("text_embedder.embedding", "retriever.query_embedding")

    def run_api(self, question: str, top_k: int = 5) -> list[dict[str, Any]]:
        found = self.pipeline.run(
            {"text_embedder": {"text": question}, "retriever": {"top_k": top_k}}
        )
        return [
            {"id": document.id, "text": document.content, "score": document.score}
            for document in found["retriever"]["documents"]
        ]
