"""Kill a writer at random moments; then say what the next one makes of it.

    python killed_writer.py FOLDER KILLS

The last line of standard output is one JSON object. A process of its own, since it forks.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from index_samples import DIMENSION, HashEmbedder, manifest, tokenizer, write

from tritonrag.chunking import Chunker, ChunkSettings
from tritonrag.corpus import find_files
from tritonrag.index import Snapshot, adding, layout
from tritonrag.index.ledger import LEDGER, Ledger
from tritonrag.index.snapshot import Floats
from tritonrag.parsing import ParserPool

FILES, BATCH_SECONDS = 40, 0.06


class Slow(HashEmbedder):
    def embed(self, texts: Sequence[str], role: str = "passage") -> Floats:
        time.sleep(BATCH_SECONDS)
        return super().embed(texts, role)


def index(folder: Path, name: str) -> adding.Added:
    adding.GROUP_PASSAGES = 12
    chunker = Chunker(tokenizer(), ChunkSettings(32, 8), 64)
    with ParserPool(chunker, workers=1) as parsers:
        adder = adding.Adder(folder / name, manifest(), Slow(), parsers)
        return adder.add("default", find_files([folder / "docs"])[0], complete_under="")


def killed(folder: Path, after: float) -> bool:
    """Index in a process that is killed after so many seconds; tell whether it was still at it."""
    child = os.fork()
    if not child:
        index(folder, "killed")
        os._exit(0)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def change(folder: Path, chance: random.Random) -> None:
    for number in chance.sample(range(FILES), FILES // 3):
        section = f"Word {chance.random()} is here. And more of it. "
        write(folder / "docs", **{f"f{number}": f"# File {number}\n\n" + section * 12})
    (folder / "docs" / f"f{chance.randrange(FILES)}.md").unlink(missing_ok=True)


def live(folder: Path) -> Snapshot | None:
    name = layout.current(folder / "default") if (folder / "default").is_dir() else None
    return Snapshot.open(folder / "default" / name) if name else None


def waiting(folder: Path) -> bool:
    """Tell whether documents are embedded and in no snapshot yet."""
    if not (folder / "default" / LEDGER).exists():
        return False
    with Ledger.open(folder / "default", manifest().sha256, DIMENSION) as ledger:
        return bool(ledger.staged())


def contents(snapshot: Snapshot | None, folder: Path) -> list[bytes]:
    assert snapshot
    place = folder / "default" / snapshot.name
    return [path.read_bytes() for path in sorted(place.iterdir()) if path.name != "manifest.json"]


def main(folder: Path, kills: int) -> None:
    chance = random.Random(8)
    for _ in range(4):
        change(folder, chance)
    started = time.monotonic()
    index(folder, "timed")
    whole = time.monotonic() - started
    hit = loaded = staged = 0
    for _ in range(kills):
        hit += killed(folder, chance.uniform(0, whole))
        loaded += live(folder / "killed") is not None
        staged += waiting(folder / "killed")
        change(folder, chance)
    index(folder, "killed")
    index(folder, "whole")
    one, other = folder / "killed", folder / "whole"
    facts = {
        "hit": hit,
        "loaded": loaded,
        "staged": staged,
        "same": contents(live(one), one) == contents(live(other), other),
        "left": sorted(path.name for path in (one / "default").glob(".*")),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
