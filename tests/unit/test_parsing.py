from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path

import pytest
from hostile_chunker import HostileChunker
from index_samples import parsers, tokenizer

from tritonrag import parsing
from tritonrag.chunking import Chunker, ChunkSettings
from tritonrag.documents import SourceFile
from tritonrag.errors import InvalidRequest, SetupError
from tritonrag.parsing import Cut, Job, Limits, ParserPool, cut, default_workers


def job(text: str, name: str = "a.md") -> Job:
    return Job(SourceFile(Path(name), name), text.encode(), "")


@pytest.fixture(scope="module")
def hostile() -> Iterator[ParserPool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        with ParserPool(HostileChunker(), Limits(1, 64), workers=1) as pool:
            yield pool


def outcome(pool: ParserPool, *texts: str) -> list[str]:
    """What became of each text: its passages, or the reason that there are none."""
    return [
        " ".join(made.texts) if isinstance(made, Cut) else str(made)
        for _, made in pool.cut_all([job(text) for text in texts])
    ]


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        ("sleep", "takes over 1 s to parse; split it, or raise --file-seconds"),
        ("backtrack", "takes over 1 s to parse; split it, or raise --file-seconds"),
        ("fill", "takes over 64 MiB to parse; split it, or raise --file-memory"),
        ("exit", "ends its parser with exit status 3"),
        ("crash", "crashes its parser (SIGSEGV)"),
        ("killed", "its parser was killed, as happens where memory runs out"),
        ("nest", "nested too deeply to parse"),
        ("bug", "cannot be cut into passages: KeyError: 'key'"),
        ("spy", "cannot be cut into passages: KeyError: 'AWS_SECRET_ACCESS_KEY'"),
        ("forge", "makes its parser reply what no parser does"),
    ],
)
def test_a_hostile_file_fails_alone(hostile: ParserPool, deed: str, reason: str) -> None:
    started = time.monotonic()
    assert outcome(hostile, "one", deed, "two") == ["a\none", reason, "a\ntwo"]
    assert time.monotonic() < started + 10


@pytest.mark.parametrize("deed", ["connect", "resolve", "run", "read", "climb", "write", "remove",
                                  "signal"])  # fmt: skip
def test_a_document_reaches_neither_network_nor_files(hostile: ParserPool, deed: str) -> None:
    (reason,) = outcome(hostile, deed)
    assert "cannot be cut into passages: PermissionError:" in reason


def test_what_a_parser_prints_disturbs_nothing(hostile: ParserPool) -> None:
    assert outcome(hostile, "print it") == ["a\nprint it"]


def test_results_come_in_the_order_of_the_files() -> None:
    chunker = Chunker(tokenizer(), ChunkSettings(32, 8), 64)
    jobs = [job(f"Text {number}. " * (2000 if number == 0 else 1)) for number in range(30)]
    with ParserPool(chunker, workers=2) as pool:
        results = list(pool.cut_all(jobs))
    assert [each for each, _ in results] == jobs
    assert [made for _, made in results] == [cut(chunker, job.file, job.content) for job in jobs]


def test_parsing_does_not_run_ahead_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "AHEAD_BYTES", 1000)
    asked: list[int] = []

    def jobs() -> Iterator[Job]:
        for number in range(50):
            asked.append(number)
            yield job("x " * 200, f"{number}.md")

    results = parsers().cut_all(jobs())
    next(results)
    assert len(asked) <= 4
    results.close()  # type: ignore[attr-defined]


def test_a_file_that_expands_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsing, "MAX_TEXT_BYTES", 1000)
    chunker = Chunker(tokenizer(), ChunkSettings(32, 8), 64)
    with pytest.raises(InvalidRequest, match="MiB of passages; split it"):
        cut(chunker, SourceFile(Path("a.md"), "a.md"), b"word. " * 1000)


def test_a_process_that_cannot_start_is_no_fault_of_a_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parsing, "_PROGRAM", "raise SystemExit('no such module')")
    chunker = Chunker(tokenizer(), ChunkSettings(32, 8), 64)
    with (
        ParserPool(chunker, workers=1) as pool,
        pytest.raises(SetupError, match="process cannot be started: no such module"),
    ):
        list(pool.cut_all([job("one")]))


def test_closing_ends_what_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    ended = threading.Event()

    def consume() -> None:
        with suppress(CancelledError):
            list(pool.cut_all([job("sleep"), job("one"), job("two")]))
        ended.set()

    started = time.monotonic()
    with ParserPool(HostileChunker(), Limits(60), workers=1) as pool:
        threading.Thread(target=consume).start()
        time.sleep(1)
    assert ended.wait(5)
    assert time.monotonic() < started + 10


def test_some_cores_are_left_to_embed() -> None:
    assert 1 <= default_workers() <= max(1, len(os.sched_getaffinity(0)) // 2)
