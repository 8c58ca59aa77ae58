"""A small index for tests: a tokenizer of words, an embedder that hashes them, files to index."""

from __future__ import annotations

import atexit
import threading
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from tritonrag.artifacts import EMBEDDER_DIR, EmbedderManifest
from tritonrag.chunking import Chunker, ChunkSettings
from tritonrag.corpus import find_files
from tritonrag.documents import SourceFile
from tritonrag.index.adding import Added, Adder
from tritonrag.index.snapshot import Floats
from tritonrag.parsing import ParserPool

DIMENSION = 16


def manifest(sha256: str = "ab" * 32, dimension: int = DIMENSION) -> EmbedderManifest:
    return EmbedderManifest(
        model="tiny", precision="fp32", sha256=sha256, dimension=dimension, max_tokens=64,
        pooling="mean", prefixes={}, parity={}, versions={},
    )  # fmt: skip


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def install(repository: Path) -> None:
    (repository / EMBEDDER_DIR).mkdir(parents=True)
    manifest().save(repository / EMBEDDER_DIR)
    tokenizer().save(str(repository / EMBEDDER_DIR / "tokenizer.json"))


def vector(text: str, dimension: int = DIMENSION) -> Floats:
    made = np.random.default_rng(zlib.crc32(text.encode())).normal(size=dimension)
    return (made / np.linalg.norm(made)).astype(np.float32)


class HashEmbedder:
    """Gives each text a vector of its own, and remembers what it was asked."""

    def __init__(self, dimension: int = DIMENSION) -> None:
        self.dimension = dimension
        self.texts: list[str] = []
        self.batches: list[int] = []
        self._lock = threading.Lock()

    def embed(self, texts: Sequence[str], role: str = "passage") -> Floats:
        assert role == "passage"
        with self._lock:
            self.texts += texts
            self.batches.append(len(texts))
        return np.stack([vector(text, self.dimension) for text in texts])


def write(folder: Path, **texts: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.md").write_text(text)


def add(
    index_dir: Path,
    folder: Path,
    embedder: HashEmbedder | None = None,
    collection: str = "default",
    sha256: str = "ab" * 32,
    live: str | None = None,
    **options: Any,
) -> Added:
    embedder = embedder or HashEmbedder()
    files: list[SourceFile] = find_files([folder])[0]
    installed = manifest(sha256, embedder.dimension)
    current = manifest(live) if live else None
    adder = Adder(index_dir, installed, embedder, parsers(), live=current)
    return adder.add(collection, files, **options)


@cache
def parsers() -> ParserPool:
    """One pool for all tests of a process: starting one takes longer than most of them."""
    pool = ParserPool(Chunker(tokenizer(), ChunkSettings(32, 8), 64), workers=1)
    atexit.register(pool.close)
    return pool
