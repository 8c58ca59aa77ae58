"""What the export programs write and the server reads back: artefact folders with a manifest.

    model_repository/embed/1/         model.onnx  tokenizer.json  manifest.json
    model_repository/generate/1/llm/  genai_config.json  model.onnx[.data]  tokenizer.json …
                                      manifest.json

``tokenize``, ``retrieve`` and ``prompt`` read their neighbours' manifests, so that a new embedder
or LLM is one folder to replace and nothing to configure. ``staged`` replaces such a folder as a
whole. This module knows neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from tritonrag.errors import SetupError

EMBEDDER_DIR = Path("embed/1")
LLM_DIR = Path("generate/1/llm")
MANIFEST = "manifest.json"

_Manifest = TypeVar("_Manifest")


@dataclass(frozen=True)
class EmbedderManifest:
    """An installed embedder.

    ``sha256`` is that of the model's files (:func:`model_sha256`); with ``model`` and ``precision``
    it identifies the vector space, so an index built by another file is refused. ``prefixes`` maps
    a role to the text put before each input. ``parity`` is what the export measured against the
    original.
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
    """An installed LLM. ``grounding`` is its default; special tokens are for the chat template.

    ``pointers`` is how many sentence pointers it has (:mod:`tritonrag.quoting`), 0 for most.
    """

    model: str
    precision: str
    sha256: str
    context_tokens: int
    grounding: str
    chat_template: str
    special_tokens: dict[str, str]
    parity: dict[str, float]
    versions: dict[str, str]
    pointers: int = 0

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
    return _digest([path])


def model_sha256(folder: Path) -> str:
    """Return the SHA-256 of ``model.onnx`` followed by its external weights, if it has any."""
    data = folder / "model.onnx.data"
    return _digest([folder / "model.onnx", *([data] if data.exists() else [])])


def folder_size(folder: Path) -> int:
    """Return the bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def installed_versions(*packages: str) -> dict[str, str]:
    """Return the installed version of each package."""
    return {package: version(package) for package in packages}


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that takes its place when the block ends well.

    If the block fails or is interrupted, ``target`` stays as it was and the new folder is removed.
    What a killed run left behind is put right by the next one. Readers see either the old or the
    new folder whole; between two renames, for microseconds, neither.

    Raises:
        SetupError: another process is replacing the same folder, or it cannot be written.
    """
    new = target.with_name(f".{target.name}.new")
    old = target.with_name(f".{target.name}.old")
    with _locked(target.parent):
        if old.exists() and not target.exists():
            old.rename(target)
        _remove(new, old)
        try:
            new.mkdir()
            yield new
            _replace(target, new, old)
        finally:
            _remove(new, old)


def resolve_model(model: str) -> Path:
    """Return the local folder of a Hugging Face model: ``model`` itself, or else fetched as an id.

    Raises:
        SetupError: no such folder, no model in it, or the hub did not give it.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", model):
            raise SetupError(f"{model}: no such folder; give a Hugging Face folder or hub id")
        folder = _fetch(model)
    if not (folder / "config.json").is_file():
        raise SetupError(f"{model}: no config.json in it; give a Hugging Face model folder")
    return folder


def model_name(model: str) -> str:
    """Return a name for messages: the hub id, or the folder's name (its parent's for ``model``)."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def read_json(path: Path, default: Any = None) -> Any:
    """Return the contents of a JSON file, or ``default`` where one is given and there is no file.

    Raises:
        SetupError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if default is not None:
            return default
        raise SetupError(f"{path}: no such file") from None
    except ValueError as error:
        raise SetupError(f"{path}: not JSON ({error})") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise SetupError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SetupError(f"{folder}: another export is writing here; wait for it") from None


def _replace(target: Path, new: Path, old: Path) -> None:
    """Put ``new`` in the place of ``target``; rename cannot replace a folder that has files."""
    try:
        if target.exists():
            target.rename(old)
        new.rename(target)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _fetch(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise SetupError(
            f"{model}: no such folder here, and the Hugging Face hub did not give it "
            f"({type(error).__name__}); give the path of a local folder"
        ) from error


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _load(cls: type[_Manifest], path: Path, program: str) -> _Manifest:
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
