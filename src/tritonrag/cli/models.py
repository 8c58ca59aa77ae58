"""``tritonrag models``: the installed versions of each model, and which one the graph uses."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from tritonrag import rollout, versions
from tritonrag.artifacts import (
    EmbedderManifest,
    Manifest,
    any_manifest,
    folder_size,
    model_sha256,
    sha256,
    size,
)
from tritonrag.cli.options import INDEX, REPOSITORY, AsJson, IndexDir
from tritonrag.cli.serving import STATE, StateDir
from tritonrag.cli.terminal import json_text, printable
from tritonrag.client.administration import Administration
from tritonrag.errors import InvalidRequest, SetupError, TritonragError, Unavailable
from tritonrag.settings import (
    ADMIN_KEY_VARIABLE,
    REPOSITORY_VARIABLE,
    URL_VARIABLE,
    describe_llm,
)
from tritonrag.versions import EMBED, GENERATE, Kind, Live

app = typer.Typer(
    help="The installed versions of each model, and which one the graph uses.\n\n"
    "KIND is embed (with tokenize and retrieve), generate (with prompt) or rerank. "
    "`export/… --as-version next` installs a version beside the live one. For a new embedder, "
    "`tritonrag index add --embedder-version N` then embeds the documents again. `promote` moves "
    "the graph; no request fails meanwhile.",
    invoke_without_command=True,
)

KindName = Annotated[str, typer.Argument(metavar="KIND", help="embed, generate or rerank.")]
Version = Annotated[int, typer.Argument(metavar="N", min=1, help="Number of the version.")]
Repository = Annotated[Path, typer.Option(envvar=REPOSITORY_VARIABLE, help="Model repository.")]
Reload = Annotated[
    bool, typer.Option("--reload", help="Load it again: it was exported anew since.")
]
ServerUrl = Annotated[
    str,
    typer.Option(
        envvar=URL_VARIABLE,
        help="gRPC address of a running server, host:port; it wants the key that "
        f"{ADMIN_KEY_VARIABLE} holds.",
        show_default="the one of --state-dir",
    ),
]


@dataclass(frozen=True)
class Installed:
    """One installed version; what the server says is None where none was asked.

    ``unused``: an endpoint generates in its place.
    """

    kind: Kind
    version: int
    state: Live
    manifest: Manifest
    bytes: int
    loaded: bool | None
    unused: bool = False

    @property
    def folder(self) -> Path:
        """Where it lies, below the model repository."""
        return self.kind.folder(self.version)

    @property
    def role(self) -> str:
        """``live``, ``previous`` (where a rollback leads), ``unused`` or nothing."""
        if self.unused:
            return "unused"
        roles = {self.state.previous: "previous", self.state.version: "live"}
        return roles.get(self.version, "")

    def facts(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        manifest = self.manifest
        return {
            "kind": self.kind.name,
            "version": self.version,
            "live": self.role == "live",
            "previous": self.role == "previous",
            "model": manifest.model,
            "revision": manifest.revision,
            "precision": manifest.precision,
            "bytes": self.bytes,
            "sha256": manifest.sha256,
            "parity": manifest.parity,
            "forced": manifest.forced,
            "loaded": self.loaded,
        }

    def row(self) -> tuple[str, ...]:
        """Return what the table prints."""
        manifest = self.manifest
        parity = next((f"{name} {value:.4g}" for name, value in manifest.parity.items()), "")
        loaded = {None: "", True: "yes", False: "no"}[self.loaded]
        return (
            self.kind.name, str(self.version), self.role, manifest.model, manifest.precision,
            size(self.bytes), manifest.revision[:12] or "local folder", loaded,
            parity + (" FORCED" if manifest.forced else ""),
        )  # fmt: skip


HEADINGS = (
    "kind", "version", "state", "model", "precision", "size", "revision", "loaded", "parity",
)  # fmt: skip


@app.callback()
def show(
    context: typer.Context,
    repository: Repository = REPOSITORY,
    url: ServerUrl = "",
    state_dir: StateDir = STATE,
    as_json: AsJson = False,
) -> None:
    """List the installed models; of a running server also what is loaded and what its graph uses.

    "live" is the version that the graph uses, "previous" the one that `rollback` goes to. Where
    LLM_API_URL is set, for the server of --state-dir or, with --url or without a server, here, the
    endpoint is named and the installed LLMs are "unused".
    """
    if context.invoked_subcommand:
        _refuse_options(context)
        return
    loaded, graph = _served(url, state_dir, repository)
    endpoint = _endpoint(url, state_dir)
    found = [
        replace(each, unused=bool(endpoint) and each.kind is GENERATE)
        for each in _installed(repository, loaded)
    ]
    if as_json:
        models = [each.facts() for each in found]
        print(json_text({"models": models, "graph": graph, "endpoint": endpoint or None}))
        return
    print(_table(found) if found else f"{repository}: no model is installed; run `make models`")
    if endpoint:
        print(printable(f"{GENERATE.name}: {endpoint} (LLM_API_URL)"))
    for ensemble, steps in graph.items():
        print(printable(f"{ensemble}: {', '.join(f'{model} {n}' for model, n in steps.items())}"))
    for line in _differences(repository, graph):
        print(line, file=sys.stderr)


@app.command()
def promote(
    kind: KindName,
    version: Version,
    repository: Repository = REPOSITORY,
    index_dir: IndexDir = INDEX,
    url: ServerUrl = "",
    state_dir: StateDir = STATE,
    reload: Reload = False,
) -> None:
    """Make the graph use a version: now, and at every start. Requests go on meanwhile.

    A new embedder is refused while a collection has no index of it.
    """
    part = versions.kind_of(repository, kind)
    versions.check_installed(repository, part, version)
    state = versions.live(repository, part)
    after = Live(version, state.previous if version == state.version else state.version)
    if part is EMBED:
        _check_index(repository, index_dir, version, state.version, strict=True)
    with _server(url, state_dir, repository) as server:
        _move(repository, part, state, after, server, reload=reload)


@app.command()
def load(
    kind: KindName,
    version: Version,
    repository: Repository = REPOSITORY,
    url: ServerUrl = "",
    state_dir: StateDir = STATE,
    reload: Reload = False,
) -> None:
    """Load a version that was installed while the server ran, beside the live one.

    To index for it or to try it out; a start loads every version that is installed.
    """
    part = versions.kind_of(repository, kind)
    versions.check_installed(repository, part, version)
    with _server(url, state_dir, repository) as server:
        if server is None:
            raise Unavailable("no server runs here; start one with `tritonrag up`, or name --url")
        _load(repository, server, part, version, reload)
    print(f"{kind}: version {version} is loaded")


@app.command()
def rollback(
    kind: KindName,
    repository: Repository = REPOSITORY,
    index_dir: IndexDir = INDEX,
    url: ServerUrl = "",
    state_dir: StateDir = STATE,
) -> None:
    """Make the graph use the version that it used before the last promotion."""
    part = versions.kind_of(repository, kind)
    state = versions.live(repository, part)
    if state.previous is None:
        raise InvalidRequest(
            f"{kind}: there is no version to go back to; `tritonrag models` lists those there are"
        )
    versions.check_installed(repository, part, state.previous)
    if part is EMBED:
        _check_index(repository, index_dir, state.previous, state.version, strict=False)
    with _server(url, state_dir, repository) as server:
        _move(repository, part, state, Live(state.previous, state.version), server)


@app.command()
def remove(
    kind: KindName,
    version: Version,
    repository: Repository = REPOSITORY,
    url: ServerUrl = "",
    state_dir: StateDir = STATE,
) -> None:
    """Delete a version that is not live, and unload it from the running server.

    Of version 1 the adapters stay: they belong to the source tree.
    """
    part = versions.kind_of(repository, kind)
    with _server(url, state_dir, repository) as server:
        rollout.forget(repository, part, version)
        try:
            if server:
                _unload(server, part, version)
        finally:
            rollout.remove_files(repository, part, version)
    print(f"{kind}: version {version} is removed")


@app.command()
def verify(
    kind: Annotated[
        str | None, typer.Argument(metavar="[KIND]", help="Check this kind only.")
    ] = None,
    repository: Repository = REPOSITORY,
    as_json: AsJson = False,
) -> None:
    """Compare the files of the installed models with their manifests.

    The exit status is 1 where one differs.
    """
    if kind is not None:
        versions.kind_of(repository, kind)
    found = [each for each in _installed(repository, None) if kind in (None, each.kind.name)]
    results = [(each, _faults(repository / each.folder, each.manifest)) for each in found]
    if as_json:
        print(json_text({"models": [each.facts() | {"faults": bad} for each, bad in results]}))
    else:
        for each, bad in results:
            line = f"{each.kind.name} {each.version}: {'; '.join(bad) or 'as installed'}"
            print(printable(line))
    if any(bad for _, bad in results):
        raise typer.Exit(1)


@contextmanager
def _server(url: str, state_dir: Path, repository: Path) -> Iterator[Administration | None]:
    """Yield the server named, or the one of the state folder, or None where neither is."""
    key = os.environ.get(ADMIN_KEY_VARIABLE, "")
    if not url and (running := _embedded(state_dir)):
        if Path(running.repository) != repository.resolve():
            raise SetupError(
                f"the server of {state_dir} serves {running.repository}, not {repository}; "
                f"name it with --repository, or another server with --url"
            )
        url, key = f"127.0.0.1:{running.ports.grpc}", running.key
    if not url:
        yield None
        return
    with Administration(url, key) as administration:
        yield administration


def _endpoint(url: str, state_dir: Path) -> str:
    """Return what generates in place of the installed LLM; empty where nothing does.

    The server of the state folder has recorded it. What another server's environment holds nobody
    can ask it, so there this one's stands for it.
    """
    running = None if url else _embedded(state_dir)
    return str(running.llm) if running else describe_llm()


def _embedded(state_dir: Path) -> Any:
    try:
        from tritonrag.server.process import EmbeddedServer
    except ImportError:  # without the embedded extra no such server can run
        return None
    return EmbeddedServer(state_dir).running() if state_dir.is_dir() else None


def _refuse_options(context: typer.Context) -> None:
    """Raise where an option stands before the sub-command, which would not see it."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = f"--{name.removeprefix('as_').replace('_', '-')}"
            raise InvalidRequest(f"{option}: goes behind `{context.invoked_subcommand}`")


