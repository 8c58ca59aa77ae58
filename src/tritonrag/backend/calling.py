"""Calls of other models of the same server (Triton's business logic scripting)."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from tritonrag.engines.dialects import Reply, Value
from tritonrag.errors import Cancelled, InternalError, TritonragError, Unavailable


class TritonModels:
    """The models of this server; see :class:`tritonrag.engines.served.ModelCaller`."""

    def stream(
        self, model: str, inputs: Mapping[str, Value], outputs: Sequence[str]
    ) -> Generator[Reply, None, None]:
        """Yield the responses to one request, inputs of shape [1]."""
        request = pb_utils.InferenceRequest(
            model_name=model,
            requested_output_names=list(outputs),
            inputs=[_tensor(name, value) for name, value in inputs.items()],
        )
        try:
            responses = request.exec(decoupled=True)
        except pb_utils.TritonModelException as error:
            raise _error(model, str(error)) from error
        try:
            for response in responses:
                if response.has_error():
                    raise _error(model, response.error().message())
                yield _values(response)
        finally:
            _end(responses)


def _end(responses: Any) -> None:
    """Cancel what is left, where this release of Triton can (2.51 cannot), and wait for its end."""
    cancel = getattr(responses, "cancel", None)
    if cancel:
        cancel()
    for _ in responses:
        pass


def _tensor(name: str, value: Value) -> Any:
    held = np.array([value.encode()], np.object_) if isinstance(value, str) else np.array([value])
    return pb_utils.Tensor(name, held)


def _values(response: Any) -> Reply:
    return {
        tensor.name(): [
            value.decode("utf-8", "replace") if isinstance(value, bytes) else value
            for value in tensor.as_numpy().reshape(-1).tolist()
        ]
        for tensor in response.output_tensors()
    }


def _error(model: str, message: str) -> TritonragError:
    """Return our error for what Triton said; over BLS only the message crosses, never a code."""
    if "cancelled" in message.lower():
        return Cancelled(message)
    if "not ready" in message or "unknown model" in message or "not found" in message:
        return Unavailable(f"generate: the model {model} is not loaded; the server's log says why")
    return InternalError(message)
