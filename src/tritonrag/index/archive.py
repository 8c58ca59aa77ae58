"""A live snapshot as one file, and back into an index: a tar archive, plain or gzip.

    collection.json            format, name of the collection, SHA-256 of the manifest
    manifest.json              the snapshot's own, with the SHA-256 of every file below
    …                          the files that it names

Names are compared with those expected, sizes with the space that is left, contents with their
hashes, and readers see the snapshot when all of it has been checked. The hashes find damage, not
intent: whoever makes an archive decides what the collection answers.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tritonrag.artifacts import EmbedderManifest, sha256
from tritonrag.errors import InvalidRequest, NotFound, SetupError
from tritonrag.index import layout, store, widening
from tritonrag.index.manifest import MANIFEST, EmbedderId, SnapshotManifest, damaged
from tritonrag.index.snapshot import Snapshot

HEADER = "collection.json"
FORMAT_VERSION = 1
MAX_HEADER_BYTES = 1024 * 1024
SUFFIXES = (".tar", ".tar.gz", ".tgz")
_COMPRESSION = 1
"""Of gzip: vectors hardly shrink, so that more only takes longer."""

_FILE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_UNREADABLE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, UnicodeError)


def export(index_dir: Path, collection: str, file: Path, sha256_of_embedder: str = "") -> Path:
    """Write the live snapshot of a collection to ``file``, which is replaced whole or not at all.

    ``sha256_of_embedder`` says whose live snapshot is meant, where there are several.

    Raises:
        InvalidRequest: the file's name does not end in one of ``SUFFIXES``.
        NotFound: there is no such collection.
        SetupError: the snapshot is damaged, or the file cannot be written.
    """
    _check_suffix(file)
    folder = layout.known_collection(index_dir, collection)
    snapshot = folder / str(layout.current(folder, sha256_of_embedder))
    Snapshot.open(snapshot)
    new = file.with_name(f".{file.name}.new")
    try:
        with _written(new, packed=file.suffix != ".tar") as archive:
            _pack(archive, collection, snapshot)
        os.replace(new, file)
    except OSError as error:
        raise SetupError(f"{file}: cannot be written: {error.strerror or error}") from error
    finally:
        new.unlink(missing_ok=True)
    return file


def install(
    index_dir: Path,
    file: Path,
    embedder: EmbedderManifest | None,
    collection: str = "",
    on_wait: Callable[[], None] = lambda: None,
    on_opening: widening.OnOpening = widening.refuse,
) -> tuple[str, SnapshotManifest]:
    """Make the snapshot in ``file`` the live one of a collection, by default of its own name.

    Args:
        index_dir: the folder of the index.
        file: what :func:`export` wrote.
        embedder: the embedder that must have made it; None takes any. A snapshot of another one
            than the collection's becomes live for its own embedder.
        collection: the collection that is to have it; "" is the one that it was exported from.
        on_wait: called when another writer is at work.
        on_opening: told which documents of the collection it would open.

    Returns:
        The collection's name, and the manifest of its new snapshot.

    Raises:
        InvalidRequest: the file is not an export, or is damaged.
        WouldOpen: documents of the collection are closed that are not so in the file.
        NotFound: there is no such file.
        SetupError: it was made with another embedder, or the index cannot be written.
    """
    _check_suffix(file)
    with _read(file) as archive:
        name, manifest = _header(archive)
        if embedder is not None and manifest.embedder != EmbedderId.of(embedder):
            raise SetupError(
                f"{file.name} was made with the embedder {manifest.embedder}, but "
                f"{EmbedderId.of(embedder)} is installed; install the other one, or import with "
                "--any-embedder for one that is installed later"
            )
        collection = layout.check_collection(collection or name)
        with store.writing(index_dir, collection, on_wait) as folder:
            return collection, _install(archive, manifest, folder, on_opening)


def _install(
    archive: tarfile.TarFile,
    manifest: SnapshotManifest,
    folder: Path,
    on_opening: widening.OnOpening,
) -> SnapshotManifest:
    folder.mkdir(exist_ok=True)
    name = layout.new_snapshot(datetime.now(UTC))
    parent = layout.current(folder, manifest.embedder.sha256)
    ours = replace(manifest, snapshot=name, parent=parent)
    new = folder / f"{layout.UNFINISHED}{name}"
    try:
        new.mkdir()
        _unpack(archive, manifest, new)
        ours.save(new)
        on_opening(_openings(folder, new, manifest.embedder.sha256))
        store.take_in(new, ours, current=_is_the_collections(folder, manifest))
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()  # where it was made for this and stayed empty
        raise
    return ours


def _openings(folder: Path, new: Path, embedder: str) -> list[widening.Opening]:
    if not layout.pointers(folder):
        return []
    try:
        return widening.openings_of_snapshot(folder, new, [embedder])
    except (ValueError, TypeError) as error:
        raise damaged(new.name, str(error)) from error


def _is_the_collections(folder: Path, manifest: SnapshotManifest) -> bool:
    """Return whether the collection's current snapshot, if any, is of the same embedder."""
    try:
        current = layout.current(folder)
        return not current or SnapshotManifest.load(folder / current).embedder == manifest.embedder
    except SetupError:
        return True  # What is damaged is of no use to any.


