"""Export an LLM into the model repository for ``generate``.

    python export/llm.py                                        the demo LLM of this repository
    python export/llm.py --model Qwen/Qwen2.5-0.5B-Instruct --precision int4
    python export/llm.py --model meta-llama/Llama-3.1-8B-Instruct --precision bf16 \\
        --execution cuda --gpu-memory 24 --context 16384
    python export/llm.py --model Qwen/Qwen2.5-7B-Instruct --target vllm         or tensorrtllm

``--target genai`` writes ``<repository>/generate/1/llm/``, or the version that ``--as-version``
names: what the ONNX Runtime GenAI builder makes (``genai_config.json``, ``model.onnx`` with its
weights, the tokenizer) and ``manifest.json`` with the chat template. The result is compared with
the original in PyTorch, and a model that is not close enough is not installed. ``--target vllm``
and ``--target tensorrtllm`` write the tokenizer and the manifest there, and ``<repository>/llm/``,
a model for Triton's vLLM backend or for TensorRT-LLM's LLM API, which reads the original itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tritonrag import quoting
from tritonrag.artifacts import (
    SERVED_MODEL,
    LlmManifest,
    artifact_facts,
    folder_size,
    installed_versions,
    read_json,
    size,
)
from tritonrag.contract import GROUNDINGS
from tritonrag.errors import SetupError
from tritonrag.exporting import (
    BYTES_PER_PARAMETER,
    Plan,
    first_line,
    installing,
    quieten,
    run,
    source_of,
    version_of,
)
from tritonrag.graph.chat_template import ChatTemplate
from tritonrag.sources import Source, check_files, find_source
from tritonrag.versions import GENERATE

try:
    import onnxruntime_genai as genai
    import torch
    from dequantising import load_dequantised
    from llm_options import (
        ARCHITECTURES,
        DEMO_MODEL,
        Recipe,
        cache_lines,
        check_options,
        parse,
        recipe_of,
    )
    from llm_parity import compare, judge, measure_speed
    from llm_served import remove_unused, write
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar
except ImportError as missing:
    sys.exit(f"error: {missing}; install what the export needs: pip install 'tritonrag[export]'")

DEFAULT_MODELS = Path(__file__).parent / "default_models.json"
"""SHA-256 of the files that are exported where no model is named: others are refused."""
BUILDER = Path(__file__).parent / "genai_builder.py"
PREQUANTISED = {"gptq": {4: "int4", 8: "int8"}, "awq": {4: "int4"}}
"""Methods of quantised checkpoints that are read, and bits to the precision they are built in."""

DEFAULT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}\n\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""For a model without a chat template: ``Role: content`` paragraphs, then ``Assistant:``."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    quieten()
    disable_progress_bar()

    def work() -> None:
        if not options.model:
            options.model = str(DEMO_MODEL)
            check_files(find_source(options.model), read_json(DEFAULT_MODELS)["llm"])
        check_options(options)
        if options.dry_run:
            plan(options)
        elif options.target == "genai":
            export(options)
        else:
            install_served(options)

    return run(work)


def plan(options: argparse.Namespace) -> None:
    """Print what an export would do."""
    genai_built = options.target == "genai"
    artefact = GENERATE.folder(version_of(options, GENERATE))
    target = options.repository / (artefact if genai_built else SERVED_MODEL)
    named = options.precision or "bf16"
    planned = Plan.of(argparse.Namespace(**(vars(options) | {"precision": named})), target)
    config = read_json(planned.config)
    if genai_built:
        check_config(options.model, config, options.precision)
    else:
        planned = dataclasses.replace(planned, rebuilt=False)
    if config.get("quantization_config"):
        # Several weights are packed into each number of the files, so these sizes are theirs.
        stored = sum(file.bytes for file in planned.files if file.name.endswith(".safetensors"))
        parameters = round(stored / BYTES_PER_PARAMETER["int4"])
        planned = dataclasses.replace(planned, artefact=stored, parameters=parameters)
    planned.show(cache_lines(options, config, planned.artefact))


def export(options: argparse.Namespace) -> None:
    """Build, compare and install a model for ONNX Runtime GenAI."""
    started = time.perf_counter()
    version = version_of(options, GENERATE)
    found = source_of(options)
    source = found.folder
    config: dict[str, Any] = read_json(source / "config.json")
    check_config(str(source), config, options.precision)
    comparable = check_device(options)
    described, tokenizer = describe(options, found, config)
    model = load(source, config, tokenizer)
    weights = round(model.num_parameters() * BYTES_PER_PARAMETER[options.precision])
    recipe = recipe_of(options, config, weights)
    print(
        f"{described['model']}: {model.num_parameters() / 1e6:.1f} M parameters, "
        f"context {recipe.context}, grounding {described['grounding']}"
    )

    target = options.repository / GENERATE.folder(version)
    with installing(options.repository, GENERATE, version) as folder:
        print(
            f"building for ONNX Runtime GenAI, {recipe.precision} on {recipe.execution} …",
            flush=True,
        )
        build(source, folder, recipe)
        stop_tokens = stops_of(folder, source, tokenizer)
        parity: dict[str, float] = {}
        speed: dict[str, float] = {}
        forced = True
        if comparable:
            print("comparing with the original …", flush=True)
            parity = compared(model, tokenizer, source, folder, recipe)
            forced = judge(parity, recipe.precision, options.force)
            speed = measure_speed(folder, tokenizer, recipe.context)
        LlmManifest(
            **described,
            **artifact_facts(folder),
            precision=recipe.precision,
            execution=recipe.execution,
            source_files=found.hashes(),
            options=recipe.named(),
            forced=forced,
            context_tokens=recipe.context,
            stop_tokens=stop_tokens,
            parity=parity,
            speed=speed,
            # The package for CUDA has another name.
            versions=installed_versions("torch", "transformers")
            | {"onnxruntime-genai": genai.__version__},
        ).save(folder)
    remove_unused(options.repository)
    seconds = time.perf_counter() - started
    print(f"wrote {target}: {size(folder_size(target))} in {seconds:.1f} s")


def compared(
    model: Any, tokenizer: Any, source: Path, folder: Path, recipe: Recipe
) -> dict[str, float]:
    """Compare the built model; a paged one gives no logits, so that the same weights without do."""
    if not recipe.paged:
        return compare(model, tokenizer, folder, folder)
    unpaged = folder / "unpaged"
    build(source, unpaged, dataclasses.replace(recipe, paged=None))
    parity = compare(model, tokenizer, unpaged, folder)
    shutil.rmtree(unpaged)
    return parity


def install_served(options: argparse.Namespace) -> None:
    """Install a model that another model of the server runs."""
    found = source_of(options)
    config: dict[str, Any] = read_json(found.folder / "config.json")
    described, tokenizer = describe(options, found, config)
    stops = texts_of(tokenizer, wanted_stops(found.folder, tokenizer))
    write(options, found, config, described, tokenizer, stops)


def check_config(source: str, config: dict[str, Any], precision: str) -> None:
    """Check that a model's config.json is of a kind that the builder makes."""
    architectures = config.get("architectures") or ["none named"]
    if not set(architectures) & set(ARCHITECTURES):
        raise SetupError(
            f"{source}: its architecture is {', '.join(architectures)}; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    quantised = config.get("quantization_config")
    if quantised:
        method, bits = str(quantised.get("quant_method")), quantised.get("bits")
        built = PREQUANTISED.get(method, {}).get(bits)
        if built is None:
            raise SetupError(
                f"{source}: its weights are quantised by {method} to {bits} bits; supported are "
                "gptq (4, 8) and awq (4), and models that are not quantised"
            )
        if precision != built:
            raise SetupError(
                f"{source}: its weights are quantised by {method} to {bits} bits and stay as they "
                f"are; give --precision {built}"
            )


def check_device(options: argparse.Namespace) -> bool:
    """Return whether the export can be run here, and so compared with the original."""
    if options.execution == "cpu" or genai.is_cuda_available():
        return True
    if not options.force:
        raise SetupError(
            "--execution cuda: there is no GPU here for this ONNX Runtime GenAI, so that the model "
            "could not be compared with the original; export where onnxruntime-genai-cuda and a "
            "GPU are, or add --force to install it uncompared"
        )
    print("warning: no GPU here: the model is installed uncompared", file=sys.stderr)
    return False


def describe(
    options: argparse.Namespace, found: Source, config: dict[str, Any]
) -> tuple[dict[str, Any], Any]:
    """Return what a manifest says of the model whichever engine runs it, and its tokenizer."""
    grounding = options.grounding or config.get("tritonrag_grounding", "free")
    if grounding not in GROUNDINGS:
        raise SetupError(
            f"{found.folder}: tritonrag_grounding {grounding!r} is not one of {GROUNDINGS}"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(found.folder)
    except Exception as error:  # transformers raises whatever it likes
        raise SetupError(
            f"{found.folder}: its tokenizer cannot be loaded: {first_line(error)}"
        ) from error
    template, special_tokens = chat(tokenizer)
    pointers = config.get("tritonrag_pointers", 0)
    check_pointers(tokenizer, pointers)
    described = {
        "model": options.name or found.id,
        "revision": found.revision,
        "grounding": grounding,
        "chat_template": template,
        "special_tokens": special_tokens,
        "pointers": pointers,
    }
    return described, tokenizer


def load(source: Path, config: dict[str, Any], tokenizer: Any) -> Any:
    """Return the original in fp32, a quantised one with the weights that its codes stand for."""
    try:
        if config.get("quantization_config"):
            model, missing = load_dequantised(source, config["quantization_config"])
        else:
            model, info = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True
            )
            missing = sorted(info["missing_keys"])
    except SetupError:
        raise
    except Exception as error:  # transformers and safetensors raise whatever they like
        raise SetupError(f"{source}: cannot be loaded: {first_line(error)}") from error
    if missing:
        raise SetupError(f"{source}: its weights lack {len(missing)}, such as {missing[0]}")
    check_vocabulary(source, tokenizer, model.config.vocab_size)
    return model.eval()


def check_vocabulary(source: Path, tokenizer: Any, rows: int) -> None:
    """Check that tokenizer and weights are of one model.

    Models often pad their vocabulary by a few rows; a tenth of it is another tokenizer's. Some
    tokenizers have special tokens more than the model has rows, which no text becomes.
    """
    beyond = {number for number in tokenizer.get_vocab().values() if number >= rows}
    special = {n for n, token in tokenizer.added_tokens_decoder.items() if token.special}
    if len(tokenizer) < 0.9 * rows or not beyond <= special:
        raise SetupError(f"{source}: the tokenizer has {len(tokenizer)} tokens, the model {rows}")


def chat(tokenizer: Any) -> tuple[str, dict[str, str]]:
    """Return the chat template and its special tokens, after rendering a prompt with them."""
    template = tokenizer.chat_template or DEFAULT_TEMPLATE
    if isinstance(template, dict):
        template = template["default"]
    names = ("bos_token", "eos_token")
    special = {name: str(getattr(tokenizer, name) or "") for name in names}
    try:
        ChatTemplate(template, **special).check()
    except SetupError as error:
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


def build(source: Path, folder: Path, recipe: Recipe) -> None:
    """Run the GenAI builder; its many lines are shown only if it fails."""
    folder.mkdir(exist_ok=True)
    # What it stores on its way lies on the disk that `--dry-run` looks at, and goes with `folder`.
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        done = subprocess.run(
            [
                sys.executable, str(BUILDER), "-i", str(source),
                "-o", str(folder), "-p", recipe.precision, "-e", recipe.execution, "-c", cache,
                "--extra_options", *recipe.extras(),
            ],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        if os.strerror(errno.ENOSPC) in done.stdout:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        print(done.stdout, file=sys.stderr)
        raise SetupError(
            f"{source}: the ONNX Runtime GenAI builder failed ({done.returncode}), output above"
        )
    set_context(folder, recipe.context)


def set_context(folder: Path, context: int) -> None:
    """Write the context into the built model's settings; the builder takes the model's own."""
    path = folder / "genai_config.json"
    settings = read_json(path)
    settings["model"]["context_length"] = context
    settings["search"]["max_length"] = context
    path.write_text(json.dumps(settings, indent=4), encoding="utf-8")


def stops_of(folder: Path, source: Path, tokenizer: Any) -> list[str]:
    """Return the tokens that end a generation in the built model."""
    found = read_json(folder / "genai_config.json")["model"]["eos_token_id"]
    numbers = found if isinstance(found, list) else [found]
    lost = wanted_stops(source, tokenizer) - set(numbers)
    if lost:
        raise SetupError(
            f"{source}: {', '.join(texts_of(tokenizer, lost))} would not end a generation: the "
            "builder left it out of eos_token_id"
        )
    return texts_of(tokenizer, numbers)


def wanted_stops(source: Path, tokenizer: Any) -> set[int]:
    """Return the ids that end a generation of the original: of its settings and its tokenizer."""
    wanted: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        found = read_json(source / name, default={}).get("eos_token_id")
        if found is not None:
            wanted |= set(found if isinstance(found, list) else [found])
            break
    return wanted | ({tokenizer.eos_token_id} - {None})


def texts_of(tokenizer: Any, numbers: Sequence[int] | set[int]) -> list[str]:
    return [str(text) for text in tokenizer.convert_ids_to_tokens(sorted(set(numbers)))]


if __name__ == "__main__":
    sys.exit(main())
