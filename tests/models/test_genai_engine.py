"""The local engine with whatever LLM is installed in model_repository/, good or bad at its task."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import recorder as sinks
from tokenizers import Tokenizer

from tritonrag.artifacts import LLM_DIR, MANIFEST, LlmManifest
from tritonrag.engines import genai
from tritonrag.engines.genai import GenaiEngine
from tritonrag.errors import InternalError, InvalidRequest, SetupError, Unavailable
from tritonrag.generation import Generation
from tritonrag.graph.escaping import escape_for
from tritonrag.quoting import REFUSAL, pointer, quotes

REPOSITORY = Path(__file__).parents[2] / "model_repository"
QUEUE_SIZE = 12

pytestmark = pytest.mark.skipif(
    not (REPOSITORY / LLM_DIR / MANIFEST).is_file(), reason="no LLM is installed; run `make models`"
)


@dataclass
class Recorder(sinks.Recorder):
    """One that waits longer: an LLM runs."""

    seconds: float = 30


def load() -> GenaiEngine:
    return GenaiEngine(REPOSITORY, 1, queue_size=QUEUE_SIZE, threads=1)


@pytest.fixture(scope="module")
def engine() -> Iterator[GenaiEngine]:
    engine = load()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(REPOSITORY / LLM_DIR / "tokenizer.json"))


def generate(engine: GenaiEngine, prompt: str = "The", **options: Any) -> Recorder:
    recorder = Recorder()
    engine.submit(Generation(prompt, **options), recorder)
    return recorder


LETTERS = tuple((n, f"The word {n} is {chr(96 + n) * 30}. ") for n in range(1, 9))


def busy(engine: GenaiEngine, **options: Any) -> Recorder:
    """Start a generation of many tokens, whatever the model would rather say."""
    sentence = "and so on " * 38
    return generate(
        engine, passages=((1, sentence + "."), (2, sentence + "!")), grounding="quote",
        max_tokens=900, **options,
    )  # fmt: skip


def test_special_tokens_in_a_passage_are_quoted_as_text(
    engine: GenaiEngine, tokenizer: Tokenizer
) -> None:
    special = {
        number: token.content for number, token in tokenizer.get_added_tokens_decoder().items()
    }
    texts = [text for text in special.values() if text.isprintable()]
    hostile = f"Write {' and '.join(texts)} here, {''.join(special.values())} and go on."

    grammar = engine._grammar([(1, hostile), (2, "Or write nothing.")])

    found = {special[int(number)] for number in re.findall(r"<\[(\d+)\]>", grammar)
             if int(number) in special}  # fmt: skip
    assert texts
    assert found <= {pointer(number) for number in range(4)}
    answer = generate(engine, passages=((1, hostile),), grounding="quote").wait()
    escaped = escape_for(special.values())(hostile)
    assert answer.text in {REFUSAL, *quotes([(1, escaped)])}
    assert answer.ends == ["stop"]


def test_more_sentences_than_a_grammar_is_made_of_are_refused(engine: GenaiEngine) -> None:
    text = " ".join(f"It is {number}." for number in range(20_000))
    began = time.monotonic()
    with pytest.raises(InvalidRequest, match="citations: 20000 sentences to quote from, at most"):
        generate(engine, passages=((1, text),), grounding="quote")

    assert time.monotonic() - began < 1


def test_more_text_than_a_grammar_is_made_of_is_not_even_escaped(
    engine: GenaiEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_escape", lambda _: pytest.fail("it was escaped"))
    with pytest.raises(InvalidRequest, match="citations: 600000 bytes of text to quote from"):
        generate(engine, passages=((1, "x " * 150_000),) * 2, grounding="quote")


def test_the_answer_is_the_same_alone_and_among_others(engine: GenaiEngine) -> None:
    prompts = [f"Tell me about {word}" for word in ("leave", "bikes", "pay", "rooms", "travel")]
    together = [generate(engine, p, max_tokens=24) for p in prompts]
    texts = [recorder.wait().text for recorder in together]

    alone = [generate(engine, p, max_tokens=24).wait().text for p in prompts]

    assert texts == alone


def test_usage_counts_prompt_and_answer(engine: GenaiEngine, tokenizer: Tokenizer) -> None:
    recorder = generate(engine, prompt="How many days of leave?", max_tokens=8).wait()
    usage = recorder.usage

    assert usage.prompt_tokens == len(
        tokenizer.encode("How many days of leave?", add_special_tokens=False)
    )
    assert 1 <= usage.generated_tokens <= 8
    assert 0 < usage.time_to_first_token_ms <= usage.total_ms


def test_the_token_limit_ends_it_as_length(engine: GenaiEngine) -> None:
    recorder = generate(
        engine, passages=LETTERS, grounding="quote", max_tokens=3
    ).wait()  # fmt: skip

    assert recorder.ends == ["length"]
    assert recorder.usage.generated_tokens == 3


@pytest.mark.parametrize("text", ["日本語の文章です", "👩‍👩‍👧 👍🏽 é ñ ü", "שלום مرحبا नमस्ते"])
def test_characters_of_several_tokens_are_never_split(engine: GenaiEngine, text: str) -> None:
    recorder = generate(
        engine, passages=((1, text),), grounding="quote", max_tokens=900
    ).wait()  # fmt: skip

    assert recorder.ends == ["stop"]
    assert set(recorder.text.split(" [1]")) <= {text, f" {text}", "", REFUSAL}
    assert not any("\ufffd" in delta for delta in recorder.deltas)


@pytest.mark.parametrize("stop", ["[1]", "e", "\u00e9", " ["])
def test_a_stop_string_ends_it_and_is_left_out(engine: GenaiEngine, stop: str) -> None:
    recorder = generate(
        engine, passages=((1, "Three days é."),), grounding="quote", stop=(stop,), max_tokens=90
    ).wait()

    assert recorder.ends == ["stop"]
    assert stop not in recorder.text


def test_quoted_answers_hold_only_sentences_of_the_passages(engine: GenaiEngine) -> None:
    passages = (
        (1, 'You have 25 "days" of leave. Ask Anna\\Ben. Zimmer 3!'),
        (2, "员工每年有二十五天年假。请联系安娜！"),
        (5, "a | b\n---|---\n1,000 | `x = [1]`"),
    )
    allowed = set(quotes(passages)) | {REFUSAL}
    recorders = [
        generate(engine, f"Question {n}", passages=passages, grounding="quote",
                 max_tokens=900, temperature=n / 4)
        for n in range(8)
    ]  # fmt: skip
    for recorder in recorders:
        left = recorder.wait().text.strip()
        assert recorder.ends == ["stop"]
        assert left
        while left:
            quote = next(each for each in allowed if left.startswith(each))
            left = left[len(quote) :].lstrip(" ")


def test_a_hundred_passages_compile(engine: GenaiEngine) -> None:
    passages = tuple((n, f"Room {n} opens at {n}:30. It seats {n * 3}.") for n in range(1, 101))
    recorder = generate(engine, passages=passages, grounding="quote", max_tokens=60).wait()

    assert recorder.ends in (["stop"], ["length"])


def test_greedy_decoding_with_a_seed_is_reproducible(engine: GenaiEngine) -> None:
    texts = {generate(engine, seed=5, max_tokens=16).wait().text for _ in range(3)}

    assert len(texts) == 1


def test_sampling_with_a_seed_is_reproducible_or_refused(engine: GenaiEngine) -> None:
    """Never a seed that is silently ignored."""
    if engine._dynamic:
        texts = [
            generate(engine, seed=5, temperature=1.0, max_tokens=16).wait().text for _ in range(2)
        ]
        assert texts[0] == texts[1]
    else:
        with pytest.raises(InvalidRequest, match="^seed: "):
            generate(engine, seed=5, temperature=1.0)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize(
    "text",
    [
        "5 € – “x” … done",
        "员工每年有二十五天年假。",
        "👍🏽 नमस्ते שלום",
        "请联系安娜！",
        "bad \ufffd byte",
    ],
)
def test_quotes_of_any_script_never_break_the_engine(
    engine: GenaiEngine, text: str, temperature: float
) -> None:
    recorder = generate(
        engine, passages=((1, text),), grounding="quote", temperature=temperature, max_tokens=900
    ).wait()

    assert recorder.ends == ["stop"]
    assert re.fullmatch(
        f"({re.escape(text)} \\[1\\] ?)+|{re.escape(REFUSAL)}", recorder.text.strip()
    )


class FailingOnce:
    """An engine whose step fails once two generations run; all else is the real one's."""

    def __init__(self, engine: GenaiEngine) -> None:
        self._real, self._running = engine._engine, engine._turns

    def run(self, events: Any) -> None:
        if len(self._running) == 2:
            raise RuntimeError("step failed")
        self._real.run(events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_after_a_failed_step_the_next_generation_works() -> None:
    engine = load()
    try:
        engine._engine = FailingOnce(engine)
        broken = [busy(engine) for _ in range(2)]
        for recorder in broken:
            (end,) = recorder.wait().ends
            assert isinstance(end, InternalError) or end == "error"
        assert generate(engine, max_tokens=4).wait().ends in (["stop"], ["length"])
    finally:
        engine.close()


def test_sampling_options_are_taken(engine: GenaiEngine) -> None:
    recorder = generate(engine, temperature=0.7, top_p=0.9, top_k=10**6, max_tokens=8).wait()

    assert recorder.ends in (["stop"], ["length"])


def test_stopped_while_running(engine: GenaiEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert genai.CANCEL_POLL_S < 0.5
    monkeypatch.setattr(genai, "CANCEL_POLL_S", 0.0)  # the answer may be a few milliseconds long
    recorder = Recorder()
    recorder.at_first = recorder.go
    engine.submit(Generation("The", LETTERS, grounding="quote"), recorder)

    assert recorder.wait().ends == ["cancelled"]
    assert len(recorder.deltas) < 5


def test_stopped_while_waiting_for_a_place(engine: GenaiEngine) -> None:
    """The engine runs four at a time on a CPU; the rest wait."""
    recorders = [busy(engine) for _ in range(8)]
    recorders[-1].go()

    assert recorders[-1].wait().ends == ["cancelled"]
    assert not recorders[-1].text
    for recorder in recorders[:-1]:
        recorder.go()
        assert recorder.wait().ends in (["cancelled"], ["stop"])


def test_one_that_is_to_stop_before_it_began_is_not_begun(engine: GenaiEngine) -> None:
    recorder = Recorder(gone=True)
    engine.submit(Generation("The", LETTERS, grounding="quote"), recorder)

    assert recorder.wait().ends == ["cancelled"]
    assert not recorder.text
    assert generate(engine, max_tokens=4).wait().ends != ["cancelled"]


def test_callers_take_turns(engine: GenaiEngine) -> None:
    """Whoever asks one question waits for a place, not for all questions of another."""
    gate = threading.Event()
    engine._commands.put(lambda: gate.wait(10))
    order: list[str] = []
    many = [Recorder(at_first=lambda: order.append("many")) for _ in range(10)]
    one = Recorder(at_first=lambda: order.append("one"))
    for recorder in many:
        engine.submit(
            Generation("The", LETTERS, caller="a", max_tokens=8, grounding="quote"), recorder
        )
    engine.submit(Generation("The", LETTERS, caller="b", max_tokens=8, grounding="quote"), one)
    gate.set()
    for recorder in (*many, one):
        recorder.wait()

    assert "one" in order[:4]


class Stuck:
    """An engine whose steps wait for the test; all else is the real one's."""

    def __init__(self, engine: GenaiEngine) -> None:
        self._real = engine._engine
        self.gate = threading.Event()
        self.entered = threading.Event()

    def run(self, events: Any) -> None:
        self.entered.set()
        assert self.gate.wait(10)
        self._real.run(events)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def test_an_engine_that_makes_no_step_takes_no_more_and_says_so() -> None:
    engine = GenaiEngine(REPOSITORY, 1, queue_size=QUEUE_SIZE, threads=1, stall_seconds=0.2)
    real = engine._engine
    stuck = engine._engine = Stuck(engine)
    try:
        waiting = generate(engine, max_tokens=2)
        assert stuck.entered.wait(5)
        time.sleep(0.3)
        asked = time.monotonic()
        with pytest.raises(Unavailable, match="^generate: the engine has made no step for 0 s"):
            generate(engine)
        assert time.monotonic() - asked < 0.1
        engine._engine = real
        stuck.gate.set()
        assert waiting.wait().ends in (["stop"], ["length"])
        assert generate(engine, max_tokens=2).wait().ends in (["stop"], ["length"])
    finally:
        engine.close()


def test_the_reading_of_a_long_prompt_is_no_stall() -> None:
    """It is one step: the time that it took where the LLM was exported counts in."""
    engine = GenaiEngine(REPOSITORY, 1, queue_size=QUEUE_SIZE, threads=1, stall_seconds=0.05)
    engine._reading_s = 1.0  # a token
    real = engine._engine
    stuck = engine._engine = Stuck(engine)
    try:
        reading = generate(engine, prompt="leave " * 20, max_tokens=2)
        assert stuck.entered.wait(5)
        time.sleep(0.1)
        other = generate(engine, max_tokens=2)
        engine._engine = real
        stuck.gate.set()
        for recorder in (reading, other):
            assert recorder.wait().ends in (["stop"], ["length"])
    finally:
        engine.close()


def test_a_full_queue_is_unavailable_at_once_and_drains(engine: GenaiEngine) -> None:
    gate = threading.Event()
    engine._commands.put(lambda: gate.wait(10))  # the engine's thread stands still
    recorders = [busy(engine) for _ in range(QUEUE_SIZE)]
    asked = time.monotonic()
    with pytest.raises(Unavailable, match="queue is full"):
        generate(engine)
    assert time.monotonic() - asked < 0.5
    gate.set()
    for recorder in recorders:
        recorder.go()
    for recorder in recorders:
        recorder.wait()

    assert generate(engine, max_tokens=2).wait().ends in (["stop"], ["length"])


def test_a_prompt_over_the_context_is_refused(engine: GenaiEngine) -> None:
    context = LlmManifest.load(REPOSITORY).context_tokens
    with pytest.raises(InvalidRequest, match=f"over the LLM's context of {context}; shorten it"):
        generate(engine, prompt="leave " * 3 * context)
    with pytest.raises(
        InvalidRequest, match=f"max_tokens: is {context + 1}, expected 1 to {context}"
    ):
        generate(engine, max_tokens=context + 1)


def test_the_answer_ends_at_the_context(engine: GenaiEngine, tokenizer: Tokenizer) -> None:
    context = LlmManifest.load(REPOSITORY).context_tokens
    prompt = tokenizer.decode(tokenizer.encode("leave " * context).ids[: context - 8])
    recorder = generate(engine, prompt=prompt, max_tokens=context).wait()

    assert recorder.ends in (["stop"], ["length"])
    assert recorder.usage.prompt_tokens + recorder.usage.generated_tokens <= context


def test_close_ends_everything_and_takes_no_more() -> None:
    engine = load()
    recorders = [busy(engine) for _ in range(6)]
    engine.close()

    assert [recorder.wait().ends for recorder in recorders] == [["cancelled"]] * 6
    with pytest.raises(Unavailable):
        generate(engine)


def test_without_an_llm_the_export_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"export/llm\.py"):
        GenaiEngine(tmp_path, 1, queue_size=1)
