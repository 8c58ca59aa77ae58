"""What is written of a document must not be read by halves, or close it in vain."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from tritonrag.errors import InvalidRequest
from tritonrag.metadata import folded, means_access

_OPENING = re.compile(
    r"(?>\s*(?:<!--.*?-->\s*)*)(?:(---|\+\+\+)[ \t]*(?:\r?\n|\r)|(\{))", re.DOTALL
)
"""Where a front matter begins, after comments; a group that is not gone into again costs little."""

_ENDS = {
    "---": re.compile(r"[\r\n](?:---|\.\.\.)[ \t]*(?=[\r\n]|\Z)"),
    "+++": re.compile(r"[\r\n]\+\+\+[ \t]*(?=[\r\n]|\Z)"),
    "{": re.compile(r"[\r\n]\}"),
}
_CHARS = 4096
"""How far a front matter that is not closed is looked for."""

_ACCESS = re.compile(
    r"""\W*access\W*[:=\]]"""
    r"""|[^{]*\{.*\baccess["']?\s*[:=]"""
    r"""|.*["']access["']\s*(?:[:=]|$)"""
    r"""|\s*\?\W*access\b"""
    r"""|\s*[\w."'-]*\.\s*["']?access["']?\s*[:=]"""
    r"""|\s*\[(?=.*\baccess\b).*\]\s*$"""
)
"""A line with ``access`` as a name in YAML, TOML or JSON, a nested one too; in time that is in
proportion to its length."""


def check_closes_nothing(source: str, *, braces: bool = False) -> None:
    """Check the text of a document, or what follows the front matter that was read of it.

    Each of several front matters in a row is looked at, however long. With ``braces``, a JSON
    object counts as one too.

    Raises:
        InvalidRequest: one names ``access``: indexed as it is, the document would be open to
            everyone.
    """
    place = 0
    while (opening := _OPENING.match(source, place)) and (braces or not opening[2]):
        names, end = _json_names(source, opening) if opening[2] else (None, 0)
        if names is None:
            ended = _ENDS[opening[1] or "{"].search(source, opening.end() - 1)
            body = source[opening.end() : ended.start() if ended else opening.end() + _CHARS]
            check_names_no_access(opening[2] + body if opening[2] else body)
            end = ended.end() if ended else len(source)
        elif any(map(means_access, names)):
            raise _unread()
        place = end


def check_names_no_access(body: str) -> None:
    """Check what stands in a front matter that is not names and values.

    Raises:
        InvalidRequest: it names ``access`` all the same.
    """
    if any(map(_ACCESS.match, folded(body).splitlines())):
        raise _unread()


def _unread() -> InvalidRequest:
    return InvalidRequest(
        "its front matter names `access` but cannot be read: it has to be names and values in "
        "YAML, between two lines of `---`, at the very beginning of a Markdown file; elsewhere "
        "a sidecar says it"
    )


def _json_names(source: str, opening: re.Match[str]) -> tuple[list[str] | None, int]:
    """Return all names in a JSON object and where it ends; None where it is no JSON."""
    names: list[str] = []

    def take(pairs: list[tuple[str, Any]]) -> None:
        names.extend(name for name, _ in pairs)

    decoder = json.JSONDecoder(object_pairs_hook=take)
    try:
        return names, decoder.raw_decode(source, opening.start(2))[1]
    except (ValueError, RecursionError):
        return None, 0


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
