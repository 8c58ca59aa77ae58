"""README's first command, as far as it runs inside a made environment."""

from __future__ import annotations

from pathlib import Path

from servers import tritonrag

from tritonrag.cli.demo import QUESTIONS
from tritonrag.server.ports import free_ports


def demo(folder: Path) -> str:
    ports = free_ports()
    done = tritonrag(
        "demo", "--once",
        "--index-dir", str(folder / "index"), "--state-dir", str(folder / "state"),
        "--http-port", str(ports.http), "--grpc-port", str(ports.grpc),
        "--metrics-port", str(ports.metrics),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_demo_answers_with_citations_and_skips_what_is_done(tmp_path: Path) -> None:
    first = demo(tmp_path)
    for question in QUESTIONS:
        assert question in first
    assert first.count("[1]") >= len(QUESTIONS)
    second = demo(tmp_path)
    assert "nothing changed" in second
