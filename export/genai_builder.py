"""The model builder of ONNX Runtime GenAI, with its options, and able to read Gemma 3.

    python export/genai_builder.py -i MODEL_DIR -o OUT_DIR -p fp32 -e cpu

Since transformers 5 a Gemma 3 config has one set of RoPE settings for each kind of layer, where the
builder (0.18) looks for one set and ``rope_local_base_freq``. export/llm.py compares what is built
with the original.
"""

from __future__ import annotations

import runpy
from typing import Any

import onnxruntime_genai.models  # noqa: F401 - puts the builder's folder on the path
from builders.gemma import Gemma3Model

_init = Gemma3Model.__init__


def _init_from_nested(self: Any, config: Any, *rest: Any) -> None:
    kinds = config.rope_parameters
    if "full_attention" in kinds:
        config.rope_local_base_freq = kinds["sliding_attention"]["rope_theta"]
        config.rope_parameters = kinds["full_attention"]
    _init(self, config, *rest)


Gemma3Model.__init__ = _init_from_nested

if __name__ == "__main__":
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
