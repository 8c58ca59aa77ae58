"""A strict stand-in for ``triton_python_backend_utils``, and a loader of our ``model.py`` files.

Where the real module of Triton 2.51 refuses something, this one does; where the real one lets pass
what is wrong or ends the process, this one raises :class:`AssertionError`. ``Tensor``,
``TritonError``, ``Logger`` and the other classes come into being after ``model.py`` was imported,
as in Triton's stub.
"""

from __future__ import annotations

import enum
import importlib.util
import itertools
import json
import re
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from tritonrag.contract import MODELS, ModelSpec, TensorSpec

REPOSITORY = Path(__file__).parents[2] / "model_repository"
FINAL = 1

NUMPY = {
    "TYPE_BOOL": bool, "TYPE_UINT8": np.uint8, "TYPE_UINT16": np.uint16, "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64, "TYPE_INT8": np.int8, "TYPE_INT16": np.int16, "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64, "TYPE_FP16": np.float16, "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64, "TYPE_STRING": np.object_,
}  # fmt: skip
_DTYPES = {np.dtype(kind) for kind in NUMPY.values()}


class TritonModelException(Exception):  # noqa: N818 - Triton's own name
    """What the real module raises for misuse."""


class Tensor:
    """A tensor in the CPU's memory; positional arguments only."""

    def __init__(self, name: str, values: np.ndarray, /) -> None:
        if not isinstance(name, str) or not isinstance(values, np.ndarray):
            raise TypeError("__init__(): incompatible constructor arguments")
        if not name:
            raise TritonModelException("Tensor name cannot be an empty string.")
        if values.dtype not in _DTYPES or not values.dtype.isnative:
            raise TritonModelException("NumPy dtype is not supported.")
        assert values.flags["C_CONTIGUOUS"], f"{name}: the real one would copy it"
        self._name, self._values = name, values
        self._encoded = _encoded(values) if values.dtype == np.object_ else None

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._values

    def shape(self) -> list[int]:
        return list(self._values.shape)

    def received(self) -> np.ndarray:
        """Return what the other side of the wire reads: strings are bytes there."""
        return self._values if self._encoded is None else self._encoded


def _encoded(values: np.ndarray) -> np.ndarray:
    found = np.empty(values.shape, dtype=np.object_)
    for place, value in np.ndenumerate(values):
        assert isinstance(value, str | bytes), f"{value!r}: the real one would send its repr"
        found[place] = value if isinstance(value, bytes) else value.encode()
    return found


class TritonError:
    """An error; its code is a member of the enum, never a number."""

    class Code(enum.Enum):
        UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG = range(4)
        UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(4, 8)

    def __init__(self, message: str, code: Code = Code.INTERNAL) -> None:
        if not isinstance(message, str) or not isinstance(code, TritonError.Code):
            raise TypeError("__init__(): incompatible constructor arguments")
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> Code:
        return self._code


for _member in TritonError.Code:
    setattr(TritonError, _member.name, _member)


class InferenceResponse:
    """Output tensors or an error."""

    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None
    ) -> None:
        if not all(isinstance(each, Tensor) for each in output_tensors):
            raise TypeError("__init__(): incompatible constructor arguments")
        if error is not None and not isinstance(error, TritonError):
            raise TypeError("__init__(): incompatible constructor arguments")
        assert not (output_tensors and error), "the real one would drop the tensors"
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


class InferenceResponseSender:
    """Takes the responses of one request to a decoupled model."""

    def __init__(self) -> None:
        self.responses: list[InferenceResponse] = []
        self.closed = False
        self.caller_cancelled = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if response is not None and not isinstance(response, InferenceResponse):
            raise TypeError("send(): incompatible function arguments")
        if flags not in (0, FINAL):
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if response is None and not flags:
            raise TritonModelException("Inference Response object must be provided")
        if self.closed:
            raise TritonModelException("Response sender has been closed.")
        self.closed = flags == FINAL
        if response is not None:
            self.responses.append(response)

    def is_cancelled(self) -> bool:
        assert not self.closed, "asked after the last response, Triton 2.51 segfaults"
        return self.caller_cancelled


