"""Takes secrets out of texts that others wrote, before they are logged."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from itertools import groupby
from string import ascii_lowercase, ascii_uppercase
from urllib.parse import quote

PIECE = 4
"""A part of a secret that is as long as this is hidden too: services echo the ends of a key."""

_ALIKE = str.maketrans(f"{ascii_uppercase}-_", f"{ascii_lowercase}+/")
"""Spellings that are taken for one: the case, and the two alphabets of Base64."""


def redacted(text: str, *secrets: str) -> str:
    """Return ``text`` with ``***`` for every secret in it.

    That is the secret itself and each part of it of at least :data:`PIECE` characters, in any
    case, plain, URL-encoded or in Base64, where other bytes may stand before and behind it.
    """
    for secret in filter(None, secrets):
        text = _without(text, secret)
    return text


def _without(text: str, secret: str) -> str:
    size = min(PIECE, len(secret))
    pieces = {piece for form in _forms(secret) for piece in _pieces(form, size)}
    hidden = bytearray(len(text))
    for at, piece in enumerate(_pieces(text, size)):
        if piece in pieces:
            hidden[at : at + size] = b"\1" * size
    runs = groupby(zip(hidden, text, strict=True), key=lambda pair: pair[0])
    return "".join("***" if hide else "".join(c for _, c in run) for hide, run in runs)


def _forms(secret: str) -> Iterator[str]:
    raw = secret.encode(errors="surrogatepass")  # a variable may hold bytes that are no text
    yield secret
    yield quote(raw, safe="")
    for before in range(3):  # Base64 writes three bytes as four characters, wherever they begin
        coded = b64encode(bytes(before) + raw).decode().rstrip("=")
        yield coded[(0, 2, 3)[before] : len(coded) - bool((before + len(raw)) % 3)]


def _pieces(text: str, size: int) -> Iterator[str]:
    alike = text.translate(_ALIKE)
    return (alike[at : at + size] for at in range(len(alike) - size + 1))
