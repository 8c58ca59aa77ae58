"""A front matter that is not read must not close a document in vain."""

from __future__ import annotations

import re

from tritonrag.errors import InvalidRequest

_OPENING = re.compile(r"\s*---[ \t]*\r?\n")
_CHARS = 4096
"""How far a front matter that is not closed is looked for."""

_ACCESS = re.compile(r"^\W*access\W*:", re.IGNORECASE | re.MULTILINE)


def check_closes_nothing(source: str) -> None:
    """Check the text of a document of which no metadata was read.

    Raises:
        InvalidRequest: it begins with what names ``access``, as a front matter does: indexed as it
            is, it would be open to everyone.
    """
    opening = _OPENING.match(source)
    body = source[opening.end() :][:_CHARS].partition("\n---")[0] if opening else ""
    if _ACCESS.search(body):
        raise InvalidRequest(
            "its front matter names `access` but cannot be read: it has to be names and values in "
            "YAML, between two lines of `---`, at the very beginning of a Markdown file; elsewhere "
            "a sidecar says it"
        )
