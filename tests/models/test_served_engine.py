"""The engines of served LLMs with a caller that replies what the test tells it to."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorder import Recorder

from tritonrag.artifacts import LLM_DIR, LlmManifest
from tritonrag.engines import load_engine
from tritonrag.engines.dialects import Reply, TensorRtLlm, Value, Vllm
from tritonrag.engines.served import ServedEngine
from tritonrag.errors import Cancelled, InternalError, InvalidRequest, SetupError, Unavailable
from tritonrag.generation import Generation
from tritonrag.settings import ModelArgs

QUEUE_SIZE = 3


def reply(text: str, reason: str = "None", tokens: int = 1) -> Reply:
    return {"text_output": [text], "finish_reason": [reason], "num_output_tokens": [tokens]}


@dataclass
class Models:
    """A caller of models; ``gate`` holds each reply back while it is clear."""

    replies: Sequence[Reply | Exception] = ()
    calls: list[tuple[str, dict[str, Value]]] = field(default_factory=list)
    closed: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def stream(
        self, model: str, inputs: Mapping[str, Value], outputs: Sequence[str]
    ) -> Generator[Reply, None, None]:
        self.calls.append((model, dict(inputs)))
        try:
            for each in self.replies:
                assert self.gate.wait(10)
                if isinstance(each, Exception):
                    raise each
                yield each
        finally:
            self.closed.set()

    @property
    def sampling(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(str(self.calls[-1][1]["sampling_parameters"]))
        return found


@pytest.fixture
def models() -> Models:
    return Models([reply("25 "), reply("days.", "stop", 2)])


@pytest.fixture
def engine(repository: Path, models: Models) -> Iterator[ServedEngine]:
    engine = ServedEngine(repository, 1, models, Vllm(), queue_size=QUEUE_SIZE)
    yield engine
    models.gate.set()
    engine.close()


def generate(engine: ServedEngine, **options: Any) -> Recorder:
    recorder = Recorder()
    asked = {"prompt": "how many days", "max_tokens": 16} | options
    engine.submit(Generation(**asked), recorder)
    return recorder


def test_text_is_streamed_and_counted(engine: ServedEngine, models: Models) -> None:
    recorder = generate(engine).wait()

    assert (recorder.text, recorder.ends) == ("25 days.", ["stop"])
    assert (recorder.usage.prompt_tokens, recorder.usage.generated_tokens) == (3, 3)
    assert models.closed.wait(5)


def test_what_vllm_is_asked(engine: ServedEngine, models: Models) -> None:
    generate(engine, max_tokens=7, temperature=0.5, top_p=0.9, top_k=4, seed=5, stop=("x",)).wait()
    model, inputs = models.calls[0]

    assert model == "llm"
    assert inputs["text_input"] == "how many days"
    assert inputs["stream"] is True
    assert inputs["exclude_input_in_output"] is True
    assert models.sampling == {
        "max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 4, "seed": 5, "stop": ["x"],
        "stop_token_ids": [],
    }  # fmt: skip


def test_the_answer_fits_the_context(engine: ServedEngine, models: Models) -> None:
    generate(engine, prompt="a " * 190, max_tokens=100).wait()
    assert models.sampling["max_tokens"] == 10
    with pytest.raises(InvalidRequest, match="prompt: is 201 tokens, over the LLM's context of"):
        generate(engine, prompt="a " * 201, max_tokens=1)
    with pytest.raises(InvalidRequest, match="max_tokens: is 201, expected 1 to 200"):
        generate(engine, max_tokens=201)


def test_quote_is_refused_with_the_remedy(engine: ServedEngine) -> None:
    with pytest.raises(InvalidRequest, match="use `free`, or export the LLM with --target genai"):
        generate(engine, grounding="quote", passages=((1, "Text."),))


@pytest.mark.parametrize(
    ("end", "expected"),
    [("stop", "stop"), ("length", "length"), ("abort", "cancelled"), ("None", "error")],
)
def test_how_it_ended(engine: ServedEngine, models: Models, end: str, expected: str) -> None:
    models.replies = [reply("some"), reply("", end)]

    assert generate(engine).wait().ends == [expected]


def test_a_stop_string_ends_it_and_the_other_model(engine: ServedEngine, models: Models) -> None:
    models.replies = [reply("one t"), reply("wo three"), reply("four")] * 99
    recorder = generate(engine, stop=("two",)).wait()

    assert (recorder.text, recorder.ends) == ("one ", ["stop"])
    assert models.closed.wait(5)


def test_one_that_is_to_stop_is_answered_at_once_and_closes_the_call(
    engine: ServedEngine, models: Models
) -> None:
    models.gate.clear()
    recorder = generate(engine)
    recorder.gone = True

    assert recorder.wait().ends == ["cancelled"]
    models.gate.set()
    assert models.closed.wait(5)
    assert recorder.ends == ["cancelled"]
    assert not recorder.text


def test_one_that_is_to_stop_before_it_began_is_not_begun(
    engine: ServedEngine, models: Models
) -> None:
    recorder = Recorder(gone=True)
    engine.submit(Generation("how", max_tokens=16), recorder)

    assert recorder.wait().ends == ["cancelled"]
    assert not models.calls


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (Unavailable("generate: the model llm is not loaded"), Unavailable),
        (InternalError("CUDA error at /opt/x.py"), InternalError),
        (ValueError("bad"), InternalError),
    ],
)
def test_a_failure_before_any_text_is_an_error(
    engine: ServedEngine, models: Models, raised: Exception, expected: type[Exception]
) -> None:
    models.replies = [raised]
    (end,) = generate(engine).wait().ends

    assert type(end) is expected
    assert "/opt" not in str(end)
    assert generate(engine).wait().ends  # its place is free again


def test_a_failure_after_text_is_named_in_the_usage(engine: ServedEngine, models: Models) -> None:
    models.replies = [reply("some"), InternalError("lost")]
    recorder = generate(engine).wait()

    assert (recorder.text, recorder.ends) == ("some", ["error"])
    assert "the server's log has the cause" in recorder.usage.error


def test_cancelled_by_the_other_side(engine: ServedEngine, models: Models) -> None:
    models.replies = [Cancelled("Request was cancelled")]

    assert generate(engine).wait().ends == ["cancelled"]


def test_a_full_queue_is_unavailable(engine: ServedEngine, models: Models) -> None:
    models.gate.clear()
    recorders = [generate(engine) for _ in range(QUEUE_SIZE)]
    with pytest.raises(Unavailable, match="queue is full"):
        generate(engine)
    models.gate.set()

    assert [each.wait().ends for each in recorders] == [["stop"]] * QUEUE_SIZE


def test_close_ends_what_runs(repository: Path, models: Models) -> None:
    engine = ServedEngine(repository, 1, models, Vllm(), queue_size=QUEUE_SIZE)
    models.gate.clear()
    recorders = [generate(engine) for _ in range(QUEUE_SIZE)]
    engine.close()

    assert [each.wait().ends for each in recorders] == [["cancelled"]] * QUEUE_SIZE
    with pytest.raises(Unavailable):
        generate(engine)
    models.gate.set()


@pytest.fixture
def other(repository: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make a repository whose manifest differs."""

    def make(**changes: Any) -> Path:
        (tmp_path / LLM_DIR).mkdir(parents=True)
        file = "tokenizer.json"
        (tmp_path / LLM_DIR / file).write_bytes((repository / LLM_DIR / file).read_bytes())
        replace(LlmManifest.load(repository), **changes).save(tmp_path / LLM_DIR)
        return tmp_path

    return make


