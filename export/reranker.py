"""Export a cross-encoder as the reranker that the model `rerank` serves.

    python export/reranker.py --model BAAI/bge-reranker-base --precision int8
    python export/reranker.py --model cross-encoder/ms-marco-MiniLM-L6-v2

Takes BERT-type sequence classifiers with one label. Writes
``<repository>/rerank/1/cross_encoder/``, or the version that ``--as-version`` names: ``model.onnx``
(token ids of a question and a passage in, one logit out), ``tokenizer.json`` without truncation and
padding (the server decides both) and ``manifest.json``. Longest input and activation come from the
model's sentence-transformers files; flags override them. The result is compared with the original
in PyTorch, scores and order, and a model that is not close enough is not installed.
`tritonrag up --config rerank` serves it.

fp32 is the default. int8 (weights by blocks, activations as they come) takes less space and time on
a CPU but moves each score a little. fp16 is for GPUs: token ids and logits stay as they are, only
the inside is half.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tritonrag.artifacts import (
    RerankerManifest,
    artifact_facts,
    folder_size,
    installed_versions,
    read_json,
    size,
)
from tritonrag.errors import SetupError
from tritonrag.exporting import (
    Plan,
    common_options,
    installing,
    judged,
    max_tokens_of,
    quieten,
    run,
    source_of,
    version_of,
    write_tokenizer,
)
from tritonrag.reranking import BatchLimits, Floats, Ids, PairTokenizer, Reranker, activated
from tritonrag.sources import Source
from tritonrag.versions import RERANK

try:
    import onnxruntime
    import torch
    from onnx_graphs import load_original, lowered, open_session, quantize, takes, write_onnx
    from transformers import AutoModelForSequenceClassification
    from transformers.utils.logging import disable_progress_bar
except ImportError as missing:
    sys.exit(f"error: {missing}; install what the export needs: pip install 'tritonrag[export]'")

CLASSIFIERS = ("bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
ACTIVATIONS = ("sigmoid", "identity")
BATCHES = (1, 4, 32)
SPEED_TOKENS = 128
SPEED_SECONDS = 1.0


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be from the original.

    ``max_difference``: of any pair's score, on the scale of 0 to 1 (the sigmoid of the logit)
    whatever the model's own activation is. ``min_agreement``: share of any two passages of one
    question that come in the same order; two whose logits are nearer than ``TIE`` don't count.
    """

    max_difference: float
    min_agreement: float


TOLERANCES = {
    "fp32": Tolerance(0.0005, 0.999),
    "fp16": Tolerance(0.02, 0.98),
    "int8": Tolerance(0.15, 0.9),
}
TIE = 0.001

QUESTIONS = (
    "How many days of annual leave do I have?",
    "who signs a purchase order over 10,000 euros",
    "¿Cuántos días de vacaciones me quedan este año?",
    "Why does the lookup in a balanced search tree take logarithmic time, and what is the price "
    "that its insertions and deletions pay for it?",
)
PASSAGES = (
    "Leave",
    "ERROR 0x80070005: access is denied (os error 5)",
    "Full-time employees receive 28 days of annual leave.",
    "naïve café – 20 °C, 東京 2024 🙂; IBAN DE89 3704 0044 0532 0130 00",
    "Los empleados a tiempo completo tienen 28 días de vacaciones al año.",
    "Travel is booked through the portal; a receipt is needed for every amount above 25 euros.",
    "Purchases > Approval\nOrders up to 1,000 euros are signed by the team lead, up to 10,000 by "
    "the head of department, and above that by the managing director.",
    "The river rose two metres in a single night. By morning the lower fields were under water, "
    "the road to the mill was cut, and the farmers had moved their cattle to the hill.",
    "A binary search tree keeps smaller keys to the left and larger keys to the right of each "
    "node, so that a lookup follows one path from the root and takes time that grows with the "
    "height of the tree; balanced variants keep that height logarithmic by rotations.",
    "Employees who fall ill during their holiday hand in a medical certificate from the first day "
    "of illness. The days covered by the certificate do not count as leave. The remaining days are "
    "agreed anew with the manager, and they expire at the end of March of the following year "
    "unless the illness lasts beyond that date.",
    "Bread needs little: flour, water, salt and time. Mix five hundred grams of flour with three "
    "hundred and fifty of water and let it rest for half an hour. Add ten grams of salt and a "
    "little yeast, fold the dough four times over two hours, shape it and leave it in a cool place "
    "overnight. In the morning heat the oven as far as it goes, with a heavy pot inside, and bake "
    "the loaf in the pot for forty minutes, the last fifteen without the lid.",
)
"""Texts of several kinds and lengths; ``sample_pairs`` adds one longer than any model takes."""


@dataclass(frozen=True)
class CrossEncoder:
    """How a model turns a question and a passage into one score."""

    name: str
    source: Source
    activation: str
    max_tokens: int


