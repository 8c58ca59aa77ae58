"""Excel workbooks (XLSX, XLSM), sheet by sheet, in the values last computed.

Formulas, macros and links to other workbooks are not run or followed.
"""

from __future__ import annotations

import io
import warnings

from openpyxl import load_workbook
from openpyxl.workbook import Workbook

from tritonrag.formats.building import ExtractedBlocks
from tritonrag.formats.outline import Outline
from tritonrag.formats.properties import facts, telling
from tritonrag.formats.tables import add_rows


def parse(content: bytes) -> Outline:
    """Parse a workbook."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It warns of everything that it would not write again.
        workbook = load_workbook(
            io.BytesIO(content), read_only=True, data_only=True, keep_links=False
        )
        try:
            return _outline(workbook)
        finally:
            workbook.close()


def _outline(workbook: Workbook) -> Outline:
    builder = ExtractedBlocks()
    for sheet in workbook.worksheets:
        sheet.reset_dimensions()  # What a file says of its own size may be wrong.
        builder.go_to(f"sheet {sheet.title}")
        add_rows(builder, sheet.iter_rows(values_only=True))
    about = workbook.properties
    return builder.outline(
        telling(about.title), facts(about.creator, about.created, about.modified)
    )
