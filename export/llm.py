"""Export a Llama-type LLM into the model repository for ``generate``, with ONNX Runtime GenAI.

    python export/llm.py                                        the demo LLM of this repository
    python export/llm.py --model meta-llama/Llama-3.2-1B-Instruct --precision int4

Writes ``<repository>/generate/1/llm/``, or the version that ``--as-version`` names: what the GenAI
builder makes (``genai_config.json``, ``model.onnx`` with its weights, the tokenizer) and
``manifest.json`` with the chat template. The result is compared with the original in PyTorch, and a
model that is not close enough is not installed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tritonrag import prompting, quoting
from tritonrag.artifacts import (
    LlmManifest,
    artifact_facts,
    folder_size,
    installed_versions,
    read_json,
)
from tritonrag.contract import GROUNDINGS
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
from tritonrag.versions import GENERATE

try:
    import onnxruntime_genai as genai
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar
except ImportError as missing:
    sys.exit(f"error: {missing}; install what the export needs: pip install 'tritonrag[export]'")

DEMO_MODEL = Path(__file__).parent / "demo_llm" / "model"
ARCHITECTURES = ("LlamaForCausalLM",)
MIN_CONTEXT = 256

DEFAULT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For a model without a chat template: ``Role: content`` paragraphs, then ``Assistant:``."""


@dataclass(frozen=True)
class Tolerance:
    """How far an export may be from the original.

    ``min_cosine``: mean cosine similarity of the logits, centred per position. Unlike differences
    of probability it does not depend on how peaked the distributions are, so it also judges a
    model that was barely trained. ``max_logprob``: difference of the mean log-probability of real
    text, in nats per token.
    """

    min_cosine: float
    max_logprob: float


TOLERANCES = {"fp32": Tolerance(0.9999, 0.001), "int4": Tolerance(0.93, 0.15)}