def _served(
    url: str, state_dir: Path, repository: Path
) -> tuple[dict[str, list[int]] | None, dict[str, dict[str, int]]]:
    """Return the versions that the running server has loaded, and those of its graph's steps."""
    with _server(url, state_dir, repository) as server:
        if server is None:
            return None, {}
        try:
            loaded, graph = server.loaded(), server.graph()
        except Unavailable as error:
            print(printable(str(error)), file=sys.stderr)
            return None, {}
    return loaded, {
        ensemble: {
            model: version if version > 0 else max(loaded.get(model, [0]))
            for model, version in steps.items()
        }
        for ensemble, steps in graph.items()
    }


def _move(
    repository: Path,
    kind: Kind,
    before: Live,
    after: Live,
    server: Administration | None,
    *,
    reload: bool = False,
) -> None:
    """Record the version and tell the server; what fails leaves the version of before."""
    if server:
        _load(repository, server, kind, after.version, reload)
    rollout.set_live(repository, kind, after)
    if server is None:
        print(f"{kind.name}: version {after.version} is live from the next start on; "
              "no running server was told (--url names one)")  # fmt: skip
        return
    try:
        moved = list(server.steer(rollout.wanted_steps(repository)))
    except BaseException:
        rollout.set_live(repository, kind, before)
        with suppress(TritonragError):
            list(server.steer(rollout.wanted_steps(repository)))
        raise
    told = f"{', '.join(moved)} moved" if moved else "the graph used it already"
    print(f"{kind.name}: version {after.version} is live; {told}")


