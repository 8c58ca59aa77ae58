"""Fixtures of the model tests; see ``tiny_artifacts``."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_artifacts


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with an embedder and the manifest and tokenizer of an LLM."""
    root = tmp_path_factory.mktemp("repository")
    tiny_artifacts.install(root)
    return root


@pytest.fixture
def index_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, empty, that ``retrieve`` reads its index from."""
    monkeypatch.setenv("TRITONRAG_INDEX_DIR", str(tmp_path / "index"))
    return tmp_path / "index"
