"""How close an exported LLM is to the original: on logits, on text, and token for token.

The original is a transformers model in fp32; the export is read by ONNX Runtime GenAI, once for its
logits and once by the engine that ``generate`` serves it with.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as genai
import torch

from tritonrag.engines.genai import load_model
from tritonrag.errors import SetupError
from tritonrag.exporting import first_line, judged


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be from the original.

    ``min_cosine``: mean cosine similarity of the logits, centred per position. Unlike differences
    of probability it does not depend on how peaked the distributions are, so it also judges a
    model that was barely trained. ``max_logprob``: difference of the mean log-probability of real
    text, in nats per token. ``max_perplexity``: relative difference of the perplexity of that text.
    ``min_agreement``: share of positions where both prefer the same token, along the original's
    greedy answers. ``min_prefix``: tokens, of the 64 of a greedy answer, that the served engine
    generates like the original before the first that differs, in the mean.
    """

    min_cosine: float
    max_logprob: float
    max_perplexity: float
    min_agreement: float
    min_prefix: float


TOLERANCES = {
    "fp32": Tolerance(0.9999, 0.001, 0.001, 0.98, 48),
    "fp16": Tolerance(0.999, 0.01, 0.01, 0.95, 24),
    "bf16": Tolerance(0.995, 0.03, 0.03, 0.9, 12),
    "int8": Tolerance(0.995, 0.03, 0.03, 0.9, 12),
    "int4": Tolerance(0.93, 0.15, 0.16, 0.5, 1),
}
"""Two ways to add up floats may break a near tie differently, after which greedy answers part; so
even fp32 is not held to 64 equal tokens."""

READ, DECODED = 16, 64
"""Tokens read at once before the decoding, and tokens decoded one by one, in the comparison."""
SPEED_PROMPT = 512
"""Tokens of the prompt that the speed is measured with; half of a shorter context."""

TEXTS = (
    "Employees who fall ill during their holiday hand in a medical certificate from the first day "
    "of illness. The days covered by the certificate do not count as leave. The remaining days are "
    "agreed anew with the manager, and they expire at the end of March of the following year "
    "unless the illness lasts beyond that date, in which case the office sets a new one.",
    "The river rose two metres in a single night. By morning the lower fields were under water, "
    "the road to the mill was cut, and the farmers had moved their cattle to the hill. Nobody was "
    "hurt, but the bridge that had stood for two hundred years was gone, and it took the town "
    "three summers and most of its savings to build another one in the same place.",
    "A binary search tree keeps smaller keys to the left and larger keys to the right of each "
    "node, so that a lookup follows one path from the root and takes time that grows with the "
    "height of the tree. Balanced variants keep that height logarithmic: they rotate nodes after "
    "an insertion or a deletion, and pay for it with one more field in every node of the tree.",
    "Bread needs little: flour, water, salt and time. Mix five hundred grams of flour with three "
    "hundred and fifty of water and let it rest for half an hour. Add ten grams of salt and a "
    "little yeast, fold the dough four times over two hours, shape it and leave it in a cool place "
    "overnight. In the morning heat the oven as far as it goes, with a heavy pot inside.",
)
PROMPTS = (
    "Question: How many days of annual leave do employees have?\n\nAnswer:",
    "The three most important things about a good kitchen are",
    "Receipts are handed in by the end of the month. After that",
    "To restart the server, first",
)


def load_built(folder: Path) -> genai.Model:
    try:
        return load_model(folder)
    except Exception as error:  # GenAI raises RuntimeError and others
        raise SetupError(f"the built model cannot be loaded: {first_line(error)}") from error


