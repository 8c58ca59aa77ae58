"""prompt: question and passages to the LLM's prompt, within its context.

| tensor                 | dtype  | shape  |                                                       |
|------------------------|--------|--------|-------------------------------------------------------|
| in  question           | STRING | [1]    |                                                       |
| in  passages           | STRING | [-1]   | JSON objects, best first; empty strings are padding   |
| in  history (optional) | STRING | [1]    | JSON list of earlier turns                            |
| out prompt             | STRING | [1]    | empty where there is no passage                       |
| out citations          | STRING | [1]    | JSON list: kept passages with marks, then the dropped |
"""

from __future__ import annotations

import json
from typing import Any

from tritonrag import contract
from tritonrag.backend.conversions import column, respond, response, rows, strings, tensor
from tritonrag.engines import prompt_builder
from tritonrag.prompting import Prompt, parse_history, parse_passages
from tritonrag.settings import ModelArgs
from tritonrag.tokenizing import check_text


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        parsed = ModelArgs.parse(args)
        self._builder = prompt_builder(parsed.repository, parsed.version)

    def execute(self, requests: list[Any]) -> list[Any]:
        return respond(requests, self._prompts, list, self._write)

    def _prompts(self, request: Any) -> list[Prompt]:
        questions = strings(request, contract.QUESTION)
        for question in questions:
            check_text(question, "query")
        passages = rows(request, contract.PASSAGES, contract.MAX_TOP_K)
        histories = column(request, contract.HISTORY, "[]", len(questions))
        return [
            self._builder.build(question, parse_passages(row), parse_history(history))
            for question, row, history in zip(questions, passages, histories, strict=True)
        ]

    def _write(self, prompts: list[Prompt]) -> Any:
        citations = [[json.dumps(each.citations, ensure_ascii=False)] for each in prompts]
        return response(
            tensor(contract.PROMPT, [[each.text] for each in prompts]),
            tensor(contract.CITATIONS, citations),
        )
