"""What the export programs write beside a model and the server reads back: the manifests.

    model_repository/embed/1/     model.onnx  tokenizer.json  manifest.json
    model_repository/generate/1/  llm/ (genai_config.json, model.onnx, tokenizer.json …)  manifest.json

``tokenize``, ``retrieve`` and ``prompt`` read their neighbours' manifests, so that a new embedder
or LLM is one folder to replace and nothing to configure.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonrag.errors import SetupError

EMBEDDER_DIR = Path("embed/1")
LLM_DIR = Path("generate/1")
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class EmbedderManifest:
    """An installed embedder.

    ``sha256`` is that of ``model.onnx``; with ``model`` and ``precision`` it identifies the vector
    space, so an index built by another file is refused. ``prefixes`` maps a role to the text put
    before each input.
    """

    model: str
    precision: str
    sha256: str
    dimension: int
    max_tokens: int
    pooling: str
    prefixes: dict[str, str]
    parity: dict[str, float]
    versions: dict[str, str]

    @property
    def identity(self) -> str:
        """Return a short name of the vector space for messages and index manifests."""
        return f"{self.model} {self.precision} (sha256 {self.sha256[:12]})"

    @classmethod
    def load(cls, repository: Path) -> EmbedderManifest:
        """Read the manifest of the embedder installed in a model repository.

        Raises:
            SetupError: none is installed, or the file is not such a manifest.
        """
        return _load(cls, repository / EMBEDDER_DIR / MANIFEST, "export/embedder.py")

    def save(self, folder: Path) -> None:
        """Write the manifest into ``folder``."""
        _save(self, folder)


@dataclass(frozen=True)
class LlmManifest:
    """An installed LLM. ``grounding`` is its default; special tokens are for the chat template."""

    model: str
    precision: str
    sha256: str
    context_tokens: int
    grounding: str
    chat_template: str
    special_tokens: dict[str, str]
    parity: dict[str, float]
    versions: dict[str, str]

    @classmethod
    def load(cls, repository: Path) -> LlmManifest:
        """Read the manifest of the LLM installed in a model repository.

        Raises:
            SetupError: none is installed, or the file is not such a manifest.
        """
        return _load(cls, repository / LLM_DIR / MANIFEST, "export/llm.py")

    def save(self, folder: Path) -> None:
        """Write the manifest into ``folder``."""
        _save(self, folder)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _load(cls: type[Any], path: Path, program: str) -> Any:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**values)
    except FileNotFoundError:
        raise SetupError(
            f"{path.parent}: no model is installed here; run `make models` (or {program})"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise SetupError(
            f"{path}: not a manifest of this version ({error}); run {program} again"
        ) from error


def _save(manifest: Any, folder: Path) -> None:
    text = json.dumps(dataclasses.asdict(manifest), indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