def _load(repository: Path, server: Administration, kind: Kind, version: int, reload: bool) -> None:
    """Load a version that was installed while the server ran; the graph stays where it is."""
    rollout.write(repository)
    # An ensemble whose steps are not pinned would follow the highest version at once.
    list(server.steer(rollout.wanted_steps(repository)))
    for model in kind.models:
        if reload or version not in server.loaded().get(model, []):
            server.load(model)
        if version not in server.loaded().get(model, []):
            raise SetupError(
                f"{model}: the server did not load version {version}; it reads another repository, "
                "or was not started with --model-config-name=live"
            )


def _unload(server: Administration, kind: Kind, version: int) -> None:
    """Let a version go that is no longer in the repository's configs."""
    for model in kind.models:
        if version in server.loaded().get(model, []):
            server.load(model)


def _check_index(
    repository: Path, index_dir: Path, version: int, live: int, *, strict: bool
) -> None:
    """Check that every collection can be searched with a version of the embedder.

    ``strict``: also with all of its documents; else it is only said.
    """
    from tritonrag.cli.index import needs_serve_extra

    needs_serve_extra()
    from tritonrag.index.catalogue import lacking

    wanted = EmbedderManifest.load(repository, version)
    missing, behind = lacking(index_dir, wanted, EmbedderManifest.load(repository, live))
    remedy = f"`tritonrag index add --embedder-version {version} --collection"
    if missing or (strict and behind):
        name = (missing or behind)[0]
        what = "has no index of" if missing else "has newer documents than the index of"
        raise SetupError(
            f"collection {name} {what} version {version} of the embedder ({wanted.identity}); "
            f"make it first: {remedy} {name}`"
        )
    for name in behind:
        print(f"collection {name} goes back to older documents; {remedy} {name}` brings the others",
              file=sys.stderr)  # fmt: skip


def _installed(repository: Path, loaded: dict[str, list[int]] | None) -> list[Installed]:
    return [
        Installed(
            kind,
            version,
            versions.live(repository, kind),
            any_manifest(repository, kind, version),
            folder_size(repository / kind.folder(version)),
            None if loaded is None else all(version in loaded.get(m, []) for m in kind.models),
        )
        for kind in versions.kinds(repository)
        for version in versions.installed(repository, kind)
    ]


def _differences(repository: Path, graph: dict[str, dict[str, int]]) -> Iterator[str]:
    """Yield a line for each kind where the running graph is not what is recorded."""
    for kind in versions.kinds(repository):
        live = versions.live_version(repository, kind)
        used = {n for steps in graph.values() for model, n in steps.items() if model in kind.models}
        if used and used != {live}:
            yield (
                f"{kind.name}: the running graph does not use version {live}, which is recorded; "
                f"`tritonrag models promote {kind.name} {live}` moves it, as does a restart"
            )


def _table(found: list[Installed]) -> str:
    rows = [HEADINGS, *(tuple(map(printable, each.row())) for each in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _faults(folder: Path, manifest: Manifest) -> list[str]:
    """Return what is not as it was installed; a manifest without hashes covers the model alone."""
    if not manifest.files:
        same = model_sha256(folder) == manifest.sha256
        return [] if same else ["the model differs from its manifest; export it again"]
    faults = []
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif sha256(path) != digest:
            faults.append(f"{name} differs from its manifest")
    return [f"{fault}; export it again" for fault in faults]
