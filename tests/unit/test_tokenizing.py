"""Checks of the texts to embed; the tokenizer itself is in models/test_tokenize.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_artifacts
from tokenizers import Tokenizer

from tritonrag.contract import MAX_QUESTION_BYTES, MAX_TEXT_BYTES
from tritonrag.errors import InvalidRequest, SetupError
from tritonrag.tokenizing import TextTokenizer, check_text


@pytest.mark.parametrize(
    ("text", "role"),
    [
        ("a", "query"),
        ("é" * (MAX_QUESTION_BYTES // 2), "query"),
        ("a" * MAX_TEXT_BYTES, "passage"),
        ("\0", "query"),
    ],
)
def test_texts_within_the_limits(text: str, role: str) -> None:
    check_text(text, role)


@pytest.mark.parametrize(
    ("text", "role", "message"),
    [
        ("", "query", "question: is empty or blank, expected text of 1 to 8192 bytes"),
        ("\u2003\u00a0", "passage", "text: is empty or blank"),
        ("a" * (MAX_QUESTION_BYTES + 1), "query", "question: is 8193 bytes"),
        ("a" * (MAX_TEXT_BYTES + 1), "passage", "text: is 65537 bytes"),
        ("a", "Query", "role: is 'Query', expected query or passage"),
    ],
)
def test_texts_that_are_refused(text: str, role: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        check_text(text, role)

    assert str(raised.value).startswith(message)


def test_special_tokens_in_a_text_are_text(tmp_path: Path) -> None:
    tiny_artifacts.install_embedder(tmp_path, 1)
    file = tmp_path / "embed" / "1" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.save(str(file))
    assert 0 in tokenizer.encode("days [PAD] of").ids

    ids, mask = TextTokenizer(tmp_path, 1).encode(["days [PAD] of"], ["passage"])

    assert 0 not in ids[mask == 1]


def test_without_an_embedder_the_export_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"export/embedder\.py"):
        TextTokenizer(tmp_path, 1)
