from __future__ import annotations

import io
from datetime import date, datetime
from types import SimpleNamespace

import docx
import pptx
import pytest
import xlrd
import xlsxwriter
from docx.enum.style import WD_STYLE_TYPE
from format_samples import parsed, rows, zipped
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.util import Inches
from xlrd.sheet import Cell

from tritonrag.errors import InvalidRequest
from tritonrag.formats import xls


def saved(document: object) -> bytes:
    buffer = io.BytesIO()
    document.save(buffer)
    return buffer.getvalue()


def word() -> bytes:
    document = docx.Document()
    document.core_properties.author = "The desk"
    document.core_properties.created = datetime(2026, 1, 5)
    document.add_paragraph("Travel policy", "Title")
    document.add_paragraph("Who travels, and how.")
    document.add_heading("Hotels", 1)
    document.add_heading("Rates", 2)
    document.add_paragraph("first", "List Bullet")
    document.add_paragraph("second", "List Bullet")
    table = document.add_table(3, 2)
    for row, cells in zip(table.rows, [("City", "Limit"), ("Bonn", "120"), ("Köln", "130")],
                          strict=True):  # fmt: skip
        for cell, text in zip(row.cells, cells, strict=True):
            cell.text = text
    code = document.styles.add_style("Code", WD_STYLE_TYPE.PARAGRAPH)
    document.add_paragraph("book --hotel", code)
    document.add_paragraph("  --early", code)
    head = document.styles.add_style("HeadB", WD_STYLE_TYPE.PARAGRAPH)
    document.add_paragraph("By hand", head)
    document.add_paragraph("Call the desk.")
    return saved(document)


def test_word() -> None:
    document = parsed("a.docx", word())
    assert document.title == "Travel policy"
    rates = ("Hotels", "Rates")
    assert rows(document) == [
        ("", (), "text", "Who travels, and how."),
        ("", rates, "item", "- first"),
        ("", rates, "item", "- second"),
        ("", rates, "table", "City | Limit\nBonn | 120\nKöln | 130"),
        ("", rates, "code", "book --hotel\n  --early"),
        ("", ("Hotels", "By hand"), "text", "Call the desk."),
    ]
    assert document.blocks[3].header_rows == 1
    assert document.metadata.created == "2026-01-05T00:00:00+00:00"
    assert document.metadata.fields == {"author": "The desk"}


def test_headings_without_text_are_found_too() -> None:
    document = docx.Document()
    for level, text in [(1, "Hotels"), (2, "Rates"), (2, "Meals"), (1, "Contacts")]:
        document.add_heading(text, level)
    assert rows(parsed("a.docx", saved(document))) == [
        ("", ("Hotels",), "text", "Rates"),
        ("", ("Hotels",), "text", "Meals"),
        ("", (), "text", "Contacts"),
    ]


def test_a_box_around_text_is_no_table() -> None:
    document = docx.Document()
    document.add_table(1, 1).cell(0, 0).text = "Mind this."
    assert rows(parsed("a.docx", saved(document))) == [("", (), "text", "Mind this.")]


def deck() -> bytes:
    made = pptx.Presentation()
    first = made.slides.add_slide(made.slide_layouts[1])
    first.shapes.title.text = "Hotels"
    first.placeholders[1].text = "Book early\nKeep the receipt"
    first.notes_slide.notes_text_frame.text = "Say why."
    second = made.slides.add_slide(made.slide_layouts[5])
    second.shapes.title.text = "Costs"
    table = second.shapes.add_table(2, 2, 0, Inches(2), Inches(4), Inches(1)).table
    for number, text in enumerate(["City", "Limit", "Bonn", "120"]):
        table.cell(number // 2, number % 2).text = text
    data = CategoryChartData()
    data.categories = ["2025", "2026"]
    data.add_series("Nights", (10, 12.5))
    where = (0, Inches(4), Inches(4), Inches(2))
    second.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, *where, data)
    return saved(made)


