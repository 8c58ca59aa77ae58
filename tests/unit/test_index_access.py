"""Nobody finds, counts or is told of what is for others: a naive reading of the rules decides."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from access_samples import opened, record, save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_samples import manifest, vector

from tritonrag.contract import MAX_GROUP_CHARS, MAX_GROUPS, MAX_GROUPS_BYTES, MODES, SPARSE
from tritonrag.errors import InvalidRequest
from tritonrag.index import Query, Result, Retriever, parse_filter, parse_groups
from tritonrag.index.manifest import DocumentRecord

GROUPS = ("staff", "hr", "it", "board")


def sources(result: Result) -> list[str]:
    return [json.loads(passage)["source"] for passage in result.passages]


def readable(document: DocumentRecord, groups: frozenset[str]) -> bool:
    access = document.metadata.access
    return not access or bool(groups & set(access))


def holds(document: DocumentRecord, where: Mapping[str, Any]) -> bool:
    """Read a filter as its documentation says, document by document."""
    return all(_part(document, name, value) for name, value in where.items())


def _part(document: DocumentRecord, name: str, value: Any) -> bool:
    if name == "$and":
        return all(holds(document, each) for each in value)
    if name == "$or":
        return any(holds(document, each) for each in value)
    if name == "$not":
        return not holds(document, value)
    if isinstance(value, list):
        value = {"$in": value}
    if not isinstance(value, dict):
        value = {"$eq": value}
    return all(_compared(_values(document, name), op, each) for op, each in value.items())


def _values(document: DocumentRecord, field: str) -> list[Any]:
    metadata = document.metadata
    if field == "tags":
        return list(metadata.tags)
    if field == "created":
        return [date.fromisoformat(metadata.created).isoformat()] if metadata.created else []
    if field in ("source", "title"):
        return [getattr(document, field)]
    return [metadata.fields[field]] if field in metadata.fields else []


def _compared(values: list[Any], operator: str, operand: Any) -> bool:
    match operator:
        case "$eq":
            return operand in values
        case "$ne":
            return operand not in values
        case "$in":
            return any(each in values for each in operand)
        case "$nin":
            return not any(each in values for each in operand)
        case "$gt":
            return any(each > operand for each in values)
        case "$gte":
            return any(each >= operand for each in values)
        case "$lt":
            return any(each < operand for each in values)
        case "$lte":
            return any(each <= operand for each in values)
    assert operator == "$prefix"
    return any(each.startswith(operand) for each in values)


FOLDERS, TAGS = ("hr", "it", "hr-old"), ("a", "ab", "b")
DAYS = ("2025-12-31", "2026-01-01", "2026-06-30")
subset = st.frozensets(st.sampled_from(GROUPS), max_size=3)


def document(number: int, folder: str, **metadata: Any) -> DocumentRecord:
    given = {name: value for name, value in metadata.items() if value is not None}
    return record(f"{folder}/{number}.md", 1 + number % 3, **given)


documents = st.lists(
    st.tuples(
        st.sampled_from(FOLDERS),
        subset,
        st.frozensets(st.sampled_from(TAGS)),
        st.one_of(st.none(), st.sampled_from(DAYS)),
        st.one_of(st.none(), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=12,
).map(
    lambda rows: [
        document(n, folder, access=access, tags=tags, created=created, level=level)
        for n, (folder, access, tags, created, level) in enumerate(rows)
    ]
)


def comparisons(values: st.SearchStrategy[Any], *more: str) -> st.SearchStrategy[Any]:
    one = st.sampled_from(("$eq", "$ne", "$gt", "$gte", "$lt", "$lte", *more))
    some = st.lists(values, min_size=1, max_size=3)
    return st.one_of(
        values,
        some,
        st.dictionaries(one, values, min_size=1, max_size=2),
        st.dictionaries(st.sampled_from(("$in", "$nin")), some, min_size=1, max_size=2),
    )


WORDS = "hr it 0 1 md"
"""A question that shares words with passages, for the modes that count them."""

paths = st.sampled_from((*FOLDERS, "hr/", "hr/1.md", "zz", ""))
condition = st.one_of(
    st.fixed_dictionaries({"source": comparisons(paths, "$prefix")}),
    st.fixed_dictionaries({"tags": comparisons(st.sampled_from((*TAGS, "c")), "$prefix")}),
    st.fixed_dictionaries({"created": comparisons(st.sampled_from(DAYS))}),
    st.fixed_dictionaries({"level": comparisons(st.integers(0, 4))}),
)
filters = st.recursive(
    condition,
    lambda parts: st.one_of(
        st.lists(parts, min_size=1, max_size=3).map(lambda each: {"$and": each}),
        st.lists(parts, min_size=1, max_size=3).map(lambda each: {"$or": each}),
        parts.map(lambda each: {"$not": each}),
        st.tuples(condition, parts).map(lambda two: two[0] | two[1]),
    ),
    max_leaves=6,
)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    documents,
    st.lists(
        st.tuples(st.one_of(st.none(), filters), subset, st.sampled_from(MODES)),
        min_size=1,
        max_size=8,
    ),
)
def test_what_is_found_is_what_the_caller_may_read_and_asked_for(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[DocumentRecord],
    asked: list[tuple[Any, frozenset[str], str]],
) -> None:
    index = tmp_path_factory.mktemp("index")
    save(index, documents)
    queries = [
        Query(
            vector("x"),
            top_k=5,
            filter=parse_filter(json.dumps(where or {})),
            groups=groups,
            mode=mode,
            question=WORDS,
        )
        for where, groups, mode in asked
    ]
    with Retriever(index, manifest()) as retriever:
        results = retriever.search(queries)
    for (where, groups, mode), result in zip(asked, results, strict=True):
        allowed = {
            each.source: each.passages for each in documents
            if readable(each, groups) and (where is None or holds(each, where))
        }  # fmt: skip
        assert set(sources(result)) <= set(allowed)
        assert len(result.passages) == len(result.scores)
        if mode != SPARSE:
            assert len(result.passages) == min(5, sum(allowed.values()))


def test_ten_thousand_requests_of_twenty_tenants(tmp_path: Path) -> None:
    """Tenants share groups; each request has a question, a filter and its tenant's groups."""
    dice = random.Random(20)
    groups = [f"team-{number}" for number in range(12)]
    records = [
        record(f"{dice.choice('abc')}/{number}.md", 2, tags=dice.choice(["x", "y"]),
               access=dice.sample(groups, dice.choice([0, 1, 1, 2, 3])), year=dice.randrange(9))
        for number in range(400)
    ]  # fmt: skip
    save(tmp_path, records)
    access = {each.source: each for each in records}
    tenants = [frozenset(dice.sample(groups, dice.choice([0, 1, 2, 3, 4]))) for _ in range(20)]
    wheres = [None, *(parse_filter(text) for text in (
        '{"source": {"$prefix": "a/"}}', '{"tags": "x"}', '{"$not": {"year": {"$gt": 3}}}',
        '{"$or": [{"tags": {"$ne": "x"}}, {"source": {"$gte": "b"}}]}',
    ))]  # fmt: skip
    asked = leaks = short = 0
    with Retriever(tmp_path, manifest()) as retriever:
        while asked < 10_000:
            batch = [
                Query(vector(str(dice.randrange(50))), top_k=dice.choice([1, 4, 10]),
                      filter=dice.choice(wheres), groups=dice.choice(tenants),
                      mode=dice.choice(MODES), question=WORDS)
                for _ in range(64)
            ]  # fmt: skip
            for query, result in zip(batch, retriever.search(batch), strict=True):
                asked += 1
                leaks += any(not readable(access[each], query.groups) for each in sources(result))
                short += query.mode != SPARSE and len(result.passages) < query.top_k
    assert (leaks, short) == (0, 0)


