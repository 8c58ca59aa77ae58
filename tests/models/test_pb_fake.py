"""The fake itself: at least as strict as the module that Triton ships."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pb_fake
import pytest


@pytest.fixture
def real() -> ModuleType:
    """Triton's own Python file; its classes are added by the stub and cannot be had here."""
    found = importlib.util.find_spec("pytriton")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the embedded server is not installed")
    folder = Path(next(iter(found.submodule_search_locations))) / "tritonserver/backends/python"
    path = folder / "triton_python_backend_utils.py"
    spec = importlib.util.spec_from_file_location("real_pb_utils", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_at_import_it_has_nothing_that_the_real_one_lacks(real: ModuleType) -> None:
    with pb_fake.installed() as fake:
        for name in vars(fake):
            assert hasattr(real, name), name
        assert fake.TRITON_STRING_TO_NUMPY == real.TRITON_STRING_TO_NUMPY
        assert (
            fake.TRITONSERVER_RESPONSE_COMPLETE_FINAL == real.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        )


@pytest.mark.parametrize("name", ["Tensor", "TritonError", "Logger", "InferenceResponse"])
def test_a_model_that_uses_a_class_at_import_cannot_load(tmp_path: Path, name: str) -> None:
    source = tmp_path / "model.py"
    source.write_text(f"import triton_python_backend_utils as pb_utils\nKIND = pb_utils.{name}\n")

    with (
        pytest.raises(AttributeError, match=name),
        pb_fake.loaded("prompt", tmp_path, source=source),
    ):
        pass


def test_codes_are_those_of_the_release() -> None:
    assert [code.name for code in pb_fake.TritonError.Code] == [
        "UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED",
        "ALREADY_EXISTS", "CANCELLED",
    ]  # fmt: skip


def test_misuse_is_refused() -> None:
    tensor = pb_fake.Tensor("x", np.zeros((1, 1), np.float32))
    with pytest.raises(TypeError):
        pb_fake.Tensor("x", [1.0])  # type: ignore[arg-type]
    with pytest.raises(pb_fake.TritonModelException, match="dtype is not supported"):
        pb_fake.Tensor("x", np.array(["text"]))
    with pytest.raises(AssertionError):
        pb_fake.Tensor("x", np.zeros((4, 4), np.float32)[:, ::2])
    with pytest.raises(UnicodeEncodeError):
        pb_fake.Tensor("x", np.array(["\ud800"], dtype=object))
    with pytest.raises(TypeError):
        pb_fake.TritonError("message", 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        pb_fake.InferenceResponse(output_tensors=[1])  # type: ignore[list-item]
    family = pb_fake.MetricFamily
    with pb_fake.installed(), pytest.raises(TypeError):
        family("a_total", "doc", 0)  # type: ignore[arg-type]
    with pb_fake.installed():
        counter = family("a_total", "doc", family.COUNTER)
        with pytest.raises(AssertionError, match="another kind"):
            family("a_total", "doc", family.GAUGE)
        with pytest.raises(AssertionError):
            counter.Metric(labels={"a": 1})  # type: ignore[dict-item]
        with pytest.raises(AssertionError, match="counts up only"):
            counter.Metric(labels={}).increment(-1)
        with pytest.raises(AssertionError, match="a COUNTER does not do that"):
            counter.Metric(labels={}).set(1)
        with pytest.raises(pb_fake.TritonModelException, match="Buckets"):
            family("a_seconds", "doc", family.HISTOGRAM).Metric(labels={})
    sender = pb_fake.InferenceResponseSender()
    sender.send(pb_fake.InferenceResponse([tensor]), flags=pb_fake.FINAL)
    with pytest.raises(pb_fake.TritonModelException, match="closed"):
        sender.send(pb_fake.InferenceResponse([tensor]))
    with pytest.raises(AssertionError, match="segfaults"):
        sender.is_cancelled()
