"""What an LLM's ``config.json`` says of its size, and what its KV cache takes. Sizes in bytes.

Pure arithmetic: knows no library and reads no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tritonrag.errors import SetupError

USABLE = 0.9
"""Share of a GPU's memory that weights and KV cache may fill; the rest is activations."""

MAX_PAGED_BATCH = 256
"""Most sequences that ONNX Runtime GenAI batches over a paged cache."""


@dataclass(frozen=True)
class LlmShape:
    """The numbers of a decoder that decide its KV cache; ``sliding_window`` is 0 without one."""

    layers: int
    kv_heads: int
    head_dim: int
    context_tokens: int
    sliding_window: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LlmShape:
        """Read a ``config.json``.

        Models without grouped-query attention name no ``num_key_value_heads``, and most name no
        ``head_dim``; transformers derives both from the attention heads, and so does this.

        Raises:
            SetupError: a number is missing.
        """
        try:
            heads = int(config["num_attention_heads"])
            return cls(
                layers=int(config["num_hidden_layers"]),
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
                context_tokens=int(config["max_position_embeddings"]),
                sliding_window=_window(config),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise SetupError(
                f"config.json: {error!r} where the shape of a decoder is expected "
                "(num_hidden_layers, num_attention_heads, hidden_size, max_position_embeddings)"
            ) from error

    def kv_bytes(self, tokens: int, bytes_per_number: int) -> int:
        """Return what the keys and values of ``tokens`` take, each layer holding all of them."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_per_number * tokens


@dataclass(frozen=True)
class PagedCache:
    """A KV cache in blocks of ``block_size`` tokens, for up to ``max_batch_size`` sequences.

    ``blocks`` 0 leaves their number to the engine, which takes a share of the free GPU memory.
    """

    block_size: int
    blocks: int
    max_batch_size: int

    def check(self, context_tokens: int) -> None:
        """Check that one sequence of the whole context fits.

        Raises:
            SetupError: it does not.
        """
        held = self.blocks * self.block_size
        if self.blocks and held < context_tokens:
            raise SetupError(
                f"{self.blocks} blocks of {self.block_size} hold {held} tokens, under the context "
                f"of {context_tokens}; give more --gpu-memory or --num-blocks, or a lower --context"
            )


def free_for_cache(gpu_gb: float, weights: int) -> int:
    """Return what a GPU of ``gpu_gb`` GB (10^9 bytes) has left beside the weights; 0 for none."""
    return max(0, int(gpu_gb * 1e9 * USABLE) - weights)


def sequences_that_fit(shape: LlmShape, context: int, bytes_per_number: int, free: int) -> int:
    """Return how many sequences of ``context`` tokens fit into ``free`` bytes."""
    return free // shape.kv_bytes(context, bytes_per_number)


def blocks_that_fit(shape: LlmShape, block_size: int, bytes_per_number: int, free: int) -> int:
    """Return how many blocks of a paged cache fit into ``free`` bytes."""
    return free // shape.kv_bytes(block_size, bytes_per_number)


def _window(config: Mapping[str, Any]) -> int:
    """Return the sliding window; Qwen names one that ``use_sliding_window`` turns off."""
    used = config.get("use_sliding_window", True)
    return int(config.get("sliding_window") or 0) if used else 0
