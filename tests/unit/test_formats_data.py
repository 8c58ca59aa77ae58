"""CSV, JSON, feeds, and the encodings of text."""

from __future__ import annotations

import json

import pytest
from format_samples import parsed, rows

from tritonrag.errors import InvalidRequest


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_any_delimiter(delimiter: str) -> None:
    text = 'City,Limit,"Note"\r\nBonn,"1,5","two\nlines"\r\n,,\r\nKöln,2,\r\n'
    if delimiter != ",":
        text = text.replace('"1,5"', "1.5").replace(",", delimiter)
    (found,) = rows(parsed("a.csv", text.encode()))
    number = "1,5" if delimiter == "," else "1.5"
    assert found[2:] == ("table", f"City | Limit | Note\nBonn | {number} | two lines\nKöln | 2 |")


def test_one_column() -> None:
    assert rows(parsed("a.csv", b"City\nBonn\n"))[0][3] == "City\nBonn"


def test_json_objects_are_headings_and_records_stay_apart() -> None:
    value = {
        "title": "Sites",
        "open": True,
        "tags": ["a", "b"],
        "none": None,
        "sites": [{"city": "Bonn", "at": {"zip": 53111}}, {"city": "Köln", "desks": [1, 2]}],
        "rules": {"hotels": {"limit": 120.5}},
    }
    document = parsed("a.json", json.dumps(value).encode())
    assert document.title == "Sites"
    assert rows(document) == [
        ("", (), "text", "title: Sites\nopen: true\ntags: a, b"),
        ("", ("sites",), "text", "city: Bonn\nat.zip: 53111"),
        ("", ("sites",), "text", "city: Köln\ndesks: 1, 2"),
        ("", ("rules", "hotels"), "text", "limit: 120.5"),
    ]


def test_json_of_a_list() -> None:
    assert [row[3] for row in rows(parsed("a.json", b'[{"a": 1}, {"a": [[2], {"b": 3}]}]'))] == [
        "a: 1",
        "a 1: 2\na 2.b: 3",
    ]


RSS = """<?xml version="1.0"?><rss version="2.0"><channel><title>News</title>
<description>Of the desk</description>
<item><title>New rates</title><pubDate>Mon, 05 Jan 2026 09:00:00 +0000</pubDate>
<description>&lt;h2&gt;Bonn&lt;/h2&gt;&lt;p&gt;Now 120 euros.&lt;/p&gt;</description>
</item><item><title>Closed</title><description>On Friday.</description></item>
</channel></rss>"""
ATOM = """<feed xmlns="http://www.w3.org/2005/Atom"><title>News</title>
<entry><title>New rates</title><updated>2026-01-05</updated><summary>Short.</summary>
<content type="html">Now 120 euros.</content></entry></feed>"""


def test_feeds() -> None:
    document = parsed("a.xml", RSS.encode())
    assert document.title == "News"
    assert rows(document) == [
        ("", (), "text", "Of the desk"),
        ("", ("New rates",), "text", "Mon, 05 Jan 2026 09:00:00 +0000"),
        ("", ("New rates", "Bonn"), "text", "Now 120 euros."),
        ("", ("Closed",), "text", "On Friday."),
    ]
    assert [row[3] for row in rows(parsed("a.atom", ATOM.encode()))] == [
        "2026-01-05", "Now 120 euros.",
    ]  # fmt: skip


def test_other_xml_is_named() -> None:
    with pytest.raises(InvalidRequest, match="root <svg>; of XML only RSS and Atom feeds"):
        parsed("a.xml", b"<svg><text>x</text></svg>")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Größe und Länge sind in Köln überall gleich.", "cp1252"),
        ("“Naïve” café – the façade", "cp1252"),
        ("Zażółć gęślą jaźń, powiedział pan Łukasz.", "cp1250"),
        ("Привет, это проверка кодировки текста.", "cp1251"),
        ("名前,年齢,住所\n佐藤太郎,30,東京", "cp932"),
        ("这是中文文本,用于测试编码检测。", "gb18030"),
        ("한국어 텍스트입니다. 시험", "cp949"),
        ("UTF-16 with a mark: ж", "utf-16"),
    ],
)
def test_other_encodings_are_recognised(text: str, encoding: str) -> None:
    assert parsed("a.txt", text.encode(encoding)).text == text


def test_html_names_its_encoding() -> None:
    content = '<meta charset="windows-1256"><p>هذا نص عربي</p>'.encode("cp1256")
    assert parsed("a.html", content).blocks[0].text == "هذا نص عربي"
