"""``tritonrag index``: documents into collections, and what is in them."""

from __future__ import annotations

import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from tritonrag import versions
from tritonrag.artifacts import EmbedderManifest
from tritonrag.cli.given import Access, Created, Fields, Tags, metadata
from tritonrag.cli.options import (
    INDEX,
    REPOSITORY,
    AllowOpening,
    AsJson,
    ChunkOverlap,
    ChunkTokens,
    Collection,
    FileMemory,
    FileSeconds,
    FollowLinks,
    IndexDir,
    NoWait,
    Protocol,
    Ray,
    Repository,
    RetryFailed,
    Url,
    Workers,
)
from tritonrag.cli.terminal import json_text, printable
from tritonrag.contract import DEFAULT_COLLECTION
from tritonrag.errors import InvalidRequest, SetupError
from tritonrag.limits import check_mode
from tritonrag.versions import EMBED

if TYPE_CHECKING:
    from tritonrag.cli.working import Servers
    from tritonrag.index.adding import Added
    from tritonrag.index.catalogue import CollectionInfo
    from tritonrag.index.manifest import SnapshotManifest
    from tritonrag.index.widening import Opening

SHOWN_NAMES = 10
"""Files of unknown kinds that are named; the others are counted. With --json all are named."""

app = typer.Typer(help="Index documents, and look at what is indexed.", no_args_is_help=True)


