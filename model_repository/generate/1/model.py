"""generate: a prompt to a stream of text; decoupled, batched continuously by the engine.

| tensor                       | dtype  | shape |                                                  |
|------------------------------|--------|-------|--------------------------------------------------|
| in  prompt (optional)        | STRING | [1]   | needed unless `cancel` is given                  |
| in  citations (optional)     | STRING | [1]   | JSON list; passages that `quote` may use         |
| in  max_tokens (optional)    | INT32  | [1]   | and temperature FP32, top_p FP32,                |
|                              |        |       | top_k_sampling INT32, seed INT64                 |
| in  stop (optional)          | STRING | [-1]  | strings that end the answer                      |
| in  grounding (optional)     | STRING | [1]   | `free` or `quote`                                |
| in  cancel_key (optional)    | STRING | [1]   | secret that stops this generation                |
| in  caller (optional)        | STRING | [1]   | who asks, as the gateway says                    |
| in  cancel (optional)        | STRING | [1]   | the `cancel_key` of a generation to stop         |
| out text                     | STRING | [1]   | text since the last response                     |
| out citations                | STRING | [1]   | first response, and the last with places         |
| out finish_reason, usage     | STRING | [1]   | last response only                               |
"""

from __future__ import annotations

from typing import Any

from tritonrag.backend.calling import TritonModels
from tritonrag.backend.logs import log_to_server
from tritonrag.backend.streaming import Streams
from tritonrag.engines import load_engine
from tritonrag.settings import ModelArgs


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        log_to_server()
        self._streams = Streams(load_engine(ModelArgs.parse(args), TritonModels()))

    def execute(self, requests: list[Any]) -> None:
        self._streams.begin(requests)

    def finalize(self) -> None:
        self._streams.close()
