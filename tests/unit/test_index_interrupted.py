"""A writer that is interrupted, killed, or not alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_samples import DIMENSION, HashEmbedder, add, manifest, parsers, write

from tritonrag.corpus import find_files
from tritonrag.documents import SourceFile
from tritonrag.errors import SetupError, Unavailable
from tritonrag.index import Snapshot, adding, layout, store
from tritonrag.index.adding import Added, Adder
from tritonrag.index.ledger import LEDGER, Ledger
from tritonrag.index.removing import remove_documents
from tritonrag.index.snapshot import Floats


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    for number in range(20):
        write(tmp_path / "docs", **{f"f{number:02}": f"# File {number}\n\nText {number}."})
    return tmp_path / "docs"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adding, "GROUP_PASSAGES", 4)


class Interrupted(HashEmbedder):
    """Is interrupted, as by Ctrl-C, at its third batch."""

    def embed(self, texts: Sequence[str], role: str = "passage") -> Floats:
        if len(self.batches) == 3:
            raise KeyboardInterrupt
        return super().embed(texts, role)


def live(index: Path) -> Snapshot:
    folder = index / "default"
    return Snapshot.open(folder / str(layout.current(folder)))


def add_files(index: Path, files: list[SourceFile], **options: bool) -> tuple[Added, HashEmbedder]:
    embedder = HashEmbedder()
    adder = Adder(index, manifest(), embedder, parsers())
    return adder.add("default", files, **options), embedder


def test_the_next_run_takes_over_what_was_embedded(docs: Path, index: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        add(index, docs, Interrupted())
    assert layout.collections(index) == []
    write(docs, f00="# File 0\n\nAnother text.")
    embedder = HashEmbedder()
    report = add(index, docs, embedder)
    assert report.resumed >= 4
    assert (report.added, report.embedded) == (20, 20 - report.resumed)
    assert len(embedder.texts) == report.embedded
    whole = index.with_name("whole")
    add(whole, docs)
    assert [live(index).passage(at) for at in range(20)] == [
        live(whole).passage(at) for at in range(20)
    ]
    assert (live(index).vectors(range(20)) == live(whole).vectors(range(20))).all()


def test_an_interrupted_change_of_embedder_goes_on_too(docs: Path, index: Path) -> None:
    add(index, docs)
    with pytest.raises(KeyboardInterrupt):
        add(index, docs, Interrupted(), sha256="cd" * 32)
    report = add(index, docs, HashEmbedder(), sha256="cd" * 32)
    assert report.embedder_changed
    assert report.resumed >= 4
    assert report.embedded == 20 - report.resumed


def test_a_published_run_leaves_nothing_to_take_over(docs: Path, index: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        add(index, docs, Interrupted())
    add(index, docs)
    write(docs, f01="# File 1\n\nAnother text.")
    assert add(index, docs).resumed == 0


def test_a_damaged_ledger_only_costs_what_it_held(docs: Path, index: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        add(index, docs, Interrupted())
    ledger = index / "default" / LEDGER
    ledger.write_bytes(b"x" * 5000)
    report = add(index, docs)
    assert (report.resumed, report.embedded) == (0, 20)


def test_what_failed_is_not_parsed_again_until_it_changes(docs: Path, index: Path) -> None:
    (docs / "f00.md").write_bytes(b"a\0b")
    first = add(index, docs)
    assert "it failed earlier" not in first.failures[0].reason
    again = add(index, docs)
    assert [Path(failure.name).name for failure in again.failures] == ["f00.md"]
    assert again.failures[0].reason.startswith("not text: it holds NUL bytes")
    assert again.failures[0].reason.endswith("; it failed earlier and has not changed")
    retried = add(index, docs, retry_failed=True)
    assert "it failed earlier" not in retried.failures[0].reason
    write(docs, f00="# File 0\n\nGood now.")
    assert (add(index, docs).added, add(index, docs).failures) == (1, [])


def test_a_file_with_the_stamp_it_had_is_not_read(docs: Path, index: Path) -> None:
    (docs / "f01.md").write_bytes(b"a\0b")
    files = [replace(file, stamp="1") for file in find_files([docs])[0]]
    add_files(index, files)
    for file in files:
        file.path.unlink()
    report, _ = add_files(index, files)
    assert (report.unchanged, len(report.failures), report.published) == (19, 1, False)
    assert report.failures[0].reason.endswith("; it failed earlier and has not changed")


def test_another_stamp_or_metadata_embeds_nothing(docs: Path, index: Path) -> None:
    files = find_files([docs])[0]
    add_files(index, [replace(file, stamp="1") for file in files])
    stamped = [replace(file, stamp="2") for file in files]
    report, embedder = add_files(index, stamped)
    assert (report.unchanged, report.embedded, report.published) == (20, 0, True)
    assert {document.stamp for document in live(index).documents} == {"2"}
    tagged = [replace(file, metadata={"tags": ["x"]}) for file in stamped]
    report, embedder = add_files(index, tagged)
    assert (report.changed, report.embedded, embedder.texts) == (20, 0, [])
    assert {document.metadata.tags for document in live(index).documents} == {("x",)}
    assert add_files(index, tagged)[0].published is False
    assert add_files(index, stamped)[0].changed == 20
    assert {document.metadata.tags for document in live(index).documents} == {()}


def test_of_a_changed_file_only_new_passages_are_embedded(docs: Path, index: Path) -> None:
    write(docs, f00="# File 0\n\nOne.\n\n## Two\n\nTwo.")
    add(index, docs)
    write(docs, f00="# File 0\n\nOne.\n\n## Two\n\nThree.")
    embedder = HashEmbedder()
    report = add(index, docs, embedder)
    assert (report.changed, embedder.texts) == (1, ["File 0 > Two\nThree."])
    whole = index.with_name("whole")
    add(whole, docs)
    assert (live(index).vectors(range(21)) == live(whole).vectors(range(21))).all()


def test_what_is_gone_is_removed_where_the_files_are_complete(docs: Path, index: Path) -> None:
    write(docs / "old", other="# Other\n\nText.")
    add(index, docs)
    (docs / "f00.md").unlink()
    (docs / "old" / "other.md").unlink()
    assert add(index, docs).removed == 0
    assert add(index, docs, complete_under="old/").removed == 1
    assert "f00.md" in {document.source for document in live(index).documents}
    report = add(index, docs, complete_under="")
    assert (report.removed, report.passages, report.published) == (1, 19, True)
    report, _ = add_files(index, [])
    assert report.removed == 0
    empty = Adder(index, manifest(), HashEmbedder(), parsers())
    assert empty.add("default", [], complete_under="").removed == 19
    assert len(live(index)) == 0


def test_a_file_that_fails_is_not_gone(docs: Path, index: Path) -> None:
    add(index, docs)
    (docs / "f00.md").write_bytes(b"a\0b")
    report = add(index, docs, complete_under="")
    assert (report.removed, len(report.failures), report.published) == (0, 1, False)


def test_a_second_writer_may_leave_instead_of_waiting(docs: Path, index: Path) -> None:
    with (
        store.writing(index, "default"),
        pytest.raises(Unavailable, match=rf"process {os.getpid()}\) holds .*default.lock"),
    ):
        add(index, docs, wait=False)
    assert add(index, docs, wait=False).added == 20


def test_a_writer_killed_at_any_moment_leaves_a_whole_index(tmp_path: Path) -> None:
    program = Path(__file__).with_name("killed_writer.py")
    ended = subprocess.run(
        [sys.executable, program, tmp_path, "20"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    facts = json.loads(ended.stdout.splitlines()[-1])
    assert facts["hit"] >= 12
    assert facts["staged"] >= 1
    assert facts["same"]
    assert facts["left"] == []


INTERRUPTED = """
import signal, sys, threading, time
from pathlib import Path
from index_samples import HashEmbedder, add, parsers
from tritonrag.cli.index import resumable