def test_an_untagged_document_is_for_everyone_and_no_groups_see_no_more(tmp_path: Path) -> None:
    index = tmp_path / "index"
    save(index, [record("open.md"), record("hr.md", access=["hr"]), record("two.md", access="it")])
    with Retriever(index, manifest()) as retriever:
        found = [
            sorted(sources(retriever.search([Query(vector("x"), groups=frozenset(groups))])[0]))
            for groups in ([], ["hr"], ["HR"], ["hr", "it", "nobody"])
        ]
    assert found == [
        ["open.md"], ["hr.md", "open.md"], ["open.md"], ["hr.md", "open.md", "two.md"],
    ]  # fmt: skip


def test_errors_name_no_field_of_documents_for_others(tmp_path: Path) -> None:
    snapshot = opened(
        tmp_path, [record("open.md", pages=1), record("hr.md", access="hr", salary=3, pages="x")]
    )
    salary = parse_filter('{"salary": {"$gt": 1}}')
    snapshot.check(salary, frozenset({"hr"}))
    with pytest.raises(InvalidRequest) as caught:
        snapshot.check(salary)
    assert str(caught.value) == (
        "filter: unknown field 'salary'; the fields are `source`, `title`, `tags`, `created`, "
        "`modified`, `pages`"
    )
    with pytest.raises(InvalidRequest, match="expected a number$"):
        snapshot.check(parse_filter('{"pages": "x"}'))


def test_callers_alike_share_one_mask(tmp_path: Path) -> None:
    snapshot = opened(tmp_path, [record("open.md"), record("hr.md", access="hr")])
    assert snapshot.allowed(None, frozenset({"hr", "it"})) is None
    mine, yours = snapshot.allowed(None), snapshot.allowed(None, frozenset({"it"}))
    assert mine is yours
    assert mine is not None
    with pytest.raises(ValueError, match="read-only"):
        mine.mask[0] = False


@pytest.mark.parametrize(
    ("text", "groups"), [("", []), (" ", []), ("[]", []), ('["a", "ä", "a"]', ["a", "ä"])]
)
def test_groups_are_read(text: str, groups: list[str]) -> None:
    assert parse_groups(text) == frozenset(groups)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hr", "groups: not JSON"),
        ("[" * 9000, "groups: not JSON"),
        ('"hr"', "groups: expected a JSON list of texts"),
        ('{"hr": 1}', "groups: expected a JSON list of texts"),
        ('["hr", 3]', "groups: expected a JSON list of texts"),
        ('[""]', "of 1 to 256 characters"),
        (json.dumps(["x" * (MAX_GROUP_CHARS + 1)]), "of 1 to 256 characters"),
        (json.dumps([str(n) for n in range(MAX_GROUPS + 1)]), "1025 groups, at most 1024"),
        (" " * (MAX_GROUPS_BYTES + 1), "groups: over 65536 bytes"),
    ],
)
def test_bad_groups_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        parse_groups(text)
