"""A folder of attacks: the run ends in time and in bounded memory, and indexes everything else."""

from __future__ import annotations

import io
import os
import re
import threading
import time
import zipfile
from pathlib import Path

import pytest
from index_samples import HashEmbedder, manifest, tokenizer

from tritonrag.chunking import Chunker, ChunkSettings
from tritonrag.corpus import find_files
from tritonrag.documents import SourceFile, content_hash
from tritonrag.index import Snapshot, layout
from tritonrag.index.adding import Added, Adder
from tritonrag.parsing import Limits, ParserPool

LIMITS = Limits(seconds=4, memory_mib=256)

BOMB = b"""<?xml version="1.0"?><!DOCTYPE b [<!ENTITY a0 "ha">""" + b"".join(
    b'<!ENTITY a%d "%s">' % (level, b"&a%d;" % (level - 1) * 10) for level in range(1, 12)
) + b"]><b>&a11;</b>"  # fmt: skip

OUTSIDE = (
    b"""<?xml version="1.0"?><!DOCTYPE b [<!ENTITY x SYSTEM "file:///etc/passwd">]><b>&x;</b>"""
)

LOOP = b"""%PDF-1.4
1 0 obj <</Type /Catalog /Pages 2 0 R>> endobj
2 0 obj <</Type /Pages /Kids [2 0 R] /Parent 2 0 R /Count 10000>> endobj
trailer <</Root 1 0 R>>
"""

Ended = tuple[Added, Snapshot, float, Path]

GOOD = "# Good\n\nThis one is indexed."


def zip_bomb() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        archive.writestr("word/document.xml", bytes(256 << 20))
    return made.getvalue()


def attack(folder: Path) -> None:
    folder.mkdir()
    bomb = zip_bomb()
    attacks = {
        "bomb.docx": bomb,
        "bomb.xlsx": bomb,
        "bomb.md": bomb,
        "entities.xml": BOMB,
        "entities.html": BOMB,
        "outside.xml": OUTSIDE,
        "outside.html": OUTSIDE,
        "loop.pdf": LOOP,
        "deep.html": b"<div>" * 200_000,
        "deep.md": b"> " * 20_000 + b"x",
        "brackets.md": b"[" * 100_000,
        "include.rst": b".. include:: /etc/passwd\n\n.. raw:: html\n   :file: /etc/passwd\n",
        "word.txt": b"x" * 3_000_000,
        "yaml.md": b"---\na: &a [x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]\n---\n\nText.",
        "empty.md": b"",
        "blank.md": b" \n\t\n",
        "picture.md": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        "nul.txt": b"a\0b",
        "unknown.bin": b"\x7fELF",
    }
    for name, content in attacks.items():
        (folder / name).write_bytes(content)
    (folder / "sparse.md").touch()
    os.truncate(folder / "sparse.md", 2 << 30)
    os.mkfifo(folder / "pipe.md")
    (folder / "loop").symlink_to(folder)
    (folder / "self.md").symlink_to(folder / "self.md")
    (folder / "dangling.md").symlink_to(folder / "none.md")
    (folder / os.fsdecode(b"latin-\xff.md")).write_text(GOOD)
    for name in ("good.md", "a..b.md", "new\nline.md", "back\\..\\slash.md", "$(touch x).md"):
        (folder / name).write_text(GOOD)


@pytest.fixture(scope="module")
def ended(
    tmp_path_factory: pytest.TempPathFactory,
) -> Ended:
    place = tmp_path_factory.mktemp("attacks")
    attack(place / "docs")
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    started = time.monotonic()
    report = index(place, find_files([place / "docs"])[0])
    took = time.monotonic() - started
    return report, live(place), took, place


def index(place: Path, files: list[SourceFile]) -> Added:
    chunker = Chunker(tokenizer(), ChunkSettings(32, 8), 64)
    with ParserPool(chunker, LIMITS, workers=2) as parsers:
        return Adder(place / "index", manifest(), HashEmbedder(), parsers).add("default", files)


def live(place: Path) -> Snapshot:
    folder = place / "index" / "default"
    return Snapshot.open(folder / str(layout.current(folder)))


def test_the_run_ends_in_time_and_in_bounded_memory(ended: Ended) -> None:
    _, _, took, _ = ended
    assert took < 40
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    assert int(peak[1]) < 2 << 20


def test_everything_else_is_indexed(ended: Ended) -> None:
    _, snapshot, _, _ = ended
    found = {document.source for document in snapshot.documents}
    good = {"good.md", "a..b.md", "new\nline.md", "back\\..\\slash.md", "$(touch x).md"}
    assert good <= found
    bad = {"bomb.docx", "bomb.xlsx", "bomb.md", "sparse.md", "empty.md", "blank.md", "picture.md",
           "nul.txt", "pipe.md", "self.md", "dangling.md", "loop.pdf", "unknown.bin"}  # fmt: skip
    assert not bad & found
    assert not any(source.startswith("loop/") for source in found)


def test_each_failure_is_named_with_its_reason(ended: Ended) -> None:
    report, _, _, place = ended
    reasons = {Path(failure.name).name: failure.reason for failure in report.failures}
    assert reasons["sparse.md"] == "over 32 MiB; split it into smaller files"
    assert reasons["empty.md"] == reasons["blank.md"] == "holds no text"
    assert "not text" in reasons["picture.md"]
    assert "NUL" in reasons["nul.txt"]
    assert "name is not UTF-8" in reasons[os.fsdecode(b"latin-\xff.md")]
    again = index(place, find_files([place / "docs"])[0])
    assert not again.published
    assert {Path(failure.name).name for failure in again.failures} == set(reasons)


def test_no_file_from_outside_is_in_the_index(ended: Ended) -> None:
    _, snapshot, _, _ = ended
    assert not any(b"/bin/" in snapshot.passage(number) for number in range(len(snapshot)))


def test_a_file_that_changes_while_it_is_read_is_one_version(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    path, new = tmp_path / "docs" / "a.md", tmp_path / "new"
    versions = [f"# V{number}\n\n" + f"Version {number}. " * 2000 for number in range(20)]
    path.write_text(versions[0])
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            for version in versions:
                new.write_text(version)
                new.replace(path)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        index(tmp_path, find_files([tmp_path / "docs"])[0])
    finally:
        stop.set()
        thread.join()
    (record,) = live(tmp_path).documents
    number = int(record.title.removeprefix("V"))
    assert record.sha256 == content_hash(versions[number].encode())
    passages = [live(tmp_path).passage(at) for at in range(record.passages)]
    assert all(f"Version {number}.".encode() in passage for passage in passages)
