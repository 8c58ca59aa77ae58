from __future__ import annotations

import importlib
import json
import os
import signal
from pathlib import Path

import pytest
from index_samples import HashEmbedder, install, write
from typer.testing import CliRunner, Result

from tritonrag.cli import app, published, working
from tritonrag.errors import InvalidRequest, NotFound, SetupError, Unavailable
from tritonrag.settings import INDEX_DIR_VARIABLE, REPOSITORY_VARIABLE, URL_VARIABLE

commands = importlib.import_module("tritonrag.cli.sync")
"""The module: the package's attribute of that name is the command."""


class FakeClient(HashEmbedder):
    def __init__(self, *args: object) -> None:
        super().__init__()

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *args: object) -> None:
        pass


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(working, "Client", FakeClient)
    monkeypatch.setattr(published, "is_served", lambda *_, **__: True)
    monkeypatch.chdir(tmp_path)
    for variable in (INDEX_DIR_VARIABLE, REPOSITORY_VARIABLE, URL_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    install(tmp_path / "model_repository")
    write(tmp_path / "docs", leave="# Leave\n\n30 days.", pay="# Pay\n\nMonthly.")
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    options = ("--chunk-tokens", "32", "--chunk-overlap", "8", "--attempts", "1")
    result = CliRunner().invoke(
        app, ["index", "sync", *arguments, *options], catch_exceptions=code == 0
    )
    assert result.exit_code == code, result.output
    return result


def records(place: Path) -> list[dict[str, object]]:
    folder = place / "index" / "default"
    lines = folder / (folder / "CURRENT").read_text().strip() / "documents.jsonl"
    return [json.loads(line) for line in lines.read_text().splitlines()]


def test_a_collection_becomes_what_its_sources_hold(place: Path) -> None:
    assert "2 added, 0 changed, 0 removed, 0 unchanged, 0 failed" in run("docs").stdout
    write(place / "docs", pay="# Pay\n\nWeekly.", new="New.")
    (place / "docs" / "leave.md").unlink()
    plan = run("docs", "--dry-run").stdout.splitlines()
    assert plan[:3] == ["added:   new.md", "changed: pay.md", "removed: leave.md"]
    assert "would be 1 added, 1 changed, 0 unchanged, 1 removed; 0 would be fetched" in plan[3]
    assert len(list((place / "index" / "default").glob("2*"))) == 1
    assert "1 added, 1 changed, 1 removed, 0 unchanged, 0 failed" in run("docs").stdout
    assert [each["source"] for each in records(place)] == ["new.md", "pay.md"]
    done = json.loads(run("docs", "--json").stdout)
    assert (done["unchanged"], done["embedded"]) == (2, 0)
    assert json.loads(run("docs", "--dry-run", "--json").stdout)["unchanged"] == 2


def test_what_is_said_of_all_documents(place: Path) -> None:
    options = ("--tag", "hr", "--access", "staff", "--created", "2026-03-31", "--field", "level=3")
    run("hr=docs", *options)
    first = records(place)[0]
    assert (first["source"], first["path"]) == ("hr/leave.md", str(place / "docs" / "leave.md"))
    assert first["metadata"] == {
        "tags": ["hr"], "access": ["staff"], "created": "2026-03-31", "fields": {"level": 3},
    }  # fmt: skip
    done = json.loads(run("hr=docs", "--access", "board", "--json").stdout)
    assert (done["changed"], done["embedded"]) == (2, 0)
    with pytest.raises(InvalidRequest, match="--field: 'level' is not NAME=VALUE"):
        run("docs", "--field", "level", code=1)


def test_a_file_that_fails_keeps_its_document(place: Path) -> None:
    run("docs")
    (place / "docs" / "pay.md").write_bytes(b"a\0b")
    (place / "docs" / "leave.md.meta.yaml").write_text("access:")
    result = run("docs", code=1)
    assert "pay.md: not text" in result.stderr
    assert "leave.md.meta.yaml: metadata: `access` has no value" in result.stderr
    assert [each["source"] for each in records(place)] == ["leave.md", "pay.md"]
    assert "not indexed: docs/leave.md" in run("docs", "--dry-run").stderr


def test_what_cannot_be_seen_is_not_removed(place: Path) -> None:
    run("docs")
    with pytest.raises(NotFound, match="none: no such file or folder; nothing was changed"):
        run("docs", "none", "--attempts", "5", code=1)
    (place / "docs").rename(place / "moved")
    (place / "docs").mkdir()
    with pytest.raises(InvalidRequest, match="docs is empty but had documents"):
        run("docs", code=1)
    assert len(records(place)) == 2
    assert "2 removed" in run("docs", "--allow-empty").stdout
    assert records(place) == []


def test_bad_options(place: Path) -> None:
    for options, message in {
        ("--every", "15"): "--every: '15' is no duration",
        ("--every", "0s"): "no time at all",
        ("--every", "1s", "--cron", "* * * * *"): "choose one",
        ("--cron", "hourly"): "is no cron expression",
        ("--metrics-port", "0"): "add --every or --cron",
        ("--jitter", "x"): "--jitter: 'x' is no duration",
    }.items():
        with pytest.raises(InvalidRequest, match=message):
            run("docs", *options, code=1)


def test_without_the_extra(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "EXTRA", ("no_such_package",))
    with pytest.raises(SetupError, match=r"pip install 'tritonrag\[sources\]'"):
        run("docs", code=1)


def test_a_schedule_survives_a_failed_run_and_ends_with_sigterm(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []

    class Flaky(FakeClient):
        def __enter__(self) -> FakeClient:
            runs.append(len(runs))
            if len(runs) == 1:
                raise Unavailable("the server is starting")
            if len(runs) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return self

    monkeypatch.setattr(working, "Client", Flaky)
    health = place / "health.json"
    options = ("--every", "0.1s", "--jitter", "0s", "--health-file", str(health))
    result = run("docs", *options, "--metrics-port", "0")
    assert "the run failed: the server is starting" in result.stderr
    assert result.stdout.count("2 added") == 1
    assert result.stderr.splitlines()[-1] == "stopped"
    assert len(runs) == 3
    facts = json.loads(health.read_text())
    assert (facts["failures_in_a_row"], facts["last_error"]) == (0, "the server is starting")
    assert facts["last_counts"]["added"] == 2
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
