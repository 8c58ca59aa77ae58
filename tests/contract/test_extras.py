"""What each extra is for: without it the command line works, and says what is missing and why."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

WITHOUT = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None  # as if it were not there
from tritonrag.cli import main
main()
"""

OF_THE_CLIENT = {"numpy", "markdown-it-py"}
"""Packages of extras that the client's own packages bring anyway."""


def modules_of(extra: str) -> str:
    """Return the modules of an extra's packages, without those that the others bring too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {
        canonicalize_name(Requirement(each).name)
        for each in project["optional-dependencies"][extra]
        if not each.startswith("tritonrag")
    } - OF_THE_CLIENT
    return ",".join(
        module
        for module, owners in packages_distributions().items()
        if names & {canonicalize_name(owner) for owner in owners}
    )


def without(extra: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, modules_of(extra), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--help",), "Usage"),
        (("search", "x", "--url", "127.0.0.1:1"), "no server at 127.0.0.1:1"),
        (("models", "--help"), "Usage"),
        (("index", "add", "README.md"), "needs the serve extra"),
        (("index", "sync", "docs"), "needs the serve extra"),
        (("index", "remove", "a"), "needs the serve extra"),
        (("index", "export", "default", "x.tar"), "needs the serve extra"),
    ],
)
def test_a_client_has_no_serve_extra(arguments: tuple[str, ...], said: str) -> None:
    done = without("serve", *arguments)
    assert "Traceback" not in done.stderr
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("extra", "arguments", "said"),
    [
        ("sources", ("index", "sync", "docs"), "needs the sources extra"),
        ("sources", ("index", "add", "docs", "--url", "127.0.0.1:1"), "no server at"),
        ("eval", ("eval", "retrieval", "--corpus=a", "--queries=b", "--qrels=c"), "the eval extra"),
    ],
)
def test_what_needs_another_extra_says_so(
    extra: str, arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    done = without(extra, *arguments)
    assert "Traceback" not in done.stderr
    assert said in done.stderr
