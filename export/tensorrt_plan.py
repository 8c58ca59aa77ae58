"""Build a TensorRT plan of the exported embedder, on the GPU that will serve it.

    python export/embedder.py --precision fp16
    python export/tensorrt_plan.py

Reads ``<repository>/embed/1/model.onnx`` and writes ``model.plan`` beside it, in the same precision
(the network is strongly typed), with one optimisation profile per length bucket, so that a short
question does not pay for a long passage's kernels. Triton's ``--model-config-name tensorrt``
(``tritonrag serve --config tensorrt``) then serves ``embed/configs/tensorrt.pbtxt``. A plan fits
one kind of GPU and one TensorRT release: run this in the container that serves; no torch is needed.

The plan is compared with the ONNX file on ONNX Runtime, and one that is too far from it is not
written. The vector space is the plan's own: index anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tritonrag.artifacts import (
    EMBEDDER_DIR,
    PLAN,
    EmbedderManifest,
    installed_versions,
    sha256,
    size,
)
from tritonrag.contract import MAX_BATCH_SIZE
from tritonrag.errors import SetupError
from tritonrag.exporting import judged, run

PROFILES = 5
"""Length buckets: up to the embedder's longest input, half of it, a quarter, and so on. The config
names as many."""
MIN_COSINE = {"fp32": 0.999, "fp16": 0.999}
"""Least cosine similarity of any embedding to the ONNX file's; fp32 allows for TF32."""
TRIALS = 20


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--repository", type=Path, default=Path("model_repository"), metavar="DIR",
        help="model repository with the embedder (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true",
        help="write a plan that is too far from the ONNX file; its manifest says so",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    return run(lambda: export(options))


def export(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    manifest = EmbedderManifest.load(options.repository)
    folder = options.repository / EMBEDDER_DIR
    if manifest.precision not in MIN_COSINE:
        raise SetupError(
            f"{folder}: holds {manifest.precision}; a plan is built from "
            f"{' or '.join(MIN_COSINE)}, run export/embedder.py --precision fp16 first"
        )
    trt = tensorrt()
    lengths = buckets(manifest.max_tokens)
    shown = ", ".join(map(str, lengths))
    print(f"building in {manifest.precision}, inputs of up to {shown} tokens …", flush=True)
    plan = build(trt, folder / "model.onnx", lengths)
    parity = compare(trt, plan, folder / "model.onnx", lengths)
    least = MIN_COSINE[manifest.precision]
    finding = f"min cosine {parity['min_cosine']:.6f} to the ONNX file, expected at least {least}"
    forced = judged(parity["min_cosine"] >= least, finding, force=options.force)
    fresh = folder / f"{PLAN}.new"
    fresh.write_bytes(plan)
    fresh.replace(folder / PLAN)
    dataclasses.replace(
        manifest,
        options=manifest.options | {"runtime": "TensorRT"},
        sha256=sha256(folder / PLAN),
        parity=manifest.parity | {f"plan_{name}": value for name, value in parity.items()},
        forced=manifest.forced or forced,
        versions=manifest.versions | installed_versions("tensorrt"),
        files=manifest.files | {PLAN: sha256(folder / PLAN)},
    ).save(folder)
    seconds = time.perf_counter() - started
    print(f"wrote {folder / PLAN}: {size(len(plan))} in {seconds:.1f} s")


def tensorrt() -> Any:
    try:
        import tensorrt as trt
    except ImportError as error:
        raise SetupError(
            f"{error}; run this in the Triton or TensorRT container, on the GPU that will serve"
        ) from error
    return trt


def buckets(max_tokens: int) -> tuple[int, ...]:
    """Return the longest input of each profile; the last is the embedder's own."""
    return tuple(max(1, max_tokens >> halvings) for halvings in reversed(range(PROFILES)))


def build(trt: Any, onnx: Path, lengths: Sequence[int]) -> bytes:
    """Return a plan with a profile for each of ``lengths``, all for batches of 1 to the limit."""
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.WARNING))
    if not parser.parse_from_file(str(onnx)):
        raise SetupError(f"{onnx}: TensorRT cannot read it: {parser.get_error(0)}")
    config = builder.create_builder_config()
    for least, longest in zip((1, *lengths), lengths, strict=False):
        profile = builder.create_optimization_profile()
        for name in ("input_ids", "attention_mask"):
            profile.set_shape(name, (1, least), (8, longest), (MAX_BATCH_SIZE, longest))
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SetupError(f"{onnx}: TensorRT could not build a plan; see its lines above")
    return bytes(plan)


