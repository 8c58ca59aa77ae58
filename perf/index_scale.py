"""How the index grows: build time, size, start, recall and latency from ten thousand passages on.

    python perf/index_scale.py                      10,000, 100,000 and a million passages
    python perf/index_scale.py --sizes 20000        a short run

The vectors are synthetic: clusters on the unit sphere in the embedder's dimension, ten passages of
one cluster a document, with texts of words drawn by Zipf's law. Questions come from the same
clusters and are in no index. Each collection is served by the real embedded server and asked
through its ``retrieve`` model, whose input is the vector: what the embedder takes is the same at
any size and not part of these figures. The client's own cycles are, and with 32 clients in one
process they weigh.

Beside the index that the size gets, an exact one of the same passages is served, where it is
another. Recall is measured through the server too, against exact search by ``faiss.knn``; a filter
is by title, a hundred of which are spread over the documents at random. ``load_s`` is what
``retrieve`` does with a snapshot at its start, in a process of its own; ``start_s`` is the whole
server with every model, up to ready. Standard output is the Markdown tables and, as its last line,
one JSON object; both go to ``perf/results/`` with machine, versions and command.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pictures
import tritonclient.grpc as triton
from handbook_server import REPOSITORY, say
from provenance import provenance, stem

from tritonrag.artifacts import EmbedderManifest, sha256
from tritonrag.errors import TritonragError
from tritonrag.index import EmbedderId, layout, store
from tritonrag.index.manifest import FLAT, ROWS, VECTORS, DocumentRecord, SnapshotManifest
from tritonrag.index.tuning import recall_of
from tritonrag.server.launch import end_on_sigterm
from tritonrag.server.ports import HOST, free_ports
from tritonrag.server.process import EmbeddedServer

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tritonrag", "numpy", "faiss-cpu", "bm25s", "nvidia-pytriton", "tritonclient")
SIZES = (10_000, 100_000, 1_000_000)
PER_DOCUMENT, TITLES = 10, 100
SPREAD = 0.6
"""Length of what sets a passage apart from the middle of its cluster."""

WORDS, WORDS_PER_PASSAGE = 50_000, 24
QUERIES, TOP_K = 200, 10
SHARES = (1.0, 0.5, 0.1, 0.01)
CLIENTS = (1, 32)
MODES = ("sparse", "hybrid")
NOTICE_S = 60

Floats = npt.NDArray[np.float32]
LOAD = (
    "import sys, time; from pathlib import Path; from tritonrag.index import Snapshot; "
    "began = time.perf_counter(); Snapshot.open(Path(sys.argv[1]), verify=None); "
    "print(time.perf_counter() - began)"
)


@dataclass(frozen=True)
class Data:
    """Vectors of passages and of questions, and the title of each document."""

    rows: Floats
    queries: Floats
    titles: npt.NDArray[np.int64]
    texts: Callable[[], Iterator[str]]

    def allowed(self, share: float) -> npt.NDArray[np.bool_]:
        """Return which passages have a title of the first ``share`` of them."""
        return np.repeat(self.titles < round(share * TITLES), PER_DOCUMENT)


def make(count: int, dimension: int) -> Data:
    """Return ``count`` passages, always the same ones."""
    random = np.random.default_rng(count)
    centres = _unit(random.normal(size=(max(count // 200, 16), dimension)))
    documents = count // PER_DOCUMENT
    clusters = random.integers(len(centres), size=documents)
    rows = np.empty((count, dimension), np.float32)
    for at in range(0, count, 1 << 16):
        members = np.arange(at, min(at + (1 << 16), count)) // PER_DOCUMENT
        rows[at : at + len(members)] = _around(centres[clusters[members]], random)
    queries = _around(centres[random.integers(len(centres), size=QUERIES)], random)
    titles = random.integers(TITLES, size=documents)
    return Data(rows, queries, titles, lambda: _texts(count))


def _around(centres: Floats, random: np.random.Generator) -> Floats:
    noise = random.standard_normal(size=centres.shape, dtype=np.float32)
    return _unit(centres + SPREAD * _unit(noise))


def _unit(vectors: npt.NDArray[Any]) -> Floats:
    made: Floats = np.ascontiguousarray(vectors, np.float32)
    faiss.normalize_L2(made)
    return made


def _texts(count: int) -> Iterator[str]:
    random = np.random.default_rng(0)
    share = 1 / np.arange(1, WORDS + 1)
    edges = np.cumsum(share / share.sum())
    for at in range(0, count, 1 << 14):
        shape = (min(1 << 14, count - at), WORDS_PER_PASSAGE)
        for words in np.searchsorted(edges, random.random(shape)).tolist():
            yield " ".join(f"w{word}x" for word in words)


def publish(index_dir: Path, name: str, data: Data, embedder: EmbedderManifest) -> dict[str, Any]:
    """Write a collection and return what it took."""
    documents = [
        DocumentRecord(f"d{number}", f"t{title}", "0", "synthetic", PER_DOCUMENT)
        for number, title in enumerate(data.titles.tolist())
    ]
    passages = (
        json.dumps({"id": str(number), "text": text, "source": f"d{number // PER_DOCUMENT}",
                    "title": f"t{data.titles[number // PER_DOCUMENT]}", "location": ""}).encode()
        for number, text in enumerate(data.texts())
    )  # fmt: skip
    contents = store.Contents(EmbedderId.of(embedder), embedder.dimension, "synthetic", documents,
                              passages, [data.rows])  # fmt: skip
    began = time.perf_counter()
    with store.writing(index_dir, name) as folder:
        manifest = store.publish(folder, contents)
    seconds = time.perf_counter() - began
    snapshot = index_dir / name / manifest.snapshot
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, str(snapshot)], capture_output=True, text=True, check=True
    )
    return {
        "factory": manifest.factory,
        "probing": [dataclasses.asdict(each) for each in manifest.probing],
        "build_s": round(seconds, 1),
        "megabytes": {file: round(size / 1e6, 1) for file, size in manifest.sizes.items()},
        "load_s": round(float(loaded.stdout), 2),
    }


def publish_exact(index_dir: Path, of: str, name: str, rows: Floats) -> None:
    """Write the passages of collection ``of`` once more, with exact search."""
    source = index_dir / of / str(layout.current(index_dir / of))
    folder = index_dir / name
    unfinished = folder / f"{layout.UNFINISHED}{source.name}"
    shutil.copytree(source, unfinished, copy_function=os.link,
                    ignore=shutil.ignore_patterns(VECTORS, ROWS, "manifest.json"))  # fmt: skip
    index = faiss.index_factory(rows.shape[1], FLAT, faiss.METRIC_INNER_PRODUCT)
    index.add(rows)
    faiss.write_index(index, str(unfinished / VECTORS))
    manifest = SnapshotManifest.load(source)
    files = {file: each for file, each in manifest.files.items() if file not in (VECTORS, ROWS)}
    sizes = {file: manifest.sizes[file] for file in files}
    files[VECTORS] = sha256(unfinished / VECTORS)
    sizes[VECTORS] = (unfinished / VECTORS).stat().st_size
    dataclasses.replace(
        manifest, factory=FLAT, probing=(), files=files, sizes=sizes
    ).save(unfinished)  # fmt: skip
    unfinished.rename(folder / source.name)
    layout.set_current(folder, source.name)


class Questions:
    """Requests to ``retrieve`` on one server."""

    def __init__(self, address: str, data: Data) -> None:
        """Ask for the queries of ``data``."""
        self._address = address
        self._data = data

    def ask(
        self, client: Any, number: int, collection: str, share: float = 1.0, mode: str = "dense"
    ) -> list[int]:
        """Return the numbers of the passages found for a query."""
        query = self._data.queries[number % QUERIES][None]
        inputs = [_tensor("embedding", query, "FP32")]
        texts = {"collection": collection, "mode": mode}
        if share < 1:
            titles = [f"t{title}" for title in range(round(share * TITLES))]
            texts["filter"] = json.dumps({"title": titles})
        if mode != "dense":
            texts["question"] = f"w{100 + number % 50}x w{900 + number % 400}x w{9000 + number}x"
        inputs += [_tensor(name, np.array([[text.encode()]], object), "BYTES")
                   for name, text in texts.items()]  # fmt: skip
        inputs.append(_tensor("top_k", np.array([[TOP_K]], np.int32), "INT32"))
        found = client.infer("retrieve", inputs).as_numpy("passages")[0]
        return [int(json.loads(passage)["id"]) for passage in found]

    def recall(self, collection: str, share: float) -> float:
        """Return recall@10 against exact search."""
        allowed = np.flatnonzero(self._data.allowed(share))
        rows = self._data.rows if share == 1 else self._data.rows[allowed]
        _, nearest = faiss.knn(self._data.queries, rows, TOP_K, faiss.METRIC_INNER_PRODUCT)
        with triton.InferenceServerClient(self._address) as client:
            found = [self.ask(client, number, collection, share) for number in range(QUERIES)]
        return round(recall_of(np.array(found), allowed[nearest]), 4)

    def latency(
        self, clients: int, seconds: float, collection: str, share: float, mode: str = "dense"
    ) -> dict[str, float]:
        """Return the percentiles of the latency at so many clients, in milliseconds."""
        taken: list[float] = []
        end = time.monotonic() + seconds

        def run(first: int) -> None:
            with triton.InferenceServerClient(self._address) as client:
                number = first
                self.ask(client, number, collection, share, mode)  # connects
                while time.monotonic() < end:
                    began = time.perf_counter()
                    self.ask(client, number, collection, share, mode)
                    taken.append((time.perf_counter() - began) * 1e3)
                    number += clients

        threads = [threading.Thread(target=run, args=(first,)) for first in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        p50, p95 = np.percentile(taken, [50, 95])
        return {"p50_ms": round(p50, 3), "p95_ms": round(p95, 3),
                "per_s": round(len(taken) / seconds, 1)}  # fmt: skip


def _tensor(name: str, values: npt.NDArray[Any], dtype: str) -> Any:
    tensor = triton.InferInput(name, list(values.shape), dtype)
    tensor.set_data_from_numpy(values)
    return tensor


def measure(count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Build, serve and ask one size."""
    embedder = EmbedderManifest.load(options.repository)
    say(f"{count:,} passages: making vectors …")
    data = make(count, embedder.dimension)
    with tempfile.TemporaryDirectory(prefix="tritonrag-scale-") as name:
        index_dir = Path(name) / "index"
        say("building the index …")
        facts = {"passages": count} | publish(index_dir, "chosen", data, embedder)
        server = EmbeddedServer(Path(name) / "state")
        try:
            say(f"{facts['factory']} in {facts['build_s']} s; starting the server …")
            began = time.perf_counter()
            running = server.start(options.repository, index_dir, free_ports(),
                                   bound_to_parent=True)  # fmt: skip
            facts["start_s"] = round(time.perf_counter() - began, 2)
            questions = Questions(f"{HOST}:{running.ports.grpc}", data)
            served = ["chosen"]
            if facts["factory"] != FLAT:
                publish_exact(index_dir, "chosen", "exact", data.rows)
                _await(questions, f"{HOST}:{running.ports.grpc}", "exact")
                served.append("exact")
            facts["searches"] = [
                row for collection in served for row in _searches(questions, collection, options)
            ]
        finally:
            server.stop()
    return facts


