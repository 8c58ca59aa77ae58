"""Files of many kinds to blocks under headings; a module each, loaded when it is needed.

Nothing in a file reaches the network or the file system: no external entities, no images, no
included files, no macros.
"""

from __future__ import annotations

from importlib import import_module

from tritonrag.formats.outline import Outline
from tritonrag.formats.recognising import kind_of

_MODULES = {
    ".atom": "feeds",
    ".csv": "delimited",
    ".docx": "word",
    ".eml": "mail",
    ".epub": "epub",
    ".htm": "html",
    ".html": "html",
    ".ipynb": "notebook",
    ".json": "records",
    ".markdown": "markdown",
    ".md": "markdown",
    ".msg": "outlook",
    ".pdf": "pdf",
    ".pptx": "slides",
    ".rss": "feeds",
    ".rst": "rst",
    ".rtf": "rtf",
    ".tsv": "delimited",
    ".txt": "plain",
    ".xls": "xls",
    ".xlsm": "xlsx",
    ".xlsx": "xlsx",
    ".xml": "feeds",
}

SUFFIXES = tuple(sorted(_MODULES))
"""The kinds of files that can be parsed, by suffix in lower case."""


def parse(suffix: str, content: bytes) -> Outline:
    """Parse a file of the kind that its content, or else its suffix in lower case, says.

    Raises:
        InvalidRequest: it cannot be read, with the reason.
        Exception: what a library raises on a file that is damaged.
    """
    module = import_module(f"tritonrag.formats.{_MODULES[kind_of(suffix, content)]}")
    outline: Outline = module.parse(content)
    return outline
