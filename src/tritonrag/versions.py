"""Versions of the exported models: where each one lies, which are installed, which one is live.

    model_repository/embed/2/           an artefact; installed where it has a manifest
    model_repository/tokenize/2/        the adapters beside it read the artefact of their own number
    model_repository/embed/live.json    which version the graph uses, and which it used before

Reads only; ``rollout`` writes. Knows neither what is in an artefact nor a running server.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tritonrag.errors import NotFound, SetupError

MANIFEST = "manifest.json"
LIVE = "live.json"
FIRST = 1
"""The version that the adapters of the source tree are."""


@dataclass(frozen=True)
class Kind:
    """A part of the graph that moves as one: an exported model and the models that read it.

    ``name`` is the model whose folder holds the artefact, ``inside`` the folder below its version.
    """

    name: str
    models: tuple[str, ...]
    program: str
    inside: str = ""

    def folder(self, version: int) -> Path:
        """Return where the artefact of a version lies, below the model repository."""
        return Path(self.name) / str(version) / self.inside


EMBED = Kind("embed", ("tokenize", "embed", "retrieve"), "export/embedder.py")
GENERATE = Kind("generate", ("prompt", "generate"), "export/llm.py", "llm")
RERANK = Kind("rerank", ("rerank",), "export/reranker.py", "cross_encoder")
KINDS = {kind.name: kind for kind in (EMBED, GENERATE, RERANK)}


@dataclass(frozen=True)
class Live:
    """The version of a kind that the graph uses, and the one that it used before."""

    version: int
    previous: int | None = None


def kinds(repository: Path) -> list[Kind]:
    """Return the kinds that a model repository has a model for."""
    return [kind for kind in KINDS.values() if (repository / kind.name / "config.pbtxt").is_file()]


def kind_of(repository: Path, name: str) -> Kind:
    """Return the kind of that name.

    Raises:
        NotFound: the repository has none; the message lists those there are.
    """
    known = {kind.name: kind for kind in kinds(repository)}
    if name not in known:
        raise NotFound(f"KIND: is {name!r}, expected {' or '.join(known) or 'nothing'} "
                       f"({repository} has no other)")  # fmt: skip
    return known[name]


def installed(repository: Path, kind: Kind) -> list[int]:
    """Return the versions of a kind that have an artefact, lowest first."""
    return sorted(
        int(path.name)
        for path in (repository / kind.name).glob("[1-9]*")
        if path.name.isdecimal() and (path / kind.inside / MANIFEST).is_file()
    )


def next_version(repository: Path, kind: Kind) -> int:
    """Return the number after the highest that any model of the kind has a folder for."""
    folders = (path.name for model in kind.models for path in (repository / model).glob("[1-9]*"))
    return 1 + max((int(name) for name in folders if name.isdecimal()), default=0)


def live(repository: Path, kind: Kind) -> Live:
    """Return the version that the graph uses; without a record the lowest that is installed.

    Raises:
        SetupError: the record is damaged.
    """
    path = repository / kind.name / LIVE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Live(int(values["version"]), values["previous"])
    except FileNotFoundError:
        return Live(next(iter(installed(repository, kind)), FIRST))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SetupError(
            f"{path}: is damaged ({error!r}); remove it, then `tritonrag models promote "
            f"{kind.name} N`"
        ) from error


def live_version(repository: Path, kind: Kind) -> int:
    """Return the number of the live version, as :func:`live`."""
    return live(repository, kind).version


def check_installed(repository: Path, kind: Kind, version: int) -> None:
    """Check that a version has an artefact.

    Raises:
        NotFound: it has none; the message lists the versions that are installed.
    """
    known = installed(repository, kind)
    if version not in known:
        raise NotFound(
            f"{kind.name}: version {version} is not installed, there are "
            f"{', '.join(map(str, known)) or 'none'}; `{kind.program} --as-version {version}` "
            "installs one"
        )
