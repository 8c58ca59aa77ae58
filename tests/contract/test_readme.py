"""README names only what exists: make targets, commands, files, links."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tritonrag.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(
    r"<!-- figures of (perf/results/\S+\.json) -->\n(.*?)\n<!-- end of figures -->",
    README, re.DOTALL,
)  # fmt: skip
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))


def commands(program: str) -> list[str]:
    """Return the arguments of each call of ``program`` in the shell blocks."""
    lines = re.split(r"\n|&&", re.sub(r"\s#.*", "", SHELL))
    return sorted({
        line.strip().removeprefix(program).strip() for line in lines
        if line.strip().startswith(program)
    })  # fmt: skip


@pytest.mark.parametrize("arguments", commands("make"))
def test_make_targets_exist(arguments: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    target = arguments.split()[0]
    assert re.search(rf"^{target}:.*##", makefile, re.MULTILINE)


@pytest.mark.parametrize("arguments", commands(".venv/bin/tritonrag"))
def test_tritonrag_commands_exist(arguments: str) -> None:
    done = CliRunner().invoke(app, [*shlex.split(arguments), "--help"])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("arguments", commands(".venv/bin/python"))
def test_programs_exist(arguments: str) -> None:
    assert (ROOT / arguments.split()[0]).is_file()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http|#)([^)]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target.partition("#")[0]).exists()


def test_the_tree_is_the_tree() -> None:
    tree = re.findall(
        r"^([\w.-]+/?(?:  [\w.-]+)*)", README.split("## The tree")[1].split("```")[1], re.MULTILINE
    )
    named = [name for line in tree for name in line.split("  ") if "/" in name or "." in name]
    assert len(named) >= 12
    for name in named:
        assert (ROOT / name).exists(), name


SPEED = README.split("## Speed\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(("path", "shown"), BLOCKS)
def test_figures_are_those_of_their_result(
    path: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "perf"))
    import precisions
    import report
    import retrieval

    tables = {
        "precisions": precisions.tables,
        "retrieval": lambda record: retrieval.table(record["retrieval"]),
    }
    record = json.loads((ROOT / path).read_text(encoding="utf-8"))
    kind = path.removesuffix(".json").rpartition("-")[2]
    assert shown.strip() == tables.get(kind, report.readme_table)(record)


@pytest.mark.skipif("<!-- figures of" not in SPEED, reason="it shows no figures between markers")
def test_the_section_on_speed_has_no_figures_of_its_own() -> None:
    outside = re.sub(r"<!-- figures of .*?<!-- end of figures -->", "", SPEED, flags=re.DOTALL)
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert rows == []
