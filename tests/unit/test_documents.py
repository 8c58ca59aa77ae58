from __future__ import annotations

from pathlib import Path

import pytest

from tritonrag.documents import (
    MAX_FILE_BYTES,
    Document,
    SourceFile,
    parse_document,
    read_file,
)
from tritonrag.errors import InvalidRequest

MARKDOWN = """---
title: From the front matter
---
# Travel *policy*

Hello **World**, see the
[rates](https://intranet.example/rates) of "2026".

## Hotels

- book early
  and online
- keep the receipt
    1. paper

| City | Limit |
|------|-------|
| Bonn | 120 euros |

```sh
book --hotel  x
```
"""
RST = """
======
Travel
======

Intro with ``code`` and a note [#n]_.

Hotels
------

- book early
  and online

1. first

Example::

    book --hotel
      x

====  =====
City  Limit
====  =====
Bonn  120
====  =====

.. include:: /etc/passwd

.. [#n] Kept as text.
"""
HTML = """<html><head><title>Not used &amp; hidden</title><style>p{}</style></head><body>
<nav>Home</nav><h1>Travel <em>policy</em></h1>
<p class="first">Book <b>early</b>, R&amp;D too.<br>Second line.</p>
<h2>Hotels</h2><ul><li>one</li><li>two</ul><ol start=3><li>three</ol>
<table><tr><th>City<th>Limit<tr><td><td>120</table>
<pre>a
  b</pre><script>alert(1)</script></body></html>"""


def parse(name: str, text: str) -> Document:
    return parse_document(SourceFile(Path(name), name), text.encode())


def rows(document: Document) -> list[tuple[str, str, str]]:
    return [(block.kind, block.marker, block.text) for block in document.blocks]


def quoted(document: Document, number: int) -> str:
    block = document.blocks[number]
    start, end = block.source_range(document.text, 0, len(block.text))
    return document.text[start:end]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_markdown(newline: str) -> None:
    document = parse("travel.md", MARKDOWN.replace("\n", newline))
    assert document.title == "Travel policy"
    assert rows(document) == [
        ("text", "", 'Hello World, see the rates of "2026".'),
        ("item", "- ", "book early and online"),
        ("item", "- ", "keep the receipt"),
        ("item", "  1. ", "paper"),
        ("table", "", "City | Limit\nBonn | 120 euros"),
        ("code", "", "book --hotel  x"),
    ]
    assert [block.heading_path for block in document.blocks] == [(), *[("Hotels",)] * 5]
    whole = 'Hello **World**, see the\n[rates](https://intranet.example/rates) of "2026".'
    assert quoted(document, 0) == whole.replace("\n", newline)
    assert quoted(document, 5) == "book --hotel  x"


def test_a_title_from_front_matter_then_from_the_name() -> None:
    assert parse("a.md", "---\ntitle: From it\n---\n## Deep\n\ntext").title == "From it"
    assert parse("a.md", "---\ntitle: [broken\n---\n\ntext").title == "a"
    assert parse("leave.md", "text").title == "leave"


def test_a_second_top_heading_stays_in_the_path() -> None:
    document = parse("a.md", "# One\n\nfirst\n\n# Two\n\n### Deep\n\nsecond\n\n## Up\n\nthird")
    paths = [block.heading_path for block in document.blocks]
    assert (document.title, paths) == ("One", [(), ("Two", "Deep"), ("Two", "Up")])


def test_rst() -> None:
    document = parse("travel.rst", RST)
    assert document.title == "Travel"
    assert rows(document) == [
        ("text", "", "Intro with code and a note."),
        ("item", "- ", "book early and online"),
        ("item", "1. ", "first"),
        ("text", "", "Example:"),
        ("code", "", "book --hotel\n  x"),
        ("table", "", "City | Limit\nBonn | 120"),
        ("text", "", "Kept as text."),
    ]
    assert quoted(document, 0).startswith("Intro with ``code`` and a note")
    assert quoted(document, 1) == "book early\n  and online"


def test_html() -> None:
    document = parse("travel.html", HTML)
    assert document.title == "Travel policy"
    assert rows(document) == [
        ("text", "", "Book early, R&D too.\nSecond line."),
        ("item", "- ", "one"),
        ("item", "- ", "two"),
        ("item", "3. ", "three"),
        ("table", "", "City | Limit\n| 120"),
        ("code", "", "a\n  b"),
    ]
    assert quoted(document, 0) == "Book <b>early</b>, R&amp;D too.<br>Second line."


def test_plain_text() -> None:
    document = parse("a.txt", "One goes\non here.\n\n- a\n- b\n  more\n3) x\n\nEnd.\n")
    assert rows(document) == [
        ("text", "", "One goes on here."),
        ("item", "- ", "a"),
        ("item", "- ", "b more"),
        ("item", "3) ", "x"),
        ("text", "", "End."),
    ]
    assert quoted(document, 2) == "b\n  more"


def test_offsets_survive_a_word_that_markup_hides() -> None:
    text = "See :pep:`13` now. " + "Other words follow. " * 3 + "\n\nA PEP is a plan.\n"
    document = parse("a.rst", text)
    assert quoted(document, 1) == "A PEP is a plan."


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"name,\x98\x81\xff\xfe\x90\xa0", "encoding cannot be told; convert it to UTF-8"),
        (b"a\0b", "NUL"),
        (b"", "holds no text"),
        (b"\n***\n", "holds no text"),
    ],
)
def test_bad_content_is_explained(content: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        parse_document(SourceFile(Path("a.md"), "a.md"), content)


def test_deep_nesting_is_an_error_of_the_file() -> None:
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        parse("a.html", "<div>" * 3000 + "x")


def test_a_byte_order_mark_is_not_text() -> None:
    document = parse_document(SourceFile(Path("a.txt"), "a.txt"), b"\xef\xbb\xbfHello.")
    assert (document.text, document.blocks[0].text) == ("Hello.", "Hello.")


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_file(SourceFile(tmp_path, "a.md"))
    with pytest.raises(InvalidRequest, match="not UTF-8; rename"):
        read_file(SourceFile(tmp_path / "x", "a\udcff.md"))
    with (tmp_path / "big.txt").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(InvalidRequest, match="over 32 MiB"):
        read_file(SourceFile(tmp_path / "big.txt", "big.txt"))


def test_a_front_matter_that_cannot_be_read_does_not_open_what_it_closes() -> None:
    with pytest.raises(InvalidRequest, match="names `access` but cannot be read"):
        parse("a.md", "---\ntitle: [x\naccess: hr\n---\ntext")
    with pytest.raises(InvalidRequest, match="`access` has no value"):
        parse("a.md", "---\naccess:\n---\ntext")
