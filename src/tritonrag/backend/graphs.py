"""One graph that answers whole batches, whichever runtime runs it: ``onnx`` or ``openvino``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from tokenizers import Tokenizer

from tritonrag import contract
from tritonrag.artifacts import read_json
from tritonrag.backend.conversions import Array, respond, response
from tritonrag.errors import InvalidRequest, SetupError
from tritonrag.padding import ONE_BY_ONE, AtOnce, Cut, Run, run_by_length
from tritonrag.versions import MANIFEST

IDS, MASK = contract.INPUT_IDS.name, contract.ATTENTION_MASK.name


@dataclass(frozen=True)
class TokenLimits:
    """What an encoder takes: ids under ``vocabulary``, and ``length`` tokens; 0 is not known."""

    vocabulary: int = 0
    length: int = 0

    @classmethod
    def beside(cls, version_folder: Path) -> TokenLimits:
        """Read them from the tokenizer and the manifest that lie beside an exported graph."""
        manifest = read_json(version_folder / MANIFEST, default={})
        file = version_folder / "tokenizer.json"
        ids = Tokenizer.from_file(str(file)).get_vocab().values() if file.is_file() else ()
        return cls(1 + max(ids, default=-1), int(manifest.get("max_tokens", 0)))

    def check(self, inputs: dict[str, Array]) -> None:
        """Check a request's inputs, which a graph might refuse together with those of others.

        Raises:
            InvalidRequest: an id is none of the vocabulary, there are too many, or the inputs are
                not of one shape.
        """
        ids = inputs[IDS]
        for name, values in inputs.items():
            if values.shape != ids.shape:
                came, expected = list(values.shape), list(ids.shape)
                raise InvalidRequest(f"{name}: is {came}, expected {expected} as {IDS}")
        length = ids.shape[-1]
        if not length or (self.length and length > self.length):
            most = self.length or "any number"
            raise InvalidRequest(f"{IDS}: {length} tokens, expected 1 to {most}; cut the text")
        if self.vocabulary and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise InvalidRequest(
                f"{IDS}: {wrong} is no token of this embedder, expected 0 to {self.vocabulary - 1}"
            )


class GraphModel:
    """A model of a parsed ``config.pbtxt``. Inputs and outputs are [batch, …]."""

    def __init__(self, config: dict[str, Any], run: Run, limits: TokenLimits | None = None) -> None:
        """Take what runs the graph, and what an encoder among graphs takes.

        ``run`` gives the outputs in their order here; it is called from one thread at a time.
        """
        self._graph = run
        self._limits = limits if limits and pools(config) else None
        self._inputs = [each["name"] for each in config["input"]]
        self._outputs = [each["name"] for each in config["output"]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer all requests from one run of the graph; Triton joins equal shapes only."""
        return respond(requests, self._read, self._run, self._write)

    def _read(self, request: Any) -> list[Array]:
        tensors = (pb_utils.get_input_tensor_by_name(request, name) for name in self._inputs)
        inputs = [tensor.as_numpy() for tensor in tensors]
        if self._limits:
            self._limits.check(dict(zip(self._inputs, inputs, strict=True)))
        return inputs

    def _run(self, batch: list[list[Array]]) -> Sequence[list[Array] | Exception]:
        try:
            return self._run_together(batch)
        except Exception as error:  # what one request made the graph refuse fails that one only
            return [error] if len(batch) == 1 else [self._run([inputs])[0] for inputs in batch]

    def _run_together(self, batch: list[list[Array]]) -> list[list[Array]]:
        columns = zip(self._inputs, zip(*batch, strict=True), strict=True)
        outputs = self._graph({name: np.concatenate(parts) for name, parts in columns})
        ends = np.cumsum([len(inputs[0]) for inputs in batch])[:-1]
        parts = (np.split(output, ends) for output in outputs)
        return [list(one) for one in zip(*parts, strict=True)]

    def _write(self, outputs: list[Array]) -> Any:
        pairs = zip(self._outputs, outputs, strict=True)
        return response(*(pb_utils.Tensor(name, values) for name, values in pairs))


def by_length(
    config: dict[str, Any], run: Run, cut: Cut = ONE_BY_ONE, at_once: AtOnce | None = None
) -> Run:
    """Return a run without the padding of an encoder's batches, cut as ``run_by_length`` does.

    Any other graph is run as it is.
    """
    if not pools(config):
        return run
    return partial(run_by_length, run, mask=MASK, cut=cut, at_once=at_once)


def pools(config: dict[str, Any]) -> bool:
    """Return whether a parsed ``config.pbtxt`` is of an encoder with one vector for each text."""
    ranks = {len(each["dims"]) for each in (*config["input"], *config["output"])}
    return ranks == {1} and {IDS, MASK} <= {each["name"] for each in config["input"]}


def graph_file(version_folder: Path) -> Path:
    """Return the ``model.onnx`` of a version.

    Raises:
        SetupError: there is none.
    """
    path = version_folder / "model.onnx"
    if not path.is_file():
        raise SetupError(f"{path}: no such file; run `make models` (or export/embedder.py)")
    return path


def parameters(config: dict[str, Any]) -> dict[str, str]:
    """Return the ``parameters`` of a parsed ``config.pbtxt``."""
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def integer(key: str, value: str) -> int:
    """Return a parameter's value as an integer.

    Raises:
        SetupError: it is not one.
    """
    try:
        return int(value)
    except ValueError:
        raise SetupError(f"parameter {key} is {value!r}, expected an integer") from None


def refusal(option: str, backend: str, honoured: str) -> SetupError:
    """Return the error for an option of ``config.pbtxt`` that a Python-based backend lacks."""
    return SetupError(
        f"{option} is not supported by the Python-based {backend} backend, which honours "
        f"{honoured}; remove it or use Triton's own"
    )
