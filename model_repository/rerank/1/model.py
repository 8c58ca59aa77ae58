"""rerank: question and passages to the best of them, by a cross-encoder.

| tensor               | dtype  | shape |                                                         |
|----------------------|--------|-------|---------------------------------------------------------|
| in  question         | STRING | [1]   |                                                         |
| in  passages         | STRING | [-1]  | JSON objects; empty strings are padding                 |
| in  top_k (optional) | INT32  | [1]   | passages wanted                                         |
| out passages         | STRING | [-1]  | JSON objects with the new score, best first             |
| out scores           | FP32   | [-1]  | the reranker's score                                    |

Rows of one request with fewer passages than its longest are padded: "" and a score of -inf.
"""

from __future__ import annotations

from typing import Any

from tritonrag.backend.conversions import respond
from tritonrag.backend.reranking import load_reranker, read_candidates, rerank_all, write_ranked
from tritonrag.errors import InternalError
from tritonrag.reranking import Candidates, Ranked
from tritonrag.settings import ModelArgs


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        self._reranker = load_reranker(ModelArgs.parse(args))

    def execute(self, requests: list[Any]) -> list[Any]:
        return respond(requests, read_candidates, self._rerank, write_ranked)

    def _rerank(self, batch: list[list[Candidates]]) -> list[list[Ranked] | InternalError]:
        return rerank_all(self._reranker, batch)
