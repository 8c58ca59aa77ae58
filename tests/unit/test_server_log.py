"""The cause of a failed start, out of lines as Triton 2.51 writes them."""

from __future__ import annotations

from tritonrag.server.log import cause

HEADER = """\
W1123 13:37:06.264868 7680 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"
E1123 13:37:06.265071 7680 server.cc:241] "CudaDriverHelper has not been initialized."
I1123 13:37:06.300000 7680 model_lifecycle.cc:472] "loading: embed:1"
"""
EMBED = (
    r"/models/embed/1/model.onnx: no such file; run `make models` (or export/embedder.py)"
    r"\n\nAt:\n  /tritonrag/backend/onnx.py(63): __init__\n  /backends/model.py(21): initialize\n"
)
MISSING = rf"""
E1123 13:37:07.904361 7680 backend_model.cc:692] "ERROR: Failed to create instance: SetupError: {EMBED}"
E1123 13:37:07.904539 7680 model_lifecycle.cc:642] "failed to load 'embed' version 1: Internal: SetupError: {EMBED}"
I1123 13:37:07.904571 7680 model_lifecycle.cc:777] "failed to load 'embed'"
E1123 13:37:08.379526 7680 model_repository_manager.cc:703] "Invalid argument: ensemble 'embed_text' depends on 'embed' which has no loaded version. Model 'embed' loading failed with error: version 1 is at UNAVAILABLE state: Internal: SetupError: {EMBED};"
| embed    | 1       | UNAVAILABLE: Internal: SetupError: /models/embed/1/model.onnx: no such file |
Error: Failed to initialize NVML
error: creating server: Internal - failed to load all models
"""  # noqa: E501
CODE = r"""
E1123 13:37:10.212056 7747 model_lifecycle.cc:642] "failed to load 'm' version 1: Internal: AttributeError: module 'triton_python_backend_utils' has no attribute 'Tensor'\n\nAt:\n  /models/m/1/model.py(2): <module>\n"
"""  # noqa: E501
CONFIG = """
E1123 13:37:09.786556 7747 model_repository_manager.cc:1460] "Poll failed for model directory 'bad': failed to read text proto from /models/bad/config.pbtxt"
"""  # noqa: E501


def test_a_missing_artefact_is_one_line_with_its_remedy() -> None:
    assert cause(HEADER + MISSING) == (
        "model embed: /models/embed/1/model.onnx: no such file; "
        "run `make models` (or export/embedder.py)"
    )


def test_each_failed_model_has_a_line_and_those_that_wait_for_it_none() -> None:
    lines = cause(HEADER + MISSING + CODE).splitlines()

    assert [line.split(":")[0] for line in lines] == ["model embed", "model m"]
    assert lines[1] == (
        "model m: module 'triton_python_backend_utils' has no attribute 'Tensor'"
    )  # fmt: skip


def test_no_traceback_is_shown() -> None:
    assert "At:" not in cause(MISSING + CODE)
    assert "onnx.py" not in cause(MISSING + CODE)


def test_without_a_failed_model_the_first_errors_are_shown() -> None:
    assert cause(HEADER + CONFIG).startswith("Poll failed for model directory 'bad'")


def test_line_breaks_in_a_message_are_not_shown_as_escapes() -> None:
    line = (
        r"""E1123 1:1 7 model_lifecycle.cc:642] "failed to load 'm' version 1: Internal: a\n b" """
    )

    assert cause(line) == "model m: a b"


def test_the_warnings_of_a_machine_without_a_gpu_are_no_cause() -> None:
    assert cause(HEADER) == ""


def test_an_empty_log() -> None:
    assert cause("") == ""