def _pack(archive: tarfile.TarFile, collection: str, snapshot: Path) -> None:
    manifest = SnapshotManifest.load(snapshot)
    header = {
        "format_version": FORMAT_VERSION,
        "collection": collection,
        "manifest_sha256": sha256(snapshot / MANIFEST),
    }
    created = int(datetime.fromisoformat(manifest.created).timestamp())
    _add(archive, HEADER, (json.dumps(header) + "\n").encode(), created)
    _add(archive, MANIFEST, (snapshot / MANIFEST).read_bytes(), created)
    for name in sorted(manifest.files):
        with (snapshot / name).open("rb") as opened:
            archive.addfile(_entry(name, (snapshot / name).stat().st_size, created), opened)


def _add(archive: tarfile.TarFile, name: str, content: bytes, created: int) -> None:
    archive.addfile(_entry(name, len(content), created), io.BytesIO(content))


def _entry(name: str, size: int, created: int) -> tarfile.TarInfo:
    """Return a member that says nothing of this machine."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = size, created, 0o644
    return entry


@contextmanager
def _written(file: Path, *, packed: bool) -> Iterator[tarfile.TarFile]:
    if packed:
        with tarfile.open(file, "w:gz", compresslevel=_COMPRESSION) as archive:
            yield archive
    else:
        with tarfile.open(file, "w:") as archive:
            yield archive
    with file.open("rb") as written:
        os.fsync(written.fileno())


@contextmanager
def _read(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        opened = tarfile.open(file, "r:" if file.suffix == ".tar" else "r:gz")  # noqa: SIM115
    except FileNotFoundError:
        raise NotFound(f"{file}: no such file") from None
    except _UNREADABLE as error:
        raise _not_an_export(file.name, str(error)) from error
    except OSError as error:
        raise InvalidRequest(f"{file}: cannot be read: {error.strerror or error}") from error
    with opened:
        yield opened


def _header(archive: tarfile.TarFile) -> tuple[str, SnapshotManifest]:
    """Return the name of the collection and the manifest, after which the files come."""
    name = Path(str(archive.name)).name
    try:
        header = json.loads(_content(archive, HEADER))
        version, collection = header["format_version"], str(header["collection"])
        if version != FORMAT_VERSION:
            raise ValueError(f"its format version is {version}, expected {FORMAT_VERSION}")
        content = _content(archive, MANIFEST)
        if hashlib.sha256(content).hexdigest() != header["manifest_sha256"]:
            raise ValueError(f"{MANIFEST} differs from when it was written")
        manifest = SnapshotManifest.parse(content.decode())
        datetime.fromisoformat(manifest.created)
        return collection, replace(manifest, files=dict(manifest.files))
    except (*_UNREADABLE, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise _not_an_export(name, str(error)) from error


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    entry = archive.next()
    if entry is None or entry.name != name or not entry.isreg() or entry.size > MAX_HEADER_BYTES:
        raise ValueError(f"{name} is not where it should be")
    opened = archive.extractfile(entry)
    assert opened is not None  # of a regular file it never is
    with opened:
        return opened.read()


def _unpack(archive: tarfile.TarFile, manifest: SnapshotManifest, new: Path) -> None:
    name = Path(str(archive.name)).name
    missing = set(manifest.files)
    while entry := _next(archive, name):
        if entry.name not in missing or not entry.isreg() or not _FILE.fullmatch(entry.name):
            raise _not_an_export(name, f"it holds {entry.name!r}, which does not belong there")
        if entry.size > shutil.disk_usage(new).free:
            raise SetupError(f"{name}: {entry.name} has {entry.size / 1e9:.1f} GB, more than the "
                             f"disk has left; make room in {new.parent}")  # fmt: skip
        _copy(archive, entry, new / entry.name)
        if sha256(new / entry.name) != manifest.files[entry.name]:
            raise _not_an_export(name, f"{entry.name} differs from when it was written")
        missing.remove(entry.name)
    if missing:
        raise _not_an_export(name, f"it lacks {', '.join(sorted(missing))}")


def _copy(archive: tarfile.TarFile, entry: tarfile.TarInfo, file: Path) -> None:
    """Write the content of a member; its permissions and owner are not taken over."""
    opened = archive.extractfile(entry)
    assert opened is not None  # of a regular file it never is
    try:
        with opened, file.open("xb") as new:
            shutil.copyfileobj(opened, new)
            new.flush()
            os.fsync(new.fileno())
    except _UNREADABLE as error:
        raise _not_an_export(Path(str(archive.name)).name, str(error)) from error


def _next(archive: tarfile.TarFile, name: str) -> tarfile.TarInfo | None:
    try:
        return archive.next()
    except _UNREADABLE as error:
        raise _not_an_export(name, str(error)) from error


def _check_suffix(file: Path) -> None:
    if not file.name.endswith(SUFFIXES):
        raise InvalidRequest(f"{file}: the name must end in {', '.join(SUFFIXES)}")


def _not_an_export(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        f"{name} is damaged, or not what `tritonrag index export` wrote: {why or 'it ends early'}"
    )
