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
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from tritonrag.index.reports import Listener

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
    """A bar of rich: files done, passages embedded, their rate and the time left."""

    def __init__(self, progress: Progress) -> None:
        """Draw in ``progress``, which is running."""
        self._progress = progress
        self._task = progress.add_task("indexing", total=None, passages=0)
        self._passages = 0

    def waiting(self) -> None:
        """Say that another writer is at work."""
        self._progress.console.print(WAITING)

    def started(self, documents: int) -> None:
        """Begin."""
        self._progress.update(self._task, total=documents)

    def finished(self, documents: int) -> None:
        """Count files."""
        self._progress.advance(self._task, documents)

    def embedded(self, passages: int) -> None:
        """Count passages."""
        self._passages += passages
        self._progress.update(self._task, passages=self._passages)


class LineProgress(Listener):
    """Lines for a log: one every :data:`REPORT_SECONDS`."""

    def __init__(self, console: Console) -> None:
        """Print to ``console``."""
        self._console = console
        self._total = self._done = self._passages = 0
        self._started = self._reported = time.monotonic()

    def waiting(self) -> None:
        """Say that another writer is at work."""
        self._console.print(WAITING)

    def started(self, documents: int) -> None:
        """Begin."""
        self._total = documents
        self._started = self._reported = time.monotonic()

    def finished(self, documents: int) -> None:
        """Count files."""
        self._done += documents
        self._report()

    def embedded(self, passages: int) -> None:
        """Count passages."""
        self._passages += passages
        self._report()

    def _report(self) -> None:
        now = time.monotonic()
        if now < self._reported + REPORT_SECONDS:
            return
        self._reported = now
        took = now - self._started
        left = f"{(self._total - self._done) * took / self._done:.0f}" if self._done else "?"
        self._console.print(
            f"{self._done:,} of {self._total:,} files, {self._passages:,} passages embedded, "
            f"{self._passages / took:,.0f}/s, {left} s left"
        )


class _Rate(ProgressColumn):
    """Passages embedded, and how many a second."""

    def render(self, task: Task) -> Text:
        passages = task.fields["passages"]
        rate = passages / task.elapsed if task.elapsed else 0
        return Text(f"{passages:,} passages, {rate:,.0f}/s")
