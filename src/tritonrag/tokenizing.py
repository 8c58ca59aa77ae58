"""Text to token ids for the embedder: prefix by role, truncation, padding to one length.

Knows nothing of Triton. A tokenizer is not thread-safe ("Already borrowed"): one per thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from tritonrag.artifacts import EmbedderManifest, embedder_dir
from tritonrag.contract import MAX_QUESTION_BYTES, MAX_TEXT_BYTES, ROLES
from tritonrag.errors import InvalidRequest

PAD_MULTIPLE = 16
"""Lengths are rounded up to this, so that more batches have equal shapes and can be joined: with 16
in place of 8 the mean batch of ``embed`` at 64 clients went from 8 to 15 (docs/log.md)."""

Ids = npt.NDArray[np.int64]


class TextTokenizer:
    """The tokenizer of an installed embedder."""

    def __init__(self, repository: Path, version: int) -> None:
        """Load ``tokenizer.json`` of a version of the embedder in a model repository.

        Raises:
            SetupError: it is not installed there.
        """
        manifest = EmbedderManifest.load(repository, version)
        self._prefixes = manifest.prefixes
        path = repository / embedder_dir(version) / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(path))
        # Padding must not lead past the embedder's last position.
        limit = manifest.max_tokens
        self._tokenizer.enable_truncation(limit - limit % PAD_MULTIPLE or limit)
        pad_id = self._tokenizer.token_to_id("[PAD]") or self._tokenizer.token_to_id("<pad>") or 0
        self._tokenizer.enable_padding(pad_id=pad_id, pad_to_multiple_of=PAD_MULTIPLE)

    def encode(self, texts: Sequence[str], roles: Sequence[str]) -> tuple[Ids, Ids]:
        """Return ``input_ids`` and ``attention_mask``, both int64 [texts, longest length].

        All rows are padded to one length, a multiple of :data:`PAD_MULTIPLE`.
        """
        prefixed = [
            self._prefixes.get(role, "") + text for text, role in zip(texts, roles, strict=True)
        ]
        encodings = self._tokenizer.encode_batch_fast(prefixed)
        ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
        mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
        return ids, mask


def check_text(text: str, role: str) -> None:
    """Check a text to embed.

    Raises:
        InvalidRequest: unknown role, blank text, or over the limit of bytes for its role.
    """
    if role not in ROLES:
        raise InvalidRequest(f"role: is {role!r}, expected {' or '.join(ROLES)}")
    name, limit = ("question", MAX_QUESTION_BYTES) if role == "query" else ("text", MAX_TEXT_BYTES)
    if not text.strip():
        raise InvalidRequest(f"{name}: is empty or blank, expected text of 1 to {limit} bytes")
    size = len(text.encode())
    if size > limit:
        raise InvalidRequest(f"{name}: is {size} bytes of UTF-8, the limit is {limit}; shorten it")