def compare(trt: Any, plan: bytes, onnx: Path, lengths: Sequence[int]) -> dict[str, float]:
    """Compare embeddings of random tokens in each bucket with the ONNX file's on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    runner = Runner(trt, plan)
    random = np.random.default_rng(0)
    cosines = []
    for profile, length in enumerate(lengths):
        ids = random.integers(1000, 2000, (4, length))
        mask = np.ones_like(ids)
        mask[0, length // 2 :] = 0
        (wanted,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
        got, milliseconds = runner.run(profile, ids, mask)
        norms = np.linalg.norm(got, axis=1) * np.linalg.norm(wanted, axis=1)
        cosines.append((got * wanted).sum(1) / norms)
        print(
            f"  {length:5} tokens: min cosine {cosines[-1].min():.6f}, {milliseconds:.2f} ms for 4"
        )
    found = np.concatenate(cosines)
    return {"min_cosine": float(found.min()), "mean_cosine": float(found.mean())}


class Runner:
    """Runs a plan, with buffers of CUDA's own Python package."""

    def __init__(self, trt: Any, plan: bytes) -> None:
        from cuda.bindings import runtime

        self._cuda = runtime
        self._engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(plan)
        self._stream = self._checked(runtime.cudaStreamCreate())
        self._context = self._engine.create_execution_context()

    def run(self, profile: int, ids: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, float]:
        """Return the embeddings [batch, dimension] and the median milliseconds of a run."""
        self._context.set_optimization_profile_async(profile, self._stream)
        buffers = []
        for name, values in (("input_ids", ids), ("attention_mask", mask)):
            self._context.set_input_shape(name, values.shape)
            buffers.append(self._allocated(name, values.nbytes))
            self._copied(buffers[-1], np.ascontiguousarray(values), to_device=True)
        shape = tuple(self._context.get_tensor_shape("sentence_embedding"))
        output = np.zeros(shape, dtype=np.float32)
        buffers.append(self._allocated("sentence_embedding", output.nbytes))
        seconds = [self._timed() for _ in range(TRIALS)]
        self._copied(buffers[-1], output, to_device=False)
        for buffer in buffers:
            self._checked(self._cuda.cudaFree(buffer))
        return output, 1e3 * median(seconds)

    def _timed(self) -> float:
        started = time.perf_counter()
        self._context.execute_async_v3(self._stream)
        self._checked(self._cuda.cudaStreamSynchronize(self._stream))
        return time.perf_counter() - started

    def _allocated(self, name: str, size: int) -> int:
        pointer = int(self._checked(self._cuda.cudaMalloc(size)))
        self._context.set_tensor_address(name, pointer)
        return pointer

    def _copied(self, pointer: int, values: np.ndarray, *, to_device: bool) -> None:
        kind = self._cuda.cudaMemcpyKind
        ends = (pointer, values.ctypes.data) if to_device else (values.ctypes.data, pointer)
        direction = kind.cudaMemcpyHostToDevice if to_device else kind.cudaMemcpyDeviceToHost
        self._checked(self._cuda.cudaMemcpy(*ends, values.nbytes, direction))

    @staticmethod
    def _checked(result: tuple[Any, ...]) -> Any:
        status, *values = result
        if int(status):
            raise SetupError(f"CUDA: {status!r}")
        return values[0] if values else None


if __name__ == "__main__":
    sys.exit(main())
