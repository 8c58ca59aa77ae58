"""What kind of file it is, by its content first and its name second.

A file with another kind's name is parsed as what it is.
"""

from __future__ import annotations

from tritonrag.errors import InvalidRequest
from tritonrag.formats.containers import OLE, ZIP, open_ole, open_zip

_BINARY = frozenset({".docx", ".epub", ".msg", ".pdf", ".pptx", ".rtf", ".xls", ".xlsm", ".xlsx"})

_ZIPPED = {"word/": ".docx", "ppt/": ".pptx", "xl/": ".xlsx"}
_COMPOUND = {"Workbook": ".xls", "Book": ".xls", "__properties_version1.0": ".msg"}
_REFUSED = {
    "EncryptedPackage": "is encrypted; save it without a password",
    "WordDocument": "a Word 97-2003 document; save it as .docx",
    "PowerPoint Document": "a PowerPoint 97-2003 presentation; save it as .pptx",
}
_PDF_WITHIN = 1024
_HTML_STARTS = (b"<!doctype html", b"<html", b"<table")


def kind_of(suffix: str, content: bytes) -> str:
    """Return the suffix of the kind that ``content`` is, by default its own.

    Raises:
        InvalidRequest: it is of no kind that is read, or does not hold what its name promises.
    """
    head = content[:_PDF_WITHIN].lstrip()
    if head.startswith(b"%PDF-") or (suffix == ".pdf" and b"%PDF-" in head):
        return ".pdf"
    if head.startswith(b"{\\rtf"):
        return ".rtf"
    if content.startswith(ZIP):
        return _zipped(content)
    if content.startswith(OLE):
        return _compound(content)
    if suffix in _BINARY:
        return _mislabelled(suffix, head)
    return suffix


def _zipped(content: bytes) -> str:
    names = open_zip(content).namelist()
    if "META-INF/container.xml" in names:
        return ".epub"
    for name in names:
        for folder, suffix in _ZIPPED.items():
            if name.startswith(folder):
                return suffix
    raise InvalidRequest("a ZIP archive of no kind that is read; unpack it")


def _compound(content: bytes) -> str:
    with open_ole(content) as file:
        for stream, reason in _REFUSED.items():
            if file.exists(stream):
                raise InvalidRequest(reason)
        for stream, suffix in _COMPOUND.items():
            if file.exists(stream):
                return suffix
    raise InvalidRequest("an OLE2 file of no kind that is read")


def _mislabelled(suffix: str, head: bytes) -> str:
    """Return the kind of a file that is not what its name says: some programs save HTML so."""
    if head[:32].lower().startswith(_HTML_STARTS):
        return ".html"
    raise InvalidRequest(f"not {suffix[1:].upper()}, whatever its name says; is it damaged?")