class Scoring(torch.nn.Module):
    """A classifier of one label: ids, mask, perhaps types [batch, sequence] to logits [batch]."""

    def __init__(self, classifier: torch.nn.Module, takes_types: bool) -> None:
        super().__init__()
        self.classifier = classifier
        self.inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if takes_types else [])]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = self.classifier(input_ids=input_ids, attention_mask=attention_mask, **types)
        return output.logits[:, 0].float()


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    quieten()
    disable_progress_bar()

    def work() -> None:
        version = version_of(options, RERANK)
        if options.dry_run:
            Plan.of(options, options.repository / RERANK.folder(version)).show()
        else:
            export(options, version)

    return run(work)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Export a cross-encoder to ONNX as the reranker of the model `rerank`.",
        epilog="A model whose scores differ too much from the original's is not installed.",
    )
    common_options(parser, default=None, default_name=None)
    parser.add_argument(
        "--precision", choices=tuple(TOLERANCES), default="fp32",
        help="int8: for CPUs; fp16: for GPUs (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-tokens", type=int,
        help="longest pair of question and passage (default: the model's own)",
    )  # fmt: skip
    parser.add_argument(
        "--activation", choices=ACTIVATIONS,
        help="what makes a score of the logit (default: the model's own, else sigmoid)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def export(options: argparse.Namespace, version: int) -> None:
    started = time.perf_counter()
    encoder = describe(options)
    print(f"{encoder.name}: {encoder.activation} score, {encoder.max_tokens} tokens")
    original, tokenizer = load(encoder.source.folder)
    target = options.repository / RERANK.folder(version)
    with installing(options.repository, RERANK, version) as folder:
        print(f"exporting to ONNX, {options.precision} …", flush=True)
        write_graph(original, options.precision, folder)
        write_tokenizer(tokenizer, folder)
        print("comparing with the original …", flush=True)
        session = open_session(folder / "model.onnx")
        parity = compare(original, tokenizer, session, folder, encoder.max_tokens)
        forced = judge(parity, options.precision, options.force)
        RerankerManifest(
            model=encoder.name,
            revision=encoder.source.revision,
            precision=options.precision,
            **artifact_facts(folder),
            source_files=encoder.source.hashes(),
            options={"max_tokens": options.max_tokens, "activation": options.activation},
            forced=forced,
            max_tokens=encoder.max_tokens,
            activation=encoder.activation,
            parity=parity,
            speed=measure(session, folder, encoder.max_tokens),
            versions=installed_versions("torch", "transformers", "onnx", "onnxruntime"),
        ).save(folder)
    seconds = time.perf_counter() - started
    print(f"wrote {target}: {size(folder_size(target))} in {seconds:.1f} s")
    print(f"serve it with `tritonrag up --config {RERANK.name}`")


def describe(options: argparse.Namespace) -> CrossEncoder:
    """Read what the model's own files say about its use, and apply the caller's flags."""
    source = source_of(options)
    config = read_json(source.folder / "config.json")
    check_kind(source.folder, config)
    return CrossEncoder(
        name=options.name or source.id,
        source=source,
        activation=options.activation or activation_of(source.folder, config),
        max_tokens=max_tokens_of(source.folder, config, options.max_tokens),
    )


def check_kind(folder: Path, config: dict[str, Any]) -> None:
    """Check that the model is a BERT-type classifier of one label.

    Raises:
        SetupError: it is something else.
    """
    if config.get("model_type") not in CLASSIFIERS:
        raise SetupError(
            f"{folder}: model_type {config.get('model_type')!r} is not a BERT-type cross-encoder; "
            f"supported are {', '.join(CLASSIFIERS)}"
        )
    architectures = config.get("architectures") or ["none named"]
    if not architectures[0].endswith("ForSequenceClassification"):
        raise SetupError(
            f"{folder}: its architecture is {architectures[0]}, expected a cross-encoder "
            "(…ForSequenceClassification)"
        )
    # As transformers reads it: two labels where the file names none.
    labels = len(config.get("id2label") or {}) or config.get("num_labels", 2)
    if labels != 1:
        raise SetupError(
            f"{folder}: gives {labels} labels for a pair, expected one; rerankers such as "
            "BAAI/bge-reranker-base have one"
        )


def activation_of(folder: Path, config: dict[str, Any]) -> str:
    """Return what sentence-transformers would put on the logit: its setting, else sigmoid.

    Raises:
        SetupError: the model asks for another function.
    """
    own = read_json(folder / "config_sentence_transformers.json", default={})
    named = (
        own.get("activation_fn")
        or (config.get("sentence_transformers") or {}).get("activation_fn")
        or config.get("sbert_ce_default_activation_function")
        or "Sigmoid"
    )
    activation = str(named).rsplit(".", 1)[-1].lower()
    if activation not in ACTIVATIONS:
        raise SetupError(f"{folder}: activation {named} is not supported; choose with --activation")
    return activation


def load(folder: Path) -> tuple[Scoring, Any]:
    model, tokenizer = load_original(AutoModelForSequenceClassification, folder)
    # RoBERTa's layer of types has a single row, and its tokenizer names none.
    takes_types = (
        takes(model, "token_type_ids")
        and "token_type_ids" in tokenizer.model_input_names
        and getattr(model.config, "type_vocab_size", 1) > 1
    )
    return Scoring(model, takes_types).eval(), tokenizer


def write_graph(model: Scoring, precision: str, folder: Path) -> None:
    """Write ``model.onnx`` into ``folder``."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        graph = Path(scratch) / "graph"
        write_onnx(lowered(model, precision), graph, model.inputs, "logits")
        if precision == "int8":
            quantize(graph, "blocks")
        for file in graph.iterdir():
            file.rename(folder / file.name)


def compare(
    model: Scoring,
    tokenizer: Any,
    session: onnxruntime.InferenceSession,
    folder: Path,
    max_tokens: int,
) -> dict[str, float]:
    """Compare pair by pair, the original alone and unpadded, the export in batches as served."""
    pairs = sample_pairs()
    wanted = score_original(model, tokenizer, pairs, max_tokens)
    worst = {"max_difference": 0.0, "min_agreement": 1.0}
    print("  batch   max difference   order agreement")
    for rows in BATCHES:
        limits = BatchLimits(rows, rows * max_tokens * 2)
        served = Reranker(pair_tokenizer(folder, max_tokens), scorer(session), "sigmoid", limits)
        got = served.logits(pairs)
        difference = np.abs(activated(got, "sigmoid") - activated(wanted, "sigmoid")).max()
        agreement = agreement_of(got, wanted)
        print(f"  {rows:5}   {difference:14.2e}   {agreement:15.4f}")
        # NaN is the worst of all: neither max nor min would keep it.
        worst["max_difference"] = float(np.maximum(worst["max_difference"], difference))
        worst["min_agreement"] = min(agreement, worst["min_agreement"])
    return {name: round(value, 8) for name, value in worst.items()}


def sample_pairs() -> list[tuple[str, str]]:
    """Return each question with each passage, question by question."""
    return list(itertools.product(QUESTIONS, (*PASSAGES, " ".join(PASSAGES * 2))))


def score_original(
    model: Scoring, tokenizer: Any, pairs: list[tuple[str, str]], max_tokens: int
) -> Floats:
    logits = []
    for pair in pairs:
        tokens = tokenizer(*pair, truncation=True, max_length=max_tokens, return_tensors="pt")
        with torch.no_grad():
            logits.append(model(*(tokens[name] for name in model.inputs)).item())
    return np.array(logits, np.float32)


def pair_tokenizer(folder: Path, max_tokens: int) -> PairTokenizer:
    return PairTokenizer(folder / "tokenizer.json", max_tokens)


def scorer(session: onnxruntime.InferenceSession) -> Any:
    names = [each.name for each in session.get_inputs()]

    def score(ids: Ids, mask: Ids, types: Ids) -> Floats:
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        (logits,) = session.run(["logits"], {name: known[name] for name in names})
        return np.asarray(logits, np.float32)

    return score


def agreement_of(got: Floats, wanted: Floats) -> float:
    """Return the share of pairs of passages of one question that come in the same order."""
    shape = (len(QUESTIONS), -1)
    first, second = np.triu_indices(got.reshape(shape).shape[1], 1)
    rows = [logits.reshape(shape) for logits in (got, wanted)]
    gaps, original = (row[:, first] - row[:, second] for row in rows)
    counted = np.abs(original) >= TIE
    same = np.sign(gaps[counted]) == np.sign(original[counted])
    return float(same.mean()) if counted.any() else 1.0


def judge(parity: dict[str, float], precision: str, force: bool) -> bool:
    """Return whether the model is installed by force only."""
    limit = TOLERANCES[precision]
    finding = (
        f"scores differ by up to {parity['max_difference']:.4f} from the original's (at most "
        f"{limit.max_difference} for {precision}) and {parity['min_agreement']:.4f} of the order "
        f"agrees (at least {limit.min_agreement})"
    )
    # A comparison with NaN is false, so this form refuses one.
    close = (
        parity["max_difference"] <= limit.max_difference
        and parity["min_agreement"] >= limit.min_agreement
    )
    return judged(close, finding, force=force)


def measure(
    session: onnxruntime.InferenceSession, folder: Path, max_tokens: int
) -> dict[str, float]:
    """Return how many pairs of ``SPEED_TOKENS`` are scored in a second on this machine's CPU."""
    tokens = min(SPEED_TOKENS, max_tokens)
    tokenizer, score = pair_tokenizer(folder, tokens), scorer(session)
    (longest,) = tokenizer.encode([sample_pairs()[-1]])
    speed: dict[str, float] = {"tokens": tokens}
    for rows in (1, 32):
        inputs = tokenizer.pad([longest] * rows)
        score(*inputs)  # the first run of a shape also plans its memory
        runs, started = 0, time.perf_counter()
        while not runs or time.perf_counter() - started < SPEED_SECONDS:
            score(*inputs)
            runs += 1
        rate = runs * rows / (time.perf_counter() - started)
        speed[f"batch_{rows}_pairs_per_s"] = round(rate, 1)
        print(f"  batch {rows:2}: {rate:.1f} pairs/s of {tokens} tokens")
    return speed


if __name__ == "__main__":
    sys.exit(main())
