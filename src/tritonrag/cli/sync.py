"""``tritonrag index sync``: a collection kept at what its sources hold, once or on a schedule."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from tritonrag import versions
from tritonrag.artifacts import EmbedderManifest
from tritonrag.cli import index as commands
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
from tritonrag.errors import InvalidRequest, SetupError, TritonragError
from tritonrag.versions import EMBED

if TYPE_CHECKING:
    from tritonrag.corpus import Found, Source
    from tritonrag.index.adding import Added
    from tritonrag.index.manifest import DocumentRecord
    from tritonrag.index.syncing import Plan
    from tritonrag.scheduling import Counts, Schedule, Watcher

EXTRA = ("cronsim", "fsspec", "prometheus_client", "s3fs", "tenacity")


def sync(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders, files or URLs (s3://BUCKET/PREFIX), all that the collection is to hold; "
            "NAME=SOURCE puts NAME/ before the names of its documents."
        ),
    ],
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
    workers: Workers = None,
    ray: Ray = None,
    file_seconds: FileSeconds = 60,
    file_memory: FileMemory = 1024,
    retry_failed: RetryFailed = False,
    follow_links: FollowLinks = False,
    allow_opening: AllowOpening = False,
    no_wait: NoWait = False,
    allow_empty: Annotated[
        bool, typer.Option(help="Remove the documents of a source that has become empty.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Say what would be done; embed and write nothing.")
    ] = False,
    every: Annotated[
        str | None, typer.Option(help="Run now and then at this interval, as 15m or 1h30m.")
    ] = None,
    cron: Annotated[
        str | None,
        typer.Option(help='Run at these times (local time), as "*/15 8-18 * * MON-FRI".'),
    ] = None,
    jitter: Annotated[
        str, typer.Option(help="With --every or --cron: begin up to so much later, at random.")
    ] = "10s",
    attempts: Annotated[
        int,
        typer.Option(min=1, help="How often a run is tried; 5 s, 10 s, 20 s … pass in between."),
    ] = 5,
    health_file: Annotated[
        Path | None, typer.Option(help="JSON file that says how the runs go, for a probe.")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Port of the metrics for Prometheus, with --every or --cron.")
    ] = None,
    metrics_host: Annotated[str, typer.Option(help="Address they are served at.")] = "127.0.0.1",
    as_json: AsJson = False,
) -> None:
    """Make a collection hold what its sources hold: add, change, and remove what is gone.

    A run that fails changes nothing and is tried again. A source that cannot be listed, or has
    become empty, fails it: nothing that was not seen is taken for deleted. Files that cannot be
    indexed are named at the end, and keep their earlier version.
    """
    needs_sources_extra()
    from tritonrag.corpus import Source
    from tritonrag.scheduling import Backoff, Runner, duration

    schedule = _schedule(every, cron)
    if metrics_port is not None and schedule is None:
        raise InvalidRequest("--metrics-port: one run has no use for it; add --every or --cron")
    run = _Run(
        collection=collection,
        sources=[Source.parse(source) for source in sources],
        given=metadata(tag, access, created, field),
        index_dir=index_dir,
        repository=repository,
        url=url,
        protocol=protocol,
        chunks=(chunk_tokens, chunk_overlap),
        parsing=(file_seconds, file_memory),
        workers=workers,
        ray=ray,
        retry_failed=retry_failed,
        follow_links=follow_links,
        allow_opening=allow_opening,
        no_wait=no_wait,
        allow_empty=allow_empty,
        as_json=as_json,
    )
    for source in run.sources:
        source.check_there()
    if dry_run:
        _print_plan(run.plan(), as_json)
        return
    late = duration("--jitter", jitter).total_seconds()
    with ExitStack() as stack:
        watchers = _watchers(collection, health_file, metrics_port, metrics_host, stack)
        runner = Runner(run, watchers, Backoff(attempts))
        if schedule is not None:
            _until_stopped(lambda: runner.forever(schedule, late))
        else:
            runner.once()
            _settle(run)


def needs_sources_extra() -> None:
    """Raise where sources cannot be synchronised.

    Raises:
        SetupError: what it takes is not installed.
    """
    commands.needs_serve_extra()
    if any(find_spec(name) is None for name in EXTRA):
        raise SetupError(
            "`tritonrag index sync` needs the sources extra; install it with "
            "`pip install 'tritonrag[sources]'`"
        )


@dataclass
class _Run:
    """One run, with everything read anew: another embedder may be in use since the last one."""

    collection: str
    sources: list[Source]
    given: dict[str, Any]
    index_dir: Path
    repository: Path
    url: str | None
    protocol: str
    chunks: tuple[int, int]
    parsing: tuple[int, int]
    workers: int | None
    ray: str | None
    retry_failed: bool
    follow_links: bool
    allow_opening: bool
    no_wait: bool
    allow_empty: bool
    as_json: bool
    done: Added | None = None
    served: bool | None = None

    def __call__(self) -> Counts:
        from tritonrag.chunking import Chunker, ChunkSettings
        from tritonrag.cli.progress import indexing_progress
        from tritonrag.cli.working import Servers, working
        from tritonrag.index import syncing
        from tritonrag.index.adding import Adder
        from tritonrag.parsing import Limits

        started = time.perf_counter()
        version = versions.live_version(self.repository, EMBED)
        manifest = EmbedderManifest.load(self.repository, version)
        chunker = Chunker.of(self.repository, ChunkSettings(*self.chunks), version)
        found, records = self._listed(manifest)
        limits = Limits(*self.parsing)
        servers = Servers.of(self.url, self.protocol, self.repository, version)
        with (
            commands.resumable(),
            working(chunker, limits, self.workers, servers, self.ray) as work,
            indexing_progress() as listener,
        ):
            adder = Adder(
                self.index_dir, manifest, work.embedder, work.parsers, listener,
                embed_groups=work.embed_groups,
            )  # fmt: skip
            recipe = chunker.settings.recipe
            self.done = syncing.sync(
                adder, self.collection, found, records, recipe,
                retry_failed=self.retry_failed, allow_opening=self.allow_opening,
                wait=not self.no_wait,
            )  # fmt: skip
        self.served = commands.is_served(self.done, self.index_dir, manifest, servers)
        seconds = time.perf_counter() - started
        commands.print_added(self.done, seconds, self.as_json, self.served)
        return _counts(self.done)

    def plan(self) -> Plan:
        """Return what a run would do."""
        from tritonrag.chunking import ChunkSettings
        from tritonrag.index import syncing

        found, records = self._listed(EmbedderManifest.load(self.repository))
        return syncing.plan(self.collection, found, records, ChunkSettings(*self.chunks).recipe)

    def _listed(self, manifest: EmbedderManifest) -> tuple[Found, list[DocumentRecord]]:
        from tritonrag.corpus import find_files
        from tritonrag.index import syncing

        records = syncing.current_documents(self.index_dir, self.collection, manifest.sha256)
        found = find_files(self.sources, self.given, follow_links=self.follow_links)
        syncing.check_listing(found, records, allow_empty=self.allow_empty)
        return found, records


def _counts(done: Added) -> Counts:
    return {
        "added": done.added,
        "changed": done.changed,
        "removed": done.removed,
        "unchanged": done.unchanged,
        "failed": len(done.failures),
    }


def _settle(run: _Run) -> None:
    done = run.done
    assert done is not None
    nothing = not (done.added or done.changed or done.removed or done.unchanged)
    if run.served is False or (done.failures and nothing):
        raise typer.Exit(1)


def _schedule(every: str | None, cron: str | None) -> Schedule | None:
    from tritonrag.scheduling import Cron, Every, duration

    if every is not None and cron is not None:
        raise InvalidRequest("--every and --cron: choose one")
    if every is not None:
        interval = duration("--every", every)
        if not interval:
            raise InvalidRequest(f"--every: {every!r} is no time at all")
        return Every(interval)
    return Cron(cron) if cron is not None else None


def _watchers(
    collection: str, health_file: Path | None, port: int | None, host: str, stack: ExitStack
) -> list[Watcher]:
    from tritonrag.monitoring import HealthFile, Metrics
    from tritonrag.scheduling import Watcher

    class Log(Watcher):
        """Says on stderr when the next attempt begins, and why if one has failed."""

        reason = ""

        def failed(self, error: Exception) -> None:
            kind = "" if isinstance(error, TritonragError) else f"{type(error).__name__}: "
            self.reason = f"the run failed: {kind}{error}; "

        def waiting(self, until: datetime) -> None:
            _say(f"{collection}: {self.reason}the next one begins at {until:%Y-%m-%d %H:%M:%S %Z}")
            self.reason = ""

    watchers: list[Watcher] = [Log()]
    if health_file is not None:
        watchers.append(HealthFile(health_file))
    if port is not None:
        metrics = Metrics(collection)
        stack.enter_context(metrics.served(host, port))
        watchers.append(metrics)
    return watchers


def _say(line: str) -> None:
    commands.stderr().print(Text(printable(line)))


def _until_stopped(forever: Callable[[], None]) -> None:
    """Run until SIGTERM or Ctrl-C, which also end a run under way: nothing half-done goes live."""
    try:
        with commands.sigterm_as_ctrl_c():
            forever()
    except KeyboardInterrupt:
        _say("stopped")


def _print_plan(plan: Plan, as_json: bool) -> None:
    if as_json:
        print(json_text(asdict(plan)))
        return
    for failure in plan.failures:
        _say(f"not indexed: {failure.name}: {failure.reason}")
    for what in ("added", "changed", "removed"):
        for name in getattr(plan, what):
            print(f"{what + ':':9}{printable(name)}")
    print(
        f"{plan.collection}: would be {len(plan.added)} added, {len(plan.changed)} changed, "
        f"{plan.unchanged} unchanged, {len(plan.removed)} removed; {len(plan.fetched)} would be "
        "fetched, and count as unchanged where their content is the same"
    )
