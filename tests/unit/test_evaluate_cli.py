"""``tritonrag eval retrieval``: what is refused before any server is asked."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tritonrag import cli


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    contents = {
        "corpus": json.dumps({"_id": "a", "text": "x"}),
        "queries": json.dumps({"_id": "1", "text": "y"}),
        "qrels": "query-id\tcorpus-id\tscore\n1\ta\t1",
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text + "\n")
    return {name: str(tmp_path / name) for name in contents}


def refused(
    files: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *more: str,
) -> str:
    options = [part for name, path in files.items() for part in (f"--{name}", path)]
    monkeypatch.setattr(sys, "argv", ["tritonrag", "eval", "retrieval", *options, *more])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_an_unknown_mode(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(files, monkeypatch, capsys, "--mode", "fuzzy")
    assert error == "tritonrag: --mode: 'fuzzy' is not one of dense, sparse, hybrid\n"


def test_a_bad_line(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files["corpus"]).write_text("{}\n")
    assert "corpus: line 1: `_id` is None" in refused(files, monkeypatch, capsys)


def test_judgements_of_other_files(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(files["qrels"]).write_text("1\tz\t1\n")
    assert "document 'z' is not in --corpus" in refused(files, monkeypatch, capsys)
