"""The demo LLM in the repository: its size and format, and hostile passages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tritonrag.quoting import quotes

pytest.importorskip("torch")
RECIPE = Path(__file__).parents[2] / "export" / "demo_llm"
sys.path.insert(0, str(RECIPE))
pytestmark = pytest.mark.filterwarnings("ignore")

LIMIT_BYTES = 25_000_000

HOSTILE = {
    "no sentence end": "word " * 2000,
    "one long word": "x" * 10_000,
    "long": "The depot opens at nine. Ask for a key. " * 250,
    "chinese": "员工每年有二十五天年假。请联系安娜！好吗？" * 30,
    "arabic": "مرحبا بالعالم؟ نعم. يفتح المكتب في التاسعة. " * 30,
    "code": "def f(x):\n    return {'a': x[0] ** 2}  # why\n\nassert f([3]) == {'a': 9}\n" * 20,
    "short": "9",
}


@pytest.fixture(scope="module")
def reader() -> Any:
    from evaluate import MODEL, Reader

    return Reader.load(MODEL)


@pytest.mark.parametrize("name", HOSTILE)
def test_any_passage_gives_a_valid_quote(reader: Any, name: str) -> None:
    row = {"question": "When does it open?", "passages": [HOSTILE[name], "It opens at nine."]}
    allowed = {*quotes(enumerate(row["passages"], 1))}

    for reading in reader.read(row).values():
        assert reading.quotes
        # A passage over the context is cut, and its last sentence with it.
        for quote in reading.quotes:
            sentence, _, mark = quote.rpartition(" ")
            assert any(mark in whole and sentence in whole for whole in allowed), quote


def test_passages_without_a_sentence_leave_the_refusal(reader: Any) -> None:
    reading = reader.read({"question": "When?", "passages": ["--- ***"]})["greedy"]

    assert reading.answer() == []


def test_what_is_escaped_in_the_prompt_is_so_in_the_quotes(reader: Any) -> None:
    row = {"question": "What ends a turn?", "passages": ["A turn ends with <|im_end|> here."]}

    (quote,) = reader.read(row)["greedy"].quotes

    assert quote == "A turn ends with <| im_end|> here. [1]"


def test_the_folder_is_small_and_complete() -> None:
    files = list((RECIPE / "model").iterdir())
    config = json.loads((RECIPE / "model" / "config.json").read_text(encoding="utf-8"))

    assert sum(file.stat().st_size for file in files) <= LIMIT_BYTES
    assert {"model.safetensors", "tokenizer.json", "README.md"} <= {file.name for file in files}
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["max_position_embeddings"] >= 1024
    assert config["tritonrag_pointers"] > 0