class InferenceRequest:
    """A request as a model sees it; keyword arguments only."""

    def __init__(
        self,
        *,
        inputs: Sequence[Tensor],
        requested_output_names: Sequence[str],
        model_name: str,
        request_id: str = "",
    ) -> None:
        assert all(isinstance(each, Tensor) for each in inputs)
        self._inputs, self._id = list(inputs), request_id
        self._requested, self.model_name = list(requested_output_names), model_name
        self._sender = InferenceResponseSender()

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._id

    def requested_output_names(self) -> list[str]:
        return self._requested

    def is_cancelled(self) -> bool:
        return self._sender.is_cancelled()

    def get_response_sender(self) -> InferenceResponseSender:
        return self._sender


class Logger:
    """The server's log; ``lines`` keeps what was written."""

    lines: list[tuple[str, str]] = []

    @classmethod
    def _write(cls, level: str, message: str) -> None:
        if not isinstance(message, str):
            raise TypeError("incompatible function arguments")
        cls.lines.append((level, message))

    @classmethod
    def log_info(cls, message: str) -> None:
        cls._write("info", message)

    @classmethod
    def log_warn(cls, message: str) -> None:
        cls._write("warn", message)

    @classmethod
    def log_error(cls, message: str) -> None:
        cls._write("error", message)


class MetricFamily:
    """Custom metrics. What the release refuses may end the whole server, and so may two threads."""

    class Kind(enum.Enum):
        COUNTER, GAUGE, HISTOGRAM = range(3)

    COUNTER, GAUGE, HISTOGRAM = Kind
    alive: weakref.WeakSet[MetricFamily] = weakref.WeakSet()
    _thread: int | None = None

    def __init__(self, name: str, description: str, kind: Kind) -> None:
        if not isinstance(name, str) or not isinstance(description, str):
            raise TypeError("__init__(): incompatible constructor arguments")
        if not isinstance(kind, MetricFamily.Kind):
            raise TypeError("__init__(): incompatible constructor arguments")
        assert re.fullmatch(r"[a-z_]+", name), f"{name}: not a metric's name"
        others = {each.kind for each in MetricFamily.alive if each.name == name}
        assert others <= {kind}, f"{name} is of another kind already"
        _one_thread()
        self.name, self.kind = name, kind
        self.metrics: list[Metric] = []
        MetricFamily.alive.add(self)

    def Metric(  # noqa: N802 - Triton's own name
        self, labels: dict[str, str], buckets: list[float] | None = None
    ) -> Metric:
        _one_thread()
        if not isinstance(labels, dict):
            raise TritonModelException("Failed to create metric. Labels must be a dictionary.")
        assert all(isinstance(each, str) for pair in labels.items() for each in pair)
        if (buckets is None) == (self.kind is MetricFamily.HISTOGRAM):
            raise TritonModelException("Failed to create metric. Buckets are for histograms.")
        if not isinstance(buckets, list | None):
            raise TritonModelException("Failed to create metric. Buckets must be a list.")
        assert buckets is None or buckets == sorted(set(buckets)), "buckets are not in order"
        made = Metric(self.kind, self.name, labels)
        self.metrics.append(made)
        return made


