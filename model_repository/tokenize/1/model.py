"""tokenize: text to token ids for the embedder.

| tensor                 | dtype  | shape  |                                                       |
|------------------------|--------|--------|-------------------------------------------------------|
| in  text               | STRING | [1]    | a question or a passage                               |
| in  role (optional)    | STRING | [1]    | `query` (default) or `passage`                        |
| out input_ids          | INT64  | [-1]   | padded to one length for all requests of a batch      |
| out attention_mask     | INT64  | [-1]   | 1 for a token, 0 for padding                          |
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tritonrag import contract
from tritonrag.backend.conversions import column, respond, response, strings, tensor
from tritonrag.settings import ModelArgs
from tritonrag.tokenizing import QUERY_PAD_MULTIPLE, Ids, TextTokenizer, check_text

Rows = tuple[list[str], list[str]]


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parsed = ModelArgs.parse(args)
        multiple = parsed.integer("query_pad_multiple", QUERY_PAD_MULTIPLE, 1, 512)
        self._tokenizer = TextTokenizer(parsed.repository, parsed.version, multiple)

    def execute(self, requests: list[Any]) -> list[Any]:
        return respond(requests, self._read, self._encode, self._write)

    def _read(self, request: Any) -> Rows:
        # `search` and `rag` map the caller's question to this input, with no role.
        name = "question" if set(strings(request, contract.ROLE)) <= {"query"} else "text"
        texts = strings(request, contract.TEXT, name)
        roles = column(request, contract.ROLE, "query", len(texts))
        for text, role in zip(texts, roles, strict=True):
            check_text(text, role)
        return texts, roles

    def _encode(self, batch: list[Rows]) -> list[tuple[Ids, Ids]]:
        texts = [text for texts, _ in batch for text in texts]
        roles = [role for _, roles in batch for role in roles]
        ids, mask = self._tokenizer.encode(texts, roles)
        ends = np.cumsum([len(texts) for texts, _ in batch])[:-1]
        return list(zip(np.split(ids, ends), np.split(mask, ends), strict=True))

    def _write(self, encoded: tuple[Ids, Ids]) -> Any:
        ids, mask = encoded
        return response(tensor(contract.INPUT_IDS, ids), tensor(contract.ATTENTION_MASK, mask))
