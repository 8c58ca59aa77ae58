"""An embedder whose vectors tell which texts shared a batch, as padding does in a real one."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Sequence

import numpy as np
from index_samples import DIMENSION, vector

from tritonrag.index.snapshot import Floats


class BatchEmbedder:
    def embed(self, texts: Sequence[str], role: str = "passage") -> Floats:
        assert role == "passage"
        batch = zlib.crc32("\n".join(texts).encode()) / 2**32
        return np.stack([vector(text) + np.float32(batch) for text in texts])


class WrongShape:
    def embed(self, texts: Sequence[str], role: str = "passage") -> Floats:
        return np.ones((len(texts), DIMENSION + 1), np.float32)


class Faulty:
    def embed(self, texts: Sequence[str], role: str = "passage") -> Floats:
        found: dict[str, Floats] = {}
        return found[texts[0]]


class NotThere(BatchEmbedder):
    def __reduce__(self) -> tuple[object, ...]:
        return importlib.import_module, ("no_such_module",)