class Metric:
    """One metric of a family; a histogram keeps what it observed."""

    def __init__(self, kind: MetricFamily.Kind, name: str, labels: dict[str, str]) -> None:
        self._kind, self.name, self.labels = kind, name, labels
        self.reading = 0.0
        self.observed: list[float] = []

    def increment(self, value: float) -> None:
        self._changed(value, MetricFamily.COUNTER, MetricFamily.GAUGE)
        assert self._kind is MetricFamily.GAUGE or value >= 0, f"{self.name}: counts up only"
        self.reading += value

    def set(self, value: float) -> None:
        self._changed(value, MetricFamily.GAUGE)
        self.reading = value

    def observe(self, value: float) -> None:
        self._changed(value, MetricFamily.HISTOGRAM)
        self.observed.append(value)

    def _changed(self, value: float, *kinds: MetricFamily.Kind) -> None:
        if not isinstance(value, float | int):
            raise TypeError("incompatible function arguments")
        assert self._kind in kinds, f"{self.name}: a {self._kind.name} does not do that"
        _one_thread()


def _one_thread() -> None:
    own = threading.get_ident()
    assert MetricFamily._thread in (None, own), "the real one does not bear a second thread"
    MetricFamily._thread = own


def metrics() -> dict[str, Metric]:
    """Return the metrics that a scrape would show, by name and collection."""
    found = [each for family in MetricFamily.alive for each in family.metrics]
    return {" ".join((each.name, each.labels.get("collection", ""))).strip(): each
            for each in found}  # fmt: skip


_LATER = (
    Tensor, TritonError, TritonModelException, InferenceRequest, InferenceResponse, Logger,
    MetricFamily,
)  # fmt: skip


def _get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((each for each in request.inputs() if each.name() == name), None)


def _at_import() -> ModuleType:
    """Return the module as it is while Triton's stub imports ``model.py``."""
    module = ModuleType("triton_python_backend_utils")
    module.__dict__.update(
        np=np,
        TRITON_STRING_TO_NUMPY=NUMPY,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=FINAL,
        triton_string_to_numpy=NUMPY.__getitem__,
        get_input_tensor_by_name=_get_input_tensor_by_name,
    )
    return module


@contextmanager
def installed() -> Iterator[ModuleType]:
    """Make the fake importable, without its classes; what imported it is forgotten afterwards."""
    module = _at_import()
    Logger.lines = []
    MetricFamily.alive, MetricFamily._thread = weakref.WeakSet(), None
    before = _users()
    for name in before:
        del sys.modules[name]
    sys.modules[module.__name__] = module
    try:
        yield module
    finally:
        del sys.modules[module.__name__]
        for name in _users():
            del sys.modules[name]
        sys.modules.update(before)


def _users() -> dict[str, ModuleType]:
    prefix = "tritonrag.backend"
    return {name: found for name, found in sys.modules.items() if name.startswith(prefix)}


def add_classes(module: ModuleType) -> None:
    """Do what the stub does after the import of ``model.py``."""
    for each in _LATER:
        setattr(module, each.__name__, each)


def config(name: str, variant: str = "") -> dict[str, Any]:
    """Return a model's ``config.pbtxt`` as Triton hands it over, parameters included."""
    file = f"configs/{variant}.pbtxt" if variant else "config.pbtxt"
    text = ((REPOSITORY / name) / file).read_text(encoding="utf-8")
    parsed = text_format.Parse(text, model_config_pb2.ModelConfig())
    return json_format.MessageToDict(parsed, preserving_proto_field_name=True)


@dataclass(frozen=True)
class Answer:
    """One response as a client reads it."""

    values: dict[str, Any]
    code: str = ""
    message: str = ""

    def __getitem__(self, name: str) -> Any:
        assert not self.code, f"{self.code}: {self.message}"
        return self.values[name]


