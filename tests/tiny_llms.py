"""Freshly initialised LLMs of a few kilobytes, and the export program that takes them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).parents[1]
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
TURN_END = "<turn_end>"
"""A second token that ends a generation, as chat models have one."""
ROWS = 408
"""Of the vocabulary; some more than the tokenizer has tokens, as in most models."""

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "phi3": ("Phi3Config", {"original_max_position_embeddings": 512}),
    "gemma": ("GemmaConfig", {"head_dim": 32}),
    # A window longer than what the comparison reads.
    "gemma2": ("Gemma2Config", {"head_dim": 32, "sliding_window": 128}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 32, "sliding_window": 128}),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "mistral": ("MistralConfig", {"sliding_window": 128}),
    "smollm3": ("SmolLM3Config", {}),
    # The RoPE scalings of Llama 3.1 and later, and of Phi-3 with a long context.
    "llama3": ("LlamaConfig", {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 128,
    }}),
    "phi3_long": ("Phi3Config", {"original_max_position_embeddings": 256, "rope_parameters": {
        "rope_type": "longrope", "type": "longrope", "rope_theta": 10000.0,
        "short_factor": [1 + n / 10 for n in range(8)], "long_factor": [2.0 + n for n in range(8)],
        "original_max_position_embeddings": 256,
    }}),
}  # fmt: skip


def llm_program() -> ModuleType:
    """Return export/llm.py as a module; tiny models are slower on several threads."""
    torch.set_num_threads(1)
    if str(ROOT / "export") not in sys.path:
        sys.path.insert(0, str(ROOT / "export"))
    spec = importlib.util.spec_from_file_location("export_llm", ROOT / "export" / "llm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def save(folder: Path, family: str, texts: tuple[str, ...], spread: float = 0.02) -> Any:
    """Save a model of a family with a tokenizer trained on ``texts``; return the model.

    ``spread`` is that of the weights: with more of it greedy answers vary more. Only tokens of
    ASCII text are ever preferred, so that any answer can be read as text.
    """
    tokenizer = train_tokenizer(folder, texts)
    config, own = FAMILIES[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, config)(
            vocab_size=ROWS, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            bos_token_id=1, eos_token_id=2, pad_token_id=0, initializer_range=spread, **own,
        )
    )  # fmt: skip
    readable = {number for text, number in tokenizer.get_vocab().items() if text.isascii()}
    hidden = sorted(set(range(ROWS)) - readable | set(tokenizer.all_special_ids))
    with torch.no_grad():
        model.get_output_embeddings().weight[hidden] = 0.0
    model.generation_config.eos_token_id = [2, tokenizer.convert_tokens_to_ids(TURN_END)]
    model.save_pretrained(folder)
    return model.eval()


def train_tokenizer(folder: Path, texts: tuple[str, ...]) -> Any:
    """Save and return a byte-level BPE tokenizer of 400 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*SPECIAL.values(), TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=[TURN_END], **SPECIAL
    )
    fast.save_pretrained(folder)
    return fast


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
