"""Bulk parsing and embedding on the machines of a Ray cluster, through Ray Data.

The only module that imports Ray. What runs on the workers is what runs without them,
:func:`tritonrag.parsing.cut` in a confined process and the batches of
:mod:`tritonrag.index.embedding`, and results come in the order of the files, so that the snapshot
is the same to the bit. Files are read, and the index is written, by the caller.

Ray Data runs over a known number of items, so that the work goes to it in windows, each a data set.
A window costs about two seconds for its actors to start.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from tritonrag.chunking import Chunker
from tritonrag.errors import InternalError, InvalidRequest, SetupError, TritonragError, Unavailable
from tritonrag.index.embedding import Calls, Embedder, OnEmbedded
from tritonrag.index.snapshot import Floats
from tritonrag.parsing import Cut, Job, Limits, ParserPool

LOCAL = "local"
"""The address of a cluster of this machine alone, which is started and ended with the run."""

WINDOW_FILES, WINDOW_BYTES = 512, 256 * 1024 * 1024
"""Files to a window for each worker that parses, and what they all may take."""

WINDOW_GROUPS = 32
"""Groups of texts to a window for each worker that embeds: what an interruption may cost."""

BLOCK_FILES = 8
"""Files that are sent to a worker together."""

CONNECT_SECONDS = 5

Tag = TypeVar("Tag")


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster to which this process is connected; :func:`connected` makes one.

    ``embedders`` is how many workers embed. They take no core: the embedder's server computes.
    """

    embedders: int

    def parsers(
        self, chunker: Chunker, limits: Limits | None = None, workers: int | None = None
    ) -> RayParsers:
        """Return parsers on ``workers`` cores of the cluster, or on all of them."""
        return RayParsers(chunker, limits or Limits(), workers or _cores())

    def embed_groups(
        self,
        embedder: Embedder,
        groups: Iterable[tuple[Tag, Sequence[str]]],
        dimension: int,
        on_embedded: OnEmbedded = lambda texts, vectors: None,
    ) -> Generator[tuple[Tag, Floats]]:
        """Yield what :func:`tritonrag.index.embedding.embed_groups` yields, from the workers.

        Args:
            embedder: copied to each worker by pickling.
            groups: each with a tag that comes back with its embeddings, and stays here.
            dimension: the dimension expected.
            on_embedded: called after each group.

        Raises:
            Unavailable: the cluster has lost its workers.
            TritonragError: what ``embed_groups`` raises.
        """
        waiting = iter(groups)
        while window := list(islice(waiting, WINDOW_GROUPS * self.embedders)):
            items = [texts for _, texts in window]
            made = _mapped(_Embed, (embedder, dimension), items, len(items), self.embedders, cpus=0)
            for (tag, texts), vectors in zip(window, made, strict=True):
                assert isinstance(vectors, np.ndarray)
                on_embedded(texts, vectors)
                yield tag, vectors


