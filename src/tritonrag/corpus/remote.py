"""Object stores, through fsspec: listed as a whole, each object read when it is needed.

The only module that imports fsspec. Credentials, endpoint and retries are those of the store's own
library, from its usual variables and files; no message holds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from tritonrag.corpus.place import Listing, Source
from tritonrag.corpus.sidecars import Refused, of_known_kind
from tritonrag.documents import MAX_FILE_BYTES, TOO_LARGE, Failure, SourceFile
from tritonrag.errors import InvalidRequest, SetupError, TritonragError, Unavailable

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
"""The stores by the scheme of their URLs, and the package of fsspec that speaks to each."""

_MESSAGE_CHARS = 300


@dataclass(frozen=True)
class RemoteReader:
    """Reads one object of ``root``, the listed URL, through fsspec's file system."""

    files: Any
    root: str
    key: str
    size: int

    def read(self, limit: int) -> bytes:
        """Return the object's first ``limit`` bytes.

        Raises:
            InvalidRequest: it is gone, or the store refuses it.
            Unavailable: the store does not answer.
        """
        if not self.size:
            return b""
        try:
            return bytes(self.files.cat_file(self.key, start=0, end=limit))
        except FileNotFoundError:
            raise InvalidRequest("is gone since it was listed") from None
        except PermissionError as error:
            raise InvalidRequest(f"no permission to read it: {_said(error)}") from error
        except Exception as error:  # Of the store's own library, whichever it is.
            raise self._fault(error) from error

    def _fault(self, error: Exception) -> TritonragError:
        """Blame the object where the store answers for its folder, or else the store."""
        try:
            self.files.info(self.root)
        except (FileNotFoundError, PermissionError):
            pass
        except Exception:
            return Unavailable(f"{self.root}: the store does not answer: {_said(error)}")
        return InvalidRequest(f"cannot be read: {_said(error)}")


def list_remote(source: Source) -> Listing:
    """Return what lies below a URL, hidden objects left out.

    Raises:
        InvalidRequest: no store has such URLs.
        SetupError: the package for this store is not installed.
        Unavailable: the store does not answer; nothing is known of the rest of the listing then.
    """
    listing = Listing()
    files, root = _opened(source.root)
    try:
        found = files.find(root, detail=True)
    except FileNotFoundError:
        listing.unlisted.append(Failure(source.root, "no such bucket or folder"))
    except PermissionError as error:
        listing.unlisted.append(Failure(source.root, f"no permission to list it: {_said(error)}"))
    except Exception as error:
        raise Unavailable(f"{source.root}: cannot be listed: {_said(error)}") from error
    else:
        for path, facts in found.items():
            _take(files, source.root, path.removeprefix(root).lstrip("/"), path, facts, listing)
    return listing


def _opened(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    if scheme not in PACKAGES:
        known = ", ".join(f"{each}://" for each in PACKAGES)
        raise InvalidRequest(f"{scheme}:// is no source; a source is a folder, a file, or {known}")
    if find_spec("fsspec") is None or find_spec(PACKAGES[scheme]) is None:
        package = "'tritonrag[sources]'" if scheme == "s3" else PACKAGES[scheme]
        raise SetupError(f"{scheme}:// needs a package more: `pip install {package}`")
    import fsspec

    # A new one for each listing: it reads the credentials again, which may have been replaced.
    files = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
    return files, files._strip_protocol(url)


def _take(
    files: Any, root: str, below: str, path: str, facts: Mapping[str, Any], listing: Listing
) -> None:
    key = below or PurePosixPath(path).name  # The URL of one object is listed as that object.
    hidden = any(part.startswith(".") for part in key.split("/"))
    if hidden or path.endswith("/") or facts.get("type") == "directory":
        return
    listing.keys.add(key)
    if of_known_kind(key):
        listing.files.append(_source_file(files, root, path, key, facts))


def _source_file(
    files: Any, root: str, path: str, key: str, facts: Mapping[str, Any]
) -> SourceFile:
    size = int(facts.get("size") or 0)
    tag = str(facts.get("ETag") or facts.get("etag") or "").strip('"')
    reader = RemoteReader(files, root, path, size) if size <= MAX_FILE_BYTES else Refused(TOO_LARGE)
    return SourceFile(
        Path(path),
        key,
        stamp=f"{tag}:{size}" if tag else "",
        url=files.unstrip_protocol(path),
        reader=reader,
    )


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:_MESSAGE_CHARS] or type(error).__name__
