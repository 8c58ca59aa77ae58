"""Which versions are served and which one the graph uses, written down for Triton.

The handwritten ``config.pbtxt`` files name no version. Beside each one lies ``configs/live.pbtxt``:
the same text with the versions of the ensembles' steps filled in and the list of the installed
versions in the models. Triton reads it in place of ``config.pbtxt`` when started with
``--model-config-name=live``. A handwritten variant ``configs/NAME.pbtxt`` gets its own
``configs/NAME-live.pbtxt``.

Knows no running server: ``tritonrag.client.administration`` makes one read these files again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from tritonrag import versions
from tritonrag.errors import InvalidRequest, SetupError
from tritonrag.versions import FIRST, LIVE, MANIFEST, Kind, Live

SUFFIX = "live"
_STEP = re.compile(r'#[^\n]*|(model_name:\s*"(\w+)"\s+model_version:\s*)-?\d+')
_NAMED = re.compile(r'#[^\n]*|model_name:\s*"(\w+)"')
"""Both skip comments, in which their groups stay empty."""


def config_name(variant: str = "") -> str:
    """Return the value of Triton's ``--model-config-name`` for a handwritten variant, "" for none.

    Triton falls back to ``config.pbtxt`` in a model that has no file of that name.
    """
    return f"{variant}-{SUFFIX}" if variant else SUFFIX


def add_version(repository: Path, kind: Kind, version: int) -> None:
    """Make an artefact that was just installed a version of every model of its kind.

    The graph stays at the version it uses.

    Raises:
        SetupError: the repository cannot be written, or a config cannot be pinned.
    """
    with _writable(repository):
        for model in kind.models:
            _link_adapter(repository / model, version)
        known = versions.installed(repository, kind)
        record = repository / kind.name / LIVE
        if known != [FIRST] and not record.exists():
            others = [number for number in known if number != version]
            _save(record, Live(others[0] if others else version))
    write(repository)


def set_live(repository: Path, kind: Kind, state: Live) -> None:
    """Make the graph of the next start use a version; a running server has to be told.

    Raises:
        SetupError: the repository cannot be written, or a config cannot be pinned.
    """
    with _writable(repository):
        _save(repository / kind.name / LIVE, state)
    write(repository)


def forget(repository: Path, kind: Kind, version: int) -> None:
    """Make a version one that is not installed; its files stay until :func:`remove_files`.

    Raises:
        NotFound: it is not installed.
        InvalidRequest: the graph uses it.
        SetupError: the repository cannot be written.
    """
    versions.check_installed(repository, kind, version)
    state = versions.live(repository, kind)
    if version == state.version:
        raise InvalidRequest(
            f"{kind.name}: version {version} is the live one; promote another one first"
        )
    with _writable(repository):
        if state.previous == version:
            _save(repository / kind.name / LIVE, Live(state.version))
        (repository / kind.folder(version) / MANIFEST).unlink()
    write(repository)


def remove_files(repository: Path, kind: Kind, version: int) -> None:
    """Delete what a version that was forgotten has on disk, its links included.

    Raises:
        SetupError: something cannot be deleted.
    """
    folders = [repository / kind.folder(version)]
    if version != FIRST:  # the adapters of version 1 belong to the source tree
        folders = [repository / model / str(version) for model in kind.models]
    with _writable(repository):
        for folder in folders:
            if folder.is_dir():
                shutil.rmtree(folder)


def write(repository: Path) -> None:
    """Bring the pinned configs of a model repository up to date; touch none that already is.

    Raises:
        SetupError: one cannot be written, or a step of an ensemble cannot be pinned.
    """
    wanted = dict(_pinned_files(repository))
    stale = {path for path in repository.glob(f"*/configs/*{SUFFIX}.pbtxt") if is_pinned(path)}
    with _writable(repository):
        for path, text in wanted.items():
            if not path.is_file() or path.read_text(encoding="utf-8") != text:
                path.parent.mkdir(exist_ok=True)
                _replace(path, text)
        for path in stale - wanted.keys():
            path.unlink()


def refresh(repository: Path) -> None:
    """As :func:`write`, before a start: a repository that nobody may write stays as it is.

    What no export has written into has version 1 alone, and Triton then takes that.

    Raises:
        SetupError: as :func:`write`, where there is more than version 1.
    """
    several = any(
        versions.installed(repository, kind) not in ([], [FIRST])
        for kind in versions.kinds(repository)
    )
    if several or all(os.access(path.parent, os.W_OK) for path in _configs(repository)):
        write(repository)


def wanted_steps(repository: Path) -> dict[str, int]:
    """Return the version that the graph is to use of each model that has versions."""
    return {
        model: versions.live_version(repository, kind)
        for kind in versions.kinds(repository)
        if versions.installed(repository, kind)
        for model in kind.models
    }


def pinned(text: str, steps: Mapping[str, int], served: list[int], name: str) -> str:
    """Return a config with the versions of its ensemble's steps, and those that are ``served``.

    Args:
        text: the handwritten ``config.pbtxt``.
        steps: version by model; a step of another model stays as it is.
        served: versions to load of this very model; empty leaves the choice to the text, as does
            a ``version_policy`` in it.
        name: what to call the file in messages and in the head of the result.

    Raises:
        SetupError: a step has no ``model_version`` right after its ``model_name``.
    """
    named = [model for model in _NAMED.findall(text) if model in steps]
    found = [model for _, model in _STEP.findall(text) if model in steps]
    if sorted(named) != sorted(found):
        missing = sorted(set(named) - set(found)) or named
        raise SetupError(
            f"{name}: the step of {missing[0]} has no model_version after its model_name; "
            "add `model_version: -1`"
        )
    body = _STEP.sub(lambda m: f"{m[1]}{steps[m[2]]}" if m[2] in steps else m[0], text)
    if served and not re.search(r"(?m)^\s*version_policy\b", text):
        body += f"\nversion_policy {{ specific {{ versions: {served} }} }}\n"
    return f"{_head(name)}{body}"


def _head(name: str) -> str:
    return f"# Written by `tritonrag models` from {name}: change that file, not this one.\n"


def _configs(repository: Path) -> list[Path]:
    return sorted(repository.glob("*/config.pbtxt"))


def _pinned_files(repository: Path) -> Iterator[tuple[Path, str]]:
    """Yield path and text of every pinned config, for every variant that any model has."""
    steps = wanted_steps(repository)
    served = {
        model: versions.installed(repository, kind)
        for kind in versions.kinds(repository)
        for model in kind.models
    }
    for config in _configs(repository):
        model = config.parent
        for variant in ("", *variants(repository)):
            own = model / "configs" / f"{variant}.pbtxt"
            source = own if variant and own.is_file() else config
            text = source.read_text(encoding="utf-8")
            name = str(source.relative_to(model))
            path = model / "configs" / f"{config_name(variant)}.pbtxt"
            yield path, pinned(text, steps, served.get(model.name, []), name)


def variants(repository: Path) -> list[str]:
    """Return the names of the handwritten config variants that any model has."""
    paths = repository.glob("*/configs/*.pbtxt")
    return sorted({path.stem for path in paths if not is_pinned(path)})


def is_pinned(path: Path) -> bool:
    """Return whether a config is a copy that :func:`write` made."""
    return path.stem == SUFFIX or path.stem.endswith(f"-{SUFFIX}")


def _link_adapter(model: Path, version: int) -> None:
    """Give a Python model the version, by a link to the adapter of the source tree."""
    adapter = model / str(version) / "model.py"
    if version == FIRST or adapter.is_symlink() or not (model / f"{FIRST}/model.py").is_file():
        return
    adapter.parent.mkdir(exist_ok=True)
    adapter.symlink_to(Path("..") / str(FIRST) / "model.py")


def _save(path: Path, state: Live) -> None:
    _replace(path, json.dumps(asdict(state)) + "\n")


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


@contextmanager
def _writable(repository: Path) -> Iterator[None]:
    """Turn a failed write below the repository into an error with its remedy."""
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"{error.filename or repository}: cannot be written ({error.strerror}); "
            "the user of this command must be allowed to write the model repository"
        ) from error
