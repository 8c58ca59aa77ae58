from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from tritonrag.cli import progress
from tritonrag.cli.progress import BarProgress, LineProgress, indexing_progress


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    output = io.StringIO()
    lines = LineProgress(Console(file=output, soft_wrap=True))
    lines.started(200)
    lines.embedded(500)
    assert output.getvalue() == ""
    now = 10.0
    lines.embedded(500)
    lines.finished(50)
    now = 20.0
    lines.finished(50)
    assert output.getvalue().splitlines() == [
        "0 of 200 files, 1,000 passages embedded, 100/s, ? s left",
        "100 of 200 files, 1,000 passages embedded, 50/s, 20 s left",
    ]


def test_a_terminal_gets_a_bar() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, color_system=None)
    columns = ("{task.description}", progress.MofNCompleteColumn(), progress._Rate())
    with Progress(*columns, console=console) as bars:
        bar = BarProgress(bars)
        bar.waiting()
        bar.started(3)
        bar.embedded(1200)
        bar.finished(2)
    assert progress.WAITING in output.getvalue()
    assert "indexing 2/3 1,200 passages, " in output.getvalue()


def test_without_a_terminal_there_are_lines() -> None:
    with indexing_progress() as listener:
        assert isinstance(listener, LineProgress)
