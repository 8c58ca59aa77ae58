"""EPUB books: chapters in the order of the spine, as headings."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from urllib.parse import unquote
from xml.etree.ElementTree import Element
from zipfile import ZipFile

from defusedxml.ElementTree import fromstring

from tritonrag.errors import InvalidRequest
from tritonrag.formats.building import ExtractedBlocks
from tritonrag.formats.containers import open_zip
from tritonrag.formats.html import parse as parse_chapter
from tritonrag.formats.outline import Outline
from tritonrag.formats.properties import facts, telling

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"


def parse(content: bytes) -> Outline:
    """Parse a book; only what is inside the file is read.

    Raises:
        InvalidRequest: it is protected, or damaged.
    """
    with open_zip(content) as book:
        names = frozenset(book.namelist())
        path = _package_path(book)
        package = fromstring(book.read(path))
        title = telling(_text(package, "title"))
        builder = ExtractedBlocks()
        protected = book.read(_ENCRYPTION).decode(errors="replace") if _ENCRYPTION in names else ""
        for chapter in _spine(package, posixpath.dirname(path)):
            if f'"{chapter}"' in protected:
                raise InvalidRequest("is protected against reading by other programs (DRM)")
            if chapter in names:
                _add_chapter(builder, book.read(chapter), title)
    return builder.outline(title, facts(_text(package, "creator")))


def _package_path(book: ZipFile) -> str:
    roots = _all(fromstring(book.read(_CONTAINER)), "rootfile")
    path = next((root.get("full-path") for root in roots), None)
    if not path:
        raise InvalidRequest("a damaged EPUB: it names no package document")
    return path


def _spine(package: Element, folder: str) -> Iterator[str]:
    """Yield the names of the chapters in their order."""
    files = {item.get("id"): item.get("href", "") for item in _all(package, "item")}
    for reference in _all(package, "itemref"):
        href = files.get(reference.get("idref"))
        if href:
            yield posixpath.normpath(posixpath.join(folder, unquote(href)))


def _add_chapter(builder: ExtractedBlocks, content: bytes, title: str | None) -> None:
    chapter = parse_chapter(content)
    builder.go_to("")
    builder.include(chapter, titled=chapter.title != title)


def _all(root: Element, name: str) -> Iterator[Element]:
    return (each for each in root.iter() if str(each.tag).rpartition("}")[2] == name)


def _text(package: Element, name: str) -> str:
    return next(("".join(each.itertext()) for each in _all(package, name)), "")
