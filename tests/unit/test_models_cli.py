"""``tritonrag models`` without a server."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from graph_samples import make_repository
from index_samples import HashEmbedder, add, manifest, write
from typer.testing import CliRunner, Result

from tritonrag import versions
from tritonrag.artifacts import LlmManifest, artifact_facts
from tritonrag.cli import models as commands
from tritonrag.errors import InvalidRequest, NotFound, SetupError
from tritonrag.rollout import add_version
from tritonrag.settings import INDEX_DIR_VARIABLE, REPOSITORY_VARIABLE, URL_VARIABLE
from tritonrag.versions import EMBED, GENERATE


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two versions of an embedder and an LLM with a file."""
    repository = make_repository(tmp_path / "models")
    monkeypatch.chdir(repository.parent)
    monkeypatch.setenv(REPOSITORY_VARIABLE, str(repository))
    monkeypatch.setenv(INDEX_DIR_VARIABLE, str(repository.parent / "index"))
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    monkeypatch.delenv("LLM_API_URL", raising=False)
    for version in (1, 2):
        (repository / EMBED.folder(version)).mkdir(exist_ok=True)
        manifest(f"{version}" * 64).save(repository / EMBED.folder(version))
    add_version(repository, EMBED, 2)
    llm = repository / GENERATE.folder(1)
    (llm / "manifest.json").unlink()
    (llm / "model.onnx").write_bytes(b"weights")
    LlmManifest(
        model="llm", precision="int4", **artifact_facts(llm), context_tokens=8, grounding="free",
        chat_template="", special_tokens={}, forced=True, parity={"logit_cosine": 0.9},
    ).save(llm)  # fmt: skip
    return repository


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(commands.app, arguments, catch_exceptions=code == 0)
    assert result.exit_code == code, result.output
    return result


def test_the_list_says_which_version_is_live() -> None:
    lines = run().stdout.splitlines()
    assert lines[0].split()[:3] == ["kind", "version", "state"]
    assert lines[1].split()[:4] == ["embed", "1", "live", "tiny"]
    assert lines[2].split()[:3] == ["embed", "2", "tiny"]
    assert "int4" in lines[3]
    assert "FORCED" in lines[3]
    facts = json.loads(run("--json").stdout)
    assert [(each["kind"], each["version"], each["live"]) for each in facts["models"]] == [
        ("embed", 1, True), ("embed", 2, False), ("generate", 1, True)
    ]  # fmt: skip
    assert facts["models"][2]["loaded"] is None
    assert facts["graph"] == {}


def test_an_endpoint_is_named_in_place_of_the_installed_llm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert json.loads(run("--json").stdout)["endpoint"] is None
    monkeypatch.setenv("LLM_API_URL", "http://llm:8000/v1")
    monkeypatch.setenv("LLM_MODEL", "large\x1b[31m")
    lines = run().stdout.splitlines()
    assert lines[3].split()[:3] == ["generate", "1", "unused"]
    assert lines[4] == r"generate: large\x1b[31m at llm:8000 (LLM_API_URL)"
    facts = json.loads(run("--json").stdout)
    assert facts["endpoint"] == "large\x1b[31m at llm:8000"
    assert [each["live"] for each in facts["models"]] == [True, False, False]
    monkeypatch.setenv("LLM_API_URL", "http://me:pw1@llm:8000/v1")
    with pytest.raises(SetupError, match="has a user or a password"):
        run(code=1)


def test_what_a_running_server_uses_goes_before_what_is_set_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = SimpleNamespace(llm="large at llm:8000")
    monkeypatch.setattr(commands, "_embedded", lambda state_dir: running)
    monkeypatch.setattr(commands, "_served", lambda *_: (None, {}))
    monkeypatch.setenv("LLM_API_URL", "http://other/v1")
    monkeypatch.setenv("LLM_MODEL", "small")
    assert "generate: large at llm:8000 (LLM_API_URL)" in run().stdout
    assert "small at other" in run("--url", "127.0.0.1:1").stdout
    running.llm = ""
    assert "LLM_API_URL" not in run().stdout


def test_promote_and_rollback_without_a_server_count_from_the_next_start(place: Path) -> None:
    assert "from the next start on" in run("promote", "embed", "2").stdout
    assert "previous" in run().stdout.splitlines()[1]
    run("rollback", "embed")
    assert versions.live(place, EMBED) == versions.Live(1, 2)
    run("rollback", "embed")
    assert versions.live_version(place, EMBED) == 2


def test_what_cannot_be_is_refused_with_a_remedy(place: Path) -> None:
    for arguments, error, message in (
        (
            ("promote", "embed", "9"),
            NotFound,
            "there are 1, 2; `export/embedder.py --as-version 9`",
        ),
        (("promote", "sound", "1"), NotFound, "expected embed or generate"),
        (("rollback", "generate"), InvalidRequest, "no version to go back to"),
        (("remove", "embed", "1"), InvalidRequest, "promote another one first"),
        (("--json", "promote", "embed", "2"), InvalidRequest, "--json: goes behind `promote`"),
    ):
        with pytest.raises(error, match=message):
            run(*arguments, code=1)
    with pytest.raises(Exception, match="start one with `tritonrag up`"):
        run("load", "embed", "2", code=1)
    assert versions.live_version(place, EMBED) == 1


def test_a_collection_without_an_index_of_the_new_embedder_holds_a_promotion(place: Path) -> None:
    index, docs = place.parent / "index", place.parent / "docs"
    write(docs, leave="# Leave\n\n30 days.")
    add(index, docs, sha256="1" * 64)
    remedy = "`tritonrag index add --embedder-version 2 --collection default`"
    with pytest.raises(SetupError, match=f"default has no index of version 2 .*{remedy}"):
        run("promote", "embed", "2", code=1)
    add(index, docs, HashEmbedder(), sha256="2" * 64, live="1" * 64)
    write(docs, more="# More\n\nPay.")
    add(index, docs, sha256="1" * 64)
    with pytest.raises(SetupError, match=f"default has newer documents .*{remedy}"):
        run("promote", "embed", "2", code=1)
    add(index, docs, HashEmbedder(), sha256="2" * 64, live="1" * 64)
    run("promote", "embed", "2")


def test_a_rollback_is_not_held_by_newer_documents(place: Path) -> None:
    index, docs = place.parent / "index", place.parent / "docs"
    write(docs, leave="# Leave\n\n30 days.")
    add(index, docs, sha256="1" * 64)
    add(index, docs, HashEmbedder(), sha256="2" * 64, live="1" * 64)
    run("promote", "embed", "2")
    write(docs, more="# More\n\nPay.")
    add(index, docs, sha256="2" * 64)
    done = run("rollback", "embed")
    assert "collection default goes back to older documents" in done.output
    assert versions.live_version(place, EMBED) == 1


def test_verify_names_the_file_that_differs(place: Path) -> None:
    assert "generate 1: as installed" in run("verify", "generate").stdout
    (place / GENERATE.folder(1) / "model.onnx").write_bytes(b"other")
    assert "generate 1: model.onnx differs" in run("verify", "generate", code=1).stdout
    (place / GENERATE.folder(1) / "model.onnx").unlink()
    (facts,) = json.loads(run("verify", "generate", "--json", code=1).stdout)["models"]
    assert facts["faults"] == ["model.onnx is missing; export it again"]


def test_a_version_is_removed(place: Path) -> None:
    run("remove", "embed", "2")
    assert versions.installed(place, EMBED) == [1]
    assert not (place / "tokenize/2").exists()
