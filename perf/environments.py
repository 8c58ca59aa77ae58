"""Environments for programs that this project does not share packages with, made by uv and kept.

``TORCH_INDEX`` names an index to take torch from, such as that of the builds without CUDA;
``PIP_FIND_LINKS`` counts as it does for pip.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from handbook_server import say

from tritonrag.errors import SetupError

INSTALL_S = 900
INSTALLED = ".installed"


def ensure(folder: Path, requirements: Path) -> None:
    """Make the environment in ``folder``, unless it is there with these requirements.

    Raises:
        SetupError: a package cannot be had.
    """
    wanted = requirements.read_text(encoding="utf-8")
    mark = folder / INSTALLED
    if mark.is_file() and mark.read_text(encoding="utf-8") == wanted:
        return
    say(f"installing the packages of {requirements.relative_to(Path(__file__).parent)} …")
    _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
    python = str(folder / "bin" / "python")
    _uv("pip", "install", "--quiet", "--python", python, *_sources(), "-r", str(requirements))
    mark.write_text(wanted, encoding="utf-8")


def variables(folder: Path) -> dict[str, str]:
    """Return the variables with which the environment's programs run, none of them online."""
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"}


def last_line(text: str) -> str:
    """Return what a program said last."""
    return (text.strip().splitlines() or ["no reason given"])[-1]


def _sources() -> list[str]:
    found = []
    if index := os.environ.get("TORCH_INDEX"):
        found += ["--extra-index-url", index, "--index-strategy", "unsafe-best-match"]
    if links := os.environ.get("PIP_FIND_LINKS"):
        found += ["--find-links", links]
    return found


def _uv(*arguments: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "uv", *arguments],
        capture_output=True, text=True, timeout=INSTALL_S, check=False,
    )  # fmt: skip
    if ended.returncode:
        raise SetupError(f"uv {arguments[0]}: {last_line(ended.stderr)}")
