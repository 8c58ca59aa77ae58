"""Bytes to text: UTF-8 where it is, and otherwise the encoding that the bytes speak for."""

from __future__ import annotations

import codecs

from bs4.dammit import EncodingDetector
from charset_normalizer import CharsetMatch, from_bytes

from tritonrag.errors import InvalidRequest

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, the longer one first where one begins with the other."""

_LIKELY = ("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r",
           "cp932", "euc_jp", "gb18030", "big5", "cp949")  # fmt: skip
"""The encodings that are looked for. Where a text is as likely in two, it is in the first."""

_DECLARATION_BYTES = 4096
_SAMPLE_BYTES = 256 * 1024


def decoded(content: bytes, declared: str | None = None) -> str:
    """Return the text of a file without its byte order mark.

    It is read as UTF-8, else as ``declared``, else as what its bytes are most likely to be.

    Raises:
        InvalidRequest: it is not text, or its encoding cannot be told.
    """
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return _text(_decoded(content, encoding), encoding)
    if b"\0" in content:
        raise InvalidRequest("not text: it holds NUL bytes")
    for known in ("utf-8", declared):
        if known and (text := _decoded(content, known)) is not None:
            return text
    detected = _detected(content)
    return _text(_decoded(content, detected) if detected else None, detected)


def decoded_html(content: bytes) -> str:
    """Return the text of an HTML file, whose ``<meta>`` may name its encoding.

    Raises:
        InvalidRequest: as :func:`decoded`.
    """
    head = content[:_DECLARATION_BYTES]
    return decoded(content, EncodingDetector.find_declared_encoding(head, is_html=True))


def _decoded(content: bytes, encoding: str) -> str | None:
    try:
        return content.decode(encoding)
    except (UnicodeDecodeError, LookupError):
        return None


def _text(text: str | None, encoding: str | None) -> str:
    if text is None:
        tried = f"; it is not {encoding} throughout" if encoding else ""
        raise InvalidRequest(f"its encoding cannot be told{tried}; convert it to UTF-8")
    if "\0" in text:
        raise InvalidRequest("not text: it holds NUL characters")
    return text


def _detected(content: bytes) -> str | None:
    sample = content[:_SAMPLE_BYTES]
    if len(content) > len(sample):  # No character of several bytes is cut at a line's end.
        sample = sample.rpartition(b"\n")[0] or sample
    matches = list(from_bytes(sample, cp_isolation=list(_LIKELY)))
    if not matches:
        return None
    best = [match for match in matches if _fitness(match) == _fitness(matches[0])]
    return min((match.encoding for match in best), key=_preference)


def _fitness(match: CharsetMatch) -> tuple[float, float]:
    return match.chaos, match.coherence


def _preference(encoding: str) -> int:
    return _LIKELY.index(encoding) if encoding in _LIKELY else len(_LIKELY)
