"""ZIP and OLE2 files, which are what office files are, and what is in them."""

from __future__ import annotations

import io
import zipfile

import olefile

from tritonrag.errors import InvalidRequest

MAX_UNPACKED_BYTES = 512 * 1024 * 1024
MAX_MEMBERS = 20_000

ZIP, OLE = b"PK\x03\x04", olefile.MAGIC


def open_zip(content: bytes) -> zipfile.ZipFile:
    """Return a ZIP archive that says it unpacks to a reasonable size; it is read from memory.

    Raises:
        InvalidRequest: it is damaged, or too large once unpacked.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise InvalidRequest(f"a damaged ZIP file: {error}") from error
    members = archive.infolist()
    size = sum(member.file_size for member in members)
    if size > MAX_UNPACKED_BYTES or len(members) > MAX_MEMBERS:
        raise InvalidRequest(
            f"unpacks to {len(members):,} files of {size >> 20:,} MiB; at most {MAX_MEMBERS:,} of "
            f"{MAX_UNPACKED_BYTES >> 20} MiB are read"
        )
    return archive


def open_ole(content: bytes) -> olefile.OleFileIO:
    """Return an OLE2 file.

    Raises:
        InvalidRequest: it is damaged.
    """
    try:
        return olefile.OleFileIO(io.BytesIO(content))
    except (OSError, ValueError, IndexError) as error:
        raise InvalidRequest(f"a damaged OLE2 file: {error}") from error