def test_stop_tokens_are_named_by_id(other: Callable[..., Path], models: Models) -> None:
    engine = ServedEngine(other(stop_tokens=["days", "of"]), 1, models, Vllm(), queue_size=1)
    generate(engine).wait()
    engine.close()

    assert models.sampling["stop_token_ids"] == [4, 5]


def test_a_first_token_that_vllm_adds_is_not_sent_twice(
    other: Callable[..., Path], models: Models
) -> None:
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    repository = other(special_tokens={"bos_token": "[UNK]"})
    path = str(repository / LLM_DIR / "tokenizer.json")
    for adds in (False, True):
        tokenizer = Tokenizer.from_file(path)
        if adds:
            tokenizer.post_processor = TemplateProcessing(
                single="[UNK] $A", special_tokens=[("[UNK]", 1)]
            )
            tokenizer.save(path)
        engine = ServedEngine(repository, 1, models, Vllm(), queue_size=1)
        generate(engine, prompt="[UNK]how many").wait()
        engine.close()
        sent = models.calls[-1][1]["text_input"]
        assert sent == ("how many" if adds else "[UNK]how many")


@pytest.mark.parametrize(
    ("engine_name", "error"),
    [
        ("vllm", "vLLM: start the server"),
        ("tensorrtllm", "TensorRT-LLM: start the server"),
        ("x", "'x'"),
    ],
)
def test_the_manifest_chooses_the_engine(
    other: Callable[..., Path], models: Models, engine_name: str, error: str
) -> None:
    args = ModelArgs("generate", other(engine=engine_name), {}, 1)
    if engine_name != "x":
        chosen = load_engine(args, models)
        assert isinstance(chosen._engine, ServedEngine)
        chosen.close()
    with pytest.raises(SetupError, match=error):
        load_engine(args)


