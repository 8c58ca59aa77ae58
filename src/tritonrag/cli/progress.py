"""Progress of a long run on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tritonrag.index.adding import Listener

REPORT_SECONDS = 5.0
"""How often a line is printed where there is no terminal."""

WAITING = "another writer is at work on this collection; waiting for it to end"


@contextmanager
def indexing_progress() -> Iterator[Listener]:
    """Yield what an indexing run tells how it goes."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if not console.is_terminal:
        yield LineProgress(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        yield BarProgress(progress)


class BarProgress(Listener):
    """Bars of rich: files read, passages embedded, with rate and time left."""

    def __init__(self, progress: Progress) -> None:
        """Draw in ``progress``, which is running."""
        self._progress = progress
        self._task: TaskID | None = None

    def waiting(self) -> None:
        """Say that another writer is at work."""
        self._progress.console.print(WAITING)

    def parsing(self, files: int) -> None:
        """Begin to read files."""
        self._task = self._progress.add_task("reading files", total=files)

    def parsed(self) -> None:
        """Count a file."""
        self._advance(1)

    def embedding(self, passages: int) -> None:
        """Begin to embed passages."""
        self._task = self._progress.add_task("embedding passages", total=passages)

    def embedded(self, passages: int) -> None:
        """Count passages."""
        self._advance(passages)

    def _advance(self, count: int) -> None:
        if self._task is not None:
            self._progress.advance(self._task, count)


class LineProgress(Listener):
    """Lines for a log: one every :data:`REPORT_SECONDS`."""

    def __init__(self, console: Console) -> None:
        """Print to ``console``."""
        self._console = console
        self._begin("", 0)

    def waiting(self) -> None:
        """Say that another writer is at work."""
        self._console.print(WAITING)

    def parsing(self, files: int) -> None:
        """Begin to read files."""
        self._begin("files read", files)

    def parsed(self) -> None:
        """Count a file."""
        self._advance(1)

    def embedding(self, passages: int) -> None:
        """Begin to embed passages."""
        self._begin("passages embedded", passages)

    def embedded(self, passages: int) -> None:
        """Count passages."""
        self._advance(passages)

    def _begin(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._started = self._reported = time.monotonic()

    def _advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now < self._reported + REPORT_SECONDS:
            return
        self._reported = now
        rate = self._done / (now - self._started)
        left = (self._total - self._done) / rate
        self._console.print(
            f"{self._done:,} of {self._total:,} {self._what}, {rate:,.0f}/s, {left:.0f} s left"
        )


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "")
