"""What the tests of file formats share: parsing by name, looking at blocks, small files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pypdf import PdfWriter
from pypdf.generic import (
    DecodedStreamObject,
    DictionaryObject,
    NameObject,
)

from tritonrag.documents import Document, SourceFile, parse_document


def parsed(name: str, content: bytes) -> Document:
    return parse_document(SourceFile(Path(name), name), content)


def rows(document: Document) -> list[tuple[str, tuple[str, ...], str, str]]:
    """Return place, heading path, kind and marked text of every block, whose words all stand
    where they say in the document's text."""
    for block in document.blocks:
        start, end = block.source_range(document.text, 0, len(block.text))
        assert document.text[start:end] == block.text
    return [
        (block.place, block.heading_path, block.kind, block.marker + block.text)
        for block in document.blocks
    ]


def zipped(members: Mapping[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def rezipped(content: bytes, changes: Mapping[str, str]) -> bytes:
    """Return a ZIP file with some of its members replaced."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return zipped({**members, **changes})


def pdf(
    pages: Sequence[Sequence[str | tuple[str, int] | list[str]]],
    bookmarks: Sequence[tuple[str, int, int | None]] = (),
    about: Mapping[str, str] | None = None,
    user_password: str | None = None,
    owner_password: str | None = None,
) -> bytes:
    """Return a PDF of lines in Helvetica, of 12 points unless told.

    A list is the cells of a row. A bookmark is its title, page and parent's number.
    """
    writer = PdfWriter()
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    for lines in pages:
        page = writer.add_blank_page(612, 792)
        fonts = DictionaryObject({NameObject("/F1"): font})
        page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
        shown, y = "", 720
        for line in lines:
            text, size = line if isinstance(line, tuple) else (line, 12)
            for at, cell in enumerate(text if isinstance(text, list) else [text]):
                shown += f"q 1 0 0 1 {72 + 100 * at} {y} cm BT /F1 {size} Tf {size} TL "
                shown += f"({cell}) Tj T* ET Q\n"
            y -= size + 2
        stream = DecodedStreamObject()
        stream.set_data(shown.encode("latin-1"))
        page[NameObject("/Contents")] = stream
    made = []
    for title, page_number, parent in bookmarks:
        above = None if parent is None else made[parent]
        made.append(writer.add_outline_item(title=title, page_number=page_number, parent=above))
    if about:
        writer.add_metadata(dict(about))
    if user_password is not None:
        writer.encrypt(user_password, owner_password, algorithm="AES-128")
    buffer = io.BytesIO()
    writer.write(buffer)
    return buffer.getvalue()
