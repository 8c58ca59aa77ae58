"""Measure how well an LLM quotes the sentence that answers, beside baselines that use no LLM.

    python export/demo_llm/evaluate.py --rows FILE.jsonl [--model DIR] --out OUT.json

A row is {"question", "passages": [str], "answer": str or null}: a span of one of the passages, or
null where none answers; a "source" splits the table, "headings" stand before the passages. Answers
are decoded as served: whole sentences of the passages with their marks, or the refusal. The last
line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from random import Random
from typing import Any

import torch
from choosing import greedy, path_scores
from corpus import read_jsonl
from scoring import Quotes, Row, following, scores
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from tritonrag.graph.chat_template import compiled
from tritonrag.overlap import Overlap
from tritonrag.prompting import PromptBuilder
from tritonrag.quoting import MAX_QUOTES, REFUSAL, pointed_answers, quotes, sentences

MODEL = Path(__file__).parent / "model"
ANSWER_TOKENS = 128
SCORED_AT_ONCE = 64


def main() -> None:
    """Read the command line, measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=MODEL, help="Hugging Face folder")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="take this many rows")
    parser.add_argument("--choice", choices=["greedy", "scored"], default="greedy",
                        help="which way of choosing the last line reports")  # fmt: skip
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = some(read_rows(arguments.rows), arguments.limit)
    reader = Reader.load(arguments.model)
    results = measure(rows, reader)
    table = {name: scores(rows, found) for name, found in results.items()}
    table = {name: figures for name, figures in table.items() if figures}
    by_source = split_by_source(rows, results)
    print_tables({"all": table, **by_source}, rows)
    chosen = table[arguments.choice]
    summary = {
        "containment": chosen["containment"],
        "citation": chosen["citation"],
        "refusal_f1": chosen["refusal_f1"],
        "baseline_overlap": table["overlap"]["containment"],
        "baseline_random": table["random"]["containment"],
        "baseline_embedder": table.get("embedder", {}).get("containment"),
        "baseline_overlap_as_many": table["overlap, as many"]["containment"],
        "exact": chosen["exact"],
        "sentences": chosen["sentences"],
        "tokens_per_second": round(reader.tokens / max(reader.seconds, 1e-9), 1),
        "rows": len(rows),
        "choice": arguments.choice,
    }
    details = {"summary": summary, "all": table, "by_source": by_source}
    arguments.out.write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary))


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file.

    Raises:
        SystemExit: the file is missing or a row lacks a field.
    """
    try:
        rows = read_jsonl(path)
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: cannot be read as JSON Lines ({error})") from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not {"question", "passages", "answer"} <= row.keys():
            raise SystemExit(f"{path}, row {number}: expected question, passages and answer")
    return rows


def some(rows: list[Row], limit: int | None) -> list[Row]:
    """Return ``limit`` rows drawn at random, always the same ones, in their order."""
    if not limit or limit >= len(rows):
        return rows
    return [rows[number] for number in sorted(Random(0).sample(range(len(rows)), limit))]


@dataclass(frozen=True)
class Reading:
    """What an LLM makes of a row: the quotes that it writes if it neither refuses nor ends early.

    ``refusal`` is by how much it prefers the refusal to the first quote, in nats; ``ends`` by how
    much it prefers the end to each further quote; ``states`` [1 + ends, width] are the last hidden
    states that it chooses from.
    """

    quotes: Quotes
    refusal: float
    ends: tuple[float, ...]
    states: torch.Tensor

    def answer(self, refusal_bias: float = 0.0, end_bias: float = 0.0) -> Quotes:
        """Return the answer with biases added to those preferences; a refusal is empty."""
        if self.refusal + refusal_bias > 0:
            return []
        ended = next((n for n, end in enumerate(self.ends, 1) if end + end_bias >= 0), None)
        return self.quotes[:ended]


@dataclass
class Reader:
    """An LLM that answers from passages by scoring every quote the grammar allows."""

    model: Any
    tokenizer: Any
    builder: PromptBuilder
    tokens: int = 0
    seconds: float = 0.0

    @classmethod
    def load(cls, folder: Path) -> Reader:
        """Load a Hugging Face folder.

        Raises:
            SystemExit: it is not one, is truncated, or its tokenizer is another model's.
        """
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32
            )
        except Exception as error:
            raise SystemExit(f"{folder}: cannot be loaded ({str(error).splitlines()[0]})") from None
        if len(tokenizer) > model.config.vocab_size:
            raise SystemExit(
                f"{folder}: the tokenizer has {len(tokenizer)} tokens, "
                f"the model {model.config.vocab_size}; they are not of one model"
            )
        special = {name: str(getattr(tokenizer, name) or "") for name in ("bos_token", "eos_token")}
        builder = PromptBuilder(
            render=compiled(tokenizer.chat_template, **special),
            count_tokens=lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
            context_tokens=model.config.max_position_embeddings,
            answer_tokens=ANSWER_TOKENS,
            pointers=getattr(model.config, "tritonrag_pointers", 0),
        )
        return cls(model.eval(), tokenizer, builder)

    @torch.inference_mode()
    def read(self, row: Row) -> dict[str, Reading]:
        """Return what is read greedily, and with the first quote chosen by its whole likelihood."""
        started = time.perf_counter()
        headings = row.get("headings") or [""] * len(row["passages"])
        passages = [
            {"text": text, "location": heading}
            for text, heading in zip(row["passages"], headings, strict=True)
        ]
        prompt = self.builder.build(row["question"], passages)
        escape = self.builder.escape  # as in the prompt
        cited = [(c["mark"], escape(c["text"])) for c in prompt.citations if c["mark"]]
        allowed = list(quotes(cited))
        tokens = self._answers(allowed)
        cache, last, state = self._run(self._encode(prompt.text), DynamicCache())
        found = self._logprobs(cache, last, tokens)
        path = path_scores(tokens, found)
        firsts = {"greedy": greedy(tokens, found), "scored": max_index(path)}
        readings = {}
        for name, first in firsts.items():
            refused = first == len(allowed)
            # What it would quote all the same, for a bias against refusals.
            quote = first if not refused else max_index(path[:-1]) if allowed else None
            order, ends, states = self._continued(cache, tokens[:-1], quote)
            margin = path[-1] - path[quote] if quote is not None else inf
            # Greedily, an answer may win that is not the likelier as a whole.
            margin = abs(margin) if refused else -abs(margin)
            quoted = [allowed[number] for number in order]
            readings[name] = Reading(quoted, margin, tuple(ends), torch.stack([state, *states]))
        self.seconds += time.perf_counter() - started
        return readings

    def _answers(self, allowed: list[str]) -> list[list[int]]:
        """Return the tokens of each allowed quote and, last, of the refusal."""
        pointers = self.builder.pointers
        if pointers:
            return [self._encode(answer) for answer in pointed_answers(allowed, pointers)]
        return [self._encode(f" {answer}") for answer in (*allowed, REFUSAL)]

    def _run(
        self, ids: list[int], cache: DynamicCache
    ) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """Return the cache, the log-probabilities and the state after more tokens."""
        output = self.model(
            torch.tensor([ids]), past_key_values=cache, output_hidden_states=True, logits_to_keep=1
        )
        self.tokens += len(ids)
        last = output.logits[0, -1].log_softmax(-1)
        return output.past_key_values, last, output.hidden_states[-1][0, -1]

    def _continued(
        self, cache: DynamicCache, tokens: Sequence[list[int]], first: int | None
    ) -> tuple[list[int], list[float], list[torch.Tensor]]:
        """Return the quotes that are greedily written from the first on, how much the end was
        preferred to each after the first, and the states of those choices."""
        order, ends, states = [] if first is None else [first], [], []
        prompt_length = cache.get_seq_length()
        while 0 < len(order) < MAX_QUOTES:
            # With pointers the grammar wants quotes in their order.
            begin = order[-1] + 1 if self.builder.pointers else 0
            if begin == len(tokens):
                break
            written = [token for number in order for token in tokens[number]]
            cache, last, state = self._run(written, cache)
            allowed = tokens[begin:]
            chosen = begin + greedy(allowed, self._logprobs(cache, last, allowed))
            cache.crop(prompt_length - cache.get_seq_length())
            best = max(float(last[ids[0]]) for ids in allowed)
            ends.append(float(last[self.model.config.eos_token_id]) - best)
            states.append(state)
            if chosen in order:
                break
            order.append(chosen)
        return order, ends, states

    def _logprobs(
        self, cache: DynamicCache, last: torch.Tensor, candidates: list[list[int]]
    ) -> list[list[float]]:
        """Return the log-probability of each token of each candidate after the cached prompt; of
        the first alone where that is enough to tell them apart."""
        if len({ids[0] for ids in candidates}) == len(candidates):
            return [[float(last[ids[0]])] for ids in candidates]
        found: list[list[float]] = []
        for start in range(0, len(candidates), SCORED_AT_ONCE):
            found += self._logprobs_at_once(cache, last, candidates[start : start + SCORED_AT_ONCE])
        return found

    def _logprobs_at_once(
        self, cache: DynamicCache, last: torch.Tensor, candidates: list[list[int]]
    ) -> list[list[float]]:
        longest = max(map(len, candidates))
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in candidates])
        repeated = DynamicCache()
        for number, layer in enumerate(cache.layers):
            repeated.update(
                layer.keys.expand(len(candidates), -1, -1, -1),
                layer.values.expand(len(candidates), -1, -1, -1),
                number,
            )
        logits = self.model(padded[:, :-1], past_key_values=repeated).logits.log_softmax(-1)
        self.tokens += padded.numel()
        after = logits.gather(-1, padded[:, 1:, None])[..., 0]
        first = last[padded[:, :1]]
        return [
            row[: len(ids)].tolist()
            for row, ids in zip(torch.cat([first, after], -1), candidates, strict=True)
        ]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids


def max_index(values: Sequence[float]) -> int:
    """Return the place of the greatest value."""
    return max(range(len(values)), key=values.__getitem__)


def measure(rows: list[Row], reader: Reader) -> dict[str, list[Quotes]]:
    """Return what the model and each baseline answer to every row.

    A baseline quotes one sentence; "as many" quotes as many as the model does, from the best one
    on, since more words hold the answer more often.
    """
    results: dict[str, list[Quotes]] = {"greedy": [], "scored": []}
    for number, row in enumerate(rows, 1):
        for name, reading in reader.read(row).items():
            results[name].append(reading.answer())
        print(f"\r{number}/{len(rows)} rows", end="", flush=True)
    print()
    overlap = Overlap([s for row in rows for text in row["passages"] for s in sentences(text)])
    random = Random(0)
    baselines: dict[str, Callable[[str, list[str]], int]] = {
        "overlap": lambda question, found: max_index(overlap.scores(question, found)),
        "random": lambda _, found: random.randrange(len(found)),
    }
    if embedder := load_embedder():
        baselines["embedder"] = lambda question, found: nearest(embedder, question, found)
    counts = [max(1, len(answer)) for answer in results["greedy"]]
    for name, best in baselines.items():
        longest = [following(row, best, MAX_QUOTES) for row in rows]
        results[name] = [answer[:1] for answer in longest]
        results[f"{name}, as many"] = [a[:n] for a, n in zip(longest, counts, strict=True)]
    return results


def load_embedder() -> Any:
    """Return the project's small embedder, or None where it is not installed."""
    try:
        from wordvectors import Embedder
    except ImportError:
        return None
    return Embedder()


