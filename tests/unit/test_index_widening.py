"""Nothing that somebody meant to close is opened by a mistake, and every opening is reported."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from access_samples import record, save
from index_samples import add, install, manifest, write
from typer.testing import CliRunner, Result

from tritonrag.cli import collections as _registered
from tritonrag.cli import index as commands
from tritonrag.corpus import find_files
from tritonrag.errors import InvalidRequest
from tritonrag.index import layout
from tritonrag.index.catalogue import lacking
from tritonrag.index.manifest import DOCUMENTS
from tritonrag.index.reports import Added
from tritonrag.index.snapshot import Snapshot
from tritonrag.index.syncing import current_documents
from tritonrag.index.widening import Opening, WouldOpen, opens
from tritonrag.settings import INDEX_DIR_VARIABLE, REPOSITORY_VARIABLE

assert _registered


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    write(tmp_path / "docs", leave="# Leave\n\n30 days.", pay="# Pay\n\nMonthly.")
    say(tmp_path / "docs", "access: [hr]")
    return tmp_path / "docs"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


def say(docs: Path, text: str) -> None:
    (docs / "pay.md.meta.yaml").write_text(text)


def access(index: Path, number: int = 1) -> tuple[str, ...]:
    return current_documents(index, "default", manifest().sha256)[number].metadata.access


@pytest.mark.parametrize(
    ("before", "after", "opened"),
    [
        ((), (), False), ((), ("hr",), False), (("hr",), ("hr",), False), (("hr",), (), True),
        (("hr", "it"), ("hr",), False), (("hr",), ("hr", "it"), True), (("hr",), ("it",), True),
    ],
)  # fmt: skip
def test_what_an_opening_is(before: tuple[str], after: tuple[str], opened: bool) -> None:
    assert opens(before, after) == opened


@pytest.mark.parametrize("complete_under", [None, ""])
def test_a_document_whose_sidecar_is_deleted_stays_closed(
    docs: Path, index: Path, complete_under: str | None
) -> None:
    add(index, docs)
    (docs / "pay.md.meta.yaml").unlink()
    (docs / "pay.md").write_text("# Pay\n\nWeekly.")
    for _ in range(2):
        report = add(index, docs, complete_under=complete_under)
        (failure,) = report.failures
        assert failure.name == str(docs / "pay.md")
        assert failure.reason.startswith("would be open to everyone: it was for hr, and nothing")
        assert (report.opened, report.published, access(index)) == ([], False, ("hr",))
    report = add(index, docs, complete_under=complete_under, allow_opening=True)
    assert report.opened == [Opening("pay.md", ("hr",), ())]
    assert (report.failures, access(index)) == ([], ())
    assert add(index, docs, complete_under=complete_under).opened == []


@pytest.mark.parametrize(
    ("text", "after"),
    [("access: []", ()), ("access: [hr, it]", ("hr", "it")), ("access: it", ("it",))],
)
def test_an_opening_that_is_said_happens_and_is_reported(
    docs: Path, index: Path, text: str, after: tuple[str, ...]
) -> None:
    add(index, docs)
    say(docs, text)
    report = add(index, docs)
    assert report.opened == [Opening("pay.md", ("hr",), after)]
    assert access(index) == after
    say(docs, "access: [hr]")
    assert add(index, docs).opened == ([] if "hr" in after or not after else
                                       [Opening("pay.md", ("it",), ("hr",))])  # fmt: skip
    assert access(index) == ("hr",)


def test_a_run_without_the_access_of_the_one_before_opens_nothing(docs: Path, index: Path) -> None:
    from index_samples import HashEmbedder, parsers

    from tritonrag.index.adding import Adder

    def run(**given: object) -> Added:
        adder = Adder(index, manifest(), HashEmbedder(), parsers())
        return adder.add("default", find_files([docs], given).files)

    run(access=["staff"])
    assert (access(index, 0), access(index)) == (("staff",), ("hr",))
    report = run()
    assert [Path(failure.name).name for failure in report.failures] == ["leave.md"]
    assert access(index, 0) == ("staff",)
    assert run(access=["staff"]).failures == []


def test_a_front_matter_without_its_access_opens_nothing(docs: Path, index: Path) -> None:
    (docs / "leave.md").write_text("---\naccess: [hr]\n---\n\n# Leave\n\n30 days.")
    add(index, docs)
    (docs / "leave.md").write_text("# Leave\n\n30 days.")
    assert len(add(index, docs).failures) == 1
    assert access(index, 0) == ("hr",)


def test_what_an_interrupted_run_was_to_open_is_asked_for_again(docs: Path, index: Path) -> None:
    from tritonrag.index import adding

    add(index, docs)
    (docs / "pay.md.meta.yaml").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adding.Adder, "_publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            add(index, docs, allow_opening=True)
    report = add(index, docs)
    assert (len(report.failures), report.opened, access(index)) == (1, [], ("hr",))
    report = add(index, docs, allow_opening=True)
    assert (report.opened, access(index)) == ([Opening("pay.md", ("hr",), ())], ())


@pytest.mark.parametrize("text", ["# Pay\n\nMonthly.", "# Pay\n\nWeekly."])
@pytest.mark.parametrize("complete_under", [None, ""])
def test_a_closed_file_by_another_name_opens_nothing(
    docs: Path, index: Path, complete_under: str | None, text: str
) -> None:
    """Its folder was named before; now the folder above is."""
    add(index, docs)
    (docs / "pay.md.meta.yaml").unlink()
    (docs / "pay.md").write_text(text)
    for _ in range(2):
        report = add(index, docs.parent, complete_under=complete_under)
        (failure,) = report.failures
        assert failure.reason.startswith(
            "would be open to everyone: the same file, as 'pay.md', was for hr, and nothing says"
        )
        documents = current_documents(index, "default", manifest().sha256)
        kept = {each.source: each.metadata.access for each in documents}
        assert kept["pay.md"] == ("hr",)
        assert "docs/pay.md" not in kept
    report = add(index, docs.parent, complete_under=complete_under, allow_opening=True)
    assert report.opened == [Opening("docs/pay.md", ("hr",), ())]
    assert report.removed == (complete_under == "")


def test_a_copy_of_a_closed_file_opens_only_where_that_is_said(docs: Path, index: Path) -> None:
    add(index, docs)
    (docs / "wages.md").write_text((docs / "pay.md").read_text())
    (docs / "pay.md.meta.yaml").rename(docs.parent / "kept")
    (docs / "pay.md").unlink()
    report = add(index, docs, complete_under="")
    assert ([Path(each.name).name for each in report.failures], report.removed) == (["wages.md"], 0)
    (docs / "wages.md.meta.yaml").write_text("access: []")
    report = add(index, docs, complete_under="")
    assert (report.failures, report.removed) == ([], 1)
    assert report.opened == [Opening("wages.md", ("hr",), ())]


@pytest.mark.parametrize("change", ["none", "of the live", "removed from the live"])
def test_what_is_closed_in_a_version_that_is_prepared_stays_so(
    docs: Path, index: Path, change: str
) -> None:
    ours, theirs = manifest().sha256, "cd" * 32

    def prepare(**options: bool) -> Added:
        return add(index, docs, sha256=theirs, live=ours, **options)

    def prepared() -> tuple[str, ...]:
        documents = Snapshot.open(
            index / "default" / str(layout.current(index / "default", theirs))
        ).documents
        (found,) = [each for each in documents if each.source == "pay.md"]
        return found.metadata.access

    sidecar = docs / "pay.md.meta.yaml"
    sidecar.unlink()
    add(index, docs)
    sidecar.write_text("access: [hr]")
    prepare()
    assert (access(index), prepared()) == ((), ("hr",))
    prepare()
    assert prepared() == ("hr",)
    sidecar.unlink()
    if change == "of the live":
        (docs / "pay.md").write_text("# Pay\n\nWeekly.")
        add(index, docs)
    elif change == "removed from the live":
        add(index, docs / "leave.md", complete_under="")
    for _ in range(2):
        assert [Path(each.name).name for each in prepare().failures] == ["pay.md"]
        assert prepared() == ("hr",)
    assert prepare(allow_opening=True).opened == [Opening("pay.md", ("hr",), ())]
    assert prepared() == ()


def test_what_the_live_version_opened_since_is_opened_in_another_where_that_is_meant(
    docs: Path, index: Path
) -> None:
    ours, theirs = manifest().sha256, "cd" * 32
    add(index, docs)
    add(index, docs / "none", sha256=theirs, live=ours)
    say(docs, "access: [hr, it]")
    add(index, docs)
    (failure,) = add(index, docs / "none", sha256=theirs, live=ours).failures
    assert failure.name == "pay.md"
    assert failure.reason.startswith("was for hr, is for hr, it in the live version; it stays")
    assert lacking(index, manifest(theirs), manifest()) == ([], ["default"])
    report = add(index, docs / "none", sha256=theirs, live=ours, allow_opening=True)
    assert report.opened == [Opening("pay.md", ("hr",), ("hr", "it"))]
    assert lacking(index, manifest(theirs), manifest()) == ([], [])


@pytest.fixture
def closed(index: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two snapshots: in the newer one, one document is closed and one is for fewer."""
    monkeypatch.chdir(index.parent)
    for variable in (INDEX_DIR_VARIABLE, REPOSITORY_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    install(index.parent / "model_repository")
    save(index, [record("a.md"), record("b.md", access=["hr", "it"]), record("c.md", access="hr")])
    save(index, [record("a.md", access="hr"), record("b.md", access="hr"), record("c.md")])
    return index


OPENED = [Opening("a.md", ("hr",), ()), Opening("b.md", ("hr",), ("hr", "it"))]


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(commands.app, arguments, catch_exceptions=code == 0)
    assert result.exit_code == code, result.output
    return result


def test_a_rollback_opens_only_what_is_meant(closed: Path) -> None:
    live = layout.current(closed / "default")
    with pytest.raises(WouldOpen, match=r"2 documents .*a.md: was for hr, is for everyone; b.md"):
        run("rollback", code=1)
    assert layout.current(closed / "default") == live
    done = json.loads(run("rollback", "--allow-opening", "--json").stdout)
    assert done["opened"] == [json.loads(json.dumps(asdict(each))) for each in OPENED]
    assert layout.current(closed / "default") == done["snapshot"] != live
    with pytest.raises(WouldOpen, match="c.md"):
        run("rollback", "--to", str(live), code=1)
    said = run("rollback", "--to", str(live), "--allow-opening").stdout
    assert "opened: c.md: was for hr, is for everyone\n" in said


def test_what_was_closed_and_then_removed_is_not_opened(closed: Path) -> None:
    folder = closed / "default"
    oldest, closing = layout.snapshots(folder)
    run("rollback", "--allow-opening")
    run("export", "default", "old.tar")
    run("rollback", "--to", closing, "--allow-opening")
    save(closed, [record("c.md")])
    live = layout.current(folder)
    for command in (("rollback", "--to", oldest), ("import", "old.tar")):
        with pytest.raises(WouldOpen, match=r"2 documents .*a.md: was for hr, is for everyone; b"):
            run(*command, code=1)
        assert layout.current(folder) == live
    (folder / closing / DOCUMENTS).write_text("x")
    run("import", "old.tar")


def test_a_rollback_asks_on_a_terminal(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openings = commands.Openings(False)
    monkeypatch.setattr(commands.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(commands.typer, "confirm", lambda *_, **__: False)
    with pytest.raises(WouldOpen):
        openings(OPENED)
    monkeypatch.setattr(commands.typer, "confirm", lambda *_, **__: True)
    openings(OPENED)
    assert openings.found == OPENED


def test_what_is_live_but_cannot_be_read_may_have_been_closed(closed: Path) -> None:
    folder = closed / "default"
    (folder / str(layout.current(folder)) / DOCUMENTS).write_text("x")
    with pytest.raises(WouldOpen, match="3 documents .*c.md: may have been closed, .* is for hr"):
        run("rollback", code=1)
    run("rollback", "--allow-opening")


def test_an_import_opens_only_what_is_meant(closed: Path, tmp_path: Path) -> None:
    run("export", "default", "new.tar")
    run("rollback", "--allow-opening")
    run("export", "default", "old.tar")
    run("import", "new.tar", "--allow-opening")
    live = layout.current(closed / "default")
    with pytest.raises(WouldOpen, match="a.md: was for hr, is for everyone"):
        run("import", "old.tar", code=1)
    assert layout.current(closed / "default") == live
    assert not list((closed / "default").glob(".unfinished-*"))
    run("import", "old.tar", "--collection", "another")
    done = json.loads(run("import", "old.tar", "--allow-opening", "--json").stdout)
    assert [each["source"] for each in done["opened"]] == ["a.md", "b.md"]


@pytest.mark.parametrize(
    "text",
    [
        "access: [hr]\naccess: []",
        "access: [hr]\n'access': []",
        "Access: [hr]",
        "metadata: {access: [hr]}",
        "permissions:\n  read:\n    - access: [hr]",
        "permissions.access: [hr]",
        "tags: [a]\ntags: [b]",
    ],
)
@pytest.mark.parametrize("form", ["sidecar", "front matter"])
def test_access_that_is_written_wrongly_is_refused(
    docs: Path, index: Path, text: str, form: str
) -> None:
    if form == "sidecar":
        (docs / "leave.md.meta.yaml").write_text(text)
    else:
        (docs / "leave.md").write_text(f"---\n{text}\n---\n\n# Leave\n\n30 days.")
    report = add(index, docs)
    (failure,) = report.failures
    assert "metadata: " in failure.reason
    assert report.added == 1


def test_a_json_sidecar_says_each_thing_once(docs: Path, index: Path) -> None:
    (docs / "leave.md.meta.json").write_text('{"access": ["hr"], "access": []}')
    (failure,) = add(index, docs).failures
    assert failure.reason == "leave.md.meta.json: metadata: 'access' is there twice; write it once"


@pytest.mark.parametrize(
    "text",
    [
        '+++\ntitle = "Leave"\naccess = ["hr"]\n+++\n\nText.',
        "+++\n[extra]\naccess = ['hr']\n+++\n\nText.",
        "+++\n[access]\nread = ['hr']\n+++\n\nText.",
        '+++\npermissions.access = ["hr"]\n+++\n\nText.',
        '+++\npermissions = { access = ["hr"] }\n+++\n\nText.',
        "---\nmetadata: {access: [hr]\n---\n\nText.",
    ],
)
@pytest.mark.parametrize("name", ["leave.md", "leave.txt"])
def test_a_front_matter_that_is_not_read_closes_nothing_in_vain(
    docs: Path, index: Path, text: str, name: str
) -> None:
    (docs / name).write_text(text)
    failures = add(index, docs).failures
    assert [Path(failure.name).name for failure in failures] == [name]
    assert "its front matter names `access` but cannot be read" in failures[0].reason


def test_json_is_front_matter_of_markdown_alone(docs: Path, index: Path) -> None:
    for name in ("leave.md", "log.txt"):
        (docs / name).write_text('{\n  "title": "Leave",\n  "access": ["hr"]\n}\n\nText.')
    assert [Path(failure.name).name for failure in add(index, docs).failures] == ["leave.md"]


@pytest.mark.parametrize(
    "text",
    [
        '+++\ntitle = "Leave"\n+++\n\nHow to get access: ask.',
        "---\n\nFor help, or for access: ask the desk.\n",
        "{\n\nNo JSON.\n}\n",
        "Access: ask the desk.\n",
    ],
)
def test_ordinary_texts_are_not_taken_for_it(docs: Path, index: Path, text: str) -> None:
    (docs / "leave.md").write_text(text)
    assert add(index, docs).failures == []


def test_a_deep_and_shared_structure_costs_nothing(docs: Path, index: Path) -> None:
    levels = "\n".join(f"k{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))
    (docs / "leave.md.meta.yaml").write_text(f"k0: &a0 [x]\n{levels}\n")
    (failure,) = add(index, docs).failures
    assert "expected a text" in failure.reason


def test_nothing_of_this_is_a_fault_of_ours() -> None:
    assert issubclass(WouldOpen, InvalidRequest)
