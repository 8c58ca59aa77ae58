"""The rows of a sheet: captions that stand alone, and the tables between them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, time

from tritonrag.formats.building import ExtractedBlocks


def add_rows(builder: ExtractedBlocks, rows: Iterable[Iterable[object]]) -> None:
    """Add the rows of a sheet; the first row of a table is its header.

    A row with one filled cell after an empty row, or at the top, is a caption.
    """
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


def _shown(cell: object) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.15g}"
    if isinstance(cell, datetime):
        return cell.isoformat(" ").removesuffix(" 00:00:00")
    return cell.isoformat() if isinstance(cell, date | time) else str(cell).strip()


def _without_end(cells: list[str]) -> list[str]:
    """Return a row without the empty cells at its end."""
    filled = max(at for at, cell in enumerate(cells) if cell)
    return cells[: filled + 1]
