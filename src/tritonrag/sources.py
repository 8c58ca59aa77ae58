"""Where a model to export comes from: a local folder, or the Hugging Face hub.

Downloads go through ``huggingface_hub``: they resume, land in its cache (``HF_HOME``) and work
offline from there. Knows neither torch nor what the model is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tritonrag.artifacts import sha256
from tritonrag.errors import SetupError

PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What an export reads of a hub model; other formats of its weights stay where they are."""

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True)
class SourceFile:
    """A file of a model: its path in the model's folder, bytes, and whether it is here already."""

    name: str
    bytes: int
    here: bool


@dataclass(frozen=True)
class Source:
    """A model's folder on this machine; ``revision`` is the hub's commit, "" for a local folder."""

    id: str
    folder: Path
    revision: str

    def files(self) -> list[SourceFile]:
        """Return the files that an export may read."""
        return [SourceFile(name, path.stat().st_size, True) for name, path in self._paths()]

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each file."""
        return {name: sha256(path) for name, path in self._paths()}

    def _paths(self) -> list[tuple[str, Path]]:
        found = {path for pattern in PATTERNS for path in self.folder.rglob(pattern)}
        return [(str(path.relative_to(self.folder)), path) for path in sorted(found)]


def find_source(model: str, revision: str | None = None, *, offline: bool = False) -> Source:
    """Return a model by folder or hub id, downloaded and checked by hash where it has to be.

    Raises:
        SetupError: no such folder, no model in it, or the hub did not give it.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        source = Source(_folder_name(folder), folder, "")
    else:
        _check_id(model)
        source = _fetch(model, revision, offline)
    if not (source.folder / "config.json").is_file():
        raise SetupError(f"{model}: no config.json in it; give a Hugging Face model folder")
    return source


def check_files(source: Source, expected: Mapping[str, str]) -> None:
    """Check that a model has exactly the files whose SHA-256 are ``expected``, by name.

    Raises:
        SetupError: one differs, is missing, or is there besides; the message names it.
    """
    found = source.hashes()
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise SetupError(
                f"{source.folder / name}: its SHA-256 is {found.get(name, 'that of no file')}, "
                f"expected {expected.get(name, 'no such file')}: this is not the default model as "
                "it was released; install it again, or export it as one of your own with --model"
            )


def needed_files(
    model: str, revision: str | None = None, *, offline: bool = False
) -> tuple[list[SourceFile], str]:
    """Return the files an export of ``model`` would read, and the revision; nothing is downloaded.

    Raises:
        SetupError: as :func:`find_source`.
    """
    if Path(model).expanduser().is_dir():
        source = find_source(model)
        return source.files(), source.revision
    _check_id(model)
    from huggingface_hub import snapshot_download

    with _hub_errors(model):
        found = snapshot_download(
            model, revision=revision, allow_patterns=list(PATTERNS), local_files_only=offline,
            dry_run=True,
        )  # fmt: skip
    files = [
        SourceFile(each.filename, each.file_size or 0, not each.will_download) for each in found
    ]
    return files, found[0].commit_hash if found else ""


def config_of(model: str, revision: str | None = None, *, offline: bool = False) -> Path:
    """Return the path of a model's ``config.json``, the one file a plan downloads.

    Raises:
        SetupError: as :func:`find_source`.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return find_source(model).folder / "config.json"
    from huggingface_hub import hf_hub_download

    _check_id(model)
    with _hub_errors(model):
        return Path(
            hf_hub_download(model, "config.json", revision=revision, local_files_only=offline)
        )


def parameters_of(model: str, revision: str | None = None, *, offline: bool = False) -> int:
    """Return how many parameters a model's safetensors files hold, from their headers alone.

    Raises:
        SetupError: it has no such files, one is truncated, or as :func:`find_source`.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir() and not offline:
        from huggingface_hub import HfApi

        _check_id(model)
        with _hub_errors(model):
            found = HfApi().get_safetensors_metadata(model, revision=revision)
            return sum(found.parameter_count.values())
    source = find_source(model, revision, offline=offline)
    files = sorted(source.folder.glob("*.safetensors"))
    if not files:
        raise SetupError(f"{model}: no *.safetensors in it, the only weights that are read")
    return sum(map(_elements, files))


def _elements(path: Path) -> int:
    """Return how many numbers a safetensors file holds; see its format, 8 bytes of length first."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    except (ValueError, MemoryError, OverflowError) as error:
        raise SetupError(f"{path}: truncated or no safetensors file") from error
    count = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            elements = 1
            for size in tensor["shape"]:
                elements *= size
            count += elements
    return count


def _folder_name(folder: Path) -> str:
    """Return a name for messages: the folder's, or its parent's for a folder ``model``."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def _check_id(model: str) -> None:
    if not _HUB_ID.fullmatch(model):
        raise SetupError(f"{model}: no such folder; give a Hugging Face folder or hub id")


def _fetch(model: str, revision: str | None, offline: bool) -> Source:
    from huggingface_hub import snapshot_download

    with _hub_errors(model):
        folder = Path(
            snapshot_download(
                model, revision=revision, allow_patterns=list(PATTERNS), local_files_only=offline
            )
        )
    source = Source(model, folder, folder.name)
    if not offline:
        _verify(source)
    return source


def _verify(source: Source) -> None:
    """Compare what was downloaded with the hub's hashes of it; a damaged file is removed."""
    from huggingface_hub import HfApi

    with _hub_errors(source.id):
        info = HfApi().model_info(source.id, revision=source.revision, files_metadata=True)
    for file in info.siblings or []:
        path = source.folder / file.rfilename
        if file.lfs and path.is_file() and sha256(path) != file.lfs.sha256:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise SetupError(
                f"{source.id}: {file.rfilename} is damaged (its SHA-256 is not the hub's) and was "
                "removed; run the export again to download it anew"
            )


@contextmanager
def _hub_errors(model: str) -> Iterator[None]:
    """Turn what the hub's library raises into one line with a remedy."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise SetupError(
            f"{model}: is gated; accept its terms on its page of the hub, then set HF_TOKEN to a "
            "token of that account"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SetupError(f"{model}: has no such revision; see its page of the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise SetupError(
            f"{model}: no such folder here, and no such model on the hub; a private one needs "
            "HF_TOKEN"
        ) from error
    except errors.NotASafetensorsRepoError as error:
        raise SetupError(
            f"{model}: has no *.safetensors on the hub, the only weights that are read"
        ) from error
    except (OSError, errors.HfHubHTTPError, errors.HFValidationError) as error:
        raise SetupError(
            f"{model}: no such folder here, and the Hugging Face hub did not give it "
            f"({type(error).__name__}); give the path of a local folder, or download it on a "
            "machine with access and set HF_HOME to its cache, with --local-files-only"
        ) from error
