"""Freshly initialised cross-encoders of two kinds, with tokenizers trained on a few texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SPECIAL = {
    "bert": {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
             "mask_token": "[MASK]"},
    "xlm-roberta": {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>",
                    "unk_token": "<unk>", "mask_token": "<mask>", "cls_token": "<s>",
                    "sep_token": "</s>"},
}  # fmt: skip
PAIR = {
    "bert": "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
    "xlm-roberta": "<s>:0 $A:0 </s>:0 </s>:0 $B:0 </s>:0",
}
INPUTS = {
    "bert": ["input_ids", "token_type_ids", "attention_mask"],
    "xlm-roberta": ["input_ids", "attention_mask"],
}
POSITIONS = 160


def save_tiny_reranker(
    folder: Path, kind: str, texts: Sequence[str], labels: int = 1, seed: int = 0
) -> None:
    """Save a cross-encoder of random weights; ``kind`` is ``bert`` or ``xlm-roberta``."""
    import torch
    import transformers

    tokenizer = train_tokenizer(kind, texts)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": POSITIONS,
        "initializer_range": 0.3, "num_labels": labels, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if kind == "bert":
        model = transformers.BertForSequenceClassification(transformers.BertConfig(**settings))
    else:
        config = transformers.XLMRobertaConfig(**settings, type_vocab_size=1)
        model = transformers.XLMRobertaForSequenceClassification(config)
    model.save_pretrained(folder)


def train_tokenizer(kind: str, texts: Sequence[str]) -> Any:
    """Return a byte-level BPE tokenizer that joins pairs as models of that kind do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = SPECIAL[kind]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=list(dict.fromkeys(special.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    names = {special["cls_token"], special["sep_token"]}
    tokenizer.post_processor = processors.TemplateProcessing(
        single=PAIR[kind].split(" $B")[0].removesuffix(" </s>:0"),
        pair=PAIR[kind],
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in sorted(names)],
    )
    # Both must be gone from the exported file: the server sets them.
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=16)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=INPUTS[kind], **special
    )


def original_logits(folder: Path, pairs: Sequence[tuple[str, str]], max_tokens: int) -> list[float]:
    """Return what transformers makes of each pair alone, unpadded."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    found = []
    for pair in pairs:
        tokens = tokenizer(*pair, truncation=True, max_length=max_tokens, return_tensors="pt")
        with torch.no_grad():
            found.append(model(**tokens).logits.item())
    return found
