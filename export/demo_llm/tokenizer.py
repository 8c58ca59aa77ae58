"""Train the demo LLM's tokenizer: cased byte-level BPE.

    python export/demo_llm/tokenizer.py

A sentence always follows a space in prompt and answer, so a word is the same token wherever it
stands.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from corpus import WORK, read_jsonl
from examples import CHAT_TEMPLATE, CONTEXT, END, PAD, POINTERS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tritonrag.quoting import pointer


def main() -> None:
    """Read the command line, train and write the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--vocabulary", type=int, default=8192)
    arguments = parser.parse_args()
    tokenizer = train(texts(arguments.work), arguments.vocabulary)
    wrapped(tokenizer).save_pretrained(arguments.work / "tokenizer")
    print(f"{tokenizer.get_vocab_size()} tokens -> {arguments.work / 'tokenizer'}")


def texts(work: Path) -> Iterator[str]:
    """Yield the training text: question rows four times, so that they outweigh the archives."""
    for row in read_jsonl(work / "rows.jsonl") * 4:
        yield f"Question: {row['question']}\n\n[1] {' '.join(row['sentences'])}"
    for passage in read_jsonl(work / "pool.jsonl"):
        yield f"[2] {passage['heading']}: {' '.join(passage['sentences'])}"


def train(lines: Iterator[str], size: int) -> Tokenizer:
    """Return a byte-level BPE of ``size`` tokens with the pre-tokenizer of GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[PAD, END, *map(pointer, range(POINTERS))],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """Return the tokenizer as ``transformers`` loads it, with the chat template."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, model_max_length=CONTEXT
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


if __name__ == "__main__":
    main()
