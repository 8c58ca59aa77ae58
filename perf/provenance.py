"""Where a result comes from: machine, commit and versions; for the programs of this folder."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import gpu
import psutil

ROOT = Path(__file__).parents[1]


def provenance(program: str, packages: tuple[str, ...]) -> dict[str, Any]:
    """Return the date, command, commit, machine and versions of packages, for a result's file."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [program, *sys.argv[1:]],
        "commit": _git("rev-parse", "HEAD"),
        "changed_since_commit": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "machine": _machine(),
        "versions": {"python": platform.python_version()} | dict(map(_version, packages)),
    }


def stem(record: dict[str, Any]) -> str:
    """Return the name, without an ending, of a result's file."""
    when = datetime.fromisoformat(record["date"]).strftime("%Y-%m-%dT%H%M%S")
    return f"{when}-{record['commit'][:8] or 'no-commit'}"


def _version(package: str) -> tuple[str, str]:
    """Return name and version of a package, or of its build for CUDA."""
    for name in (f"{package}-gpu", f"{package}-cuda"):
        with suppress(PackageNotFoundError):
            return name, version(name)
    return package, version(package)


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "load_average": os.getloadavg(),
        "gpus": gpu.described(),
    }


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(named, platform.processor())


def _git(*arguments: str) -> str:
    ended = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
    )
    return ended.stdout.strip() if ended.returncode == 0 else ""
