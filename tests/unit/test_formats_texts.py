"""Books, RTF, notebooks and mail."""

from __future__ import annotations

import io
import json
import struct
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime
from types import TracebackType

import pytest
from format_samples import parsed, rows, zipped

from tritonrag.errors import InvalidRequest
from tritonrag.formats import outlook

SENT = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)


def book(**more: str) -> bytes:
    return zipped(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<container><rootfiles><rootfile full-path="b/p.opf"/>'
            "</rootfiles></container>",
            "b/p.opf": '<package xmlns:dc="d"><metadata><dc:title>Guide</dc:title>'
            "<dc:creator>The desk</dc:creator></metadata><manifest>"
            '<item id="two" href="two%20x.xhtml"/><item id="one" href="one.xhtml"/>'
            '<item id="out" href="../../etc/passwd"/></manifest>'
            '<spine><itemref idref="one"/><itemref idref="out"/><itemref idref="two"/></spine>'
            "</package>",
            "b/one.xhtml": "<html><head><title>Guide</title></head><body><p>First.</p></body>",
            "b/two x.xhtml": "<h1>Hotels</h1><h2>Rates</h2><p>Book early.</p><h2>Meals</h2>"
            "<table><tr><th>A<tr><td>1</table>",
            **more,
        }
    )


def test_books() -> None:
    document = parsed("a.epub", book())
    assert document.title == "Guide"
    assert rows(document) == [
        ("", (), "text", "First."),
        ("", ("Hotels", "Rates"), "text", "Book early."),
        ("", ("Hotels", "Meals"), "table", "A\n1"),
    ]
    assert document.blocks[2].header_rows == 1
    assert document.metadata.fields == {"author": "The desk"}


def test_a_protected_book_is_refused() -> None:
    encryption = {"META-INF/encryption.xml": '<r URI="b/one.xhtml"/>'}
    with pytest.raises(InvalidRequest, match="DRM"):
        parsed("a.epub", book(**encryption))


def test_rtf() -> None:
    content = (
        rb"{\rtf1\ansi{\info{\title The plan}}Gr\'f6\'dfe \u26085?\par Second.\par "
        rb"\trowd A\cell B\cell\row\trowd 1\cell 2\cell\row Last.\par}"
    )
    document = parsed("a.rtf", content)
    assert document.title == "The plan"
    assert rows(document) == [
        ("", (), "text", "Größe 日"),
        ("", (), "text", "Second."),
        ("", (), "table", "A | B\n1 | 2"),
        ("", (), "text", "Last."),
    ]


def test_notebooks() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Nights\n", "How many."]},
        {"cell_type": "markdown", "source": "## Sum"},
        {
            "cell_type": "code",
            "source": "print('```')\n7",
            "outputs": [
                {"output_type": "stream", "text": ["``` x\n"]},
                {"output_type": "execute_result", "data": {"text/plain": "7", "image/png": "x"}},
                {"output_type": "error", "ename": "E", "evalue": "bad", "traceback": ["t"]},
            ],
        },
    ]
    notebook = {"nbformat": 4, "metadata": {"title": "Other"}, "cells": cells}
    document = parsed("a.ipynb", json.dumps(notebook).encode())
    assert document.title == "Nights"
    assert [row[1:] for row in rows(document)] == [
        ((), "text", "How many."),
        (("Sum",), "code", "print('```')\n7"),
        (("Sum",), "code", "``` x"),
        (("Sum",), "code", "7"),
        (("Sum",), "code", "E: bad"),
    ]
    with pytest.raises(InvalidRequest, match="format 4"):
        parsed("a.ipynb", b'{"nbformat": 3, "worksheets": []}')


def letter() -> EmailMessage:
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = "Räume", "a@example.org", "b@example.org"
    message["Date"] = format_datetime(SENT)
    return message


def test_mail_with_an_attachment() -> None:
    message = letter()
    message.set_content("See the plan.\n\n- one\n- two\n")
    message.add_alternative("<p>not this</p>", subtype="html")
    message.add_attachment(b"%PDF-", maintype="application", subtype="pdf", filename="plan.pdf")
    document = parsed("a.eml", bytes(message))
    assert document.title == "Räume"
    headers = f"From: a@example.org\nTo: b@example.org\nDate: {format_datetime(SENT)}"
    assert [row[3] for row in rows(document)] == [
        headers, "See the plan.", "- one", "- two", "Attachments, not indexed: plan.pdf",
    ]  # fmt: skip
    assert document.metadata.created == "2026-01-05T09:30:00+00:00"
    assert document.metadata.fields == {"author": "a@example.org"}


def test_mail_in_html_of_another_encoding() -> None:
    message = letter()
    message.set_content("<h1>Plan</h1><p>Größe", subtype="html", charset="iso-8859-1")
    found = rows(parsed("a.eml", bytes(message)))
    assert found[1] == ("", (), "text", "Größe")


class Ole:
    """An OLE2 file in memory, as the reader of messages sees it."""

    def __init__(self, streams: dict[str, bytes]) -> None:
        self.streams = streams

    def __enter__(self) -> Ole:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def exists(self, name: str) -> bool:
        return name in self.streams

    def openstream(self, name: str) -> io.BytesIO:
        return io.BytesIO(self.streams[name])

    def listdir(self, streams: bool, storages: bool) -> list[list[str]]:
        assert (streams, storages) == (False, True)
        folders = dict.fromkeys(name.split("/")[0] for name in self.streams if "/" in name)
        return [[folder] for folder in folders]


def test_outlook_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = int((SENT - datetime(1601, 1, 1, tzinfo=UTC)).total_seconds()) * 10_000_000
    attachment = "__attach_version1.0_#00000000/__substg1.0_3707001F"
    streams = {
        "__properties_version1.0": bytes(32) + struct.pack("<HHIQ", 0x40, 0x39, 6, ticks),
        "__substg1.0_0037001F": "Räume".encode("utf-16-le"),
        "__substg1.0_0C1A001E": "Größe überall in Köln".encode("cp1252"),
        "__substg1.0_0C1F001F": "a@example.org".encode("utf-16-le"),
        "__substg1.0_10130102": b"<p>See the <b>plan</b>.",
        attachment: "plan.pdf".encode("utf-16-le"),
    }
    monkeypatch.setattr(outlook, "open_ole", lambda content: Ole(streams))
    outline = outlook.parse(b"")
    assert outline.title == "Räume"
    assert [block.text for block in outline.blocks] == [
        "From: Größe überall in Köln <a@example.org>\nDate: 2026-01-05 09:30:00+00:00",
        "See the plan.",
        "Attachments, not indexed: plan.pdf",
    ]
    assert outline.metadata["created"] == SENT
