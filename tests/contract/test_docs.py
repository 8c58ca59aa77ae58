"""Pages that are written by a program are what that program would write now."""

from __future__ import annotations

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_contract_page_is_fresh() -> None:
    program = runpy.run_path(str(DOCS / "generate_contract.py"))

    assert (DOCS / "contract.md").read_text(encoding="utf-8") == program["page"](), (
        "run `python docs/generate_contract.py`"
    )
