"""More of ``tritonrag index``: removing, exporting, importing and pruning what is indexed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tritonrag import versions
from tritonrag.artifacts import EmbedderManifest
from tritonrag.cli.index import Openings, needs_serve_extra, print_opened
from tritonrag.cli.options import (
    INDEX,
    REPOSITORY,
    AllowOpening,
    AsJson,
    Collection,
    IndexDir,
    Repository,
)
from tritonrag.cli.terminal import json_text, printable
from tritonrag.contract import DEFAULT_COLLECTION
from tritonrag.errors import InvalidRequest, SetupError
from tritonrag.versions import EMBED


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``, those of ``tritonrag index``."""
    app.command()(remove)
    app.command()(export)
    app.command("import")(install)
    app.command()(prune)


def remove(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Documents by their source; a name that ends in / is all below that folder.",
            show_default=False,
        ),
    ] = None,
    collection: Collection = DEFAULT_COLLECTION,
    everything: Annotated[
        bool, typer.Option("--all", help="Delete the collection with all its snapshots.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether --all is meant.")] = False,
    index_dir: IndexDir = INDEX,
    as_json: AsJson = False,
) -> None:
    """Remove documents, or with --all a whole collection; a server follows within a second.

    Earlier snapshots keep removed documents for a rollback; `tritonrag index prune` deletes them.
    """
    needs_serve_extra()
    from tritonrag.index.removing import remove_collection, remove_documents

    if everything == bool(sources):
        raise InvalidRequest("SOURCES: name the documents to remove, or say --all")
    if everything:
        _confirm(collection, yes)
        remove_collection(index_dir, collection, _say_waiting)
        _print(as_json, f"{collection}: removed", collection=collection, removed=None)
        return
    done = remove_documents(index_dir, collection, sources or [], _say_waiting)
    _print(
        as_json,
        f"{collection}: {_count(done.sources, 'document')} removed; snapshot {done.snapshot} is "
        "live",
        collection=collection,
        removed=done.sources,
        snapshot=done.snapshot,
    )


def export(
    collection: Annotated[str, typer.Argument(help="Collection to export.")],
    file: Annotated[Path, typer.Argument(help="File to write, .tar or .tar.gz.")],
    index_dir: IndexDir = INDEX,
    repository: Repository = REPOSITORY,
    as_json: AsJson = False,
) -> None:
    """Write a collection's live snapshot to one file, the texts of all its documents included."""
    needs_serve_extra()
    from tritonrag.index import archive

    written = archive.export(index_dir, collection, file, _installed_sha256(repository))
    size = written.stat().st_size
    line = f"{collection}: {size / 1e6:.1f} MB in {written}"
    _print(as_json, line, collection=collection, file=str(written), bytes=size)


def install(
    file: Annotated[Path, typer.Argument(help="What `tritonrag index export` wrote.")],
    collection: Annotated[
        str | None, typer.Option(help="Collection to import into; default: of the same name.")
    ] = None,
    any_embedder: Annotated[
        bool,
        typer.Option("--any-embedder", help="Also where another embedder than the live made it."),
    ] = False,
    allow_opening: AllowOpening = False,
    index_dir: IndexDir = INDEX,
    repository: Repository = REPOSITORY,
    as_json: AsJson = False,
) -> None:
    """Make an exported snapshot the live one of a collection; every file is checked first.

    Where documents are closed in the collection that are not in the export, it asks, or needs
    --allow-opening.
    """
    needs_serve_extra()
    from tritonrag.index import archive

    embedder = None if any_embedder else EmbedderManifest.load(repository)
    openings = Openings(allow_opening)
    name, manifest = archive.install(
        index_dir, file, embedder, collection or "", _say_waiting, openings
    )
    if not as_json:
        print_opened(openings.found)
    _print(
        as_json,
        f"{name}: {manifest.documents:,} documents, {manifest.passages:,} passages; snapshot "
        f"{manifest.snapshot} is live",
        collection=name,
        snapshot=manifest.snapshot,
        documents=manifest.documents,
        passages=manifest.passages,
        opened=[asdict(each) for each in openings.found],
    )


def prune(
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest snapshots stay.")],
    collection: Collection = DEFAULT_COLLECTION,
    index_dir: IndexDir = INDEX,
    repository: Repository = REPOSITORY,
    as_json: AsJson = False,
) -> None:
    """Delete old snapshots of a collection, never one that is live for an installed embedder."""
    needs_serve_extra()
    from tritonrag.index import store
    from tritonrag.index.catalogue import describe

    describe(index_dir, collection, verify=False)
    with store.writing(index_dir, collection, _say_waiting) as folder:
        removed = store.prune(folder, keep, _installed_embedders(repository))
    line = f"{collection}: {_count(removed, 'snapshot')} deleted"
    _print(as_json, line, collection=collection, removed=removed)


def _confirm(collection: str, yes: bool) -> None:
    question = f"Delete the collection {collection} with all its snapshots?"
    if not yes and not typer.confirm(question, err=True):
        raise InvalidRequest(f"{collection}: not removed; --yes answers the question")


def _installed_embedders(repository: Path) -> list[str]:
    """Return the SHA-256 of every version of the embedder that is installed."""
    numbers = versions.installed(repository, EMBED)
    return [EmbedderManifest.load(repository, number).sha256 for number in numbers]


def _installed_sha256(repository: Path) -> str:
    try:
        return EmbedderManifest.load(repository).sha256
    except SetupError:
        return ""


def _say_waiting() -> None:
    from tritonrag.cli.progress import WAITING

    Console(stderr=True, soft_wrap=True, highlight=False).print(WAITING)


def _count(things: Sequence[object], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _print(as_json: bool, line: str, **facts: object) -> None:
    print(json_text(facts) if as_json else printable(line))
