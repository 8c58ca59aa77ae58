"""Loading models on a running server, and reading which versions its graph uses; over gRPC.

The server takes an order to load from whoever has its key (``TRITONRAG_ADMIN_KEY``; the embedded
server makes one for itself). Reading needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonrag.client.addresses import address
from tritonrag.client.faults import grpc_errors
from tritonrag.client.over_grpc import channel_options, loaded_versions
from tritonrag.contract import MODELS
from tritonrag.errors import SetupError, TritonragError
from tritonrag.settings import ADMIN_HEADER, ADMIN_KEY_VARIABLE

READ_TIMEOUT_S = 5.0
LOAD_TIMEOUT_S = 600.0
"""A large LLM is read from disk in this time."""

_METADATA = f"triton-grpc-protocol-{ADMIN_HEADER}"


class Administration:
    """Administers one server."""

    def __init__(self, url: str | None = None, key: str = "") -> None:
        """Connect on first use to ``url``, ``host:port`` of gRPC; ``key`` is for :meth:`load`.

        Raises:
            InvalidRequest: the URL is not one of gRPC.
        """
        self._url = address(url, "grpc")
        self._key = key
        self._channel = grpc.insecure_channel(self._url, channel_options(self._url))
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def __enter__(self) -> Self:
        """Return itself, to be closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._channel.close()

    def loaded(self) -> dict[str, list[int]]:
        """Return the versions that are loaded of each model of the contract.

        Raises:
            Unavailable: the server does not answer.
        """
        return loaded_versions(self._stub, self._url, READ_TIMEOUT_S)

    def served(self) -> set[str]:
        """Return the models that the server means to serve, one whose process died among them.

        Raises:
            SetupError: the key is not the server's.
            Unavailable: the server does not answer.
        """
        request = service_pb2.RepositoryIndexRequest(ready=True)
        found = self._ordered(self._stub.RepositoryIndex, request, READ_TIMEOUT_S)
        return {model.name for model in found.models}

    def decoupled(self, model: str) -> bool:
        """Return whether a model answers with streams.

        Raises:
            NotFound: it is not loaded.
            Unavailable: the server does not answer.
        """
        with grpc_errors(self._url, READ_TIMEOUT_S):
            answer = self._stub.ModelConfig(
                service_pb2.ModelConfigRequest(name=model), timeout=READ_TIMEOUT_S
            )
        return bool(answer.config.model_transaction_policy.decoupled)

    def steps(self, ensemble: str) -> dict[str, int]:
        """Return the version of each model that an ensemble runs; -1 is the highest loaded.

        Raises:
            NotFound: the ensemble is not loaded.
            Unavailable: the server does not answer.
        """
        with grpc_errors(self._url, READ_TIMEOUT_S):
            answer = self._stub.ModelConfig(
                service_pb2.ModelConfigRequest(name=ensemble), timeout=READ_TIMEOUT_S
            )
        steps = answer.config.ensemble_scheduling.step
        return {step.model_name: int(step.model_version) for step in steps}

    def graph(self) -> dict[str, dict[str, int]]:
        """Return the steps of every ensemble of the contract that is loaded.

        Raises:
            Unavailable: the server does not answer.
        """
        loaded = self.loaded()
        ensembles = [spec.name for spec in MODELS.values() if spec.steps and spec.name in loaded]
        return {name: self.steps(name) for name in ensembles}

    def load(self, model: str) -> None:
        """Make the server read a model's folder again; requests meanwhile go to what it had.

        Raises:
            SetupError: the server wants another key, or was started not to load models.
            TritonragError: the model cannot be loaded; what was loaded before stays.
        """
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        self._ordered(self._stub.RepositoryModelLoad, request, LOAD_TIMEOUT_S)

    def unload(self, model: str) -> None:
        """Make the server give a model up; requests to it and its ensembles fail meanwhile.

        Raises:
            SetupError: the key is not the server's, or it does not unload models.
            Unavailable: the server does not answer.
        """
        request = service_pb2.RepositoryModelUnloadRequest(model_name=model)
        self._ordered(self._stub.RepositoryModelUnload, request, READ_TIMEOUT_S)

    def steer(self, wanted: Mapping[str, int]) -> Iterator[str]:
        """Make every ensemble use the ``wanted`` versions by model; yield each one reloaded.

        An ensemble that does already is left alone. What is written in the repository has to say
        the same.

        Raises:
            SetupError: the server reads another repository or configuration than was written.
            TritonragError: as :meth:`load`.
        """
        for name, steps in self.graph().items():
            aim = {model: wanted.get(model, version) for model, version in steps.items()}
            if steps == aim:
                continue
            self.load(name)
            if (got := self.steps(name)) != aim:
                raise SetupError(
                    f"{name}: the server at {self._url} read versions {got} from its repository, "
                    f"expected {aim}; start it with --model-config-name=live on this repository"
                )
            yield name

    def _ordered(self, method: Callable[..., Any], request: Any, timeout: float) -> Any:
        """Send a request that needs the key."""
        try:
            with grpc_errors(self._url, timeout):
                metadata = [(_METADATA, self._key)] if self._key else []
                return method(request, timeout=timeout, metadata=metadata)
        except TritonragError as error:
            raise _explained(error, self._url) from error


def _explained(error: TritonragError, url: str) -> TritonragError:
    text = str(error)
    if "restricted" in text:
        return SetupError(
            f"the server at {url} loads models only for its key; set {ADMIN_KEY_VARIABLE} to the "
            "one that it was started with"
        )
    if "explicit model load" in text:
        return SetupError(
            f"the server at {url} does not load models while it runs; start it with "
            "--model-control-mode=explicit --load-model=NAME …"
        )
    if "load failed" in text:
        cause = " ".join(text.partition("\n\nAt:")[0].split())  # a Python traceback follows
        return SetupError(f"{cause}; what was loaded before stays, the server's log has more")
    return error
