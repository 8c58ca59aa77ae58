"""What is known of a document besides its text: tags, readers, dates and fields of its own.

Pure: knows neither files nor the index. What a filter may name is decided here.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime
from itertools import islice
from reprlib import Repr
from typing import Any

from tritonrag.errors import InvalidRequest

Value = str | float | bool
"""A value of a field of one's own; whole numbers are stored as such."""

MAX_TAGS, MAX_TAG_CHARS = 256, 256
MAX_FIELDS, MAX_VALUE_CHARS = 64, 4096

MAX_TITLE_CHARS = 512

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_TAKEN = ("source", "path")
"""Where a file lies, which nothing says but its place."""

_RESERVED = frozenset({"source", "path", "title", "tags", "access", "created", "modified"})


@dataclass(frozen=True)
class Metadata:
    """Metadata of one document.

    Attributes:
        tags: labels, sorted.
        access: the groups of which a caller must belong to one to read it, sorted; empty is
            everyone.
        created: when it was written, ISO 8601 as a date or a time in UTC; empty is unknown.
        modified: when it was last changed, likewise.
        fields: further fields by name, each a text, a number or a truth value.
    """

    tags: tuple[str, ...] = ()
    access: tuple[str, ...] = ()
    created: str = ""
    modified: str = ""
    fields: Mapping[str, Value] = field(default_factory=dict)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Metadata:
        """Return the metadata that a front matter, a sidecar file or flags give.

        ``tags`` and ``access`` are a text or a list of them, ``created`` and ``modified`` dates,
        ``title`` is left to the document, and everything else becomes a field. ``access`` without
        a value, written otherwise or inside another name is refused: it would open to everyone what
        somebody meant to close.

        Raises:
            InvalidRequest: a value or a name is not of its kind; the message names it.
        """
        _check_access(values)
        own = {name: values[name] for name in values if name not in _RESERVED}
        if len(own) > MAX_FIELDS:
            raise InvalidRequest(f"metadata: {len(own)} fields, at most {MAX_FIELDS} are kept")
        return cls(
            tags=_labels("tags", values.get("tags")),
            access=_labels("access", values.get("access")),
            created=_moment("created", values.get("created")),
            modified=_moment("modified", values.get("modified")),
            fields={_name(name): _value(name, own[name]) for name in sorted(own, key=str)},
        )

    @classmethod
    def joined(cls, own: Mapping[str, Any], outside: Mapping[str, Any]) -> Metadata:
        """Return the metadata of a document, from its own file and from outside.

        What is said outside replaces the document's own of that name, ``access`` too; ``tags`` are
        those of both. A front matter may hold what is meant for other programs: what cannot be
        metadata is left out of it, but never ``access``.

        Raises:
            InvalidRequest: ``access`` is malformed, or anything said outside.
        """
        kept = {name: own[name] for name in own if name not in outside and _usable(name, own[name])}
        room = max(0, MAX_FIELDS - len(outside))
        spare = list(islice((name for name in kept if name not in _RESERVED), room, None))
        values = {name: value for name, value in kept.items() if name not in spare} | dict(outside)
        if "tags" in outside and _usable("tags", own.get("tags")):
            values["tags"] = {*_labels("tags", own.get("tags")), *_labels("tags", outside["tags"])}
        return cls.read(values)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Metadata:
        """Read what :meth:`to_json` gave.

        Raises:
            TypeError: it holds anything else.
        """
        lists = {name: tuple(values[name]) for name in ("tags", "access") if name in values}
        return cls(**{**values, **lists})

    def to_json(self) -> dict[str, Any]:
        """Return what differs from a document without metadata, as JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value
        }


def said_outside(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a sidecar file or flags say, checked, as JSON values under the same names.

    Raises:
        InvalidRequest: a value or a name is not of its kind; the message names it.
    """
    for name in _TAKEN:
        if name in values:
            raise InvalidRequest(f"metadata: `{name}` is where the file lies and cannot be set")
    read = Metadata.read(values)
    said: dict[str, Any] = dict(read.fields)
    said |= {name: list(getattr(read, name)) for name in ("tags", "access") if name in values}
    said |= {name: getattr(read, name) for name in ("created", "modified") if name in values}
    if "title" in values:
        said["title"] = _title(values["title"])
    return said


def _title(value: object) -> str:
    title = " ".join(value.split()) if isinstance(value, str) else ""
    if not 0 < len(title) <= MAX_TITLE_CHARS or not _is_utf8(title):
        raise InvalidRequest(
            f"metadata: `title` is {_shown(value)}, expected a text of 1 to {MAX_TITLE_CHARS} "
            "characters"
        )
    return title


