"""Jupyter notebooks: Markdown cells, code cells and what these printed, as one Markdown text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tritonrag.errors import InvalidRequest
from tritonrag.formats.decoding import decoded
from tritonrag.formats.markdown import parse_markdown
from tritonrag.formats.outline import Outline
from tritonrag.formats.properties import telling

_FORMAT = 4
_TICKS = re.compile("`+")


def parse(content: bytes) -> Outline:
    """Parse a notebook; offsets count in the Markdown made of it.

    Raises:
        InvalidRequest: it is of an old format.
    """
    notebook = json.loads(decoded(content))
    if not isinstance(notebook, dict) or notebook.get("nbformat") != _FORMAT:
        raise InvalidRequest("not a notebook of format 4; save it again with a current Jupyter")
    cells = "\n\n".join(_markdown(notebook))
    outline = parse_markdown(f"\n{cells}\n")  # What opens with a line is no front matter.
    about = notebook.get("metadata") or {}
    return outline if outline.title else _titled(outline, telling(about.get("title")))


def _titled(outline: Outline, title: str | None) -> Outline:
    return Outline(title, outline.blocks, outline.text)


def _markdown(notebook: dict[str, Any]) -> Iterator[str]:
    language = notebook.get("metadata", {}).get("language_info", {}).get("name", "")
    for cell in notebook.get("cells", []):
        source = _text(cell.get("source"))
        if cell.get("cell_type") == "markdown":
            yield source
        elif cell.get("cell_type") == "code":
            yield _fenced(source, language)
            yield from (_fenced(text) for text in map(_printed, cell.get("outputs", [])) if text)


def _printed(output: dict[str, Any]) -> str:
    """Return what a cell's output says in plain text."""
    if output.get("output_type") == "error":
        return f"{output.get('ename')}: {output.get('evalue')}"
    return _text(output.get("text") or output.get("data", {}).get("text/plain"))


def _text(lines: object) -> str:
    """Return a text that a notebook may hold as a list of lines."""
    return "".join(map(str, lines)) if isinstance(lines, list) else str(lines or "")


def _fenced(code: str, language: str = "") -> str:
    longest = max(map(len, _TICKS.findall(code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"
