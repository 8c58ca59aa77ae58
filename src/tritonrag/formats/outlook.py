"""Outlook messages (MSG): the few properties that a reader sees, out of the OLE2 file.

The names of its streams are those of [MS-OXMSG], its property numbers those of [MS-OXPROPS].
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import olefile

from tritonrag.formats.containers import open_ole
from tritonrag.formats.decoding import decoded, decoded_html
from tritonrag.formats.html import parse_html
from tritonrag.formats.mail import Mail
from tritonrag.formats.outline import Outline
from tritonrag.formats.plain import parse_text

_SUBJECT, _SENDER, _SENDER_ADDRESS = 0x0037, 0x0C1A, 0x0C1F
_TO, _CC, _BODY, _HTML = 0x0E04, 0x0E03, 0x1000, 0x1013
_FILE_NAME, _LONG_FILE_NAME = 0x3704, 0x3707
_SENT, _DELIVERED = 0x0039, 0x0E06

_UNICODE, _BYTES, _BINARY, _TIME = 0x001F, 0x001E, 0x0102, 0x0040
_PROPERTIES = "__properties_version1.0"
_PROPERTIES_HEADER = 32
_ENTRY = struct.Struct("<HHIQ")
"""Of the properties: type, number, flags, value."""

_EPOCH = datetime(1601, 1, 1, tzinfo=UTC)


def parse(content: bytes) -> Outline:
    """Parse an Outlook message."""
    with open_ole(content) as file:
        sent = _time(file)
        return Mail(
            _text(file, _SUBJECT),
            {
                "From": _sender(file),
                "To": _text(file, _TO),
                "Cc": _text(file, _CC),
                "Date": sent.isoformat(" ") if sent else "",
            },
            sent,
            _body(file),
            list(_attachments(file)),
        ).outline()


def _body(file: olefile.OleFileIO) -> Outline | None:
    text = _text(file, _BODY)
    if text.strip():
        return parse_text(text)
    html = _stream(file, _HTML, _BINARY)
    return parse_html(decoded_html(html)) if html else None


def _sender(file: olefile.OleFileIO) -> str:
    name, address = _text(file, _SENDER), _text(file, _SENDER_ADDRESS)
    return f"{name} <{address}>" if "@" in address and address != name else name


def _attachments(file: olefile.OleFileIO) -> Iterator[str]:
    folders = (path[0] for path in file.listdir(streams=False, storages=True) if len(path) == 1)
    for folder in folders:
        if folder.startswith("__attach"):
            within = f"{folder}/"
            yield _text(file, _LONG_FILE_NAME, within) or _text(file, _FILE_NAME, within)


def _text(file: olefile.OleFileIO, number: int, within: str = "") -> str:
    text = _stream(file, number, _UNICODE, within)
    if text is not None:
        return text.decode("utf-16-le", errors="replace").rstrip("\0")
    text = _stream(file, number, _BYTES, within)
    return decoded(text.rstrip(b"\0")) if text else ""


def _stream(file: olefile.OleFileIO, number: int, kind: int, within: str = "") -> bytes | None:
    name = f"{within}__substg1.0_{number:04X}{kind:04X}"
    if not file.exists(name):
        return None
    content: bytes = file.openstream(name).read()
    return content


def _time(file: olefile.OleFileIO) -> datetime | None:
    """Return when the message was sent, or else delivered."""
    entries = file.openstream(_PROPERTIES).read()[_PROPERTIES_HEADER:]
    whole = len(entries) - len(entries) % _ENTRY.size
    times = {
        number: value
        for kind, number, _, value in _ENTRY.iter_unpack(entries[:whole])
        if kind == _TIME
    }
    ticks = times.get(_SENT) or times.get(_DELIVERED)
    try:
        return _EPOCH + timedelta(microseconds=ticks // 10) if ticks else None
    except OverflowError:
        return None
