"""Set how readily the demo LLM refuses and how many sentences it quotes, on rows held back for it.

    python export/demo_llm/calibrate.py

Training decides which sentence; these two thresholds depend on how often a question has no answer
and on how much a reader minds a sentence too many. They go into the weights, as a shift of the
output vectors of the refusal and of the end along the mean state that they are chosen from, so that
every engine serves them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from corpus import WORK, read_jsonl
from evaluate import MODEL, Reader, Reading
from scoring import Row, contains, scores
from torch import Tensor
from transformers import AutoModelForCausalLM

from tritonrag.quoting import pointer

BIASES = [n / 4 for n in range(-32, 17)]
F1_SLACK = 0.0
SENTENCE_COST = 0.1
"""A further quote must raise the share of answers that hold the gold span by this much."""


def main() -> None:
    """Read the command line, find the biases and write them into the model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=Path, default=WORK / "dev.jsonl")
    parser.add_argument("--model", type=Path, default=MODEL, help="Hugging Face folder, changed")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = read_jsonl(arguments.rows)
    reader = Reader.load(arguments.model)
    readings = [reader.read(row)["greedy"] for row in rows]
    refusal, end = refusal_bias(rows, readings), end_bias(rows, readings)
    first = torch.stack([reading.states[0] for reading in readings]).mean(0)
    later = torch.cat([reading.states[1:] for reading in readings]).mean(0)
    refusal_id = reader.tokenizer.convert_tokens_to_ids(pointer(0))
    end_id = reader.tokenizer.eos_token_id
    shift(arguments.model, {refusal_id: (first, refusal), end_id: (later, end)})
    before, after = (
        scores(rows, [reading.answer(*biases) for reading in readings])
        for biases in ((), (refusal, end))
    )
    print(json.dumps({"refusal_bias": refusal, "end_bias": end, "before": before, "after": after}))


def refusal_bias(rows: Sequence[Row], readings: Sequence[Reading]) -> float:
    """Return the least bias with about the best F1 of refusals: to refuse costs answers."""
    found = [
        scores(list(rows), [reading.answer(bias) for reading in readings])["refusal_f1"]
        for bias in BIASES
    ]
    least = max(found) - F1_SLACK
    return next(bias for bias, value in zip(BIASES, found, strict=True) if value >= least)


def end_bias(rows: Sequence[Row], readings: Sequence[Reading]) -> float:
    """Return the bias that finds most gold spans for the sentences it costs, refusals aside."""

    def worth(bias: float) -> float:
        answers = [reading.answer(-1e9, bias) for reading in readings]
        pairs = [(r, a) for r, a in zip(rows, answers, strict=True) if r["answer"] is not None]
        return sum(contains(row, a) - SENTENCE_COST * len(a) for row, a in pairs)

    return max(BIASES, key=worth)


def shift(folder: Path, shifts: dict[int, tuple[Tensor, float]]) -> None:
    """Add biases to the logits of tokens where the model is in given states, in its weights."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for token, (state, bias) in shifts.items():
            model.lm_head.weight[token] += bias * state / state.square().sum()
    model.save_pretrained(folder)


if __name__ == "__main__":
    main()
