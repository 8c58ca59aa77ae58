"""Spreadsheets (XLSX, XLS), sheet by sheet: rows under their header, in the values last computed.

Formulas, macros and links to other workbooks are not run or followed.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from datetime import date, datetime, time, timedelta

from python_calamine import CalamineWorkbook, PasswordError, SheetTypeEnum

from tritonrag.errors import InvalidRequest
from tritonrag.formats.building import ExtractedBlocks
from tritonrag.formats.outline import Outline

_PANIC = "PanicException"
"""What a bug of the library on a damaged file raises; it is no ``Exception`` and has no module."""

Cell = int | float | str | bool | time | date | datetime | timedelta


def parse(content: bytes) -> Outline:
    """Parse a workbook.

    Raises:
        InvalidRequest: it needs a password, or is damaged.
    """
    try:
        return _parse(CalamineWorkbook.from_filelike(io.BytesIO(content)))
    except PasswordError:
        raise InvalidRequest("is encrypted; save it without a password") from None
    except BaseException as error:
        if type(error).__name__ != _PANIC:
            raise
        raise InvalidRequest(f"a damaged workbook: {error}") from None


def _parse(workbook: CalamineWorkbook) -> Outline:
    builder = ExtractedBlocks()
    for sheet in workbook.sheets_metadata:
        if sheet.typ is SheetTypeEnum.WorkSheet:
            builder.go_to(f"sheet {sheet.name}")
            _add_rows(builder, workbook.get_sheet_by_name(sheet.name).to_python())
    return builder.outline()


def _add_rows(builder: ExtractedBlocks, rows: Iterable[Iterable[Cell]]) -> None:
    """Add captions, which stand alone in their row, and the tables between them."""
    table: list[list[str]] = []
    blank = True
    for row in rows:
        cells = [_shown(cell) for cell in row]
        filled = [cell for cell in cells if cell]
        if len(filled) == 1 and blank:
            builder.add_table(table)
            builder.add(filled[0])
            table = []
        elif filled:
            table.append(_without_end(cells))
            blank = False
        blank = blank or not filled
    builder.add_table(table)


def _shown(cell: Cell) -> str:
    if isinstance(cell, float):
        return f"{cell:.15g}"
    if isinstance(cell, datetime):
        return cell.isoformat(" ")
    return cell.isoformat() if isinstance(cell, date | time) else str(cell).strip()


def _without_end(cells: list[str]) -> list[str]:
    """Return a row without the empty cells at its end."""
    filled = max(at for at, cell in enumerate(cells) if cell)
    return cells[: filled + 1]
