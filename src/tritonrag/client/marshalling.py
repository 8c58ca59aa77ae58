"""Requests of the domain to named tensors, and named tensors back to results.

Knows the contract and no protocol: ``wire`` turns a :class:`Call` into protobuf or JSON. Ranges
are left to the server, which has to check them anyway; what cannot be put into a tensor at all is
refused here.
"""

from __future__ import annotations

import json
import operator
import secrets
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from tritonrag.client.faults import understood
from tritonrag.client.results import Answer, Citation, Passage, SearchResult, Span, Usage
from tritonrag.contract import (
    MAX_BATCH_SIZE,
    MODELS,
    PASSAGE_PRIORITY,
    RERANK,
    VARIANTS,
    ModelSpec,
    TensorSpec,
)
from tritonrag.errors import InternalError, InvalidRequest

Tensors = Mapping[str, npt.NDArray[Any]]
"""Tensors of a response by name, with the batch dimension; those of text hold ``str`` objects."""

P = TypeVar("P", bound=Passage)


class SearchOptions(TypedDict, total=False):
    """What to search and how much to return; what is left out (or ``None``) the server decides."""

    top_k: int | None
    retrieve_k: int | None
    collection: str | None
    filter: Mapping[str, Any] | str | None
    groups: Sequence[str] | None
    mode: str | None
    min_score: float | None
    diversity: float | None
    merge: bool | None