class Slow(HashEmbedder):
    def embed(self, texts, role="passage"):
        made = super().embed(texts, role)
        if texts[0] != self.texts[0] and began.acquire(blocking=False):
            print("embedding", flush=True)
        time.sleep(0.3)
        return made

began = threading.Lock()

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under nohup
embedder = Slow()
try:
    with resumable():
        add(Path(sys.argv[1]), Path(sys.argv[2]), embedder)
finally:
    parsers().close()
    print(len(embedder.texts), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_process_keeps_what_was_embedded(
    tmp_path: Path, index: Path, number: signal.Signals
) -> None:
    """All passages are of one group, which a run stages when it is complete."""
    text = "\n\n".join(f"# Part {n}\n\nText number {n}." for n in range(1000))
    write(tmp_path / "docs", one=text)
    program = [sys.executable, "-c", INTERRUPTED, str(index), str(tmp_path / "docs")]
    with subprocess.Popen(
        program,
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "embedding\n"
        time.sleep(0.1)
        process.send_signal(number)
        started = time.monotonic()
        asked = int(process.stdout.readline())
        assert time.monotonic() - started < 2
        _, errors = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "the same command goes on" in errors
    embedder = HashEmbedder()
    report = add(index, tmp_path / "docs", embedder)
    assert asked < 1000
    assert 0 <= asked - report.resumed <= 32  # it may come while a batch is being sent
    assert len(embedder.texts) == report.embedded == 1000 - report.resumed
    whole = index.with_name("whole")
    add(whole, tmp_path / "docs")
    assert (live(index).vectors(range(1000)) == live(whole).vectors(range(1000))).all()
    write(tmp_path / "docs", one=text + "\n\n# More\n\nMore text.")
    assert add(index, tmp_path / "docs").resumed == 0


def test_a_batch_that_comes_late_does_not_disturb_what_is_kept(
    docs: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[Callable[[Sequence[str], Floats], None]] = []
    rows = np.zeros((1, DIMENSION), np.float32)
    keep = Ledger.keep

    def embed(_: object, __: object, ___: int, embedded: Any) -> Iterator[Any]:
        came.append(embedded)
        embedded(["early"], rows)
        raise SetupError("gone")
        yield

    def slowly(ledger: Ledger, vectors: Mapping[str, Floats]) -> None:
        for text in vectors:
            came[0]([f"after {text}"], rows)
        keep(ledger, vectors)

    monkeypatch.setattr(Ledger, "keep", slowly)
    adder = Adder(index, manifest(), HashEmbedder(), parsers(), embed_groups=embed)
    with pytest.raises(SetupError, match="gone"):
        adder.add("default", find_files([docs]).files)
    with Ledger.open(index / "default", manifest().sha256, DIMENSION) as ledger:
        assert list(ledger.kept().of(["early", "after early"])) == ["early"]


def test_a_server_that_goes_away_costs_nothing_that_was_embedded(docs: Path, index: Path) -> None:
    class Gone(HashEmbedder):
        def embed(self, texts: Sequence[str], role: str = "passage") -> Floats:
            if len(self.batches) == 3:
                raise SetupError("gone")
            return super().embed(texts, role)

    gone = Gone()
    with pytest.raises(SetupError):
        add(index, docs, gone)
    assert add(index, docs).resumed == len(gone.texts) >= 12


def test_what_is_kept_of_removed_documents_goes_with_them(docs: Path, index: Path) -> None:
    add(index, docs)
    write(docs, f00="# File 0\n\nAnother text.")
    with Ledger.open(index / "default", manifest().sha256, DIMENSION) as ledger:
        ledger.keep({"a text": np.zeros(DIMENSION, np.float32)})
        assert list(ledger.kept().of(["a text", "another"])) == ["a text"]
    remove_documents(index, "default", ["f00.md"])
    with Ledger.open(index / "default", manifest().sha256, DIMENSION) as ledger:
        assert ledger.kept().of(["a text"]) == {}
