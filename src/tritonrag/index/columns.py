"""The documents of a snapshot as columns, and which of them a filter and a caller's groups leave.

A column holds the distinct values of a field, sorted, and for each place where one occurs its
number: whatever an operator asks for is then a range of numbers. Knows neither FAISS nor passages.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonrag.errors import InvalidRequest
from tritonrag.index.filters import (
    FIELDS,
    KINDS,
    All,
    Condition,
    Filter,
    Kind,
    Not,
    kind_of,
    moment,
    own_fields,
    unknown_field,
)
from tritonrag.index.manifest import DocumentRecord

Mask = npt.NDArray[np.bool_]
"""One truth value for each document of a snapshot."""

Groups = frozenset[str]
"""The groups that a caller belongs to."""

EVERYONE: Groups = frozenset()
"""The groups of a caller of whom nothing is known: documents open to all are left."""


class Columns:
    """Metadata of the documents of one snapshot; immutable."""

    def __init__(self, documents: Sequence[DocumentRecord]) -> None:
        """Read the metadata of ``documents``; masks follow their order."""
        self._count = len(documents)
        entries: dict[tuple[str, Kind], list[tuple[Any, int]]] = defaultdict(list)
        readers: list[tuple[Any, int]] = []
        for number, document in enumerate(documents):
            readers += ((label, number) for label in document.metadata.access)
            for field, kind, value in _values(document):
                entries[field, kind].append((value, number))
        self._columns = {key: _Column(found, self._count) for key, found in entries.items()}
        self._access = _Column(readers, self._count)
        self._open = ~self._access.present()
        self._any_open = bool(self._open.any())

    def known(self, groups: Groups) -> Groups:
        """Return those of ``groups`` that matter here: callers alike in them see the same."""
        return self._access.among(groups)

    def readable(self, groups: Groups) -> bool:
        """Return whether a caller in ``groups`` may read any of the documents."""
        return self._any_open or bool(self.known(groups))

    def allowed(self, where: Filter | None, groups: Groups) -> Mask | None:
        """Return the documents that a caller in ``groups`` may read and that ``where`` leaves.

        None stands for all of them.
        """
        mask = self._visible(groups)
        if where is not None:
            mask &= self._matching(where)
        mask.setflags(write=False)
        return None if mask.all() else mask

    def check(self, where: Filter, groups: Groups) -> None:
        """Check a filter's fields against the documents that a caller in ``groups`` may read.

        What nobody but others may read counts as not there, in messages as in answers.

        Raises:
            InvalidRequest: none of them has a field of that name, or none a value of that kind.
        """
        asked = list(own_fields(where))
        if asked:
            visible = self._visible(groups)
            for condition in asked:
                self._check(condition, visible)

    def _check(self, condition: Condition, visible: Mask) -> None:
        kinds = [kind for field, kind in self._readable(visible) if field == condition.field]
        if not kinds:
            own = {field for field, _ in self._readable(visible)} - set(FIELDS)
            raise unknown_field(condition.field, sorted(own))
        if condition.kind not in kinds:
            raise InvalidRequest(
                f"filter: `{condition.field}` is compared with {KINDS[condition.kind]}, expected "
                f"{' or '.join(KINDS[kind] for kind in kinds)}"
            )

    def _readable(self, visible: Mask) -> Iterator[tuple[str, Kind]]:
        return (key for key, each in self._columns.items() if (each.present() & visible).any())

    def _visible(self, groups: Groups) -> Mask:
        return self._open | self._access.holding(groups)

    def _matching(self, where: Filter) -> Mask:
        if isinstance(where, Condition):
            column = self._columns.get((where.field, where.kind))
            return column.matching(where) if column else np.zeros(self._count, bool)
        if isinstance(where, Not):
            return ~self._matching(where.part)
        join = np.logical_and if isinstance(where, All) else np.logical_or
        joined: Mask = reduce(join, map(self._matching, where.parts))
        return joined


class _Column:
    """The values of one kind of one field; a document may have several, or none."""

    def __init__(self, entries: list[tuple[Any, int]], count: int) -> None:
        self._values = sorted({value for value, _ in entries})
        self._numbers = {value: number for number, value in enumerate(self._values)}
        self._count = count
        codes = [self._numbers[value] for value, _ in entries]
        self._codes = np.array(codes, np.int32)
        self._documents = np.array([document for _, document in entries], np.int64)

    def present(self) -> Mask:
        """Return the documents that have a value."""
        return self._having(np.ones(len(self._values), bool))

    def among(self, values: frozenset[Any]) -> frozenset[Any]:
        """Return those of ``values`` that occur."""
        return frozenset(value for value in values if value in self._numbers)

    def holding(self, values: frozenset[Any]) -> Mask:
        """Return the documents that have one of ``values``."""
        wanted = np.zeros(len(self._values), bool)
        wanted[[self._numbers[value] for value in self.among(values)]] = True
        return self._having(wanted)

    def matching(self, condition: Condition) -> Mask:
        """Return the documents that have a value as ``condition`` says."""
        wanted = np.zeros(len(self._values), bool)
        for low, high in condition.spans:
            wanted[self._range(condition.operator, low, high)] = True
        return self._having(wanted)

    def _range(self, operator: str, low: Any, high: Any) -> slice:
        values = self._values
        match operator:
            case "$gt":
                return slice(bisect_right(values, high), None)
            case "$gte":
                return slice(bisect_left(values, low), None)
            case "$lt":
                return slice(0, bisect_left(values, low))
            case "$lte":
                return slice(0, bisect_right(values, high))
            case "$prefix":
                end = bisect_right(values, low, key=lambda value: value[: len(low)])
                return slice(bisect_left(values, low), end)
        return slice(bisect_left(values, low), bisect_right(values, high))

    def _having(self, wanted: Mask) -> Mask:
        mask = np.zeros(self._count, bool)
        mask[self._documents[wanted[self._codes]]] = True
        return mask


def _values(document: DocumentRecord) -> Iterator[tuple[str, Kind, Any]]:
    metadata = document.metadata
    yield "source", "text", document.source
    yield "title", "text", document.title
    for tag in metadata.tags:
        yield "tags", "text", tag
    for field, written in (("created", metadata.created), ("modified", metadata.modified)):
        if written:
            yield field, "moment", moment(written)[0]
    for field, value in metadata.fields.items():
        kind = kind_of(value)
        if kind:
            yield field, kind, value