class SamplingOptions(TypedDict, total=False):
    """How to generate, and for whom; what is left out (or ``None``) the server decides."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k_sampling: int | None
    seed: int | None
    stop: Sequence[str] | str | None
    grounding: str | None
    caller: str | None


class AskOptions(SearchOptions, SamplingOptions, total=False):
    """Everything about an answer but the question; ``history`` is earlier turns, oldest first."""

    history: Sequence[Mapping[str, str]] | str | None


@dataclass(frozen=True)
class Call:
    """One request: a model, the tensors given by name (values row by row) and a request id.

    ``version`` None is the highest that the server has loaded. A higher ``priority`` waits longer,
    0 is the model's default.
    """

    model: ModelSpec
    values: Mapping[str, Sequence[Any]]
    id: str
    rows: int = 1
    version: int | None = None
    priority: int = 0

    def inputs(self) -> Iterator[tuple[TensorSpec, Sequence[Any]]]:
        """Yield the spec and the values of every tensor given."""
        for spec in self.model.inputs:
            if spec.name in self.values:
                yield spec, self.values[spec.name]

    def shape(self, name: str) -> list[int]:
        """Return the shape of a tensor, batch dimension first."""
        return [self.rows, len(self.values[name]) // self.rows]


def call(model: str, version: int | None = None, **options: Any) -> Call:
    """Return the call of ``model`` for one question or prompt.

    Raises:
        InvalidRequest: a value does not fit the tensor's dtype.
        TypeError: an option is not an input of the model.
    """
    # A variant takes more, and what is not given is not sent: a plain server refuses the rest.
    spec = VARIANTS[RERANK].get(model, MODELS[model])
    unknown = options.keys() - {tensor.name for tensor in spec.inputs}
    if unknown:
        raise TypeError(f"{model} has no option {', '.join(sorted(unknown))}")
    given = {name: value for name, value in options.items() if value is not None}
    values = {t.name: _values(t, given[t.name]) for t in spec.inputs if t.name in given}
    return Call(spec, values, uuid.uuid4().hex, version=version)


def stream_call(model: str, version: int | None = None, **options: Any) -> Call:
    """As :func:`call`, with a secret by which :func:`cancel_call` can stop the generation."""
    return call(model, version, cancel_key=secrets.token_urlsafe(), **options)


def cancel_call(running: Call) -> Call:
    """Return the call that stops the generation of a :func:`stream_call`.

    What ran in the graph is stopped there; what was asked of ``generate``, at the same version.
    """
    key = running.values["cancel_key"]
    if running.model.name == "generate":
        return Call(running.model, {"cancel": key}, uuid.uuid4().hex, version=running.version)
    return Call(MODELS["cancel"], {"cancel_key": key}, uuid.uuid4().hex)


def embed_calls(texts: Sequence[str], role: str, version: int | None = None) -> Iterator[Call]:
    """Yield the calls of ``embed_text`` for ``texts``, as many in each as a batch takes.

    Those for passages let questions go before them.

    With a ``version`` they are calls of that version of ``tokenize``, whose answers go to
    :func:`encoder_call`: ``embed_text`` has the version that the graph uses.

    Raises:
        InvalidRequest: ``texts`` is one string, or holds something else than strings.
    """
    if isinstance(texts, str):
        raise InvalidRequest("texts: expected a sequence of strings, got one string")
    spec = MODELS["embed_text" if version is None else "tokenize"]
    text, as_role = spec.inputs
    priority = PASSAGE_PRIORITY if role == "passage" else 0
    for start in range(0, len(texts), MAX_BATCH_SIZE):
        batch = [_scalar(text, value) for value in texts[start : start + MAX_BATCH_SIZE]]
        values = {text.name: batch, as_role.name: [_scalar(as_role, role)] * len(batch)}
        yield Call(spec, values, uuid.uuid4().hex, len(batch), version, priority)


def encoder_call(tokens: Tensors, call: Call) -> Call:
    """Return the call of ``embed`` for what ``tokenize`` answered to ``call``."""
    spec = MODELS["embed"]
    values = {each.name: tokens[each.name].ravel().tolist() for each in spec.inputs}
    return Call(spec, values, call.id, call.rows, call.version, call.priority)


@understood
def search_result(tensors: Tensors) -> SearchResult:
    """Return the passages of a response of ``search``."""
    texts = tensors["passages"].ravel()
    return SearchResult(tuple(_record(Passage, json.loads(text)) for text in texts if text))


@understood
def embeddings(tensors: Tensors) -> npt.NDArray[np.float32]:
    """Return the embeddings ``[n, dim]`` of a response of ``embed_text`` or ``embed``."""
    (found,) = tensors.values()
    return found.astype(np.float32, copy=False)


class Progress:
    """What a streamed answer has said so far, response by response."""

    def __init__(self) -> None:
        """Begin with nothing said."""
        self.text = ""
        self.citations: tuple[Citation, ...] = ()
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.error: str | None = None

    @understood
    def take(self, tensors: Tensors) -> str:
        """Take in one response and return the text it adds."""
        delta, citations, finish_reason, usage = (
            str(tensors[spec.name].item()) for spec in MODELS["generate"].outputs
        )
        if citations:
            self.citations = tuple(map(_citation, json.loads(citations)))
        if usage:
            self._end(finish_reason, json.loads(usage))
        self.text += delta
        return delta

    def _end(self, finish_reason: str, usage: dict[str, Any]) -> None:
        self.finish_reason = finish_reason
        self.error = usage.pop("error", None)
        self.usage = Usage(**usage)

    def answer(self) -> Answer:
        """Return the whole answer.

        Raises:
            InternalError: the stream ended before the answer did, or generating it failed.
        """
        if self.finish_reason is None:
            raise InternalError("the answer was cut off; the server's log may say why")
        if self.finish_reason == "error":
            raise InternalError(self.error or "the generation failed; the server's log may say why")
        return Answer(self.text, self.citations, self.finish_reason, self.usage or Usage())


def _values(spec: TensorSpec, value: Any) -> list[Any]:
    if spec.name == "groups":
        value = _json(spec, _texts(spec, value))
    elif spec.name in ("filter", "history") and not isinstance(value, str):
        value = _json(spec, value)
    if spec.dims == (1,):
        return [_scalar(spec, value)]
    if isinstance(value, str) or not isinstance(value, Sequence):
        value = [value]
    return [_scalar(spec, item) for item in value]


def _texts(spec: TensorSpec, value: Any) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidRequest(f"{spec.name}: expected a list of texts, got {value!r:.80}")
    return list(value)


def _json(spec: TensorSpec, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"{spec.name}: cannot be written as JSON ({error})") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    value.encode()
    return value


def _boolean(value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError
    return bool(value)


def _integer(bits: int) -> Callable[[Any], int]:
    bound = 2 ** (bits - 1)

    def integer(value: Any) -> int:
        number = operator.index(value)
        if isinstance(value, bool) or not -bound <= number < bound:
            raise TypeError
        return number

    return integer


def _number(value: Any) -> float:
    if isinstance(value, (bool, str)):
        raise TypeError
    return float(value)


_READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "STRING": (_text, "text that can be written as UTF-8"),
    "BOOL": (_boolean, "true or false"),
    "INT32": (_integer(32), "an integer of 32 bits"),
    "INT64": (_integer(64), "an integer of 64 bits"),
    "FP32": (_number, "a number"),
}


def _scalar(spec: TensorSpec, value: Any) -> Any:
    reader, expected = _READERS[spec.dtype]
    try:
        return reader(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequest(f"{spec.name}: expected {expected}, got {value!r:.80}") from error


def _citation(item: Mapping[str, Any]) -> Citation:
    spans = tuple(Span(**span) for span in item.get("spans", ()))
    return _record(Citation, {**item, "spans": spans})


def _record(kind: type[P], item: Mapping[str, Any]) -> P:
    """Return a passage or citation; fields it does not name go to ``extra``."""
    names = {field.name for field in fields(kind)} - {"extra"}
    extra = {name: value for name, value in item.items() if name not in names}
    return kind(**{name: item[name] for name in names & item.keys()}, extra=extra)
