"""The servers of these tests: one over the sample handbook, one over an empty index, and one whose
LLM talks on and on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import (
    HANDBOOK,
    REPOSITORY,
    ROOT,
    Served,
    add,
    eventually,
    found,
    serve,
    set_parameters,
    supervised,
)

from tritonrag.artifacts import LLM_DIR


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The whole graph over the sample handbook."""
    for each in serve(tmp_path_factory.mktemp("served")):
        add(each, HANDBOOK)
        yield each


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The whole graph over the sample handbook, with its watchdog, as `tritonrag up` starts it."""
    with supervised(tmp_path_factory.mktemp("watched")) as each:
        add(each, HANDBOOK)
        eventually(lambda: found(each), 10)
        yield each


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The whole graph with nothing indexed."""
    yield from serve(tmp_path_factory.mktemp("empty"))


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The whole graph over one page, with an LLM that never ends of its own."""
    folder = tmp_path_factory.mktemp("endless")
    save_endless_llm(folder / "llm")
    repository = Path(
        shutil.copytree(REPOSITORY, folder / "repository", ignore=shutil.ignore_patterns("llm"))
    )
    command = [sys.executable, "export/llm.py", "--model", str(folder / "llm")]
    command += ["--precision", "fp32", "--grounding", "free", "--repository", str(repository)]
    exported = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert exported.returncode == 0, exported.stderr
    set_parameters(repository, max_tokens=8192, max_seconds=600)
    (folder / "page.md").write_text("# Leave\n\nEmployees receive 28 days of leave per year.\n")
    for each in serve(folder, repository):
        add(each, folder / "page.md")
        yield each


def save_endless_llm(folder: Path) -> None:
    """Save a Llama of random layers whose last one always prefers the same word."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / LLM_DIR)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=8192,
        tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 5.0  # the same in every token, so it stays positive
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.encode(" and", add_special_tokens=False)[0], 0] = 10.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
