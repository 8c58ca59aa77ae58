"""What a GPU can do at most and what a served encoder makes of it: the ceiling over a bench.

Two ceilings are measured with ONNX Runtime itself: a large product of half-precision matrices, and
a copy through the card's memory. Then the graph of ``embed``, as its own backend loads it, runs
batches of many sizes; operations over the time, by the ceiling, say whether arithmetic bounds it or
what each run costs by itself (the smallest batch: kernels started one after another, copies to and
from the card). Times are medians; inputs are random, since zeros run faster.

    python perf/card.py --repository model_repository
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from handbook_server import REPOSITORY, say
from measuring import PACKAGES, RESULTS, write
from onnx import TensorProto, helper
from provenance import provenance

from tritonrag.artifacts import EmbedderManifest, embedder_dir
from tritonrag.errors import TritonragError
from tritonrag.padding import Run
from tritonrag.server import installation
from tritonrag.versions import EMBED, live_version

SIDE = 8192
COPIED = 1 << 29
"""Numbers of two bytes each that the copy reads and writes."""
BATCHES, TOKENS = (1, 8, 64), (16, 64, 128, 256)
REPEATS, WARM_UPS = 20, 3
HALF = TensorProto.FLOAT16


def main() -> int:
    """Measure; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="model repository")
    parser.add_argument("--device", type=int, default=0, help="which GPU (default: 0)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        say("card: this ONNX Runtime has no CUDA; install onnxruntime-gpu in its place")
        return 1
    try:
        found = measured(options.repository, options.device)
    except TritonragError as error:
        say(f"card: {error}")
        return 1
    print(table := _table(found))
    write(options.output, provenance("perf/card.py", PACKAGES) | found, table)
    return 0


def measured(repository: Path, device: int) -> dict[str, Any]:
    """Return ceilings and the times of the encoder's graph."""
    say("a product of matrices, a copy …")
    found: dict[str, Any] = {
        "teraflops": 2 * SIDE**3 / _bound("MatMul", [(SIDE, SIDE)] * 2, device) / 1e12,
        "terabytes_per_s": 2 * 2 * COPIED / _bound("Neg", [(COPIED,)], device) / 1e12,
    }
    version = live_version(repository, EMBED)
    folder = repository / embedder_dir(version)
    layers, width, weights = _size(folder / "model.onnx")
    run = _graph(folder, device)
    rows = []
    for batch in BATCHES:
        for tokens in TOKENS:
            say(f"  {batch} x {tokens} tokens")
            seconds = _timed(partial(run, _feed(batch, tokens)))
            count = batch * tokens
            # Each weight is multiplied and added; then each token attends to all of its text.
            operations = count * (2 * weights + 4 * layers * tokens * width)
            teraflops = operations / seconds / 1e12
            rows.append({"batch": batch, "tokens": tokens, "ms": seconds * 1e3,
                         "texts_per_s": batch / seconds, "teraflops": teraflops,
                         "of_ceiling": teraflops / found["teraflops"]})  # fmt: skip
    embedder = EmbedderManifest.load(repository, version)
    return found | {
        "embedder": {"model": embedder.model, "precision": embedder.precision,
                     "weights": weights, "layers": layers, "width": width},
        "runs": rows,
    }  # fmt: skip


def _bound(operator: str, shapes: Sequence[tuple[int, ...]], device: int) -> float:
    """Return the median seconds of one operator on values that lie on the card already."""
    names = [f"input{number}" for number in range(len(shapes))]
    graph = helper.make_graph(
        [helper.make_node(operator, names, ["output"])], operator,
        [helper.make_tensor_value_info(*pair[:1], HALF, pair[1])
         for pair in zip(names, shapes, strict=True)],
        [helper.make_tensor_value_info("output", HALF, shapes[0])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = ort.InferenceSession(
        model.SerializeToString(), providers=[("CUDAExecutionProvider", {"device_id": device})]
    )
    binding = session.io_binding()
    drawn = np.random.default_rng(1).standard_normal(1 << 20).astype(np.float16)
    for name, shape in zip(names, shapes, strict=True):
        values = ort.OrtValue.ortvalue_from_numpy(np.resize(drawn, shape), "cuda", device)
        binding.bind_ortvalue_input(name, values)
    output = ort.OrtValue.ortvalue_from_shape_and_type(shapes[0], np.float16, "cuda", device)
    binding.bind_ortvalue_output("output", output)
    return _timed(lambda: session.run_with_iobinding(binding))


def _timed(call: Callable[[], object]) -> float:
    """Return the median seconds of a call that returns when the card is done."""
    took = []
    for _ in range(WARM_UPS + REPEATS):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return statistics.median(took[WARM_UPS:])


def _graph(folder: Path, device: int) -> Run:
    # The backend's modules import Triton's Python module, which lies in the server's wheel.
    sys.path.append(str(installation.find().root / "backends" / "python"))
    from tritonrag.backend.onnx import onnx_graph

    outputs = [{"name": "sentence_embedding", "dims": [-1]}]
    inputs = [{"name": name, "dims": [-1]} for name in ("input_ids", "attention_mask")]
    return onnx_graph({"input": inputs, "output": outputs}, folder, device)


def _feed(batch: int, tokens: int) -> dict[str, Any]:
    ids = np.random.default_rng(1).integers(1000, 20_000, (batch, tokens), dtype=np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _size(path: Path) -> tuple[int, int, int]:
    """Return layers, width and the weights of all products in a BERT-like graph."""
    graph = onnx.load(str(path)).graph
    shapes = {each.name: list(each.dims) for each in graph.initializer}
    used = [shapes[name] for node in graph.node if node.op_type in ("MatMul", "Gemm")
            for name in node.input if len(shapes.get(name, ())) == 2]  # fmt: skip
    width = min(used[0])
    # Four square products in each layer's attention, and two of its feed-forward part.
    return len(used) // 6, width, sum(rows * columns for rows, columns in used)


def _table(found: dict[str, Any]) -> str:
    lines = [
        "| batch | tokens | ms | texts/s | TFLOP/s | of the card's own |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {row['batch']} | {row['tokens']} | {row['ms']:.2f} | {row['texts_per_s']:.0f} "
            f"| {row['teraflops']:.1f} | {row['of_ceiling']:.3f} |"
            for row in found["runs"]
        ),
        "",
        f"Ceilings: {found['teraflops']:.0f} TFLOP/s, {found['terabytes_per_s']:.2f} TB/s.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
