"""Requests to values and values to responses, symmetrically, for every ``model.py``.

``pb_utils`` is imported by Triton's stub before its classes exist, so they are used inside
functions only. A request carries a batch: every tensor here is [batch, …].
"""

from __future__ import annotations

import secrets
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from tritonrag.contract import TensorSpec
from tritonrag.errors import InternalError, InvalidRequest, TritonragError, tagged

Value = TypeVar("Value")
Answer = TypeVar("Answer")
Array = npt.NDArray[Any]


def array(request: Any, spec: TensorSpec) -> Array | None:
    """Return an input tensor [batch, …], or None where it is optional and absent."""
    tensor = pb_utils.get_input_tensor_by_name(request, spec.name)
    if tensor is None:
        if spec.optional:
            return None
        raise InvalidRequest(f"{spec.name}: is missing")
    values: Array = tensor.as_numpy()
    return values


def column(request: Any, spec: TensorSpec, default: Any, rows: int) -> list[Any]:
    """Return one value a row of an input with dims [1]; ``default`` in each where it is absent."""
    values = array(request, spec)
    if values is None:
        return [default] * rows
    found = values.reshape(-1).tolist()
    if len(found) != rows:
        raise InvalidRequest(f"{spec.name}: has {len(found)} values for a batch of {rows}")
    return [_decode(spec.name, value) for value in found] if spec.dtype == "STRING" else found


def strings(request: Any, spec: TensorSpec, known_as: str = "") -> list[str]:
    """Return an input of strings, flattened; empty where it is absent.

    ``known_as`` is the caller's name for it, where an ensemble maps another field to this input.
    """
    values = array(request, spec)
    if values is None:
        return []
    return [_decode(known_as or spec.name, value) for value in values.reshape(-1).tolist()]


def rows(request: Any, spec: TensorSpec, most: int) -> list[list[str]]:
    """Return an input of strings as one list a row of the batch.

    Raises:
        InvalidRequest: there are over ``most`` in a row, or one is not UTF-8.
    """
    values = array(request, spec)
    if values is None:
        return []
    if values.shape[1] > most:
        raise InvalidRequest(f"{spec.name}: {values.shape[1]} for one question, at most {most}")
    return [[_decode(spec.name, value) for value in row] for row in values.tolist()]


def single(request: Any, spec: TensorSpec, default: Any) -> Any:
    """Return the one value of an input with dims [1] in a batch of one, or ``default``."""
    return column(request, spec, default, 1)[0]


def tensor(spec: TensorSpec, values: Array | Sequence[Any]) -> Any:
    """Return an output tensor of the spec's dtype; ``values`` are [batch, …]."""
    dtype = pb_utils.triton_string_to_numpy(f"TYPE_{spec.dtype}")
    return pb_utils.Tensor(spec.name, np.ascontiguousarray(np.asarray(values, dtype=dtype)))


def response(*tensors: Any) -> Any:
    """Return a response with these output tensors."""
    return pb_utils.InferenceResponse(output_tensors=list(tensors))


def error_response(error: Exception) -> Any:
    """Return an error as a response of its own, so that nobody else's request fails with it.

    An error that is not ours keeps its text and traceback in the server's log; the client is given
    the log id only.
    """
    known = _known(error)
    code = getattr(pb_utils.TritonError, known.code, pb_utils.TritonError.INTERNAL)
    return pb_utils.InferenceResponse(
        output_tensors=[], error=pb_utils.TritonError(tagged(known), code)
    )


def log_info(message: str) -> None:
    """Write a line to the server's log."""
    pb_utils.Logger.log_info(message)


def respond(
    requests: Sequence[Any],
    read: Callable[[Any], Value],
    run: Callable[[list[Value]], Sequence[Answer | Exception]],
    write: Callable[[Answer], Any],
) -> list[Any]:
    """Answer every request, all good ones from one call of ``run``.

    ``read`` turns a request into a value or raises; ``run`` takes the values of all good requests
    and returns as many answers; ``write`` turns an answer into a response. An answer may be an
    exception, which fails its own request only.
    """
    values: list[Value | Exception] = [_attempt(read, request) for request in requests]
    good = [value for value in values if not isinstance(value, Exception)]
    answered: Any = _attempt(run, good) if good else []
    if isinstance(answered, Exception):
        answered = [_known(answered)] * len(good)
    answers = iter(answered)
    return [
        _write(write, value if isinstance(value, Exception) else next(answers)) for value in values
    ]


def _write(write: Callable[[Answer], Any], answer: Answer | Exception) -> Any:
    written = answer if isinstance(answer, Exception) else _attempt(write, answer)
    return error_response(written) if isinstance(written, Exception) else written


def _attempt(function: Callable[[Any], Any], value: Any) -> Any:
    try:
        return function(value)
    except Exception as error:
        return error


def _decode(name: str, value: bytes | str) -> str:
    if isinstance(value, str):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{name}: is not UTF-8 (byte {error.start} is {value[error.start]:#04x})"
        ) from error


def _known(error: Exception) -> TritonragError:
    """Return an error of ours, with nothing left of how it came about."""
    known = error if isinstance(error, TritonragError) else _logged(error)
    _forget(error)
    return known


def _forget(error: BaseException) -> None:
    """Take from an error what led to it.

    Its traceback holds the frames, these hold the request and with it shared memory, and one frame
    holds the error: a circle that waits for a full garbage collection, which a process that makes
    few objects hardly ever runs. Each refused request would keep its size.
    """
    before = (error.__cause__, error.__context__)
    error.__traceback__ = error.__cause__ = error.__context__ = None
    for earlier in filter(None, before):
        _forget(earlier)


def _logged(error: Exception) -> InternalError:
    log_id = secrets.token_hex(4)
    trace = "".join(traceback.format_exception(error))
    pb_utils.Logger.log_error(f"log id {log_id}: {trace}")
    return InternalError(f"internal error; the server's log has the cause under log id {log_id}")
