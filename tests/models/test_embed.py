"""embed: the Python-based onnxruntime backend with a small graph, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pb_fake
import pytest

from tritonrag.errors import SetupError

BACKEND = Path(__file__).parents[2] / "src/tritonrag/server/backends/onnxruntime/model.py"


@pytest.fixture
def model(repository: Path) -> Iterator[pb_fake.Served]:
    with pb_fake.loaded("embed", repository, source=BACKEND) as served:
        yield served


def test_requests_of_different_sizes_are_answered_in_order(
    model: pb_fake.Served, repository: Path
) -> None:
    ids = [[[2, 3, 0]], [[4, 5, 6], [7, 8, 0], [9, 0, 0]], [[10, 11, 12], [13, 14, 15]]]
    mask = [[[int(bool(token)) for token in row] for row in rows] for rows in ids]
    requests = [
        model.request(input_ids=rows, attention_mask=ones)
        for rows, ones in zip(ids, mask, strict=True)
    ]

    together = model.infer(*requests)

    assert [answer["sentence_embedding"].shape for answer in together] == [(1, 4), (3, 4), (2, 4)]
    for request, answer in zip(requests, together, strict=True):
        (alone,) = model.infer(request)
        np.testing.assert_allclose(
            answer["sentence_embedding"], alone["sentence_embedding"], rtol=1e-6
        )


def test_texts_of_unequal_length_are_embedded_as_without_their_padding(
    model: pb_fake.Served,
) -> None:
    texts = [[2], [3, 4, 5, 6, 7] * 6, [8, 9], [10] * 17]
    padded = [text + [0] * (32 - len(text)) for text in texts]
    mask = [[int(bool(token)) for token in row] for row in padded]

    (together,) = model.infer(model.request(input_ids=padded, attention_mask=mask))

    for text, embedding in zip(texts, together["sentence_embedding"], strict=True):
        (alone,) = model.infer(model.request(input_ids=[text], attention_mask=[[1] * len(text)]))
        np.testing.assert_allclose(alone["sentence_embedding"], [embedding], rtol=1e-6)


@pytest.fixture
def bare(repository: Path, tmp_path: Path) -> Iterator[pb_fake.Served]:
    """A graph with neither a tokenizer nor a manifest beside it, as others may install one."""
    folder = tmp_path / "embed" / "1"
    folder.mkdir(parents=True)
    shutil.copy(repository / "embed" / "1" / "model.onnx", folder)
    with pb_fake.loaded("embed", tmp_path, source=BACKEND) as served:
        yield served


def test_an_input_that_the_graph_refuses_is_an_internal_error_without_paths(
    bare: pb_fake.Served, tmp_path: Path
) -> None:
    (answer,) = bare.infer(bare.request(input_ids=[[99999]], attention_mask=[[1]]))

    assert answer.code == "INTERNAL"
    assert "log id" in answer.message
    assert str(tmp_path) not in answer.message
    assert "idx=99999" in pb_fake.errors_logged()[0]


def test_an_input_that_the_graph_refuses_fails_alone(bare: pb_fake.Served) -> None:
    good = bare.request(input_ids=[[2]], attention_mask=[[1]])
    bad = bare.request(input_ids=[[99999]], attention_mask=[[1]])

    answers = bare.infer(good, bad, good)

    assert [answer.code for answer in answers] == ["", "INTERNAL", ""]


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[16]], [[1]], "input_ids: 16 is no token of this embedder, expected 0 to 15"),
        ([[-1]], [[1]], "input_ids: -1 is no token of this embedder, expected 0 to 15"),
        ([[2], [2**62]], [[1], [1]], "input_ids: 4611686018427387904 is no token"),
        ([[2, 3]], [[1]], "attention_mask: is [1, 1], expected [1, 2] as input_ids"),
        ([[2] * 33], [[1] * 33], "input_ids: 33 tokens, expected 1 to 32; cut the text"),
        (np.zeros((1, 0)), np.zeros((1, 0)), "input_ids: 0 tokens, expected 1 to 32"),
        (np.zeros((1, 10**6)), np.ones((1, 10**6)), "input_ids: 1000000 tokens, expected 1 to 32"),
    ],
)
def test_ids_are_checked_before_they_join_those_of_others(
    model: pb_fake.Served, monkeypatch: pytest.MonkeyPatch, ids: Any, mask: Any, message: str
) -> None:
    good = model.request(input_ids=[[2]], attention_mask=[[1]])
    bad = model.request(input_ids=np.array(ids, np.int64), attention_mask=np.array(mask, np.int64))
    runs: list[int] = []
    graph = model.model._model._graph

    def counted(feed: dict[str, Any]) -> Any:
        runs.append(len(feed["input_ids"]))
        return graph(feed)

    monkeypatch.setattr(model.model._model, "_graph", counted)
    answers = model.infer(good, bad, good)

    assert [answer.code for answer in answers] == ["", "INVALID_ARG", ""]
    assert answers[1].message.startswith(message)
    assert runs == [2]


def load(repository: Path, **settings: Any) -> None:
    with pb_fake.loaded("embed", repository, source=BACKEND, settings=settings):
        pass


def test_without_a_model_file_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"model\.onnx: no such file; run `make models`"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parameters": {"enable_mem_arena": {"string_value": "1"}}}, "enable_mem_arena is not"),
        (
            {"parameters": {"intra_op_thread_count": {"string_value": "two"}}},
            "parameter intra_op_thread_count is 'two', expected an integer",
        ),
        ({"optimization": {"graph": {"level": 9}}}, "level is 9, expected one of"),
        (
            {"optimization": {"execution_accelerators": {"cpu_execution_accelerator": [{}]}}},
            "cpu_execution_accelerator is not supported",
        ),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(
    repository: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SetupError, match=message):
        load(repository, **settings)


@pytest.mark.parametrize(
    ("graph", "level"),
    [
        (None, ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
        ({"level": 0}, ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
        ({"level": -1}, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
        ({"level": 1}, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
        ({"level": 2}, ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
    ],
)
def test_graph_levels_mean_what_they_mean_to_the_cpp_backend(
    graph: dict[str, int] | None, level: ort.GraphOptimizationLevel
) -> None:
    """As in ``ModelState`` of triton-inference-server/onnxruntime_backend."""
    with pb_fake.installed():
        from tritonrag.backend.onnx import session_options

        options = session_options({"optimization": {"graph": graph}})

    assert options.graph_optimization_level == level


def test_thread_counts_and_execution_mode_reach_the_session() -> None:
    with pb_fake.installed():
        from tritonrag.backend.onnx import session_options

        values = {"intra_op_thread_count": "2", "inter_op_thread_count": "3", "execution_mode": "1"}
        parameters = {key: {"string_value": value} for key, value in values.items()}
        options = session_options({"parameters": parameters})

    assert options.intra_op_num_threads == 2
    assert options.inter_op_num_threads == 3
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL


CONFIG = {
    "input": [{"name": name, "dims": [-1]} for name in ("input_ids", "attention_mask")],
    "output": [{"name": "sentence_embedding", "dims": [-1]}],
}


def test_a_gpu_without_cuda_in_onnx_runtime_leaves_the_graph_on_the_cpu(repository: Path) -> None:
    """Triton reads KIND_AUTO as the GPU wherever there is one."""
    feed = {"input_ids": np.array([[2, 3]]), "attention_mask": np.array([[1, 1]])}
    with pb_fake.installed():
        from tritonrag.backend.onnx import onnx_graph

        on_gpu = onnx_graph(CONFIG, repository / "embed" / "1", device=0)
        on_cpu = onnx_graph(CONFIG, repository / "embed" / "1")

    np.testing.assert_array_equal(on_gpu(feed)[0], on_cpu(feed)[0])


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_cuda_that_cannot_be_used_is_an_error_with_the_remedy(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime goes on with the CPU where a library of CUDA's is missing."""
    with pb_fake.installed():
        from tritonrag.backend.onnx import CPU, CUDA, onnx_graph

        monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, CPU])
        with pytest.raises(SetupError, match=r"cannot use CUDA.*or set the kind .* to KIND_CPU"):
            onnx_graph(CONFIG, repository / "embed" / "1", device=0)
