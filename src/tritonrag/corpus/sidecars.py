"""Sidecar files: ``leave.md.meta.json`` or ``leave.md.meta.yaml`` says more of ``leave.md``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from tritonrag.corpus.place import Listing
from tritonrag.documents import Failure, SourceFile, read_file
from tritonrag.errors import InvalidRequest
from tritonrag.formats import SUFFIXES
from tritonrag.formats.front_matter import load_json, load_yaml
from tritonrag.metadata import said_outside

ENDINGS = (".meta.json", ".meta.yaml", ".meta.yml")
MAX_SIDECAR_BYTES = 64 * 1024
AT_A_TIME = 10
"""Sidecars that are read at a time: they may be objects of a store."""


@dataclass(frozen=True)
class Refused:
    """Stands for a file that is there but must not be indexed."""

    reason: str

    def read(self, limit: int) -> bytes:
        """Raise InvalidRequest with the reason."""
        raise InvalidRequest(self.reason)


def of_known_kind(key: str) -> bool:
    """Tell whether a file can be indexed, or is the sidecar of one."""
    return is_sidecar(key) or PurePosixPath(key).suffix.lower() in SUFFIXES


def is_sidecar(key: str) -> bool:
    """Tell whether a file is a sidecar, by its name, whatever the case of its ending."""
    return key.lower().endswith(ENDINGS)


def target_of(sidecar: str) -> str:
    """Return the name of the file that a sidecar, by its name, is of."""
    return sidecar[: sidecar.lower().rindex(".meta.")]


def with_sidecars(listing: Listing, given: Mapping[str, Any]) -> list[SourceFile]:
    """Return the documents of a listing with what their sidecars and ``given`` say of them.

    What a sidecar says replaces what is given for all; tags are those of both. A document whose
    sidecar is malformed is refused when it is read, so that it keeps what it had. A sidecar without
    its document is a failure: it may be misspelt, and hold what closes one.
    """
    sidecars: dict[str, list[SourceFile]] = defaultdict(list)
    for file in sorted(listing.files, key=lambda file: file.source):
        if is_sidecar(file.source):
            sidecars[target_of(file.source)].append(file)
    documents = [file for file in listing.files if not is_sidecar(file.source)]
    for target in sorted(sidecars.keys() - listing.keys):
        for sidecar in sidecars[target]:
            reason = f"a sidecar of {target!r}, which is not there"
            listing.failures.append(Failure(sidecar.shown, reason))
    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="sidecar") as pool:
        return list(pool.map(lambda file: _described(file, sidecars, given), documents))


def _described(
    file: SourceFile, sidecars: Mapping[str, list[SourceFile]], given: Mapping[str, Any]
) -> SourceFile:
    own = sidecars.get(file.source)
    if not own:
        return replace(file, metadata=given)
    try:
        return replace(file, metadata=_joined(_read(own), given))
    except InvalidRequest as error:
        names = " and ".join(PurePosixPath(each.source).name for each in own)
        return replace(file, stamp="", reader=Refused(f"{names}: {error}"))


def _read(sidecars: list[SourceFile]) -> dict[str, Any]:
    if len(sidecars) > 1:
        raise InvalidRequest("two sidecars of one file; remove one")
    (sidecar,) = sidecars
    content = read_file(sidecar)
    if len(content) > MAX_SIDECAR_BYTES:
        raise InvalidRequest(f"over {MAX_SIDECAR_BYTES >> 10} KiB")
    try:
        # JSON would be YAML too, but for tabs, and its errors are clearer as JSON's.
        load = load_json if sidecar.source.lower().endswith(ENDINGS[0]) else load_yaml
        values = load(content.decode("utf-8-sig"))
    except InvalidRequest:
        raise
    except Exception as error:  # YAML's constructors raise anything.
        reason = " ".join(str(error).split())
        raise InvalidRequest(f"cannot be read: {type(error).__name__}: {reason}") from error
    if not isinstance(values, dict):
        raise InvalidRequest("expected names and values, as in `tags: [travel]`")
    return said_outside(values)


def _joined(own: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    joined = {**given, **own}
    if "tags" in joined:
        joined["tags"] = sorted({*given.get("tags", ()), *own.get("tags", ())})
    return joined