def compare(model: Any, tokenizer: Any, logits: Path, served: Path) -> dict[str, float]:
    """Compare an export with the original on real text and on the original's greedy answers.

    ``logits`` is the folder whose logits are compared, ``served`` the one that the engine decodes
    with; the same where the model gives both.
    """
    answers = [greedy(model, tokens_of(tokenizer, prompt)) for prompt in PROMPTS]
    parity = compare_logits(model, tokenizer, logits, answers)
    engine_model = load_built(served)
    prefixes = [
        agreeing(answer[-DECODED:], decode(engine_model, answer[:-DECODED], DECODED)[0])
        for answer in answers
    ]
    parity["greedy_prefix"] = float(np.mean(prefixes))
    for name, value in parity.items():
        print(f"  {name:22} {value:12.6f}")
    return {name: round(value, 8) for name, value in parity.items()}


def compare_logits(
    model: Any, tokenizer: Any, folder: Path, answers: list[list[int]]
) -> dict[str, float]:
    """Decode the same tokens with both and compare the logits after each."""
    exported = load_built(folder)
    check_tokens(tokenizer, genai.Tokenizer(exported))
    texts = [tokens_of(tokenizer, text)[: READ + DECODED + 1] for text in TEXTS]
    cosines, agreed = [], []
    logprobs: dict[str, list[np.ndarray]] = {"wanted": [], "got": []}
    for kind, sequences in (("text", texts), ("answer", answers)):
        for tokens in sequences:
            start = len(tokens) - DECODED - 1 if kind == "answer" else READ
            wanted = original_logits(model, tokens, start)
            got = exported_logits(exported, tokens, start)
            cosines.append(cosine(wanted, got))
            if kind == "text":
                following = tokens[start + 1 :]
                logprobs["wanted"].append(logprob(wanted, following))
                logprobs["got"].append(logprob(got, following))
            else:
                agreed.append(got.argmax(1) == wanted.argmax(1))
    wanted_mean, got_mean = (float(np.concatenate(each).mean()) for each in logprobs.values())
    return {
        "logit_cosine": float(np.concatenate(cosines).mean()),
        "logprob_difference": got_mean - wanted_mean,
        "perplexity_original": bounded_exp(-wanted_mean),
        "perplexity_difference": bounded_exp(wanted_mean - got_mean) - 1,
        "greedy_agreement": float(np.concatenate(agreed).mean()),
    }


def bounded_exp(exponent: float) -> float:
    """Return e to this power, or to 700: a float overflows at 709, and JSON has no infinity."""
    return math.exp(min(exponent, 700.0))


def agreeing(wanted: list[int], got: list[int]) -> int:
    """Return how many tokens are the same before the first that differs."""
    pairs = zip(wanted, got, strict=False)
    return next((n for n, (one, other) in enumerate(pairs) if one != other), len(wanted))


