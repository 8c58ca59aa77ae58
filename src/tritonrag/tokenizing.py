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
"""Lengths of passages are rounded up to this, so that more batches have equal shapes."""

QUERY_PAD_MULTIPLE = 64
"""The same for questions, nearly all of which then have one length and can be joined: with 64 in
place of 16 the mean batch of ``embed`` at 64 clients went from 5 to 25 (docs/log.md). What is
padding costs nothing where batches are run by length (:mod:`tritonrag.padding`)."""

FEW_TEXTS = 4

Ids = npt.NDArray[np.int64]


class TextTokenizer:
    """The tokenizer of an installed embedder."""

    def __init__(
        self, repository: Path, version: int, query_pad_multiple: int = QUERY_PAD_MULTIPLE
    ) -> None:
        """Load ``tokenizer.json`` of a version of the embedder in a model repository.

        Raises:
            SetupError: it is not installed there.
        """
        manifest = EmbedderManifest.load(repository, version)
        self._prefixes = manifest.prefixes
        self._query_pad_multiple = query_pad_multiple
        path = repository / embedder_dir(version) / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(path))
        # Padding must not lead past the embedder's last position.
        limit = manifest.max_tokens
        self._limit = limit - limit % PAD_MULTIPLE or limit
        self._tokenizer.enable_truncation(self._limit)
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # `[SEP]` in a text is text
        to_id = self._tokenizer.token_to_id
        self._pad_id = to_id("[PAD]") or to_id("<pad>") or 0

    def encode(self, texts: Sequence[str], roles: Sequence[str]) -> tuple[Ids, Ids]:
        """Return ``input_ids`` and ``attention_mask``, both int64 [texts, longest length].

        All rows are padded to one length: a multiple of :data:`PAD_MULTIPLE`, with a question
        among them of ``query_pad_multiple``, within the embedder's longest input.
        """
        prefixed = [
            self._prefixes.get(role, "") + text for text, role in zip(texts, roles, strict=True)
        ]
        # A thread pool takes longer to wake than a few short texts do.
        few = len(prefixed) < FEW_TEXTS
        encodings = (
            [self._tokenizer.encode(text) for text in prefixed]
            if few
            else self._tokenizer.encode_batch_fast(prefixed)
        )
        multiple = self._query_pad_multiple if "query" in roles else PAD_MULTIPLE
        longest = max(len(encoding) for encoding in encodings)
        width = min(-(-longest // multiple) * multiple, self._limit)
        ids = np.full((len(texts), width), self._pad_id, dtype=np.int64)
        mask = np.zeros((len(texts), width), dtype=np.int64)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding)] = encoding.ids
            mask[row, : len(encoding)] = 1
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
