"""What is written of a document must not be read by halves, or close it in vain."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from tritonrag.errors import InvalidRequest

_OPENING = re.compile(r"\s*(---|\+\+\+)[ \t]*\r?\n|\s*(\{)")
_CHARS = 4096
"""How far a front matter that is not closed is looked for."""

_ACCESS = re.compile(
    r"""^\W*access\W*[:=\]]"""
    r"""|^[^\n]*\{[^\n]*\baccess["']?\s*[:=]"""
    r"""|^\s*[\w."'-]*\.\s*["']?access["']?\s*[:=]"""
    r"""|^\s*\[[^\n]*\baccess\b[^\n]*\]\s*$""",
    re.IGNORECASE | re.MULTILINE,
)
"""``access`` as a name in YAML, TOML or JSON, a nested one too."""


def check_closes_nothing(source: str, *, braces: bool = False) -> None:
    """Check the text of a document of which no metadata was read.

    With ``braces``, a JSON object at its beginning counts as front matter too.

    Raises:
        InvalidRequest: it begins with what names ``access``, as a front matter does: indexed as it
            is, it would be open to everyone.
    """
    opening = _OPENING.match(source)
    if opening is None or (opening[2] and not braces):
        return
    body = source[opening.start() : opening.end() + _CHARS]
    end = "\n}" if opening[2] else f"\n{opening[1]}"
    if _ACCESS.search(body[opening.end(1) if opening[1] else 0 :].partition(end)[0]):
        raise InvalidRequest(
            "its front matter names `access` but cannot be read: it has to be names and values in "
            "YAML, between two lines of `---`, at the very beginning of a Markdown file; elsewhere "
            "a sidecar says it"
        )


def load_yaml(text: str) -> Any:
    """Return what YAML says, of plain types.

    Raises:
        InvalidRequest: a name is there twice, so that one of its values would be ignored.
        Exception: it is not YAML; its constructors raise anything.
    """
    return yaml.load(text, _Strict)


def load_json(text: str) -> Any:
    """Return what JSON says.

    Raises:
        InvalidRequest: a name is there twice, so that one of its values would be ignored.
        ValueError, RecursionError: it is not JSON.
    """
    return json.loads(text, object_pairs_hook=_object)


class _Strict(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> Any:
        node: Any = super().compose_mapping_node(anchor)
        _check_names([key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        return node


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_names([name for name, _ in pairs])
    return dict(pairs)


def _check_names(names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidRequest(f"metadata: {name[:80]!r} is there twice; write it once")
        seen.add(name)