def decode(model: genai.Model, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """Generate ``count`` tokens greedily by the engine that ``generate`` uses.

    Returns them and the seconds from the start to each.
    """
    engine = genai.Engine(model)
    events = engine.create_event_buffer(64)
    request = engine.create_request()
    options = genai.TurnOptions(request)
    options.set_do_sample(False)
    options.set_max_generated_tokens(count)
    options.set_min_generated_tokens(count)
    tokens: list[int] = []
    times: list[float] = []
    started = time.perf_counter()
    request.begin_turn(np.array(prompt, dtype=np.int32), options)
    while engine.has_pending_requests():
        engine.run(events)
        for event in events:
            if int(event.flags) & int(genai.EngineEventFlags.FAILED):
                raise SetupError(f"the built model cannot generate: {event.error_code}")
            if int(event.flags) & int(genai.EngineEventFlags.TOKEN):
                tokens.append(event.token)
                times.append(time.perf_counter() - started)
    request.close()
    return tokens, times


def measure_speed(folder: Path, tokenizer: Any, context: int) -> dict[str, float]:
    """Return tokens per second of one request alone, reading its prompt and decoding."""
    served = load_built(folder)
    text = tokens_of(tokenizer, " ".join(TEXTS)) * SPEED_PROMPT
    prompt = text[: min(SPEED_PROMPT, context // 2)]
    decode(served, prompt, 2)
    _, times = decode(served, prompt, DECODED)
    speed = {
        "prefill_tokens_per_s": len(prompt) / times[0],
        "decode_tokens_per_s": (len(times) - 1) / (times[-1] - times[0]),
    }
    for name, value in speed.items():
        print(f"  {name:22} {value:12.1f}")
    return {name: round(value, 1) for name, value in speed.items()}


def check_tokens(tokenizer: Any, exported: genai.Tokenizer) -> None:
    """Check that GenAI's own tokenizer, which the server uses, reads text as the original does."""
    for text in (*TEXTS, *PROMPTS, "Café: 20 °C\n\n[1] 東京, “2024”"):
        wanted = tokenizer(text, add_special_tokens=False)["input_ids"]
        got = [int(token) for token in exported.encode(text)]
        if got[:1] == [tokenizer.bos_token_id]:
            del got[0]
        if got != wanted:
            raise SetupError(f"ONNX Runtime GenAI's tokenizer reads {text[:40]!r} differently")


def tokens_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def greedy(model: Any, prompt: list[int]) -> list[int]:
    """Return the prompt and the original's greedy answer of exactly ``DECODED`` tokens."""
    with torch.no_grad():
        output = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False, repetition_penalty=1.0, min_new_tokens=DECODED,
            max_new_tokens=DECODED,
        )  # fmt: skip
    return list(output[0].tolist())


def original_logits(model: Any, tokens: list[int], start: int) -> np.ndarray:
    """Return the logits [n, vocabulary] after each token from ``start`` to the last but one."""
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0, start:-1].numpy()


def exported_logits(model: genai.Model, tokens: list[int], start: int) -> np.ndarray:
    """Return the same from the export: one prefill, then token by token with its KV cache."""
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=len(tokens), do_sample=False)
    generator = genai.Generator(model, parameters)
    rows = []
    for piece in (tokens[: start + 1], *([token] for token in tokens[start + 1 : -1])):
        generator.append_tokens(np.array(piece, dtype=np.int32))
        rows.append(generator.get_logits()[0, -1])
    return np.stack(rows)


def cosine(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    wanted = wanted - wanted.mean(1, keepdims=True)
    got = got - got.mean(1, keepdims=True)
    return (wanted * got).sum(1) / (np.linalg.norm(wanted, axis=1) * np.linalg.norm(got, axis=1))


def logprob(logits: np.ndarray, following: list[int]) -> np.ndarray:
    """Return the log-probability of the token that follows each position, in nats."""
    shifted = logits - logits.max(1, keepdims=True)
    chosen = shifted[np.arange(len(following)), following]
    return chosen - np.log(np.exp(shifted).sum(1))


def judge(parity: dict[str, float], precision: str, force: bool) -> bool:
    """Return whether the model is installed by force only."""
    tolerance = TOLERANCES[precision]
    # A comparison with NaN is false, so this form refuses one.
    close = (
        parity["logit_cosine"] >= tolerance.min_cosine
        and abs(parity["logprob_difference"]) <= tolerance.max_logprob
        and abs(parity["perplexity_difference"]) <= tolerance.max_perplexity
        and parity["greedy_agreement"] >= tolerance.min_agreement
        and parity["greedy_prefix"] >= tolerance.min_prefix
    )
    finding = (
        f"too far from the original for {precision}: logit cosine {parity['logit_cosine']:.4f} "
        f"(at least {tolerance.min_cosine}), log-probability "
        f"{parity['logprob_difference']:+.4f} nats per token (at most {tolerance.max_logprob}), "
        f"perplexity {parity['perplexity_difference']:+.1%} (at most "
        f"{tolerance.max_perplexity:.1%}), greedy choices {parity['greedy_agreement']:.0%} the "
        f"same (at least {tolerance.min_agreement:.0%}), the first {parity['greedy_prefix']:.1f} "
        f"of {DECODED} tokens alike (at least {tolerance.min_prefix:g})"
    )
    return judged(close, finding, force=force)