def _searches(
    questions: Questions, collection: str, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    for share in SHARES:
        say(f"{collection}, {share:.0%} of the passages …")
        row = {"index": collection, "mode": "dense", "share": share,
               "recall@10": questions.recall(collection, share)}  # fmt: skip
        yield row | _latencies(questions, collection, share, "dense", options)
    for mode in MODES if collection == "chosen" else ():
        row = {"index": collection, "mode": mode, "share": 1.0, "recall@10": None}
        yield row | _latencies(questions, collection, 1.0, mode, options)


def _latencies(
    questions: Questions, collection: str, share: float, mode: str, options: argparse.Namespace
) -> dict[str, Any]:
    return {
        f"clients_{clients}": questions.latency(clients, options.seconds, collection, share, mode)
        for clients in CLIENTS
    }


def _await(questions: Questions, address: str, collection: str) -> None:
    end = time.monotonic() + NOTICE_S
    with triton.InferenceServerClient(address) as client:
        while True:
            try:
                questions.ask(client, 0, collection)
                return
            except triton.InferenceServerException:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)


def table(found: Sequence[dict[str, Any]]) -> str:
    """Return the results in Markdown."""
    lines = [
        "| passages | index | build s | MB | load s | server start s |",
        "|---|---|---|---|---|---|",
    ]
    for each in found:
        size = sum(each["megabytes"].values())
        lines.append(f"| {each['passages']:,} | {each['factory']} | {each['build_s']} | {size:.0f} "
                     f"| {each['load_s']} | {each['start_s']} |")  # fmt: skip
    lines += [
        "",
        "| passages | index | mode | filter keeps | recall@10 | p50, p95 ms at 1 client | "
        "at 32 clients, per second |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in found:
        for row in each["searches"]:
            one, many = row["clients_1"], row["clients_32"]
            index = each["factory"] if row["index"] == "chosen" else FLAT
            lines.append(
                f"| {each['passages']:,} | {index} | {row['mode']} | {row['share']:.0%} | "
                f"{row['recall@10'] or ''} | {one['p50_ms']:.2f}, {one['p95_ms']:.2f} | "
                f"{many['p50_ms']:.2f}, {many['p95_ms']:.2f}, {many['per_s']:.0f} |"
            )
    return "\n".join(lines)


def main() -> int:
    """Measure every size; return the exit status."""
    options = _options()
    end_on_sigterm()
    record = provenance("perf/index_scale.py", PACKAGES)
    try:
        record["sizes"] = [measure(count, options) for count in options.sizes]
    except TritonragError as error:
        say(f"index_scale: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{stem(record)}-index-scale"
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = table(record["sizes"])
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    pictures.draw_sizes(record["sizes"], path)
    print(text)
    print(json.dumps(_summary(record["sizes"]) | {"result": str(path.with_suffix(".json"))}))
    return 0


def _summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures of the largest size, and its p50 over the smallest's by filter."""
    least, most = found[0], found[-1]
    ratios = {
        f"{row['share']:.0%}": round(row["clients_1"]["p50_ms"] / base["clients_1"]["p50_ms"], 2)
        for row, base in zip(most["searches"], least["searches"], strict=False)
        if row["mode"] == "dense" and row["index"] == "chosen"
    }
    recalls = [row["recall@10"] for row in most["searches"] if row["index"] == "chosen" and
               row["recall@10"] is not None]  # fmt: skip
    return {
        "passages": most["passages"],
        "build_s": most["build_s"],
        "load_s": most["load_s"],
        "least_recall@10": min(recalls),
        "p50_over_smallest": ratios,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the index from 10,000 passages on.")
    add = parser.add_argument
    add("--sizes", type=int, nargs="+", default=SIZES, help="passages, each a multiple of 10")
    add("--seconds", type=float, default=2.0, help="of each load (default: 2)")
    add("--repository", type=Path, default=REPOSITORY, help="model repository to serve")
    add("--output", type=Path, default=RESULTS, help="folder of the results")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
