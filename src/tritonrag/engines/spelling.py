"""Quotes as a grammar's terminals, in a form that ONNX Runtime GenAI can follow.

GenAI 0.18 gives llguidance a vocabulary that it decoded token by token. The tokens of a byte-level
BPE that hold a part of a character (half an emoji, a third of a "€") all read as U+FFFD there, so
that a grammar which needs one fails, and takes the engine's whole batch with it. Such characters
are therefore spelled by the numbers of their tokens (``<[163]> <[241]>`` in llguidance's Lark).
The one byte that does not work with either is 0xEF, with which U+FFFD itself begins: a sentence
that needs it as a token of its own (full-width punctuation, where the LLM's vocabulary lacks it)
cannot be quoted.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from tritonrag.quoting import literal

BYTE_EF = "ï"
"""How a byte-level BPE writes the byte 0xEF in its vocabulary."""


def speller(tokenizer: Tokenizer) -> Callable[[str], str | None]:
    """Return a function that writes text as a sequence of Lark terminals for this LLM.

    It returns None for text that GenAI cannot follow.
    """

    def spell(text: str) -> str | None:
        if text.isascii():
            return literal(text)
        pieces = _pieces(tokenizer, text)
        if all(isinstance(piece, str) for piece in pieces):
            return literal(text)
        parts = [id for piece in pieces if not isinstance(piece, str) for id in piece]
        if any(BYTE_EF in (tokenizer.id_to_token(id) or "") for id in parts):
            return None
        return " ".join(
            literal(piece) if isinstance(piece, str) else " ".join(f"<[{id}]>" for id in piece)
            for piece in _joined(pieces)
        )

    return spell


def _pieces(tokenizer: Tokenizer, text: str) -> list[str | list[int]]:
    """Return the text of each token, or the tokens that are text only together."""
    stream = DecodeStream(skip_special_tokens=False)
    pieces: list[str | list[int]] = []
    waiting: list[int] = []
    for id in tokenizer.encode(text, add_special_tokens=False).ids:
        waiting.append(id)
        piece = stream.step(tokenizer, id)
        if piece is not None:
            pieces.append(piece if len(waiting) == 1 else waiting)
            waiting = []
    return [*pieces, waiting] if waiting else pieces


def _joined(pieces: list[str | list[int]]) -> list[str | list[int]]:
    """Join neighbouring text: the fewer terminals, the freer the LLM is to choose its tokens."""
    joined: list[str | list[int]] = []
    for piece in pieces:
        if isinstance(piece, str) and joined and isinstance(joined[-1], str):
            joined[-1] += piece
        else:
            joined.append(piece)
    return joined