@app.command()
def add(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files, or folders of them, or s3:// URLs: PDF, Word, PowerPoint, Excel, HTML, "
            "Markdown, reStructuredText, text, CSV, JSON, EPUB, RTF, notebooks, mail and feeds. "
            "NAME=PATH puts NAME/ before the names of its documents. None, with "
            "--embedder-version, for those that the collection has.",
            show_default=False,
        ),
    ] = None,
    collection: Collection = DEFAULT_COLLECTION,
    url: Url = None,
    protocol: Protocol = "grpc",
    index_dir: IndexDir = INDEX,
    repository: Repository = REPOSITORY,
    chunk_tokens: ChunkTokens = 128,
    chunk_overlap: ChunkOverlap = 24,
    tag: Tags = None,
    access: Access = None,
    created: Created = None,
    field: Fields = None,
    embedder_version: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default="the live one",
            help="Index for this version of the embedder, before `tritonrag models promote`.",
        ),
    ] = None,
    workers: Workers = None,
    ray: Ray = None,
    file_seconds: FileSeconds = 60,
    file_memory: FileMemory = 1024,
    retry_failed: RetryFailed = False,
    follow_links: FollowLinks = False,
    allow_opening: AllowOpening = False,
    no_wait: NoWait = False,
    mode: Annotated[
        str | None,
        typer.Option(
            show_default="as it is, at first dense",
            help="How the collection is searched when a caller does not say: dense, sparse, hybrid",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Index files through the running server; what has not changed is not embedded again.

    Files that cannot be indexed are named at the end, and tried again when they have changed. The
    exit status is 1 where none could, or where the server does not serve what was written: it may
    read another index folder. An interrupted run is taken up by the next one.
    With --embedder-version of a version that is not live, the collection's documents are embedded
    for that version too, and what is served now stays as it is. A document that was closed, and of
    which nothing says `access` any more, keeps its earlier version unless --allow-opening.
    """
    needs_serve_extra()
    from tritonrag.chunking import Chunker, ChunkSettings
    from tritonrag.cli.progress import indexing_progress
    from tritonrag.cli.working import Servers, working
    from tritonrag.corpus import Source, find_files
    from tritonrag.index import layout
    from tritonrag.index.adding import Added, Adder
    from tritonrag.index.syncing import changed_read_ahead, current_documents
    from tritonrag.parsing import Limits

    started = time.perf_counter()
    live = versions.live_version(repository, EMBED)
    version = embedder_version or live
    check_mode("--mode", mode)
    if not paths and version == live:
        raise InvalidRequest("PATHS: name the files or folders to index")
    if not paths:
        layout.known_collection(index_dir, collection)
    sources = [Source.parse(path) for path in paths or []]
    for source in sources:
        source.check_there()
    manifest = EmbedderManifest.load(repository, version)
    chunker = Chunker.of(repository, ChunkSettings(chunk_tokens, chunk_overlap), version)
    given = metadata(tag, access, created, field)
    found = find_files(sources, given, follow_links=follow_links)
    files = found.files
    done = Added(collection)
    served = None
    if files or not paths:
        current = None if version == live else EmbedderManifest.load(repository)
        limits = Limits(file_seconds, file_memory)
        servers = Servers.of(url, protocol, repository, version)
        with (
            resumable(),
            working(chunker, limits, workers, servers, ray) as work,
            indexing_progress() as listener,
        ):
            adder = Adder(
                index_dir, manifest, work.embedder, work.parsers, listener, current, mode,
                work.embed_groups,
            )  # fmt: skip
            records = current_documents(index_dir, collection, manifest.sha256)
            with changed_read_ahead(files, records, chunker.settings.recipe) as ahead:
                done = adder.add(
                    collection,
                    ahead,
                    retry_failed=retry_failed,
                    allow_opening=allow_opening,
                    wait=not no_wait,
                )
        if version == live:
            served = is_served(done, index_dir, manifest, servers)
    done.failures[:0] = found.failures
    done.unknown = found.unknown
    seconds = time.perf_counter() - started
    print_added(done, seconds, as_json, served, None if version == live else version)
    if served is False or (paths and not (done.added or done.changed or done.unchanged)):
        raise typer.Exit(1)


@app.command("list")
def list_collections(
    index_dir: IndexDir = INDEX, repository: Repository = REPOSITORY, as_json: AsJson = False
) -> None:
    """List the collections."""
    needs_serve_extra()
    from tritonrag.index.catalogue import describe_all

    found = describe_all(index_dir, _installed(repository))
    if as_json:
        print(json_text({"collections": [_facts(info) for info in found]}))
    elif not found:
        print(f"{index_dir}: nothing is indexed; `tritonrag index add PATH` does")
    else:
        print(printable(_table(found), newlines=True))


@app.command()
def stats(
    collection: Annotated[str | None, typer.Option(help="One collection; default: all.")] = None,
    index_dir: IndexDir = INDEX,
    repository: Repository = REPOSITORY,
    as_json: AsJson = False,
) -> None:
    """Show what is in the collections, and check every file as the server does.

    Says so where the server refuses a snapshot, damaged or of another embedder, and exits with 1.
    """
    needs_serve_extra()
    from tritonrag.index.catalogue import describe, describe_all

    embedder = _installed(repository)
    if collection is not None:
        found = [describe(index_dir, collection, embedder)]
    else:
        found = describe_all(index_dir, embedder, verify=True)
    if as_json:
        print(json_text({"collections": [_facts(info) for info in found]}))
    else:
        details = "\n\n".join(map(_details, found))
        print(printable(details, newlines=True) or f"{index_dir}: nothing is indexed")
    if any(info.refusal for info in found):
        raise typer.Exit(1)


@app.command()
def rollback(
    collection: Collection = DEFAULT_COLLECTION,
    to: Annotated[
        str | None, typer.Option(help="Snapshot to go to; default: the one before the live one.")
    ] = None,
    allow_opening: AllowOpening = False,
    index_dir: IndexDir = INDEX,
    repository: Repository = REPOSITORY,
    as_json: AsJson = False,
) -> None:
    """Make an earlier snapshot live again; a running server follows within a second.

    Where documents were closed since then, it asks, or needs --allow-opening.
    """
    needs_serve_extra()
    from tritonrag.cli.progress import WAITING
    from tritonrag.index import store
    from tritonrag.index.catalogue import describe

    embedder = _installed(repository)
    before = describe(index_dir, collection, embedder, verify=False).snapshot
    openings = Openings(allow_opening)
    with store.writing(index_dir, collection, lambda: stderr().print(WAITING)) as folder:
        manifest = store.roll_back(folder, to, embedder.sha256 if embedder else "", openings)
    info = describe(index_dir, collection, embedder, verify=False)
    if as_json:
        opened = [asdict(each) for each in openings.found]
        print(json_text({"before": before, **_facts(info), "opened": opened}))
    else:
        print_opened(openings.found)
        print(f"{collection}: {manifest.snapshot} is live, {_counts(info)}; it was {before}")
        if info.refusal:
            stderr().print(
                Text(f"the server refuses it: {printable(info.refusal)}", style="yellow")
            )


def needs_serve_extra() -> None:
    """Raise where the index cannot be read or written.

    Raises:
        SetupError: what it takes is not installed.
    """
    if find_spec("faiss") is None or find_spec("tokenizers") is None:
        raise SetupError(
            "`tritonrag index` needs the serve extra; install it with "
            "`pip install 'tritonrag[serve]'`"
        )


class Openings:
    """What a change opens: refused, or asked about on a terminal, or allowed beforehand."""

    def __init__(self, allowed: bool) -> None:
        """Let everything pass if ``allowed``."""
        self._allowed = allowed
        self.found: Sequence[Opening] = ()

    def __call__(self, found: Sequence[Opening]) -> None:
        """Keep what is opened, for the report.

        Raises:
            WouldOpen: it is not allowed.
        """
        from tritonrag.index import widening

        if found and not self._allowed:
            if not sys.stdin.isatty():
                widening.refuse(found)
            for each in found:
                stderr().print(Text(f"would be opened: {printable(str(each))}"))
            if not typer.confirm("Let more callers read these documents?", err=True):
                widening.refuse(found)
        self.found = found


def print_opened(found: Sequence[Opening]) -> None:
    """Print every document that more callers can read now."""
    for each in found:
        print(f"opened: {printable(str(each))}")


def _installed(repository: Path) -> EmbedderManifest | None:
    """Return the live embedder, if any is installed: looking at an index needs none."""
    try:
        return EmbedderManifest.load(repository)
    except SetupError:
        return None


def stderr() -> Console:
    """Return a console for what is not the result."""
    return Console(stderr=True, soft_wrap=True, highlight=False)


@contextmanager
def resumable() -> Iterator[None]:
    """Let SIGTERM end a run as Ctrl-C does, and say that it can be taken up."""
    try:
        with sigterm_as_ctrl_c():
            yield
    except KeyboardInterrupt:
        stderr().print("interrupted; the same command goes on where this one was")
        raise


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does."""

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_served(
    done: Added, index_dir: Path, embedder: EmbedderManifest, servers: Servers
) -> bool | None:
    """Return whether the servers serve a run's snapshot, and say so where not; None is unknown."""
    from tritonrag.cli import published

    if done.snapshot is None:
        return None
    written = published.Written(
        index_dir, done.collection, done.snapshot, embedder.sha256, embedder.dimension
    )
    return published.is_served(written, servers, new=done.published)


def print_added(
    done: Added, seconds: float, as_json: bool, served: bool | None, version: int | None = None
) -> None:
    """Print what a run did, ``served`` or not.

    ``version`` is the embedder's where it is not the live one.
    """
    if as_json:
        print(json_text({**asdict(done), "served": served, "seconds": round(seconds, 2)}))
        return
    for failure in done.failures:
        stderr().print(Text(f"not indexed: {printable(f'{failure.name}: {failure.reason}')}"))
    if done.unknown:
        stderr().print(Text(f"not of a kind that can be indexed: {_some(done.unknown)}"))
    print_opened(done.opened)
    if done.embedder_changed:
        print("the embedder has changed: all passages were embedded again")
    if done.snapshot is None:
        print(f"{done.collection}: nothing was indexed")
    elif not done.published:
        stays = "stays as it is" if served is False else "stays live"
        print(
            f"{done.collection}: nothing changed, {done.unchanged} files are as they were indexed; "
            f"snapshot {done.snapshot} {stays}"
        )
    else:
        print(
            f"{done.collection}: {done.added} added, {done.changed} changed, "
            f"{done.removed} removed, {done.unchanged} unchanged, {len(done.failures)} failed; "
            f"{done.passages} passages, {done.embedded} embedded in {seconds:.1f} s"
            + (f", {done.resumed} by an interrupted run" if done.resumed else "")
            + f"; snapshot {done.snapshot} is {'live' if served or version else 'written'}"
            + (f" for version {version} of the embedder" if version else "")
        )


def _some(names: list[str]) -> str:
    """Return the first names of a list, and how many more there are of each suffix."""
    shown, rest = names[:SHOWN_NAMES], names[SHOWN_NAMES:]
    text = ", ".join(map(printable, shown))
    if not rest:
        return text
    kinds = Counter(Path(name).suffix.lower() or "no suffix" for name in rest)
    counts = ", ".join(f"{printable(kind)} {count}" for kind, count in kinds.most_common())
    return f"{text} and {len(rest)} more ({counts})"


def _facts(info: CollectionInfo) -> dict[str, Any]:
    facts = asdict(info)
    if info.manifest:
        facts["manifest"] |= {"age_seconds": round(_age(info))}
    return facts


def _table(found: list[CollectionInfo]) -> str:
    """Return a line for each collection in aligned columns, which a pipe does not wrap."""
    rows = [
        ("collection", "snapshot", "documents", "passages", "age", "embedder"),
        *map(_row, found),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def _row(info: CollectionInfo) -> tuple[str, ...]:
    refused = "  REFUSED, see `tritonrag index stats`" if info.refusal else ""
    manifest = info.manifest
    if manifest is None:
        return info.name, str(info.snapshot), "?", "?", "?", "?" + refused
    counts = f"{manifest.documents:,}", f"{manifest.passages:,}", _ago(_age(info))
    return info.name, str(info.snapshot), *counts, f"{manifest.embedder}{refused}"


def _details(info: CollectionInfo) -> str:
    lines = {"collection": info.name, "snapshot": str(info.snapshot)}
    if manifest := info.manifest:
        lines |= {
            "made": f"{manifest.created} ({_ago(_age(info))} ago)",
            "follows": str(manifest.parent or "none"),
            "holds": f"{_counts(info)}, {info.bytes / 1e6:.1f} MB",
            "embedder": f"{manifest.embedder}, {manifest.dimension} dimensions",
            "vectors": f"FAISS {manifest.factory}, {manifest.metric}{_recall(manifest)}",
            "mode": manifest.mode,
            "chunks": manifest.recipe,
        }
    others = [name for name in info.snapshots if name != info.snapshot]
    lines |= {"others": ", ".join(others) or "none"}
    lines |= {"REFUSED": info.refusal} if info.refusal else {"state": "good"}
    return "\n".join(f"{name + ':':12}{value}" for name, value in lines.items())


def _recall(manifest: SnapshotManifest) -> str:
    measured = (f"{each.recall:.3f} of {each.share:.0%}" for each in manifest.probing)
    return f", recall@10 {', '.join(measured)}" if manifest.probing else ""


def _counts(info: CollectionInfo) -> str:
    if info.manifest is None:
        return "unreadable"
    return f"{info.manifest.documents:,} documents, {info.manifest.passages:,} passages"


def _age(info: CollectionInfo) -> float:
    assert info.manifest is not None
    return (datetime.now(UTC) - datetime.fromisoformat(info.manifest.created)).total_seconds()


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