READ, DECODED = 16, 64
"""Tokens read at once before the decoding, and tokens decoded one by one, in the comparison."""

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


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    quieten()
    disable_progress_bar()
    return run(lambda: plan(options) if options.dry_run else export(options))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Export a Llama-type LLM to ONNX Runtime GenAI for the model `generate`.",
        epilog="A model whose output differs too much from the original's is not installed.",
    )
    common_options(parser, default=str(DEMO_MODEL), default_name="the demo LLM")
    parser.add_argument(
        "--precision", choices=tuple(TOLERANCES), default="int4",
        help="of the weights (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--grounding", choices=GROUNDINGS,
        help="how `generate` answers by default (default: `tritonrag_grounding` in the model's "
        "config.json, else free)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def plan(options: argparse.Namespace) -> None:
    """Print what an export would do."""
    Plan.of(options, options.repository / GENERATE.folder(version_of(options, GENERATE))).show()


def export(options: argparse.Namespace) -> None:
    started = time.perf_counter()
    version = version_of(options, GENERATE)
    found = source_of(options)
    source = found.folder
    config = check_config(source)
    grounding = options.grounding or config.get("tritonrag_grounding", "free")
    if grounding not in GROUNDINGS:
        raise SetupError(f"{source}: tritonrag_grounding {grounding!r} is not one of {GROUNDINGS}")
    model, tokenizer = load(source)
    template, special_tokens = chat(tokenizer)
    pointers = config.get("tritonrag_pointers", 0)
    check_pointers(tokenizer, pointers)
    name = options.name or found.id
    millions = model.num_parameters() / 1e6
    print(f"{name}: {millions:.1f} M parameters, grounding {grounding}")

    target = options.repository / GENERATE.folder(version)
    with installing(options.repository, GENERATE, version) as folder:
        print(f"building for ONNX Runtime GenAI, {options.precision} …", flush=True)
        build(source, folder, options.precision)
        print("comparing with the original …", flush=True)
        parity = compare(model, tokenizer, folder)
        forced = judge(parity, options.precision, options.force)
        LlmManifest(
            model=name,
            revision=found.revision,
            precision=options.precision,
            **artifact_facts(folder),
            source_files=found.hashes(),
            forced=forced,
            context_tokens=model.config.max_position_embeddings,
            grounding=grounding,
            chat_template=template,
            special_tokens=special_tokens,
            parity=parity,
            versions=installed_versions("torch", "transformers", "onnxruntime-genai"),
            pointers=pointers,
        ).save(folder)
    seconds = time.perf_counter() - started
    print(f"wrote {target}: {size(folder_size(target))} in {seconds:.1f} s")


def check_config(source: Path) -> dict[str, Any]:
    """Return the model's config.json if it is of a kind that this export knows."""
    config: dict[str, Any] = read_json(source / "config.json")
    architectures = config.get("architectures") or ["none named"]
    if not set(architectures) & set(ARCHITECTURES):
        raise SetupError(
            f"{source}: its architecture is {', '.join(architectures)}; "
            f"supported is {', '.join(ARCHITECTURES)}"
        )
    context = config.get("max_position_embeddings", 0)
    if context < MIN_CONTEXT:
        raise SetupError(f"{source}: a context of {context} tokens is too short to answer from")
    return config


def load(source: Path) -> tuple[Any, Any]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, info = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:  # transformers and safetensors raise whatever they like
        raise SetupError(f"{source}: cannot be loaded: {first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise SetupError(f"{source}: its weights lack {len(missing)}, such as {missing[0]}")
    tokens, rows = len(tokenizer), model.config.vocab_size
    # Models often pad their vocabulary by a few rows; a tenth of it is another tokenizer's.
    if not 0.9 * rows <= tokens <= rows:
        raise SetupError(f"{source}: the tokenizer has {tokens} tokens, the model {rows}")
    return model.eval(), tokenizer


def chat(tokenizer: Any) -> tuple[str, dict[str, str]]:
    """Return the chat template and its special tokens, after rendering a prompt with them."""
    template = tokenizer.chat_template or DEFAULT_TEMPLATE
    if isinstance(template, dict):
        template = template["default"]
    names = ("bos_token", "eos_token")
    special = {name: str(getattr(tokenizer, name) or "") for name in names}
    try:
        prompting.chat_template(template, **special)(prompting.messages("How?"))
    except Exception as error:  # a template is a program: it may fail in any way
        raise SetupError(
            f"the model's chat template cannot be used: {first_line(error)}"
        ) from error
    return template, special


def check_pointers(tokenizer: Any, pointers: int) -> None:
    """Check that each sentence pointer is a special token, which decoding leaves out."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    for number in range(pointers):
        if quoting.pointer(number) not in special:
            raise SetupError(
                f"the model's config.json says tritonrag_pointers {pointers}, but its tokenizer "
                f"has no special token {quoting.pointer(number)!r}; they are not of one model"
            )


def build(source: Path, folder: Path, precision: str) -> None:
    """Run the GenAI builder; its many lines are shown only if it fails."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [
                sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source),
                "-o", str(folder), "-p", precision, "-e", "cpu", "-c", cache,
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        raise SetupError(
            f"{source}: the ONNX Runtime GenAI builder failed ({done.returncode}), output above"
        )


def compare(model: Any, tokenizer: Any, folder: Path) -> dict[str, float]:
    """Decode the same tokens with both, on real text and on the original's own greedy answers."""
    try:
        exported = genai.Model(str(folder))
    except Exception as error:  # GenAI raises RuntimeError and others
        raise SetupError(f"the built model cannot be loaded: {first_line(error)}") from error
    check_tokens(tokenizer, genai.Tokenizer(exported))
    texts = [tokens_of(tokenizer, text)[: READ + DECODED + 1] for text in TEXTS]
    answers = [greedy(model, tokens_of(tokenizer, prompt)) for prompt in PROMPTS]
    cosines, logprobs, agreed = [], [], []
    for kind, sequences in (("text", texts), ("answer", answers)):
        for tokens in sequences:
            start = len(tokens) - DECODED - 1 if kind == "answer" else READ
            wanted = original_logits(model, tokens, start)
            got = exported_logits(exported, tokens, start)
            cosines.append(cosine(wanted, got))
            if kind == "text":
                following = tokens[start + 1 :]
                logprobs.append(logprob(got, following) - logprob(wanted, following))
            else:
                agreed.append(got.argmax(1) == wanted.argmax(1))
    parity = {
        "logit_cosine": float(np.concatenate(cosines).mean()),
        "logprob_difference": float(np.concatenate(logprobs).mean()),
        "greedy_agreement": float(np.concatenate(agreed).mean()),
    }
    for name, value in parity.items():
        print(f"  {name:20} {value:10.6f}")
    return {name: round(value, 8) for name, value in parity.items()}


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
    """Return the prompt and the original's greedy answer of exactly ``DECODED + 1`` tokens."""
    with torch.no_grad():
        output = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False, min_new_tokens=DECODED + 1, max_new_tokens=DECODED + 1,
        )  # fmt: skip
    return output[0].tolist()


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
    )
    finding = (
        f"too far from the original for {precision}: logit cosine {parity['logit_cosine']:.4f} "
        f"(at least {tolerance.min_cosine}), log-probability "
        f"{parity['logprob_difference']:+.4f} nats per token (at most {tolerance.max_logprob})"
    )
    return judged(close, finding, force=force)


if __name__ == "__main__":
    sys.exit(main())