@dataclass(frozen=True)
class RayParsers:
    """Parsers like those of a ``ParserPool``, one confined process on each of ``workers`` cores."""

    chunker: Chunker
    limits: Limits
    workers: int

    def cut_all(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Cut | InvalidRequest]]:
        """Yield each file's passages, or why there are none, in the order of ``jobs``.

        Raises:
            SetupError: a worker can start no process.
            Unavailable: the cluster has lost its workers.
        """
        for window in _windows(jobs, WINDOW_FILES * self.workers):
            blocks = -(-len(window) // BLOCK_FILES)
            made = _mapped(_Parse, (self.chunker, self.limits), window, blocks, self.workers)
            for job, result in zip(window, made, strict=True):
                assert isinstance(result, Cut | InvalidRequest)
                yield job, result


@contextmanager
def connected(address: str, embedders: int = 2) -> Iterator[Cluster]:
    """Connect to a Ray cluster, or start one on this machine, for as long as the context lasts.

    Args:
        address: ``local``, ``auto`` for the cluster that this machine is a node of, or
            ``host:port`` of its head. Each node of it has the same tritonrag installed.
        embedders: how many workers embed.

    Raises:
        SetupError: Ray is not installed.
        InvalidRequest: ``address`` is of another form.
        Unavailable: no cluster is there.
    """
    needs_ray_extra()
    _check_address(address)
    _set_variables(address)
    import ray

    with _own_signals():
        _connect(address)
    try:
        _configure()
        yield Cluster(embedders)
    finally:
        ray.shutdown()


def needs_ray_extra() -> None:
    """Raise where there is no Ray.

    Raises:
        SetupError: the package is not installed.
    """
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise SetupError(
            "`--ray` needs the ray extra; install it with `pip install 'tritonrag[ray]'`"
        )


class _Parse:
    """An actor that parses, in a process beside its own: that one may die, this one stays."""

    def __init__(self, chunker: Chunker, limits: Limits) -> None:
        self._pool = ParserPool(chunker, limits, workers=1)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _answered(lambda: next(self._pool.cut_all([pickle.loads(row["item"])]))[1])


class _Embed:
    """An actor that embeds one group of texts after the other."""

    def __init__(self, embedder: Embedder, dimension: int) -> None:
        self._calls = Calls(embedder, dimension)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return _answered(lambda: self._calls.begin(pickle.loads(row["item"])).result())


@dataclass(frozen=True)
class _Raised:
    """An error of ours on a worker, on its way to where it is raised."""

    error: TritonragError


def _answered(call: Callable[[], object]) -> dict[str, Any]:
    outcome: object
    try:
        outcome = call()
    except TritonragError as error:
        outcome = _Raised(error)
    except Exception as error:  # One that Ray raises here is 60 lines of its own stack.
        outcome = _Raised(InternalError(f"on a worker: {type(error).__name__}: {error}"))
    return {"item": pickle.dumps(outcome)}


def _mapped(
    actor: type[_Parse] | type[_Embed],
    arguments: tuple[object, ...],
    items: Sequence[object],
    blocks: int,
    actors: int,
    cpus: int = 1,
) -> Iterator[object]:
    """Yield what up to ``actors`` make of ``items``, in their order."""
    import ray.data
    from ray.exceptions import RayError

    rows = [{"item": pickle.dumps(item)} for item in items]
    try:
        made = ray.data.from_items(rows, override_num_blocks=blocks).map(
            actor,
            fn_constructor_args=arguments,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors),
            num_cpus=cpus,
        )
        for row in made.iter_rows():
            outcome = pickle.loads(row["item"])
            if isinstance(outcome, _Raised):
                raise outcome.error
            yield outcome
    except RayError as error:
        reason = str(error).strip().split("\n")[-1]
        raise Unavailable(
            f"ray: {reason}; see Ray's own log, and whether each node has the same tritonrag"
        ) from error


def _windows(jobs: Iterable[Job], files: int) -> Iterator[list[Job]]:
    window: list[Job] = []
    size = 0
    for job in jobs:
        window.append(job)
        size += len(job.content)
        if len(window) >= files or size >= WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window


def _cores() -> int:
    import ray

    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


def _check_address(address: str) -> None:
    """Fail at once where nothing listens: Ray itself waits for a minute, and then ends us."""
    if address in (LOCAL, "auto"):
        return
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise InvalidRequest(
            f"--ray: is {address!r}, expected local, auto or the head's host:port (not ray://, "
            "which Ray Data does not work over), on a node of the cluster"
        )
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise Unavailable(f"--ray {address}: no cluster answers there: {error}") from error


def _set_variables(address: str) -> None:
    """Set what Ray reads from the environment when it is imported, and its processes too."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Or it writes to our stderr.
    if address == LOCAL:  # Listen at 127.0.0.1 alone, as Ray does where it makes no clusters.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"


def _connect(address: str) -> None:
    import ray

    here = {"include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **here)
    except (ConnectionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Unavailable(
            f"--ray {address}: no cluster answers there: {reason}; a cluster with a token wants "
            "RAY_AUTH_MODE=token and ~/.ray/auth_token"
        ) from error


def _configure() -> None:
    """Keep the order, and what is not the result off the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Ray about its own options
        import ray.data

        context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the caller's way to end: Ray puts its own in the place of it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
