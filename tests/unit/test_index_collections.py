"""Removing, exporting, importing and pruning, through the command line."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from access_samples import record, save
from index_samples import install, manifest, vector
from typer.testing import CliRunner, Result

from tritonrag.cli import collections as _registered
from tritonrag.cli import index as commands
from tritonrag.errors import InvalidRequest, NotFound, SetupError
from tritonrag.index import Query, Retriever, Snapshot, layout
from tritonrag.index.archive import HEADER
from tritonrag.settings import INDEX_DIR_VARIABLE, KEEP_VARIABLE, REPOSITORY_VARIABLE

assert _registered
DOCUMENTS = [record("hr/leave.md", 2, access="hr"), record("hr/pay.md"), record("it/vpn.md", 3)]


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for variable in (INDEX_DIR_VARIABLE, REPOSITORY_VARIABLE, KEEP_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    install(tmp_path / "model_repository")
    save(tmp_path / "index", DOCUMENTS)
    return tmp_path / "index"


def run(*arguments: str, code: int = 0, answer: str = "") -> Result:
    result = CliRunner().invoke(
        commands.app, arguments, catch_exceptions=code == 0, input=answer or None
    )
    assert result.exit_code == code, result.output
    return result


def live(index: Path, collection: str = "default", sha256: str = "") -> Snapshot:
    folder = index / collection
    return Snapshot.open(folder / str(layout.current(folder, sha256)))


def sources(snapshot: Snapshot) -> list[str]:
    return [document.source for document in snapshot.documents]


def texts(snapshot: Snapshot) -> list[str]:
    return [json.loads(snapshot.passage(number))["text"] for number in range(len(snapshot))]


def test_documents_are_removed_by_source_and_by_folder(index: Path) -> None:
    before = live(index)
    done = json.loads(run("remove", "hr/pay.md", "--json").stdout)
    assert done["removed"] == ["hr/pay.md"]
    after = live(index)
    assert after.name == done["snapshot"] != before.name
    assert texts(after) == [*texts(before)[:2], *texts(before)[3:]]
    assert after.vectors(range(2, 5)).tolist() == before.vectors(range(3, 6)).tolist()
    assert after.documents == [DOCUMENTS[0], DOCUMENTS[2]]
    assert "2 documents removed" in run("remove", "hr/", "it/vpn.md").stdout
    assert len(live(index)) == 0
    with Retriever(index, manifest()) as retriever:
        assert retriever.search([Query(vector("x"))])[0].passages == []


def test_documents_leave_the_snapshot_of_each_embedder(index: Path) -> None:
    other = "cd" * 32
    save(index, [*DOCUMENTS, record("only.md")], sha256=other, current=False)
    run("remove", "hr/")
    assert sources(live(index)) == ["it/vpn.md"]
    assert sources(live(index, sha256=other)) == ["it/vpn.md", "only.md"]
    run("remove", "only.md")
    assert sources(live(index)) == ["it/vpn.md"]
    assert sources(live(index, sha256=other)) == ["it/vpn.md"]


def test_nothing_is_removed_unless_all_of_it_is_there(index: Path) -> None:
    before = live(index).name
    for names in (["hr/pay.md", "hr"], ["x.md"], ["h/"], ["hr/pay.md", "pay.md"]):
        with pytest.raises(NotFound, match="has no document '(hr|x.md|h/|pay.md)'"):
            run("remove", *names, code=1)
    for arguments in ([], ["hr/", "--all"]):
        with pytest.raises(InvalidRequest, match="SOURCES"):
            run("remove", *arguments, code=1)
    with pytest.raises(NotFound, match="'nope'; there are default"):
        run("remove", "x", "--collection", "nope", code=1)
    assert live(index).name == before


def test_a_collection_is_removed_when_it_is_meant(index: Path) -> None:
    with Retriever(index, manifest()) as retriever:
        with pytest.raises(InvalidRequest, match="not removed"):
            run("remove", "--all", code=1, answer="n\n")
        assert layout.collections(index) == ["default"]
        run("remove", "--all", "--yes")
        retriever.refresh()
        assert retriever.collections == {}
    assert layout.collections(index) == []
    assert [path.name for path in index.iterdir()] == [".default.lock"]
    save(index, DOCUMENTS)
    run("remove", "--all", answer="y\n")
    with pytest.raises(NotFound, match="there is none yet"):
        run("remove", "--all", "--yes", code=1)


@pytest.mark.parametrize("name", ["out.tar", "out.tar.gz", "out.tgz"])
def test_what_is_exported_can_be_imported(index: Path, tmp_path: Path, name: str) -> None:
    before = live(index)
    assert name in run("export", "default", name).stdout
    assert "3 documents, 6 passages" in run("import", name, "--index-dir", "there").stdout
    there = live(tmp_path / "there")
    assert there.documents == before.documents
    assert texts(there) == texts(before)
    assert there.vectors(range(6)).tolist() == before.vectors(range(6)).tolist()
    assert there.manifest.created == before.manifest.created
    assert there.manifest.parent is None

    again = json.loads(run("import", name, "--json").stdout)
    assert again["collection"] == "default"
    assert live(index).manifest.parent == before.name
    run("import", name, "--collection", "copy")
    assert layout.collections(index) == ["copy", "default"]
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".new")]


def test_an_import_of_another_embedder_is_refused_unless_wanted(index: Path) -> None:
    other = "cd" * 32
    save(index, DOCUMENTS, "other", sha256=other)
    run("export", "other", "other.tar")
    with pytest.raises(SetupError, match=r"cdcdcdcdcdcd.*abababababab.*--any-embedder"):
        run("import", "other.tar", "--collection", "default", code=1)
    assert len(layout.snapshots(index / "default")) == 1
    before = live(index).name
    run("import", "other.tar", "--collection", "default", "--any-embedder")
    assert live(index).name == before
    assert live(index, sha256=other).name != before


Members = list[tuple[tarfile.TarInfo, bytes]]


def changed(members: Members, number: int, content: bytes) -> Members:
    entry = members[number][0]
    entry.size = len(content)
    return [*members[:number], (entry, content), *members[number + 1 :]]


def forged(members: Members, **fields: object) -> Members:
    """Change the manifest, and its hash in the header with it."""
    content = json.dumps(json.loads(members[1][1]) | fields).encode()
    header = json.loads(members[0][1]) | {"manifest_sha256": hashlib.sha256(content).hexdigest()}
    return changed(changed(members, 1, content), 0, json.dumps(header).encode())


def added(members: Members, name: str, kind: bytes = tarfile.REGTYPE) -> Members:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, "/etc/passwd"
    return [*members, (entry, b"")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda members: members[1:], f"{HEADER} is not where it should be"),
        (lambda members: members[:1], "manifest.json is not where"),
        (lambda members: members[:-1], "it lacks vectors.faiss"),
        (lambda members: [*members, members[2]], "which does not belong"),
        (lambda members: changed(members, 0, b"[]"), "list indices"),
        (
            lambda members: changed(members, 0, members[0][1].replace(b": 1", b": 2")),
            "version is 2",
        ),
        (
            lambda members: changed(members, 1, members[1][1].replace(b'"Flat"', b'"Flet"')),
            "manifest.json differs",
        ),
        (lambda members: forged(members, files=3), "not iterable"),
        (lambda members: forged(members, created="soon"), "Invalid isoformat"),
        (lambda members: forged(members, files={"../x": ""}), "which does not"),
        (lambda members: changed(members, 2, b"x"), " differs"),
        (lambda members: added(members, "../escape"), "'../escape', which does not belong"),
        (lambda members: added(members, "/tmp/escape"), "which does not belong"),
        (
            lambda members: added(members[:-1], "vectors.faiss", tarfile.SYMTYPE),
            "'vectors.faiss', which does not belong",
        ),
        (lambda members: added(members, "CURRENT"), "'CURRENT', which does not belong"),
    ],
)
def test_a_tampered_file_changes_nothing(
    index: Path, tmp_path: Path, change: Callable[[Members], Members], message: str
) -> None:
    run("export", "default", "good.tar")
    with tarfile.open("good.tar") as archive:
        members = [(each, archive.extractfile(each).read()) for each in archive]  # type: ignore[union-attr]
    with tarfile.open("bad.tar", "w") as archive:
        for entry, content in change(members):
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(InvalidRequest, match=r"bad.tar is damaged, or not what") as caught:
        run("import", "bad.tar", "--collection", "new", code=1)
    assert message in str(caught.value)
    assert not (index / "new").exists()
    assert not list(tmp_path.rglob("escape"))


@pytest.mark.parametrize("name", ["cut.tar", "cut.tar.gz"])
@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.95])
def test_a_file_that_ends_early_is_refused(index: Path, name: str, share: float) -> None:
    run("export", "default", name)
    content = Path(name).read_bytes()
    Path(name).write_bytes(content[: int(len(content.rstrip(b"\0")) * share)])
    with pytest.raises(InvalidRequest, match="is damaged, or not what"):
        run("import", name, "--collection", "new", code=1)
    assert not (index / "new").exists()


def test_names_of_files_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"must end in .tar, .tar.gz"):
        run("export", "default", "out.zip", code=1)
    with pytest.raises(NotFound, match="no such file"):
        run("import", "none.tar", code=1)
    with pytest.raises(NotFound, match="'nope'; there are default"):
        run("export", "nope", "out.tar", code=1)
    with pytest.raises(SetupError, match="cannot be written"):
        run("export", "default", "nowhere/out.tar", code=1)
    Path("text.tar.gz").write_text("not gzip")
    with pytest.raises(InvalidRequest, match="is damaged"):
        run("import", "text.tar.gz", code=1)


def test_old_snapshots_go_and_live_ones_stay(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = save(index, DOCUMENTS, sha256="cd" * 32, current=False).snapshot
    made = [save(index, DOCUMENTS).snapshot for _ in range(3)]
    gone = json.loads(run("prune", "--keep", "2", "--json").stdout)["removed"]
    assert theirs in gone, "it was live for an embedder that is not installed"
    assert layout.snapshots(index / "default") == made[1:]
    assert "1 snapshot deleted" in run("prune", "--keep", "1").stdout
    theirs = save(index, DOCUMENTS, sha256="cd" * 32, current=False).snapshot
    monkeypatch.setenv(KEEP_VARIABLE, "2")
    made += [save(index, DOCUMENTS).snapshot for _ in range(3)]
    assert layout.snapshots(index / "default") == [theirs, *made[-2:]]
    monkeypatch.setenv(KEEP_VARIABLE, "0")
    with pytest.raises(SetupError, match="TRITONRAG_KEEP_SNAPSHOTS is '0'"):
        save(index, DOCUMENTS)
    assert layout.snapshots(index / "default") == [theirs, *made[-2:]]
