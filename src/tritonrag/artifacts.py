"""What the export programs write and the server reads back: artefact folders with a manifest.

    model_repository/embed/1/         model.onnx  tokenizer.json  manifest.json
    model_repository/generate/1/llm/  genai_config.json  model.onnx[.data]  tokenizer.json …
                                      manifest.json
    model_repository/rerank/1/cross_encoder/
                                      model.onnx  tokenizer.json  manifest.json
    model_repository/llm/             config.pbtxt  1/: only where vLLM or TensorRT-LLM generates

``tokenize``, ``retrieve`` and ``prompt`` read their neighbours' manifests, each of its own version,
so that a new embedder or LLM is one folder to replace and nothing to configure. ``staged`` replaces
such a folder as a whole. This module knows neither torch nor transformers.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from tritonrag.errors import SetupError
from tritonrag.versions import EMBED, FIRST, GENERATE, MANIFEST, RERANK, Kind, live_version

ENGINES = ("genai", "vllm", "tensorrtllm")
"""Who runs an exported LLM: ONNX Runtime GenAI inside ``generate``, Triton's vLLM backend, or
TensorRT-LLM."""
SERVED_MODEL = "llm"
"""The model folder that vLLM or TensorRT-LLM serves; it exists only while that is the engine."""
PLAN = "model.plan"
"""A TensorRT plan, beside the ONNX file that it was built from."""


def embedder_dir(version: int) -> Path:
    """Return where a version of the embedder lies, below the model repository."""
    return EMBED.folder(version)


def llm_dir(version: int) -> Path:
    """Return where a version of the LLM lies, below the model repository."""
    return GENERATE.folder(version)


def reranker_dir(version: int) -> Path:
    """Return where a version of the reranker lies, below the model repository."""
    return RERANK.folder(version)


EMBEDDER_DIR = embedder_dir(FIRST)
LLM_DIR = llm_dir(FIRST)
RERANKER_DIR = reranker_dir(FIRST)

_Read = TypeVar("_Read", bound="Manifest")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What every installed model says of itself, in ``manifest.json`` beside its files.

    ``sha256`` is that of the model's files (:func:`model_sha256`), ``files`` of each file of the
    artefact and ``source_files`` of each file that it was made from; ``revision`` is the hub's
    commit, "" for a local folder. ``options`` are the flags of the export that shaped it.
    ``parity`` is what the export measured against the original, in fp32; ``forced`` says that this
    was out of tolerance and the model installed all the same. ``speed`` was measured on the machine
    that exported: names end in their unit.
    """

    model: str
    revision: str = ""
    precision: str
    sha256: str
    bytes: int = 0
    files: dict[str, str] = field(default_factory=dict)
    source_files: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, float] = field(default_factory=dict)
    forced: bool = False
    speed: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """Return a short name for messages and index manifests."""
        return f"{self.model} {self.precision} (sha256 {self.sha256[:12]})"

    def save(self, folder: Path) -> None:
        """Write the manifest into ``folder``."""
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class EmbedderManifest(Manifest):
    """An installed embedder. ``prefixes`` maps a role to the text put before each input.

    ``model``, ``precision`` and ``sha256`` identify the vector space: an index built by another
    file is refused.
    """

    dimension: int
    max_tokens: int
    pooling: str
    normalize: bool = True
    prefixes: dict[str, str]

    @classmethod
    def load(cls, repository: Path, version: int | None = None) -> EmbedderManifest:
        """Read the manifest of a version of the embedder, by default of the live one.

        Raises:
            SetupError: none is installed, or the file is not such a manifest.
        """
        return _load(cls, repository, EMBED, version)


@dataclass(frozen=True, kw_only=True)
class LlmManifest(Manifest):
    """An installed LLM. ``grounding`` is its default; special tokens are for the chat template.

    ``engine`` says who runs it (one of :data:`ENGINES`), ``execution`` on what (``cpu`` or
    ``cuda``). Each of ``stop_tokens`` ends a generation. ``pointers`` is how many sentence pointers
    it has (:mod:`tritonrag.quoting`), 0 for most.
    """

    context_tokens: int
    grounding: str
    chat_template: str
    special_tokens: dict[str, str]
    stop_tokens: list[str] = field(default_factory=list)
    engine: str = "genai"
    execution: str = "cpu"
    pointers: int = 0

    @classmethod
    def load(cls, repository: Path, version: int | None = None) -> LlmManifest:
        """Read the manifest of a version of the LLM, by default of the live one.

        Raises:
            SetupError: none is installed, or the file is not such a manifest.
        """
        return _load(cls, repository, GENERATE, version)


@dataclass(frozen=True, kw_only=True)
class RerankerManifest(Manifest):
    """An installed reranker. ``activation`` turns the model's logit into a score.

    ``sigmoid`` gives scores of 0 to 1, ``identity`` the logit itself. ``max_tokens`` bounds a pair
    of question and passage, special tokens included.
    """

    max_tokens: int
    activation: str

    @classmethod
    def load(cls, repository: Path, version: int | None = None) -> RerankerManifest:
        """Read the manifest of a version of the reranker, by default of the live one.

        Raises:
            SetupError: none is installed, or the file is not such a manifest.
        """
        return _load(cls, repository, RERANK, version)


def any_manifest(repository: Path, kind: Kind, version: int) -> Manifest:
    """Return what the manifests of all kinds have in common, of one version.

    Raises:
        SetupError: none is installed, or the file is not a manifest.
    """
    path = repository / kind.folder(version) / MANIFEST
    values = read_json(path)
    names = {each.name for each in dataclasses.fields(Manifest)}
    try:
        return Manifest(**{name: value for name, value in values.items() if name in names})
    except (TypeError, AttributeError) as error:
        raise SetupError(f"{path}: not a manifest ({error}); run {kind.program} again") from error


def artifact_facts(folder: Path) -> dict[str, Any]:
    """Return a manifest's ``sha256``, ``bytes`` and ``files`` for the files now in ``folder``."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "sha256": model_sha256(folder),
        "bytes": folder_size(folder),
        "files": {str(path.relative_to(folder)): sha256(path) for path in paths},
    }


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


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _load(cls: type[_Read], repository: Path, kind: Kind, version: int | None) -> _Read:
    folder = repository / kind.folder(version or live_version(repository, kind))
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**values)
    except FileNotFoundError:
        alone = f"{kind.program} --model ID_OR_DIR"  # `make models` installs no reranker
        remedy = alone if kind is RERANK else f"`make models` (or {kind.program})"
        raise SetupError(f"{folder}: no model is installed here; run {remedy}") from None
    except (OSError, ValueError, TypeError) as error:
        raise SetupError(
            f"{path}: not a manifest of this version ({error}); run {kind.program} again"
        ) from error


def size(count: float) -> str:
    """Return bytes as text, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
