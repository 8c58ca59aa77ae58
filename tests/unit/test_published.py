"""Whether the server serves what was written, as the command line asks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from access_samples import record, save
from index_samples import DIMENSION, manifest

from tritonrag.cli import published
from tritonrag.cli.published import Written, is_served
from tritonrag.cli.working import Servers
from tritonrag.client.marshalling import Call
from tritonrag.errors import InvalidRequest, NotFound, TritonragError, Unavailable, Unreachable


class Server:
    """Answers each request with the next of `answers`; the last one stays."""

    def __init__(self, *answers: TritonragError | None) -> None:
        self.answers = [*answers]
        self.calls: list[Call] = []
        self._transport = self

    def __call__(self, *args: object) -> Server:
        return self

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *args: object) -> None:
        pass

    def infer(self, call: Call, timeout: float | None) -> dict[str, Any]:
        self.calls.append(call)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is not None:
            raise answer
        return {}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Written]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(published, "PICKED_UP_S", 0.3)
    monkeypatch.setattr(published, "POLL_S", 0.01)
    made = save(tmp_path / "index", [record("a.md")])
    return Written(Path("index"), "default", made.snapshot, manifest().sha256, DIMENSION)


def ask(
    written: Written, server: Server, monkeypatch: pytest.MonkeyPatch, *, new: bool = True
) -> bool | None:
    monkeypatch.setattr(published, "Client", server)
    return is_served(written, Servers("here:8001", "grpc", 2), new=new)


GONE = NotFound("snapshot: 'x' is not live here in collection default")


def test_it_is_asked_until_it_has_it(
    written: Written, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server = Server(GONE, Unavailable("is being loaded"), None)
    assert ask(written, server, monkeypatch) is True
    assert len(server.calls) == 3
    call = server.calls[0]
    assert (call.model.name, call.version) == ("retrieve", 2)
    assert call.values["snapshot"] == [written.snapshot]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("new", [True, False])
def test_where_it_never_does_both_places_and_the_remedy_are_named(
    written: Written,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    new: bool,
) -> None:
    monkeypatch.setattr(published, "_index_of", lambda url: "/elsewhere/index")
    server = Server(GONE)
    assert ask(written, server, monkeypatch, new=new) is False
    said = capsys.readouterr().err
    assert f"snapshot {written.snapshot} is in {tmp_path / 'index'}, but the server at" in said
    assert "here:8001 does not serve it: snapshot: 'x' is not live here" in said
    assert "It reads /elsewhere/index. Name the folder that the server reads with" in said
    assert (len(server.calls) == 1) is not new


@pytest.mark.parametrize("error", [Unreachable("no server"), InvalidRequest("unexpected input")])
def test_what_cannot_be_told_is_not_claimed(
    written: Written,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: TritonragError,
) -> None:
    assert ask(written, Server(error), monkeypatch) is None
    assert "whether the server serves it cannot be told: " in capsys.readouterr().err
    assert ask(written, Server(error), monkeypatch, new=False) is None
    assert capsys.readouterr().err == ""


def test_a_later_snapshot_is_as_good(
    written: Written, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save(tmp_path / "index", [record("b.md")])
    assert ask(written, Server(GONE), monkeypatch) is True
