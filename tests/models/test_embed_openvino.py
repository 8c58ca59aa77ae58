"""embed: the Python-based openvino backend beside the onnxruntime one, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pb_fake
import pytest

from tritonrag.errors import SetupError

pytest.importorskip("openvino")

BACKENDS = Path(__file__).parents[2] / "src/tritonrag/server/backends"


def embeddings(repository: Path, backend: str, variant: str = "") -> list[Any]:
    ids = [[[2, 3, 0]], [[4, 5, 6], [7, 8, 0], [9, 0, 0]]]
    mask = [[[int(bool(token)) for token in row] for row in rows] for rows in ids]
    source = BACKENDS / backend / "model.py"
    with pb_fake.loaded("embed", repository, source=source, variant=variant) as model:
        requests = [
            model.request(input_ids=rows, attention_mask=ones)
            for rows, ones in zip(ids, mask, strict=True)
        ]
        return [answer["sentence_embedding"] for answer in model.infer(*requests)]


def test_its_embeddings_are_those_of_onnx_runtime(repository: Path) -> None:
    plain = embeddings(repository, "onnxruntime")
    found = embeddings(repository, "openvino", "openvino")

    assert [each.shape for each in found] == [(1, 4), (3, 4)]
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=0.02)  # bf16 where the CPU has it


def test_the_hint_for_bf16_asks_for_nothing_that_the_cpu_lacks() -> None:
    assert asked({"HINT_BF16": "YES"}, bf16=True) == {"INFERENCE_PRECISION_HINT": "bf16"}
    assert asked({"HINT_BF16": "YES"}, bf16=False) == {"INFERENCE_PRECISION_HINT": "f32"}
    assert asked({"INFERENCE_NUM_THREADS": "2", "NUM_STREAMS": "AUTO"}) == {
        "INFERENCE_NUM_THREADS": 2,
        "NUM_STREAMS": "AUTO",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"TARGET_DEVICE": "GPU"}, "parameter TARGET_DEVICE is not supported"),
        ({"PERFORMANCE_HINT": "FAST"}, "is 'FAST', expected one of LATENCY, THROUGHPUT"),
        ({"NUM_STREAMS": "many"}, "NUM_STREAMS is 'many', expected an integer"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        asked(options)


def asked(options: dict[str, str], *, bf16: bool = True) -> dict[str, str | int]:
    with pb_fake.installed():
        from tritonrag.backend.openvino import properties

        parameters = {key: {"string_value": value} for key, value in options.items()}
        return properties({"parameters": parameters}, bf16=bf16)
