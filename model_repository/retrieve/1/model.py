"""retrieve: embedding, or question, to passages, one search for the whole batch.

| tensor                    | dtype  | shape |                                                     |
|---------------------------|--------|-------|-----------------------------------------------------|
| in  embedding             | FP32   | [-1]  | L2-normalised, of the embedder's dimension          |
| in  question (optional)   | STRING | [1]   | for the modes that search for its words             |
| in  collection (optional) | STRING | [1]   |                                                     |
| in  top_k (optional)      | INT32  | [1]   |                                                     |
| in  retrieve_k (optional) | INT32  | [1]   | passages to find for a reranker; wins over top_k    |
| in  filter (optional)     | STRING | [1]   | conditions on the documents, a JSON object          |
| in  groups (optional)     | STRING | [1]   | the caller's groups, a JSON list of texts           |
| in  mode (optional)       | STRING | [1]   | dense, sparse or hybrid                             |
| in  min_score (optional)  | FP32   | [1]   | least cosine similarity                             |
| in  diversity (optional)  | FP32   | [1]   | 0 to 1: passages like those before it come later    |
| in  merge (optional)      | BOOL   | [1]   | neighbouring passages become one                    |
| in  snapshot (optional)   | STRING | [1]   | the one that is to be live, else NOT_FOUND          |
| out passages              | STRING | [-1]  | JSON objects, best first                            |
| out scores                | FP32   | [-1]  | what the mode ranks by                              |

Rows of one request with fewer passages than its longest are padded: "" and a score of -inf.
"""

from __future__ import annotations

from typing import Any

from tritonrag.artifacts import EmbedderManifest
from tritonrag.backend.conversions import log_info, respond
from tritonrag.backend.metrics import IndexMetrics
from tritonrag.backend.retrieval import read_queries, search_all, write_results
from tritonrag.contract import MAX_TOP_K
from tritonrag.index import Query, Result, open_retriever
from tritonrag.settings import ModelArgs


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        settings = ModelArgs.parse(args)
        embedder = EmbedderManifest.load(settings.repository, settings.version)
        # Set by the config variant with a reranker.
        self._least = settings.integer("retrieve_k", 0, 0, MAX_TOP_K)
        self._retriever = open_retriever(embedder, log_info)
        self._metrics = IndexMetrics(self._retriever, settings.version)

    def execute(self, requests: list[Any]) -> list[Any]:
        return respond(requests, self._read, self._search, write_results)

    def _read(self, request: Any) -> list[Query]:
        queries = read_queries(request, self._least)
        for query in queries:
            self._retriever.check(query)
        return queries

    def _search(self, batch: list[list[Query]]) -> list[list[Result] | Exception]:
        with self._metrics.timing(batch):
            return search_all(self._retriever, batch)

    def finalize(self) -> None:
        self._metrics.close()
        self._retriever.close()