@dataclass
class Served:
    """A loaded model. Requests and responses are held to the contract, as the server would."""

    spec: ModelSpec
    model: Any
    sent: list[InferenceRequest] = field(default_factory=list)

    def request(self, id: str = "", /, **inputs: Any) -> InferenceRequest:
        """Return a request; each value is a list with one entry per row of the batch."""
        known = {spec.name: spec for spec in self.spec.inputs}
        missing = [each.name for each in known.values() if not each.optional]
        assert set(missing) <= set(inputs), f"the server would refuse it: {missing}"
        return InferenceRequest(
            inputs=[_input(known[name], rows) for name, rows in inputs.items()],
            requested_output_names=[each.name for each in self.spec.outputs],
            model_name=self.spec.name,
            request_id=id,
        )

    def infer(self, *requests: InferenceRequest) -> list[Answer]:
        """Answer requests in one call of ``execute``."""
        responses = self.model.execute(list(requests))
        assert isinstance(responses, list)
        assert len(responses) == len(requests)
        return [
            _answer(self.spec, _rows(request), response)
            for request, response in zip(requests, responses, strict=True)
        ]

    def stream(self, *requests: InferenceRequest) -> None:
        """Hand requests to a decoupled model."""
        assert self.model.execute(list(requests)) is None, "a decoupled model returns None"

    def answers(self, request: InferenceRequest) -> list[Answer]:
        """Return the responses that a request to a decoupled model has had."""
        sender = request.get_response_sender()
        return [_answer(self.spec, 1, response) for response in sender.responses]


def _input(spec: TensorSpec, rows: Sequence[Any]) -> Tensor:
    dtype = NUMPY[f"TYPE_{spec.dtype}"]
    if spec.dtype == "STRING":
        rows = _to_bytes(rows)
    values = np.array(rows, dtype=dtype)
    if values.ndim == 1:
        values = values.reshape(-1, 1)
    assert values.ndim == 2
    assert spec.dims == (-1,) or values.shape[1:] == spec.dims
    return Tensor(spec.name, values)


def _to_bytes(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else [_to_bytes(each) for each in value]


def _rows(request: InferenceRequest) -> int:
    return len(request.inputs()[0].as_numpy())


def _answer(spec: ModelSpec, rows: int, response: Any) -> Answer:
    assert isinstance(response, InferenceResponse)
    error = response.error()
    if error is not None:
        code, message = error.code().name, error.message()
        assert message.startswith(f"{code}: "), message
        return Answer({}, code, message.removeprefix(f"{code}: "))
    values = {tensor.name(): tensor.received() for tensor in response.output_tensors()}
    assert set(values) == {each.name for each in spec.outputs}
    for each in spec.outputs:
        found = values[each.name]
        assert found.dtype == np.dtype(NUMPY[f"TYPE_{each.dtype}"]), each.name
        assert found.ndim == 2, each.name
        assert len(found) == rows, each.name
        assert each.dims == (-1,) or found.shape[1:] == each.dims, each.name
    return Answer(values)


@contextmanager
def loaded(
    name: str,
    repository: Path,
    *,
    source: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    variant: str = "",
) -> Iterator[Served]:
    """Load a model of the repository as Triton does, and unload it at the end.

    ``repository`` is where the model looks for artefacts. ``source`` is its ``model.py`` where it
    lies elsewhere (a Python-based backend), ``settings`` replace parts of its config, which is that
    of ``variant`` where one is named.
    """
    source = source or (REPOSITORY / name) / "1" / "model.py"
    with installed() as pb_utils:
        spec = importlib.util.spec_from_file_location(f"served_{name}", source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        add_classes(pb_utils)
        model = module.TritonPythonModel()
        model.initialize(
            {
                "model_name": name,
                "model_version": "1",
                "model_repository": str(repository / name),
                "model_config": json.dumps(config(name, variant) | dict(settings or {})),
                "model_instance_name": f"{name}_0_0",
                "model_instance_kind": "CPU",
                "model_instance_device_id": "0",
            }
        )
        try:
            yield Served(MODELS[name], model)
        finally:
            if hasattr(model, "finalize"):
                model.finalize()


def errors_logged() -> list[str]:
    """Return the error lines of the server's log."""
    return [message for level, message in Logger.lines if level == "error"]


def texts(values: np.ndarray) -> list[str]:
    """Return a string tensor, flattened, as text."""
    return [value.decode() for value in itertools.chain(values.reshape(-1).tolist())]
