"""The size of a KV cache, from configs as the hub has them."""

from __future__ import annotations

from typing import Any

import pytest

from tritonrag.errors import SetupError
from tritonrag.llm_config import (
    LlmShape,
    PagedCache,
    blocks_that_fit,
    free_for_cache,
    sequences_that_fit,
)

LLAMA_8B = {
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "hidden_size": 4096, "max_position_embeddings": 131072,
}  # fmt: skip
GEMMA2_2B = {
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "hidden_size": 2304, "max_position_embeddings": 8192, "sliding_window": 4096,
}  # fmt: skip
PHI3_MINI = {
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
    "hidden_size": 3072, "max_position_embeddings": 4096, "sliding_window": 2047,
}  # fmt: skip
QWEN2_05B = {
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
    "hidden_size": 896, "max_position_embeddings": 32768, "sliding_window": 32768,
    "use_sliding_window": False,
}  # fmt: skip
LLAMA_7B = {
    "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_size": 4096,
    "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "per_token", "window"),
    [
        (LLAMA_8B, 2 * 32 * 8 * 128 * 2, 0),
        (GEMMA2_2B, 2 * 26 * 4 * 256 * 2, 4096),
        (PHI3_MINI, 2 * 32 * 32 * 96 * 2, 2047),
        (QWEN2_05B, 2 * 24 * 2 * 64 * 2, 0),
        (LLAMA_7B, 2 * 32 * 32 * 128 * 2, 0),
    ],
    ids=["llama 3.1 8B", "gemma 2 2B", "phi-3 mini", "qwen2 0.5B", "llama 2 7B"],
)
def test_bytes_of_a_token(config: dict[str, Any], per_token: int, window: int) -> None:
    shape = LlmShape.of(config)

    assert shape.kv_bytes(1, 2) == per_token
    assert shape.kv_bytes(100, 4) == 200 * per_token
    assert shape.sliding_window == window


def test_what_fits_on_a_gpu() -> None:
    shape = LlmShape.of(LLAMA_8B)
    free = free_for_cache(24, 16_000_000_000)

    assert free == 5_600_000_000
    assert sequences_that_fit(shape, 8192, 2, free) == 5
    assert blocks_that_fit(shape, 256, 2, free) == free // (256 * 131072)
    assert free_for_cache(8, 16_000_000_000) == 0
    assert sequences_that_fit(shape, 8192, 2, 0) == 0


def test_a_cache_that_cannot_hold_one_sequence_is_refused() -> None:
    PagedCache(block_size=256, blocks=32, max_batch_size=4).check(8192)
    PagedCache(block_size=256, blocks=0, max_batch_size=4).check(8192)
    with pytest.raises(SetupError, match="31 blocks of 256 hold 7936 tokens, under the context"):
        PagedCache(block_size=256, blocks=31, max_batch_size=4).check(8192)


@pytest.mark.parametrize("change", [{"num_hidden_layers": None}, {"num_attention_heads": 0}])
def test_a_config_without_a_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(SetupError, match=r"config\.json: .* the shape of a decoder"):
        LlmShape.of(LLAMA_8B | change)
