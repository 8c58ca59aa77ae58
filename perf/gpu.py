"""What nvidia-smi says of this machine's GPUs and their use during a load, if there are any."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

EVERY_MS = 100
_MACHINE = ("name", "driver_version", "memory.total")
_SAMPLE = ("index", "utilization.gpu", "memory.used", "power.draw", "temperature.gpu")


@dataclass(frozen=True)
class Usage:
    """Of one GPU: share of the time in which a kernel ran, memory, power and temperature."""

    busy_percent: float
    memory_mb: float
    power_w: float
    hottest_c: float


def described() -> list[dict[str, str]]:
    """Return name, driver and memory (MiB) of each GPU."""
    if not shutil.which("nvidia-smi"):
        return []
    lines = subprocess.run(
        _command(_MACHINE), capture_output=True, text=True, check=False
    ).stdout.splitlines()
    return [dict(zip(_MACHINE, _cells(line), strict=True)) for line in lines]


@contextmanager
def watched() -> Iterator[list[Usage]]:
    """Watch the GPUs; the list is filled at the end, one for each GPU, with means and maxima."""
    found: list[Usage] = []
    if not shutil.which("nvidia-smi"):
        yield found
        return
    with tempfile.TemporaryFile("w+") as lines:
        watcher = subprocess.Popen(
            [*_command(_SAMPLE), f"--loop-ms={EVERY_MS}"], stdout=lines, stderr=subprocess.DEVNULL
        )
        try:
            yield found
        finally:
            watcher.terminate()
            watcher.wait()
        lines.seek(0)
        found += _usages([_cells(line) for line in lines if line.endswith("\n")])


def _usages(rows: list[list[str]]) -> list[Usage]:
    usages = []
    for index in sorted({row[0] for row in rows}):
        busy, memory, power, heat = zip(
            *([float(cell) for cell in row[1:]] for row in rows if row[0] == index), strict=True
        )
        usages.append(
            Usage(statistics.fmean(busy), max(memory), statistics.fmean(power), max(heat))
        )
    return usages


def _command(fields: tuple[str, ...]) -> list[str]:
    return ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split(",")]
