"""Bulk indexing: `tritonrag index add` of about 2,000 files beside what the embedder alone can do.

Indexing is bound by the embedder. Whatever else a run does (reading, parsing and cutting in
processes beside it, the ledger, the snapshot) should hide behind it, and what does not is lost. So
the same run measures the embedder by itself: the very passages, already cut, sorted by length over
all of them, straight through `embed_text` in as many batches at a time as the writer sends. A
quarter of the passages goes before the run and another after it, every fourth one, since a
machine's speed drifts; their rate over both is the embedder's own. The time of the run is that of
the whole command, from its start to its end, with the second that it waits for the server.

On two cores parsing takes a few per cent of the cores from the embedder, which shares them; with a
GPU it takes none. Then come a run with nothing changed, and one with a section added to one file.

Standard output is, as its last line, one JSON object: `bulk_over_bare` is the run's passages/s
over the embedder's own, `unchanged_s` the seconds of the run with nothing changed,
`changed_embedded` the passages embedded for the changed file. With machine, versions, commit and
command it is written to ``perf/results/``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handbook_server import REPOSITORY, ROOT, Served, say, served
from provenance import provenance, stem

from tritonrag.artifacts import EmbedderManifest
from tritonrag.chunking import Chunker, ChunkSettings
from tritonrag.client import Client
from tritonrag.corpus import find_files
from tritonrag.documents import content_hash, read_file
from tritonrag.errors import SetupError, TritonragError
from tritonrag.index.embedding import embed_groups
from tritonrag.parsing import Cut, Job, ParserPool
from tritonrag.server.launch import end_on_sigterm
from tritonrag.settings import INDEX_DIR_VARIABLE, URL_VARIABLE
from tritonrag.versions import EMBED, live_version

CORPORA = ROOT.parent / "shared" / "data" / "corpora"
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tritonrag", "nvidia-pytriton", "numpy", "onnxruntime", "faiss-cpu", "tokenizers")
SHARE = 4
ADDED_SECTION = "\n\nA section of the measurement\n============================\n\nOne sentence.\n"


@dataclass(frozen=True)
class Command:
    """A run of `tritonrag index add`: its report and the seconds of the whole command."""

    report: dict[str, Any]
    seconds: float


def main() -> int:
    """Measure; return the exit status."""
    options = _options()
    end_on_sigterm()
    try:
        with tempfile.TemporaryDirectory(prefix="tritonrag-bulk-") as name:
            summary = _measure(options, Path(name))
    except TritonragError as error:
        say(f"bulk: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    record = provenance("perf/bulk.py", PACKAGES) | {"summary": summary}
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{stem(record)}-bulk.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    say(f"written: {path}")
    print(json.dumps(summary))
    return 0


def _measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    documents = _unpacked(options.corpora, place / "documents", options.limit)
    texts, parse_s = _texts(documents, options.repository)
    with (
        served(options.repository, index_dir=place / "index") as each,
        Client(each.grpc) as client,
    ):
        dimension = EmbedderManifest.load(options.repository).dimension
        say(f"the embedder alone, {len(texts) // SHARE:,} of {len(texts):,} passages …")
        _embed(client, texts[: 4 * 32], dimension)  # first requests cost more than later ones
        before = _embed(client, texts[::SHARE], dimension)
        say("index add, from bare …")
        bare = _index_add(each, documents)
        say(f"  {bare.seconds:.1f} s; the embedder alone again …")
        after = _embed(client, texts[SHARE // 2 :: SHARE], dimension)
        say("index add, nothing changed …")
        unchanged = _index_add(each, documents)
        say("index add, one file changed …")
        _change(documents)
        changed = _index_add(each, documents)
        memory_mb = each.memory_mb()
    embedder = (len(texts[::SHARE]) + len(texts[SHARE // 2 :: SHARE])) / (before + after)
    rate = bare.report["embedded"] / bare.seconds
    return {
        "bulk_over_bare": round(rate / embedder, 3),
        "unchanged_s": round(unchanged.seconds, 2),
        "changed_embedded": changed.report["embedded"],
        "files": bare.report["added"],
        "failed": len(bare.report["failures"]),
        "passages": bare.report["passages"],
        "index_passages_per_s": round(rate, 1),
        "embedder_passages_per_s": round(embedder, 1),
        "embedder_seconds": [round(before, 1), round(after, 1)],
        "bare_s": round(bare.seconds, 1),
        "parse_alone_s": round(parse_s, 1),
        "unchanged_embedded": unchanged.report["embedded"],
        "changed_s": round(changed.seconds, 2),
        "changed_files": changed.report["changed"],
        "server_mb": round(memory_mb),
    }


def _unpacked(corpora: Path, folder: Path, limit: int | None) -> Path:
    """Unpack the archives into ``folder`` and keep ``limit`` files that can be indexed."""
    archives = sorted(corpora.glob("*.tar.gz"))
    if not archives:
        raise SetupError(f"{corpora}: no archives there; name their folder with --corpora")
    for archive in archives:
        shutil.unpack_archive(archive, folder)
    files = find_files([folder]).files
    step = max(len(files) // limit, 1) if limit else 1
    kept = {file.path for file in files[::step][:limit]}
    for file in files:
        if file.path not in kept:
            file.path.unlink()
    return folder


def _texts(documents: Path, repository: Path) -> tuple[list[str], float]:
    """Return the texts of all passages, and the seconds that one process takes to cut them."""
    say("parsing, to have the passages …")
    files = find_files([documents]).files
    chunker = Chunker.of(repository, ChunkSettings(), live_version(repository, EMBED))
    started = time.perf_counter()
    with ParserPool(chunker, workers=1) as parsers:
        contents = ((file, read_file(file)) for file in files)
        jobs = (Job(file, content, content_hash(content)) for file, content in contents)
        made = [made for _, made in parsers.cut_all(jobs) if isinstance(made, Cut)]
    return [text for each in made for text in each.texts], time.perf_counter() - started


def _embed(client: Client, texts: Sequence[str], dimension: int) -> float:
    """Return the seconds that the embedder takes for ``texts``."""
    started = time.perf_counter()
    for _ in embed_groups(client, [(None, texts)], dimension):
        pass
    return time.perf_counter() - started


def _index_add(each: Served, documents: Path) -> Command:
    environment = os.environ | {URL_VARIABLE: each.grpc, INDEX_DIR_VARIABLE: str(each.index_dir)}
    command = [
        sys.executable, "-m", "tritonrag", "index", "add", str(documents),
        "--repository", str(each.repository), "--json",
    ]  # fmt: skip
    started = time.perf_counter()
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=False)
    seconds = time.perf_counter() - started
    if ended.returncode:
        raise SetupError(f"index add ended with status {ended.returncode}")
    return Command(json.loads(ended.stdout), seconds)


def _change(documents: Path) -> None:
    """Add a section to one file of middle size."""
    files = find_files([documents]).files
    middle = sorted(files, key=lambda file: file.path.stat().st_size)[len(files) // 2]
    with middle.path.open("a", encoding="utf-8") as opened:
        opened.write(ADDED_SECTION)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure bulk indexing beside the embedder alone.",
        epilog="The last line of standard output is one JSON object.",
    )
    add = parser.add_argument
    add("--corpora", type=Path, default=CORPORA, help="folder of .tar.gz archives of documents")
    add("--limit", type=int, help="index only so many files: a check")
    add("--repository", type=Path, default=REPOSITORY, help="model repository to serve")
    add("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
