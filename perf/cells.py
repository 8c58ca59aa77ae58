"""Measurements that are kept one by one as they are done, so that a run that ended can go on.

The file holds one JSON object per line: first what the measurements belong to, then each cell with
its value. Another commit, machine or plan begins anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Cells:
    """The cells of one run, by name."""

    def __init__(self, path: Path, belongs_to: dict[str, Any]) -> None:
        """Take over what ``path`` holds of the same run, or begin it anew."""
        self._path = path
        self.values: dict[str, Any] = {}
        key = fingerprint(belongs_to)
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        if lines and json.loads(lines[0]) == key:
            self.values = dict(pair for line in lines[1:] if (pair := _pair(line)))
        self._rewrite(key)

    def measured(self, name: str, measure: Callable[[], Any]) -> Any:
        """Return the value of a cell, measured now unless that was done earlier."""
        if name not in self.values:
            value = json.loads(json.dumps(measure()))
            with self._path.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps([name, value]) + "\n")
            self.values[name] = value
        return self.values[name]

    def _rewrite(self, key: str) -> None:
        """Write what is known, without the line that an earlier run may not have completed."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = [key, *([name, value] for name, value in self.values.items())]
        self._path.write_text("".join(json.dumps(each) + "\n" for each in lines), encoding="utf-8")


def fingerprint(value: dict[str, Any]) -> str:
    """Return a short name of what a JSON object says."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _pair(line: str) -> tuple[str, Any] | None:
    try:
        name, value = json.loads(line)
    except ValueError:
        return None
    return name, value
