"""Export models in every precision and set size, speed and closeness to the original side by side.

    python perf/precisions.py                                   MiniLM and the demo LLM, on this CPU
    python perf/precisions.py --retrieval CRANFIELD             compare retrieval on a BEIR folder
    python perf/precisions.py --embedder BAAI/bge-base-en-v1.5 --llm Qwen/Qwen2.5-0.5B-Instruct

Each row is one run of ``export/embedder.py`` or ``export/llm.py`` into a repository of its own, and
what its manifest says: the same figures that decide whether a model is installed. A row that would
not be installed is marked. Speeds are of one run each on a machine that may be shared, so the
tables show them as multiples of fp32. Standard output is the tables in Markdown and, as its last
line, one JSON object; both go to ``perf/results/`` with machine, versions and command.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provenance import ROOT, provenance, stem

from tritonrag.artifacts import EMBEDDER_DIR, LLM_DIR, MANIFEST

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("tritonrag", "numpy", "torch", "transformers", "onnx", "onnxruntime",
            "onnxruntime-genai")  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """A way to export: its name in the table and the flags."""

    name: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Column:
    """A column of the table: a figure, or where ``ratio`` is set how it compares with fp32.

    ``ratio`` 1 is for a figure that grows with the speed, -1 for a time.
    """

    title: str
    figure: str
    ratio: int = 0


@dataclass(frozen=True)
class Kind:
    """A kind of model: the program that exports it, where its manifest lies, its variants."""

    program: str
    folder: Path
    columns: tuple[Column, ...]
    variants: tuple[Variant, ...]


EMBEDDER_COLUMNS = (
    Column("MB", "MB"),
    Column("speed, 1 text of 16 tokens", "batch_1_tokens_16_ms", -1),
    Column("speed, 8 texts of 128", "batch_8_tokens_128_ms", -1),
    Column("least cosine", "min_cosine"),
    Column("recall@10 agreement", "recall_agreement"),
    Column("installed", "installed"),
)
LLM_COLUMNS = (
    Column("MB", "MB"),
    Column("prefill", "prefill_tokens_per_s", 1),
    Column("decode", "decode_tokens_per_s", 1),
    Column("cosine of logits", "logit_cosine"),
    Column("same greedy tokens of 64", "greedy_prefix"),
    Column("installed", "installed"),
)

EMBEDDER = Kind("export/embedder.py", EMBEDDER_DIR, EMBEDDER_COLUMNS, (
    Variant("fp32", ()),
    Variant("fp32, fused attention", ("--fused",)),
    Variant("fp16", ("--precision", "fp16")),
    Variant("int8 by blocks", ("--precision", "int8")),
    Variant("int8 static", ("--precision", "int8", "--quantization", "static")),
    Variant("int8 dynamic", ("--precision", "int8", "--quantization", "dynamic")),
))  # fmt: skip
LLM = Kind("export/llm.py", LLM_DIR, LLM_COLUMNS, (
    Variant("fp32", ("--precision", "fp32")),
    Variant("int8", ("--precision", "int8")),
    Variant("int4", ("--precision", "int4")),
))  # fmt: skip
CUDA_LLM = Kind("export/llm.py", LLM_DIR, LLM_COLUMNS, (
    Variant("fp16", ("--precision", "fp16", "--execution", "cuda")),
    Variant("bf16", ("--precision", "bf16", "--execution", "cuda")),
    Variant("int4", ("--precision", "int4", "--execution", "cuda")),
))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    calibration = options.calibration or default_calibration()
    embedder_flags = [
        *(["--model", options.embedder] if options.embedder else []),
        *(["--retrieval", str(options.retrieval)] if options.retrieval else []),
    ]
    llm_flags = ["--model", options.llm] if options.llm else []
    llm = CUDA_LLM if options.execution == "cuda" else LLM
    found = {
        "embedder": [
            measured(EMBEDDER, variant, [
                *embedder_flags,
                *(["--calibration", str(calibration)] if "static" in variant.flags else []),
            ])
            for variant in EMBEDDER.variants
        ],
        "llm": [measured(llm, variant, llm_flags) for variant in llm.variants],
    }  # fmt: skip
    text = tables(found)
    record = provenance("perf/precisions.py", PACKAGES) | found
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{stem(record)}-precisions"
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(text)
    print(json.dumps({"result": str(path.with_suffix(".json")), "failed": failures(found)}))
    return 1 if failures(found) else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--embedder", metavar="ID_OR_DIR", help="default: MiniLM of the wheel")
    parser.add_argument("--llm", metavar="ID_OR_DIR", help="default: the demo LLM")
    parser.add_argument(
        "--execution", choices=("cpu", "cuda"), default="cpu",
        help="where the LLM's variants run (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--retrieval", type=Path, metavar="DIR",
        help="folder in BEIR layout to compare retrieval on (default: the sample handbook)",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE",
        help="text, one a line, for static quantisation (default: the sample handbook)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    return parser.parse_args(arguments)


def default_calibration() -> Path:
    """Return a file of the sample handbook's paragraphs, one a line."""
    pages = sorted((ROOT / "samples" / "handbook").glob("*.md"))
    paragraphs = [
        " ".join(part.split())
        for page in pages
        for part in page.read_text(encoding="utf-8").split("\n\n")
    ]
    path = Path(tempfile.gettempdir()) / "tritonrag-calibration.txt"
    path.write_text("\n".join(paragraphs), encoding="utf-8")
    return path


def measured(kind: Kind, variant: Variant, flags: Sequence[str]) -> dict[str, Any]:
    """Export one variant, also out of tolerance, and return its figures."""
    print(f"{kind.program} {' '.join(variant.flags)} …", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as repository:
        command = [
            sys.executable, str(ROOT / kind.program), *variant.flags, *flags, "--force",
            "--repository", repository,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"variant": variant.name, "error": done.stderr.strip().splitlines()[-1]}
        manifest = json.loads((Path(repository) / kind.folder / MANIFEST).read_text("utf-8"))
    return {
        "variant": variant.name,
        "model": manifest["model"],
        "MB": round(manifest["bytes"] / 1e6, 1),
        **manifest["speed"],
        **manifest["parity"],
        "installed": "only with --force" if manifest["forced"] else "yes",
        "options": manifest["options"],
    }


def tables(found: dict[str, list[dict[str, Any]]]) -> str:
    """Return the Markdown tables of a result, which README shows."""
    return "\n\n".join(
        table(name, rows, columns)
        for name, rows, columns in (
            ("Embedder", found["embedder"], EMBEDDER_COLUMNS),
            ("LLM", found["llm"], LLM_COLUMNS),
        )
    )


def table(name: str, rows: list[dict[str, Any]], columns: Sequence[Column]) -> str:
    """Return a table of the rows, speeds as multiples of the first row's."""
    lines = [
        f"| {name} | {' | '.join(column.title for column in columns)} |",
        "|" + "---|" * (len(columns) + 1),
    ]
    for row in rows:
        cells = [row["error"]] if "error" in row else [cell(row, rows[0], each) for each in columns]
        lines.append(f"| {row['variant']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(row: dict[str, Any], first: dict[str, Any], column: Column) -> str:
    value = row.get(column.figure, "")
    if column.ratio and value and first.get(column.figure):
        return f"{(value / first[column.figure]) ** column.ratio:.2f}×"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def failures(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [row["error"] for rows in found.values() for row in rows if "error" in row]


if __name__ == "__main__":
    sys.exit(main())
