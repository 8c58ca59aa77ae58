"""A chunker that does what the text of a file says, in the process that parses."""

from __future__ import annotations

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from index_samples import tokenizer

from tritonrag.chunking import Chunker, ChunkSettings, Passage
from tritonrag.documents import Document


class HostileChunker(Chunker):
    def __init__(self) -> None:
        super().__init__(tokenizer(), ChunkSettings(32, 8), 64)

    def passages(self, document: Document) -> Iterator[Passage]:
        word = document.text.split()[0]
        if word in DEEDS:
            DEEDS[word]()
        return super().passages(document)


def fill() -> None:
    held = []
    while True:
        held.append(bytearray(16 << 20))


class Forged:
    """Runs a function in whoever unpickles it."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("/tmp/forged",)


def forge() -> None:
    """Send a reply that would run code in the writer, wherever its pipe may be."""
    for pipe in range(3, 16):
        with suppress(OSError):
            os.write(pipe, pickle.dumps(Forged()))
    time.sleep(1)


def nest() -> None:
    nest()


DEEDS: dict[str, Callable[[], object]] = {
    "sleep": lambda: time.sleep(60),
    "backtrack": lambda: re.match(r"(a+)+b", "a" * 60),
    "fill": fill,
    "exit": lambda: os._exit(3),
    "signal": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "killed": lambda: signal.raise_signal(signal.SIGKILL),
    "crash": lambda: signal.raise_signal(signal.SIGSEGV),
    "nest": nest,
    "bug": lambda: {}["key"],
    "spy": lambda: os.environ["AWS_SECRET_ACCESS_KEY"],
    "forge": forge,
    "print": lambda: print("x" * 100_000, file=sys.stdout, flush=True),
    "connect": lambda: socket.create_connection(("127.0.0.1", 9)),
    "resolve": lambda: socket.getaddrinfo("localhost", 80),
    "run": lambda: subprocess.run(["true"]),
    "read": lambda: Path("/etc/passwd").read_bytes(),
    "climb": lambda: Path(sys.path[-1], "../../../../../../../../etc/passwd").read_bytes(),
    "write": lambda: Path(sys.path[-1], "x").write_bytes(b"x"),
    "remove": lambda: Path("/tmp/x").unlink(),
}