def nearest(embedder: Any, question: str, found: list[str]) -> int:
    """Return the number of the sentence whose vector is nearest to the question's."""
    vectors = embedder.encode([question, *found])
    return int((vectors[1:] @ vectors[0]).argmax())


def split_by_source(
    rows: list[Row], results: dict[str, list[Quotes]]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the figures of each source of rows."""
    found = {}
    for source in sorted({row.get("source", "") for row in rows} - {""}):
        numbers = [n for n, row in enumerate(rows) if row.get("source") == source]
        own = [rows[n] for n in numbers]
        found[source] = {
            name: scores(own, [answers[n] for n in numbers]) for name, answers in results.items()
        }
    return found


def print_tables(tables: dict[str, dict[str, dict[str, float]]], rows: list[Row]) -> None:
    """Print one Markdown table per source."""
    for source, table in tables.items():
        columns = list(next(iter(table.values())))
        count = sum(source in ("all", row.get("source")) for row in rows)
        print(f"\n{source} ({count} rows)\n| way | " + " | ".join(columns) + " |")
        print("|---|" + "---|" * len(columns))
        for name, figures in table.items():
            shown = " | ".join(f"{figures.get(column, 0):.3f}" for column in columns)
            print(f"| {name} | {shown} |")
    print()


if __name__ == "__main__":
    main()
