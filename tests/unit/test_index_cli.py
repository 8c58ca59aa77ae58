from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from index_samples import HashEmbedder, install, manifest, tokenizer, write
from typer.testing import CliRunner, Result

from tritonrag.chunking import ChunkSettings
from tritonrag.cli import index as commands
from tritonrag.cli import published, working
from tritonrag.errors import InvalidRequest, NotFound, SetupError, Unavailable
from tritonrag.index import store
from tritonrag.index.snapshot import Floats
from tritonrag.settings import INDEX_DIR_VARIABLE, REPOSITORY_VARIABLE, URL_VARIABLE


class FakeClient(HashEmbedder):
    def __init__(self, *args: object) -> None:
        super().__init__()

    def embed(
        self, texts: Sequence[str], role: str = "passage", *, version: int | None = None
    ) -> Floats:
        asked_versions.add(version)
        return super().embed(texts, role)

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *args: object) -> None:
        pass


asked_versions: set[int | None] = set()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(working, "Client", FakeClient)
    monkeypatch.setattr(published, "is_served", lambda *_, **__: True)
    monkeypatch.chdir(tmp_path)
    for variable in (INDEX_DIR_VARIABLE, REPOSITORY_VARIABLE, URL_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    asked_versions.clear()
    install(tmp_path / "model_repository")
    write(tmp_path / "docs", leave="# Leave\n\n30 days.", pay="# Pay\n\nMonthly.")
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(commands.app, arguments, catch_exceptions=code == 0)
    assert result.exit_code == code, result.output
    return result


def add(*arguments: str, code: int = 0) -> Result:
    options = ("--chunk-tokens", "32", "--chunk-overlap", "8")
    return run("add", *arguments, *options, code=code)


def test_add_twice_then_look() -> None:
    assert "nothing is indexed" in run("list").stdout
    assert "2 added, 0 changed, 0 removed, 0 unchanged, 0 failed; 2 passages" in add("docs").stdout
    assert "nothing changed, 2 files" in add("docs").stdout
    assert "tiny fp32 (sha256 abababababab)" in run("list").stdout
    stats = run("stats").stdout
    assert "2 documents, 2 passages" in stats
    assert "state:      good" in stats
    (facts,) = json.loads(run("stats", "--collection", "default", "--json").stdout)["collections"]
    assert facts["manifest"]["passages"] == 2
    assert facts["refusal"] is None


def test_a_version_that_is_not_live_gets_an_index_of_its_own(place: Path) -> None:
    add("docs")
    second = place / "model_repository/embed/2"
    second.mkdir()
    manifest("cd" * 32).save(second)
    tokenizer().save(str(second / "tokenizer.json"))
    assert asked_versions == {None}
    done = add("--embedder-version", "2").stdout
    assert "2 passages, 2 embedded" in done
    assert "is live for version 2 of the embedder" in done
    assert asked_versions == {None, 2}
    assert "sha256 abababababab" in run("list").stdout
    assert "nothing changed" in add("--embedder-version", "2").stdout
    with pytest.raises(InvalidRequest, match="PATHS: name the files or folders"):
        add("--embedder-version", "1", code=1)
    with pytest.raises(NotFound, match="no collection is called 'typo'; there are default"):
        add("--embedder-version", "2", "--collection", "typo", code=1)
    with pytest.raises(SetupError, match="embed/3: no model is installed"):
        add("--embedder-version", "3", code=1)


def test_what_fails_is_named_and_the_rest_is_indexed(place: Path) -> None:
    (place / "docs" / "bad.md").write_bytes(b"a\0b")
    result = add("docs")
    assert "bad.md: not text: it holds NUL bytes" in result.stderr
    assert "2 added, 0 changed, 0 removed, 0 unchanged, 1 failed" in result.stdout


def test_files_of_unknown_kinds_are_named_or_counted(place: Path) -> None:
    for number in range(12):
        (place / "docs" / f"{number:02}.png").write_bytes(b"x")
    said = add("docs").stderr
    assert "not of a kind that can be indexed: docs/00.png, docs/01.png" in said
    assert "docs/09.png and 2 more (.png 2)" in said


def test_what_failed_is_tried_again_on_demand(place: Path) -> None:
    (place / "docs" / "bad.md").write_bytes(b"a\0b")
    add("docs")
    assert "has not changed" in add("docs").stderr
    assert "has not changed" not in add("docs", "--retry-failed").stderr


def test_the_limits_of_a_file_are_options(place: Path) -> None:
    (place / "docs" / "slow.md").write_text("One more sentence. " * 400_000)
    result = add("docs", "--file-seconds", "1", "--file-memory", "2048", "--workers", "1")
    assert "2 added" in result.stdout
    assert "slow.md: takes over 1 s to parse; split it, or raise --file-seconds" in result.stderr


def test_a_second_writer_may_leave(place: Path) -> None:
    with (
        store.writing(place / "index", "default"),
        pytest.raises(Unavailable, match="another writer .* holds"),
    ):
        add("docs", "--no-wait", code=1)


def test_an_interrupted_run_says_that_it_can_be_taken_up(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(FakeClient):
        def embed(
            self, texts: Sequence[str], role: str = "passage", *, version: int | None = None
        ) -> Floats:
            raise KeyboardInterrupt

    monkeypatch.setattr(working, "Client", Interrupted)
    assert "the same command goes on where this one was" in add("docs", code=130).stderr


def test_nothing_to_index_is_an_error(place: Path) -> None:
    with pytest.raises(NotFound, match="none: no such file or folder; nothing was changed"):
        add("docs", "none", code=1)
    (place / "empty").mkdir()
    result = add("empty", "--json", code=1)
    assert "holds no file" in json.loads(result.stdout)["failures"][0]["reason"]
    assert not (place / "index").exists()


def test_rollback(place: Path) -> None:
    first = json.loads(add("docs", "--json").stdout)["snapshot"]
    write(place / "docs", pay="# Pay\n\nWeekly.")
    second = json.loads(add("docs", "--json").stdout)["snapshot"]
    result = json.loads(run("rollback", "--json").stdout)
    assert (result["before"], result["snapshot"]) == (second, first)
    assert f"{second} is live" in run("rollback", "--to", second).stdout
    with pytest.raises(NotFound):
        run("rollback", "--to", "x", code=1)
    with pytest.raises(NotFound):
        run("rollback", "--collection", "hr", code=1)


def test_stats_shows_a_refusal(place: Path) -> None:
    snapshot = json.loads(add("docs", "--json").stdout)["snapshot"]
    (place / "index" / "default" / snapshot / "passages.jsonl").write_text("x")
    assert "REFUSED:" in run("stats", code=1).stdout
    (place / "index" / "default" / snapshot / "manifest.json").write_text("x")
    assert "REFUSED" in run("list").stdout


def test_bad_options(place: Path) -> None:
    with pytest.raises(InvalidRequest, match="--chunk-tokens: 300"):
        run("add", "docs", "--chunk-tokens", "300", code=1)
    with pytest.raises(SetupError, match="no model is installed"):
        run("add", "docs", "--repository", "nowhere", code=1)


def test_defaults_are_those_of_the_chunker() -> None:
    defaults = inspect.signature(commands.add).parameters
    settings = ChunkSettings()
    assert defaults["chunk_tokens"].default == settings.tokens
    assert defaults["chunk_overlap"].default == settings.overlap