def _check_access(values: Mapping[str, Any]) -> None:
    for name in values:
        if name != "access" and means_access(name):
            raise InvalidRequest(f"metadata: {_shown(name)} is not a name; write `access`")
    for name, value in values.items():
        if _holds_access(value):
            raise InvalidRequest(
                f"metadata: {_shown(name)} has `access` inside, which would close nothing; write "
                "`access` as a name of its own at the top, or another word there"
            )
    if "access" in values and values["access"] is None:
        raise InvalidRequest(
            "metadata: `access` has no value; name the groups that may read the document, or write "
            "`access: []` for everyone"
        )


def means_access(name: object) -> bool:
    """Tell whether a name looks like ``access``, or the end of a dotted one does."""
    text = name.decode(errors="replace") if isinstance(name, bytes) else name
    return isinstance(text, str) and re.split(r"[.:/]", folded(text))[-1].strip() == "access"


def folded(text: str) -> str:
    """Return a text without what cannot be seen in it, its letters in their plainest form."""
    plain = unicodedata.normalize("NFKC", text)
    seen = (each for each in plain if unicodedata.category(each) not in ("Cf", "Mn"))
    return "".join(seen).casefold()


def _holds_access(value: object) -> bool:
    """Tell whether a name within lists and mappings means access; YAML's aliases cost nothing."""
    waiting, seen = [value], set()
    while waiting:
        each = waiting.pop()
        if not isinstance(each, Mapping | list | tuple | set) or id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, Mapping):
            if any(map(means_access, each)):
                return True
            waiting.extend(each.values())
        elif isinstance(each, tuple) and len(each) == 2 and means_access(each[0]):
            return True  # as YAML's pairs are read
        else:
            waiting.extend(each)
    return False


def _usable(name: object, value: object) -> bool:
    """Tell whether a value of a front matter can be kept; ``access`` must be, or be an error."""
    if means_access(name) or _holds_access(value):
        return True
    try:
        Metadata.read({name: value})  # type: ignore[dict-item]
    except InvalidRequest:
        return False
    return True


def _labels(name: str, value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    labels = [value] if isinstance(value, str) else value
    if not isinstance(labels, Iterable) or isinstance(labels, Mapping):
        raise InvalidRequest(f"metadata: `{name}` is {_shown(value)}, expected a text or a list")
    found = tuple(sorted({_label(name, label) for label in labels}))
    if len(found) > MAX_TAGS:
        raise InvalidRequest(f"metadata: `{name}` has {len(found)} values, at most {MAX_TAGS}")
    return found


def _label(name: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or _huge(value):
        raise InvalidRequest(f"metadata: `{name}` holds {_shown(value)}, expected texts")
    label = str(value).strip()
    if not 0 < len(label) <= MAX_TAG_CHARS or not _is_utf8(label):
        raise InvalidRequest(
            f"metadata: `{name}` holds {_shown(value)}; a value has 1 to {MAX_TAG_CHARS} characters"
        )
    return label


def _moment(name: str, value: object) -> str:
    if value is None or value == "":
        return ""
    try:
        moment = _parsed(value)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"metadata: `{name}` is {_shown(value)}, expected a date such as 2026-03-31"
        ) from None
    return moment.isoformat()


def _parsed(value: object) -> date:
    if isinstance(value, str):
        text = value.strip()
        value = date.fromisoformat(text) if len(text) <= 10 else datetime.fromisoformat(text)
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return value
    raise ValueError(value)


def _name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"metadata: {_shown(name)} is not a field's name; use lower-case letters, digits and "
            "`_`, a letter first, at most 64"
        )
    return name


def _value(name: object, value: object) -> Value:
    if isinstance(value, date):
        return _moment(str(name), value)
    finite = math.isfinite(value) if isinstance(value, float) else not _huge(value)
    if isinstance(value, str | int | float) and finite and _is_short(str(value)):
        return value
    raise InvalidRequest(
        f"metadata: `{name}` is {_shown(value)}, expected a text of at most {MAX_VALUE_CHARS} "
        "characters, a number, a date or true or false"
    )


def _is_short(text: str) -> bool:
    return len(text) <= MAX_VALUE_CHARS and _is_utf8(text)


def _is_utf8(text: str) -> bool:
    """Tell whether a text can be written: escapes in JSON and YAML can make half a character."""
    return not any("\ud800" <= each <= "\udfff" for each in text)


def _huge(value: object) -> bool:
    return isinstance(value, int) and value.bit_length() >= 64


class _Beginning(Repr):
    """Costs little even where YAML's aliases or digits make a value huge."""

    def repr_int(self, x: int, level: int) -> str:
        return "a huge number" if _huge(x) else repr(x)


_BEGINNING = _Beginning()
_BEGINNING.maxstring = _BEGINNING.maxother = 80


def _shown(value: object) -> str:
    return _BEGINNING.repr(value)[:80]
