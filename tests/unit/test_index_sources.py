"""Whose a name is in a collection, what is removed from it, and metadata that changes alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from index_samples import HashEmbedder, add, manifest, parsers, write

from tritonrag.corpus import find_files
from tritonrag.index.adding import Adder
from tritonrag.index.manifest import DocumentRecord
from tritonrag.index.syncing import current_documents


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    write(tmp_path / "docs", leave="# Leave\n\n30 days.", pay="# Pay\n\nMonthly.")
    return tmp_path / "docs"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


def live(index: Path) -> list[DocumentRecord]:
    return current_documents(index, "default", manifest().sha256)


def test_a_name_is_not_taken_from_a_document_that_is_still_there(
    docs: Path, index: Path, tmp_path: Path
) -> None:
    add(index, docs)
    write(tmp_path / "other", leave="# Other\n\nSomething else.")
    report = add(index, tmp_path / "other")
    (failure,) = report.failures
    assert failure.reason.startswith(
        f"the collection has another document called 'leave.md', from {docs / 'leave.md'}; name"
    )
    assert live(index)[0].title == "Leave"
    docs.rename(tmp_path / "moved")
    assert add(index, tmp_path / "moved").unchanged == 2
    assert live(index)[0].path == str(tmp_path / "moved" / "leave.md")


def test_a_complete_set_removes_the_others_under_its_prefix(docs: Path, index: Path) -> None:
    adder = Adder(index, manifest(), HashEmbedder(), parsers())
    first = adder.add("default", find_files([docs, f"hr={docs}"]).files)
    assert (first.added, first.removed) == (4, 0)
    (docs / "pay.md").unlink()
    second = adder.add("default", find_files([f"hr={docs}"]).files, complete_under="hr/")
    assert (second.removed, second.unchanged, second.embedded) == (1, 1, 0)
    assert [document.source for document in live(index)] == ["hr/leave.md", "leave.md", "pay.md"]


def test_new_metadata_embeds_nothing_but_a_new_title_does(docs: Path, index: Path) -> None:
    add(index, docs)
    (docs / "pay.md.meta.json").write_text('{"tags": ["money"]}')
    embedder = HashEmbedder()
    report = add(index, docs, embedder)
    assert (report.changed, report.embedded, embedder.texts) == (1, 0, [])
    assert live(index)[1].metadata.tags == ("money",)
    (docs / "pay.md.meta.json").write_text('{"title": "Wages"}')
    assert add(index, docs, embedder).embedded == 1
    assert embedder.texts == ["Wages\nMonthly."]


def test_a_failed_file_keeps_its_document_but_not_a_wider_access(docs: Path, index: Path) -> None:
    add(index, docs)
    (docs / "pay.md").write_text("")
    (docs / "pay.md.meta.yaml").write_text("access: [hr]")
    for _ in range(2):
        (failure,) = add(index, docs).failures
        assert failure.reason.startswith("holds no text")
        assert live(index)[1].metadata.access == ("hr",)


def test_a_sidecar_that_leads_nowhere_opens_nothing(docs: Path, index: Path) -> None:
    (docs / "pay.md.meta.yaml").write_text("access: [hr]")
    add(index, docs)
    (docs / "pay.md.meta.yaml").unlink()
    (docs / "pay.md.meta.yaml").symlink_to(docs / "none.yaml")
    assert len(add(index, docs).failures) == 1
    assert live(index)[1].metadata.access == ("hr",)


@pytest.mark.parametrize("name", ["pay.md.meta.YAML", "pay.md.meta.yml", "pay.md.META.Yaml"])
def test_a_sidecar_is_one_in_any_case(docs: Path, index: Path, name: str) -> None:
    (docs / name).write_text("access: [hr]")
    report = add(index, docs)
    assert (report.failures, report.unknown) == ([], [])
    assert live(index)[1].metadata.access == ("hr",)