def test_slides() -> None:
    assert rows(parsed("a.pptx", deck())) == [
        ("slide 1", ("Hotels",), "item", "- Book early"),
        ("slide 1", ("Hotels",), "item", "- Keep the receipt"),
        ("slide 1", ("Hotels",), "text", "Say why."),
        ("slide 2", ("Costs",), "table", "City | Limit\nBonn | 120"),
        ("slide 2", ("Costs",), "table", "| Nights\n2025 | 10\n2026 | 12.5"),
    ]


def workbook() -> bytes:
    buffer = io.BytesIO()
    book = xlsxwriter.Workbook(buffer, {"in_memory": True})
    sheet = book.add_worksheet("Budget")
    day = book.add_format({"num_format": "yyyy-mm-dd"})
    sheet.write_row(0, 0, ["Travel budget"])
    sheet.write_row(2, 0, ["City", "Nights", "From"])
    sheet.write_row(3, 0, ["Bonn", 3])
    sheet.write_datetime(3, 2, datetime(2026, 3, 31), day)
    sheet.write_row(5, 0, ["Köln", 2.5])
    sheet.write_row(7, 0, ["Notes"])
    book.add_worksheet("Empty")
    book.add_worksheet("Rates").write_row(0, 0, ["a", "b"])
    book.close()
    return buffer.getvalue()


def test_sheets() -> None:
    day = date(2026, 3, 31).isoformat()
    assert rows(parsed("a.xlsx", workbook())) == [
        ("sheet Budget", (), "text", "Travel budget"),
        ("sheet Budget", (), "table", f"City | Nights | From\nBonn | 3 | {day}\nKöln | 2.5"),
        ("sheet Budget", (), "text", "Notes"),
        ("sheet Rates", (), "table", "a | b"),
    ]


class OldSheet:
    """A sheet as xlrd gives it; nothing at hand writes the format."""

    name = "Rates"

    def __init__(self, *rows: list[Cell]) -> None:
        self.rows = rows
        self.nrows = len(rows)

    def row(self, number: int) -> list[Cell]:
        return self.rows[number]


def test_old_workbooks(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [Cell(xlrd.XL_CELL_TEXT, text) for text in ("City", "From", "Open", "Sum")]
    values = [
        Cell(xlrd.XL_CELL_NUMBER, 2.0),
        Cell(xlrd.XL_CELL_DATE, 46112.0),
        Cell(xlrd.XL_CELL_BOOLEAN, 1),
        Cell(xlrd.XL_CELL_ERROR, 7),
    ]
    no_date = [Cell(xlrd.XL_CELL_DATE, 1e10), Cell(xlrd.XL_CELL_TEXT, "x")]
    book = SimpleNamespace(
        sheets=lambda: [OldSheet(texts, values, no_date)], datemode=0, user_name="The desk"
    )
    monkeypatch.setattr(xlrd, "open_workbook", lambda **options: book)
    outline = xls.parse(b"")
    assert [(block.place, block.text) for block in outline.blocks] == [
        (
            "sheet Rates",
            "City | From | Open | Sum\n2 | 2026-03-31 | True | #DIV/0!\n10000000000 | x",
        )
    ]
    assert outline.metadata == {"author": "The desk"}


def test_old_workbooks_with_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**options: object) -> None:
        raise xlrd.XLRDError("Workbook is encrypted")

    monkeypatch.setattr(xlrd, "open_workbook", refuse)
    with pytest.raises(InvalidRequest, match="save it without a password"):
        xls.parse(b"")


def test_a_file_is_what_it_holds_whatever_its_name() -> None:
    assert parsed("a.xls", b"<html><h1>T</h1><p>HTML by a program.").title == "T"
    assert rows(parsed("a.txt", workbook()))[0][0] == "sheet Budget"
    assert parsed("b.pdf", word()).title == "Travel policy"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.docx", b"plain text", "not DOCX, whatever its name says"),
        ("a.docx", word()[:5000], "damaged ZIP file"),
        ("a.docx", zipped({"x.txt": "x"}), "a ZIP archive of no kind that is read; unpack it"),
        ("a.docx", zipped({"word/document.xml": "x"}), "cannot be parsed"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "OLE2"),
    ],
)
def test_what_cannot_be_read_is_refused(name: str, content: bytes, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        parsed(name, content)
