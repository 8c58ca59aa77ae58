"""Quotes spelled by token numbers, with a byte-level BPE that knows no character but ASCII's."""

from __future__ import annotations

import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tritonrag.engines.spelling import speller


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    vocabulary |= {"Ã©": 256, "Ġâ": 257}
    merges = [("Ã", "©"), ("Ġ", "â")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def read(tokenizer: Tokenizer, spelled: str) -> str:
    """Return the text that a sequence of terminals stands for."""
    ids: list[int] = []
    for number, text in re.findall(r'<\[(\d+)\]>|"((?:[^"\\]|\\.)*)"', spelled):
        plain = text.replace('\\"', '"').replace("\\\\", "\\")
        ids += [int(number)] if number else tokenizer.encode(plain).ids
    return tokenizer.decode(ids)


@pytest.mark.parametrize("text", ["plain", 'a "quoted" \\ one', "caf\u00e9 with a whole token"])
def test_text_of_whole_tokens_is_a_literal(tokenizer: Tokenizer, text: str) -> None:
    spelled = speller(tokenizer)(text)

    assert spelled is not None
    assert "<[" not in spelled


@pytest.mark.parametrize("text", ["5 € each", "“so” – 你好 👍🏽 ok", "é und ü", 'a "b" €'])
def test_split_characters_are_spelled_by_their_tokens(tokenizer: Tokenizer, text: str) -> None:
    spelled = speller(tokenizer)(text)

    assert spelled is not None
    assert "<[" in spelled
    assert spelled.isascii() or "é" in spelled
    assert read(tokenizer, spelled) == text


@pytest.mark.parametrize("text", ["是！", "ok\ufe0f", "bad \ufffd byte"])
def test_what_the_engine_cannot_follow_is_left_out(tokenizer: Tokenizer, text: str) -> None:
    assert speller(tokenizer)(text) is None
