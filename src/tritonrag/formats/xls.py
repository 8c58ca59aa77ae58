"""Excel 97-2003 workbooks (XLS), sheet by sheet, in the values last computed."""

from __future__ import annotations

import io
from collections.abc import Iterator

import xlrd
from xlrd.book import Book
from xlrd.sheet import Cell, Sheet

from tritonrag.errors import InvalidRequest
from tritonrag.formats.building import ExtractedBlocks
from tritonrag.formats.outline import Outline
from tritonrag.formats.properties import facts
from tritonrag.formats.tables import add_rows


def parse(content: bytes) -> Outline:
    """Parse a workbook.

    Raises:
        InvalidRequest: it needs a password.
    """
    try:
        book = xlrd.open_workbook(file_contents=content, logfile=io.StringIO(), ragged_rows=True)
    except xlrd.XLRDError as error:
        if "encrypted" in str(error):
            raise InvalidRequest("is encrypted; save it without a password") from None
        raise
    builder = ExtractedBlocks()
    for sheet in book.sheets():
        builder.go_to(f"sheet {sheet.name}")
        add_rows(builder, _rows(book, sheet))
    return builder.outline(metadata=facts(book.user_name))


def _rows(book: Book, sheet: Sheet) -> Iterator[list[object]]:
    for number in range(sheet.nrows):
        yield [_value(book, cell) for cell in sheet.row(number)]


def _value(book: Book, cell: Cell) -> object:
    if cell.ctype == xlrd.XL_CELL_BOOLEAN:
        return bool(cell.value)
    if cell.ctype == xlrd.XL_CELL_ERROR:
        return xlrd.error_text_from_code.get(cell.value)
    if cell.ctype != xlrd.XL_CELL_DATE:
        return cell.value
    try:
        return xlrd.xldate.xldate_as_datetime(cell.value, book.datemode)
    except (ValueError, OverflowError):
        return cell.value
