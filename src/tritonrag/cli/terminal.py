"""What a terminal may be shown of texts that others wrote: titles, sources, reasons, answers."""

from __future__ import annotations

import json
import re
import unicodedata

_KEPT = frozenset("\u200c\u200d\ufe0f")
"""Joiners and the emoji selector: words of several scripts need them, and they move nothing."""

_HIDING = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Unicode categories without a shape of their own: controls, formats such as the ones that turn
the direction of text, halves of characters, unassigned ones, and separators of lines."""


def printable(text: str, *, newlines: bool = False) -> str:
    r"""Return ``text`` with what could steer a terminal shown as an escape such as ``\x1b``.

    That is every control character, such as ESC, BEL and CR, and every invisible one, such as those
    that reorder what stands beside them. Line breaks are escaped too, so that one line stays one;
    with ``newlines`` they and tabs are kept.
    """
    if text.isprintable():
        return text
    kept = _KEPT | set("\n\t") if newlines else _KEPT
    return "".join(each if each in kept else _shown(each) for each in text)


def json_text(values: object) -> str:
    """Return JSON whose texts are as readable as in :func:`printable` and as they were when read.

    Characters that could steer a terminal are written as JSON's own escapes.
    """
    return _HIDDEN.sub(_escaped, json.dumps(values, ensure_ascii=False))


_HIDDEN = re.compile(r"[^\x20-\x7e]")


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    hidden = _shown(character) != character and character not in _KEPT
    escape = json.dumps(character)[1:-1].replace("\x7f", "\\u007f")  # which JSON may hold raw
    return escape if hidden else character


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _HIDING:
        return character
    return character.encode("unicode_escape", "backslashreplace").decode()
