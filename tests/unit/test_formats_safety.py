"""Nothing in a document reaches the network or the file system."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import docx
import pptx
import pytest
import xlsxwriter
from format_samples import parsed, pdf, rezipped, zipped
from pypdf import PdfWriter
from pypdf.actions import JavaScript

from tritonrag.errors import InvalidRequest
from tritonrag.formats import containers
from tritonrag.formats.front_matter import check_closes_nothing

SECRET = "the-very-secret"

REACHING = ("open", "os.", "shutil.", "socket.", "subprocess.", "urllib.", "ctypes.", "exec")
"""Audit events of Python that reach outside a process, or that a macro would cause."""

_seen: list[str] | None = None


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if _seen is not None and event.startswith(REACHING):
        _seen.append(f"{event} {arguments!r}"[:200])


sys.addaudithook(_watch)


@contextmanager
def nothing_reached() -> Iterator[None]:
    global _seen
    _seen = []
    try:
        yield
        assert _seen == []
    finally:
        _seen = None


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text(SECRET)
    return path


def bytes_of(document: object) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


ENTITY = '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "{uri}">]>'
WORD = (
    '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main">'
    "<w:body><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:body></w:document>"
)


STRINGS = (
    '<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
    "<si><t>Seen &e;</t></si></sst>"
)


def workbook(uri: str) -> bytes:
    buffer = io.BytesIO()
    book = xlsxwriter.Workbook(buffer, {"in_memory": True})
    sheet = book.add_worksheet()
    sheet.write_string(0, 0, "Seen")
    sheet.write_formula(0, 1, f'=WEBSERVICE("{uri}")', value="Computed")
    book.close()
    return buffer.getvalue()


def hostile(uri: str) -> dict[str, bytes]:
    """Return a document of each kind whose links and entities point to ``uri``."""
    entity = ENTITY.replace("{uri}", uri)
    word = entity + WORD.format("Seen &e;")
    book = {
        "META-INF/container.xml": '<c><rootfile full-path="p.opf"/></c>',
        "p.opf": '<package><item id="a" href="a.xhtml"/><item id="b" href="../..{}"/>'
        '<itemref idref="a"/><itemref idref="b"/></package>'.replace("{}", uri),
        "a.xhtml": f'{entity}<p>Seen &e;</p><img src="{uri}"><iframe src="{uri}"></iframe>',
    }
    html = f'<link rel="stylesheet" href="{uri}"><p>Seen</p><img src="{uri}"><object data="{uri}">'
    cell = {"cell_type": "markdown", "source": f"Seen ![x]({uri}) <img src='{uri}'>"}
    return {
        "a.docx": rezipped(bytes_of(docx.Document()), {"word/document.xml": word}),
        "a.epub": zipped(book),
        "a.xlsx": workbook(uri),
        "a.html": html.encode(),
        "a.md": f"Seen ![x]({uri})\n\n<iframe src='{uri}'>".encode(),
        "a.rst": (
            f"Seen\n\n.. include:: {uri}\n\n.. image:: {uri}\n\n.. raw:: html\n   :file: {uri}\n\n"
            f".. csv-table:: t\n   :file: {uri}\n\n.. csv-table:: t\n   :url: {uri}\n"
        ).encode(),
        "a.ipynb": json.dumps({"nbformat": 4, "cells": [cell]}).encode(),
        "a.eml": f"Subject: s\nContent-Type: text/html\n\n{html}".encode(),
        "a.rtf": rb'{\rtf1 Seen {\field{\*\fldinst INCLUDETEXT "' + uri.encode() + rb'"}}}',
        "a.csv": f'Seen,=WEBSERVICE("{uri}")\n'.encode(),
    }


@pytest.mark.parametrize("name", hostile(""))
def test_links_and_entities_are_not_followed(name: str, secret: Path) -> None:
    parsed(name, hostile("none")[name])  # What a parser loads at its first use is loaded now.
    for uri in (secret.as_uri(), str(secret), "http://127.0.0.1:9/x"):
        content = hostile(uri)[name]
        with nothing_reached():
            document = parsed(name, content)
        assert "Seen" in document.text
        assert SECRET not in document.text


def test_entities_of_feeds_and_workbooks_are_refused() -> None:
    content = ENTITY + "<rss><channel><title>&e;</title></channel></rss>"
    with pytest.raises(InvalidRequest, match="EntitiesForbidden"):
        parsed("a.xml", content.encode())
    with pytest.raises(InvalidRequest, match="cannot be parsed"):
        parsed("a.xlsx", rezipped(workbook(""), {"xl/sharedStrings.xml": ENTITY + STRINGS}))


def test_entities_that_grow_are_refused() -> None:
    layers = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 20}">' for n in range(1, 9))
    bomb = f'<!DOCTYPE x [<!ENTITY e0 "ha">{layers}]>'
    word = bomb + WORD.format("&e8;")
    content = rezipped(bytes_of(docx.Document()), {"word/document.xml": word})
    with pytest.raises(InvalidRequest):
        parsed("a.docx", content)


@pytest.mark.parametrize("name", ["title", "tags", "created", "other", "Bad name"])
def test_aliases_that_grow_cost_nothing(name: str) -> None:
    layers = "".join(f"l{n}: &l{n} [{f'*l{n - 1}, ' * 20}]\n" for n in range(1, 12))
    content = f"---\nl0: &l0 ha\n{layers}{name}: *l11\n---\n\nText."
    metadata = parsed("a.md", content.encode()).metadata
    assert len(repr(metadata)) < 1000, "what a front matter cannot mean is left out"


def test_access_that_grows_is_refused() -> None:
    layers = "".join(f"l{n}: &l{n} [{f'*l{n - 1}, ' * 20}]\n" for n in range(1, 12))
    content = f"---\nl0: &l0 ha\n{layers}access: *l11\n---\n\nText."
    with pytest.raises(InvalidRequest, match="metadata: `access`"):
        parsed("a.md", content.encode())


def test_an_archive_that_unpacks_to_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "MAX_UNPACKED_BYTES", 1 << 20)
    content = zipped({"word/document.xml": "0" * (2 << 20)})
    with pytest.raises(InvalidRequest, match="unpacks to 1 files of 2 MiB"):
        parsed("a.docx", content)


def test_linked_pictures_of_slides_are_not_opened(secret: Path) -> None:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    slide.shapes.title.text = "Seen"
    box = slide.shapes.add_textbox(0, 0, 10, 10).text_frame
    box.text = "Also seen"
    box.paragraphs[0].runs[0].hyperlink.address = secret.as_uri()
    content = bytes_of(deck)
    parsed("a.pptx", content)
    with nothing_reached():
        assert parsed("a.pptx", content).blocks[0].text == "Also seen"


def test_scripts_of_a_pdf_are_not_run(secret: Path) -> None:
    writer = PdfWriter(clone_from=io.BytesIO(pdf([["Seen"]])))
    writer.add_open_action(JavaScript(f"app.launchURL('{secret.as_uri()}')"))
    writer.add_attachment("run.txt", b"Not read")
    buffer = io.BytesIO()
    writer.write(buffer)
    parsed("a.pdf", buffer.getvalue())
    with nothing_reached():
        assert [block.text for block in parsed("a.pdf", buffer.getvalue()).blocks] == ["Seen"]


LONG = "x" * 5000


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        ("a.md", "---\n- access: [hr]\n---\n"),
        ("a.md", "---\naccess: [hr]\n\n"),
        ("a.md", "\n---\naccess: [hr]\n---\n"),
        ("a.txt", "---\naccess: [hr]\n---\n"),
        ("a.rst", "---\naccess: [hr]\n---\n"),
        ("a.html", "---\naccess: [hr]\n---\n"),
        ("a.md", f"+++\nabout = '{LONG}'\naccess = ['hr']\n+++\n"),
        ("a.md", f"---\nabout: [{LONG}\naccess: [hr]\n---\n"),
        ("a.md", f"---\r\nabout: [{LONG}\r\naccess: [hr]\r\n...\r\n"),
        ("a.md", f'{{"about": "{LONG}", "n": {{\n}},\n"x": 1, "ACCESS": ["hr"]}}\n'),
        ("a.md", '{"a\\u0063cess": ["hr"]}\n'),
        ("a.md", '{"about": x,\n"access"\n: ["hr"]\n}\n'),
        ("a.md", "---\n? access\n: [hr\n---\n"),
        ("a.md", "---\nac\u00adcess: [hr\n---\n"),
        ("a.md", "<!-- one -->\n<!-- two\n-->\n---\naccess: [hr]\n---\n"),
        ("a.md", "---\ntitle: A\n---\n\n---\naccess: [hr]\n---\n"),
        ("a.md", "---\n---\n<!-- x -->\n+++\naccess = ['hr']\n+++\n"),
        ("a.txt", "---\ntitle: A\n---\n---\naccess: [hr]\n---\n"),
    ],
)
def test_access_that_is_not_read_refuses_the_document(name: str, opening: str) -> None:
    with pytest.raises(InvalidRequest, match="its front matter names `access` but cannot be read"):
        parsed(name, f"{opening}\nThe text.".encode())


def test_a_rule_at_the_beginning_is_no_front_matter() -> None:
    assert parsed("a.md", b"---\n\nAccess by key card, see below.").text


@pytest.mark.parametrize(
    "line",
    [
        "\n",
        "{",
        "access ",
        "a.",
        "[access]x",
        "? ",
        "<!--x-->",
        '"access" ',
        "---\nx\n---\n",
        "<!--",
    ],
)
def test_looking_for_a_front_matter_takes_time_in_proportion(line: str) -> None:
    many = line * (400_000 // len(line))
    began = time.process_time()
    for text in (f"+++\n {many}x\n+++\n", f"{many}x"):
        with suppress(InvalidRequest):
            check_closes_nothing(text, braces=True)
    assert time.process_time() - began < 4
