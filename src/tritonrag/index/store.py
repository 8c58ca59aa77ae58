"""Writing snapshots: build beside, verify, move ``CURRENT``; roll back; remove old ones.

Whatever happens on the way, readers see the old snapshot or the new one, whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import faiss
import numpy as np
from filelock import FileLock, Timeout

from tritonrag.artifacts import sha256
from tritonrag.contract import DEFAULT_MODE
from tritonrag.errors import NotFound, SetupError, Unavailable
from tritonrag.index import analysis, bm25, layout, tuning, widening
from tritonrag.index.manifest import (
    DOCUMENTS,
    FLAT,
    OFFSETS,
    PASSAGES,
    ROWS,
    VECTORS,
    DocumentRecord,
    EmbedderId,
    Probing,
    SnapshotManifest,
)
from tritonrag.index.snapshot import Floats, Snapshot
from tritonrag.settings import VectorDbSettings, kept_snapshots


@dataclass(frozen=True)
class Contents:
    """What goes into a snapshot: parts in the order of ``documents``.

    ``passages`` yields each passage as one line of JSON, ``vectors`` their embeddings in float32
    blocks ``[n, dimension]``. ``mode`` is how the collection is searched unless the caller says.
    """

    embedder: EmbedderId
    dimension: int
    recipe: str
    documents: Sequence[DocumentRecord]
    passages: Iterable[bytes]
    vectors: Iterable[Floats]
    mode: str = DEFAULT_MODE


@contextmanager
def writing(
    index_dir: Path,
    collection: str,
    on_wait: Callable[[], None] = lambda: None,
    *,
    wait: bool = True,
) -> Iterator[Path]:
    """Yield a collection's folder to its only writer; a second one waits after ``on_wait``.

    Where ``VECTOR_DB_URI`` is set, what the folder then holds is brought to Milvus.

    Raises:
        InvalidRequest: a collection may not be called so.
        Unavailable: another writer is at work, and this one is not to ``wait``; or Milvus does not
            answer, when all is written here.
        SetupError: the index cannot be written, for example because the disk is full.
    """
    database = VectorDbSettings.from_environment()
    folder = index_dir / layout.check_collection(collection)
    try:
        index_dir.mkdir(parents=True, exist_ok=True)
        with _locked(index_dir / f".{collection}.lock", on_wait if wait else None):
            _remove_unfinished(folder)
            yield folder
            if database is not None:
                from tritonrag.index.mirroring import mirror

                mirror(folder, database)
    except OSError as error:
        raise SetupError(f"{folder}: cannot be written: {error.strerror or error}") from error


@contextmanager
def _locked(path: Path, on_wait: Callable[[], None] | None) -> Iterator[None]:
    lock, holder = FileLock(path), path.with_suffix(".pid")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if on_wait is None:
            raise _busy(path, holder) from None
        on_wait()
        lock.acquire()
    try:
        holder.write_text(f"{os.getpid()}\n", encoding="ascii")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _busy(lock: Path, holder: Path) -> Unavailable:
    with suppress(OSError):
        pid = holder.read_text(encoding="ascii", errors="replace").strip()
        return Unavailable(
            f"another writer (process {pid}) holds {lock}; wait for it, or leave out --no-wait"
        )
    return Unavailable(f"another writer holds {lock}; wait for it, or leave out --no-wait")


def publish(folder: Path, contents: Contents, *, current: bool = True) -> SnapshotManifest:
    """Write ``contents`` as the next snapshot of a collection and make it live for its embedder.

    ``current``: for the collection as such too, as is the first one in any case. Only inside
    :func:`writing`. If anything fails, the collection stays as it was.

    Raises:
        SetupError: what was written cannot be read back as it should.
        OSError: the disk is full, or not writable.
    """
    folder.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    name = layout.new_snapshot(now)
    parent = layout.current(folder, contents.embedder.sha256)
    new = folder / f"{layout.UNFINISHED}{name}"
    try:
        new.mkdir()
        manifest = _write(new, contents, name, parent, now)
        take_in(new, manifest, current=current)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return manifest


def take_in(new: Path, manifest: SnapshotManifest, *, current: bool) -> None:
    """Make the unfinished snapshot ``new`` one of its collection and live, as :func:`publish`.

    Raises:
        SetupError: it cannot be read as its manifest says.
        OSError: the disk is full, or not writable.
    """
    folder, name = new.parent, manifest.snapshot
    keep = kept_snapshots()
    Snapshot.open(new)
    new.rename(folder / name)
    layout.sync_folder(folder)
    layout.set_current(folder, name, manifest.embedder.sha256)
    if current or layout.current(folder) is None:
        _keep_pointer(folder)
        layout.set_current(folder, name)
    prune(folder, keep)


def _keep_pointer(folder: Path) -> None:
    """Leave what ``CURRENT`` names live for its own embedder, before ``CURRENT`` moves on."""
    with suppress(SetupError):  # what is damaged is of no use to any
        if name := layout.current(folder):
            sha256 = SnapshotManifest.load(folder / name).embedder.sha256
            if not layout.pointer(folder, sha256).exists():
                layout.set_current(folder, name, sha256)


def roll_back(
    folder: Path,
    to: str | None = None,
    sha256: str = "",
    on_opening: widening.OnOpening = widening.refuse,
) -> SnapshotManifest:
    """Make an earlier snapshot live: ``to``, or else the one that the live one followed.

    ``sha256`` is of the embedder whose live snapshot is meant. ``on_opening`` is told which
    documents were closed since then. Only inside :func:`writing`.

    Raises:
        NotFound: there is no such snapshot; the message lists those there are.
        WouldOpen: documents were closed since then.
        SetupError: it is damaged.
    """
    kept = layout.snapshots(folder) if folder.is_dir() else []
    target = to or _previous(folder, kept, sha256)
    if target not in kept:
        known = ", ".join(kept) or "none"
        wanted = f"no snapshot {to!r}" if to else "no snapshot before the live one"
        raise NotFound(f"collection {folder.name} has {wanted}; there are: {known}")
    manifest = Snapshot.open(folder / target).manifest
    embedders = {sha256, manifest.embedder.sha256}
    on_opening(widening.openings_of_snapshot(folder, folder / target, embedders))
    layout.set_current(folder, target, manifest.embedder.sha256)
    layout.set_current(folder, target)
    if sha256 not in ("", manifest.embedder.sha256):
        layout.pointer(folder, sha256).unlink(missing_ok=True)
    return manifest


def _previous(folder: Path, kept: list[str], sha256: str) -> str:
    live = layout.current(folder, sha256) or ""
    try:
        parent = SnapshotManifest.load(folder / live).parent
    except SetupError:
        parent = None  # Damaged: go by time.
    if parent in kept:
        return parent
    return max((name for name in kept if name < live), default="")


def _write(
    folder: Path, contents: Contents, name: str, parent: str | None, now: datetime
) -> SnapshotManifest:
    _write_lines(folder / DOCUMENTS, (document.to_json() for document in contents.documents))
    offsets = _write_lines(folder / PASSAGES, contents.passages)
    np.save(folder / OFFSETS, np.array(offsets, np.uint64))
    count = len(offsets) - 1
    factory, probing = _write_vectors(folder, contents.vectors, count, contents.dimension)
    if count:
        with (folder / PASSAGES).open("rb") as lines:
            bm25.build(folder, map(bm25.indexed_text, lines))
    files = sorted(folder.iterdir())
    manifest = SnapshotManifest(
        snapshot=name,
        parent=parent,
        created=now.isoformat(timespec="seconds"),
        embedder=contents.embedder,
        dimension=contents.dimension,
        factory=factory,
        documents=len(contents.documents),
        passages=count,
        recipe=contents.recipe,
        files={file.name: sha256(file) for file in files},
        sizes={file.name: file.stat().st_size for file in files},
        mode=contents.mode,
        probing=probing,
        analysis=analysis.VERSION if count else 0,
    )
    manifest.save(folder)
    for path in folder.iterdir():
        _sync(path)
    layout.sync_folder(folder)
    return manifest


def _write_lines(path: Path, lines: Iterable[bytes]) -> list[int]:
    """Write lines and return where each starts, and the end."""
    offsets = [0]
    with path.open("wb") as file:
        for line in lines:
            offsets.append(offsets[-1] + file.write(line + b"\n"))
    return offsets


def _write_vectors(
    folder: Path, blocks: Iterable[Floats], count: int, dimension: int
) -> tuple[str, tuple[Probing, ...]]:
    """Write ``count`` vectors and their FAISS index; return its factory string and its tuning.

    Raises:
        SetupError: the index cannot be written.
        OSError: the disk is full, or not writable.
    """
    factory = tuning.factory_for(count)
    if factory == FLAT:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        for block in blocks:
            index.add(np.ascontiguousarray(block))
        probing: tuple[Probing, ...] = ()
    else:
        rows = _write_rows(folder / ROWS, blocks, (count, dimension))
        index = tuning.build(factory, rows)
        probing = tuning.tuned(index, rows)
    try:
        faiss.write_index(index, str(folder / VECTORS))
    except RuntimeError as error:
        raise SetupError(f"{VECTORS} cannot be written: {error}") from error
    return factory, probing


def _write_rows(path: Path, blocks: Iterable[Floats], shape: tuple[int, int]) -> Floats:
    """Write vectors to a file without holding all of them, and return them mapped into memory.

    Not written through the map: where the disk is full, that would kill the process.
    """
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").data)
    rows: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
    return rows


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove_unfinished(folder: Path) -> None:
    """Remove what a killed writer left; no other writer can be at work."""
    for path in folder.glob(f"{layout.UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path, keep: int, embedders: Collection[str] = ()) -> list[str]:
    """Remove all but the ``keep`` newest snapshots; live ones stay. Return what was removed.

    With the SHA-256 of ``embedders``, what is live for others alone does not stay. Only inside
    :func:`writing`.
    """
    if embedders:
        known = {layout.pointer(folder, sha256) for sha256 in ("", *embedders)}
        for pointer in set(folder.glob(f"{layout.CURRENT}*")) - known:
            pointer.unlink()
    live = layout.pointed(folder)
    old = [name for name in layout.snapshots(folder)[:-keep] if name not in live]
    for name in old:
        shutil.rmtree(folder / name, ignore_errors=True)
    return old