@pytest.fixture
def tensorrt(repository: Path, models: Models) -> Iterator[ServedEngine]:
    engine = ServedEngine(repository, 1, models, TensorRtLlm(), queue_size=QUEUE_SIZE)
    yield engine
    engine.close()


def so_far(text: str, reason: str = "None") -> Reply:
    return {"text_output": [text], "finish_reason": [reason]}


def test_tensorrt_llm_sends_all_its_text_each_time(tensorrt: ServedEngine, models: Models) -> None:
    models.replies = [so_far("how"), so_far("how many"), so_far("how many days", "stop")]
    recorder = generate(tensorrt).wait()

    assert (recorder.text, recorder.ends) == ("how many days", ["stop"])
    assert recorder.usage.generated_tokens == 3


def test_half_a_character_waits_for_its_other_half(tensorrt: ServedEngine, models: Models) -> None:
    models.replies = [so_far("a \ufffd"), so_far("a \u00fc"), so_far("a \u00fc.", "length")]
    recorder = generate(tensorrt).wait()

    assert (recorder.text, recorder.ends) == ("a \u00fc.", ["length"])


def test_what_tensorrt_llm_is_asked(tensorrt: ServedEngine, models: Models) -> None:
    models.replies = [so_far("one two", "stop")]
    options = {"temperature": 0.5, "top_p": 0.25, "top_k": 4, "seed": 5, "stop": ("two",)}
    recorder = generate(tensorrt, max_tokens=7, **options).wait()
    asked = models.calls[0][1]

    assert recorder.text == "one "
    assert {name: str(np.asarray(value).dtype) for name, value in asked.items()} == {
        "text_input": "<U13",
        "streaming": "bool",
        "return_finish_reason": "bool",
        "sampling_param_exclude_input_from_output": "bool",
        "sampling_param_max_tokens": "int32",
        "sampling_param_top_k": "int32",
        "sampling_param_temperature": "float32",
        "sampling_param_top_p": "float32",
        "sampling_param_seed": "uint64",
    }
    assert [asked[f"sampling_param_{name}"] for name in ("max_tokens", "top_k", "seed")] == [
        7,
        4,
        5,
    ]
    generate(tensorrt).wait()
    assert models.calls[1][1]["sampling_param_top_k"] == 1, "greedy"


@pytest.mark.parametrize(
    ("end", "expected"),
    [("stop", "stop"), ("length", "length"), ("cancelled", "cancelled"), ("timeout", "error")],
)
def test_how_tensorrt_llm_ended(
    tensorrt: ServedEngine, models: Models, end: str, expected: str
) -> None:
    models.replies = [so_far("some"), so_far("some", end)]

    assert generate(tensorrt).wait().ends == [expected]


def test_quote_names_the_backend(tensorrt: ServedEngine) -> None:
    with pytest.raises(InvalidRequest, match="which TensorRT-LLM is not asked for"):
        generate(tensorrt, grounding="quote", passages=((1, "Text."),))
