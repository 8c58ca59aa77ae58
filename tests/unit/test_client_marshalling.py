"""Values of the caller to tensors: what fits, and what is said of what does not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tritonrag.client import Answer, Citation, Health, Span, Usage
from tritonrag.client.marshalling import (
    Progress,
    call,
    cancel_call,
    embed_calls,
    encoder_call,
    search_result,
    stream_call,
)
from tritonrag.client.wire import to_fields, to_json, to_protobuf
from tritonrag.contract import (
    MAX_KEY_BYTES,
    MIN_KEY_BYTES,
    MODELS,
    PASSAGE_PRIORITY,
    RERANK,
)
from tritonrag.errors import InternalError, InvalidRequest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"question": 3}, "question: expected text that can be written as UTF-8, got 3"),
        ({"question": "\ud800"}, "question: expected text"),
        ({"question": b"bytes"}, "question: expected text"),
        ({"question": "x", "top_k": 2.5}, "top_k: expected an integer of 32 bits, got 2.5"),
        ({"question": "x", "top_k": True}, "top_k: expected an integer"),
        ({"question": "x", "top_k": 2**31}, "top_k: expected an integer of 32 bits"),
        ({"question": "x", "seed": 2**63}, "seed: expected an integer of 64 bits"),
        ({"question": "x", "temperature": "hot"}, "temperature: expected a number, got 'hot'"),
        ({"question": "x", "stop": ["a", 1]}, "stop: expected text"),
        ({"question": "x", "filter": {"source": object()}}, "filter: cannot be written as JSON"),
        ({"question": "x", "groups": "hr"}, "groups: expected a list of texts, got 'hr'"),
        ({"question": "x", "groups": [object()]}, "groups: cannot be written as JSON"),
    ],
)
def test_what_fits_no_tensor_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        call("rag", **options)


def test_ranges_are_left_to_the_server() -> None:
    assert call("rag", question="", top_k=0, temperature=-1, max_tokens=-5).values["top_k"] == [0]


def test_an_unknown_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="search has no option topk"):
        call("search", question="x", topk=3)


def test_what_is_none_is_left_out() -> None:
    assert set(call("rag", question="x", top_k=None, stop=None).values) == {"question"}


def test_numbers_of_numpy_are_numbers() -> None:
    made = call("rag", question="x", top_k=np.int64(3), temperature=np.float32(0.5))
    assert to_fields(made) == {"id": made.id, "question": "x", "top_k": 3, "temperature": 0.5}


def test_every_call_has_its_own_id() -> None:
    assert len({call("search", question="x").id for _ in range(100)}) == 100


def test_a_cancel_carries_the_secret_of_what_it_stops() -> None:
    asked = stream_call("rag", question="x")
    stop = cancel_call(asked)
    assert (stop.model.name, stop.version) == ("cancel", None)
    assert to_fields(stop) == {"id": stop.id, "cancel_key": to_fields(asked)["cancel_key"]}

    asked = stream_call("generate", 2, prompt="x")
    stop = cancel_call(asked)
    assert (stop.model.name, stop.version) == ("generate", 2)
    assert to_fields(stop) == {"id": stop.id, "cancel": to_fields(asked)["cancel_key"]}


def test_every_answer_has_a_secret_of_its_own_that_its_id_does_not_tell() -> None:
    asked = [stream_call("rag", question="x") for _ in range(100)]
    keys = {key for each in asked for key in each.values["cancel_key"]}

    assert len(keys) == 100
    assert all(MIN_KEY_BYTES < len(key) <= MAX_KEY_BYTES for key in keys)
    assert keys.isdisjoint(each.id for each in asked)


def test_embedding_one_string_by_mistake_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="texts: expected a sequence of strings"):
        list(embed_calls("text", "passage"))
    with pytest.raises(InvalidRequest, match="text: expected text"):
        list(embed_calls(["a", None], "passage"))  # type: ignore[list-item]


def test_json_has_a_row_for_each_text() -> None:
    (made,) = embed_calls(["a", "b"], "passage")
    assert to_json(made)["inputs"][0] == {
        "name": "text",
        "datatype": "BYTES",
        "shape": [2, 1],
        "data": ["a", "b"],
    }


def test_passages_let_questions_go_first() -> None:
    (passages,), (question,) = embed_calls(["a"], "passage"), embed_calls(["a"], "query")
    (tokens,) = embed_calls(["a"], "passage", version=2)

    assert to_protobuf(passages).parameters["priority"].uint64_param == PASSAGE_PRIORITY
    assert to_json(passages)["parameters"] == {"priority": PASSAGE_PRIORITY}
    assert not to_protobuf(question).parameters
    assert "parameters" not in to_json(question)
    ids = {"input_ids": np.array([[1]]), "attention_mask": np.array([[1]])}
    assert encoder_call(ids, tokens).priority == PASSAGE_PRIORITY


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"passages": np.array([["not json"]], np.object_)},
        {"passages": np.array([["[]"]], np.object_)},
        {"passages": np.array([['{"id": "1"}']], np.object_)},
    ],
)
def test_a_response_of_another_version_is_named_as_such(tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(InternalError, match="of the same version"):
        search_result(tensors)


def test_progress_ignores_nothing_it_should_keep() -> None:
    progress = Progress()
    names = ("text", "citations", "finish_reason", "usage")
    for values in (("a", "[]", "", ""), ("b", "", "length", '{"total_ms": 2}')):
        named = zip(names, values, strict=True)
        progress.take({name: np.array([[value]], np.object_) for name, value in named})
    assert progress.answer() == Answer("ab", (), "length", Usage(total_ms=2))


def test_the_last_citations_have_the_spans_and_take_the_place_of_the_first() -> None:
    passage = {"id": "1", "text": "t", "source": "s", "title": "", "location": "", "score": 1.0}
    span = {"start": 0, "end": 5, "mark_start": 6, "mark_end": 9}
    progress = Progress()
    names = ("text", "citations", "finish_reason", "usage")
    first = json.dumps([{"mark": 1, **passage}])
    last = json.dumps([{"mark": 1, **passage, "spans": [span]}])
    for values in (("So it", first, "", ""), (" [1]", "", "", ""), ("", last, "stop", "{}")):
        named = zip(names, values, strict=True)
        progress.take({name: np.array([[value]], np.object_) for name, value in named})
        if not progress.finish_reason:
            assert progress.citations == (Citation(**passage, mark=1),)
    assert progress.answer().cited == (Citation(**passage, mark=1, spans=(Span(**span),)),)


def test_cited_are_those_that_the_answer_has_spans_of() -> None:
    fields = {"id": "1", "text": "t", "source": "s", "title": "", "location": "", "score": 1.0}
    places = {1: (), 2: (Span(0, 8, 9, 12),), 12: (Span(14, 20, 21, 25),), None: ()}
    citations = tuple(Citation(**fields, mark=mark, spans=at) for mark, at in places.items())
    answer = Answer("So it is [2]. And so [12]. [1] is a number.", citations, "stop", Usage())
    assert [citation.mark for citation in answer.cited] == [2, 12]


def test_a_model_of_a_variant_need_not_be_loaded() -> None:
    plain = {name: [1] for name, spec in MODELS.items() if not spec.variant}
    assert Health(live=True, versions=plain).ready
    assert Health(live=True, versions=plain | {RERANK: [1]}).ready
    assert not Health(live=True, versions={RERANK: [1]}).ready
