"""Every config.pbtxt and model.py of the model repository, held to the contract."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tritonrag.artifacts import SERVED_MODEL
from tritonrag.contract import (
    DEFAULT_RETRIEVE_K,
    MODELS,
    PASSAGE_PRIORITY,
    RERANK,
    VARIANTS,
    ModelSpec,
    TensorSpec,
)
from tritonrag.rollout import is_pinned

REPOSITORY = Path(__file__).parents[2] / "model_repository"
MAX_MODEL_LINES = 60
ACCELERATED = ("openvino", "ort-tensorrt", "tensorrt")

Served = tuple[ModelSpec, str]
"""A model and the config variant that it is served with, "" for the plain one."""

ENSEMBLES: list[Served] = [
    *((spec, "") for spec in MODELS.values() if spec.steps),
    *((spec, variant) for variant, specs in VARIANTS.items() for spec in specs.values()),
]
SINGLE = [spec for spec in MODELS.values() if not spec.steps]
PYTHON = [spec for spec in SINGLE if spec.backend == "python"]


def named(served: Served) -> str:
    return " ".join(filter(None, (served[0].name, served[1])))


def config(name: str, variant: str = "") -> Any:
    """Return a parsed config; an unknown field or a wrong type fails here."""
    folder = REPOSITORY / name
    file = folder / "configs" / f"{variant}.pbtxt" if variant else folder / "config.pbtxt"
    text = file.read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def dtype(tensor: Any) -> str:
    return model_config_pb2.DataType.Name(tensor.data_type).removeprefix("TYPE_")


def tensors(spec: ModelSpec | tuple[TensorSpec, ...]) -> list[tuple[Any, ...]]:
    return [(each.name, each.dtype, each.dims, each.optional) for each in spec]


def test_the_repository_holds_the_models_of_the_contract_and_nothing_else() -> None:
    """Triton takes every folder in it for a model. An export may have added the vLLM backend's."""
    assert {path.name for path in REPOSITORY.iterdir()} - {SERVED_MODEL} == set(MODELS)
    for name in MODELS:
        assert (REPOSITORY / name / "config.pbtxt").is_file()
        assert (REPOSITORY / name / "1").is_dir()


def test_a_variant_is_of_the_contract_or_a_model_with_other_settings() -> None:
    """`tritonserver --model-config-name` takes it for each model that has one."""
    files = [path for path in REPOSITORY.glob("*/configs/*.pbtxt") if not is_pinned(path)]
    found = {(file.parents[1].name, file.stem) for file in files}
    ensembles = {(name, variant) for variant, specs in VARIANTS.items() for name in specs}
    accelerated = {("embed", name) for name in ACCELERATED}
    assert found == ensembles | accelerated | {("retrieve", RERANK)}
    plain, varied = config("retrieve"), config("retrieve", RERANK)
    assert varied.parameters.pop("retrieve_k").string_value == str(DEFAULT_RETRIEVE_K)
    assert varied == plain


@pytest.mark.parametrize("variant", ACCELERATED)
def test_an_accelerated_embedder_has_the_tensors_and_the_queue_of_the_plain_one(
    variant: str,
) -> None:
    plain, varied = config("embed"), config("embed", variant)
    for field in ("name", "max_batch_size", "input", "output", "dynamic_batching"):
        assert getattr(varied, field) == getattr(plain, field), field


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_takes_and_gives_what_the_plain_ensemble_does(variant: str) -> None:
    for name, spec in VARIANTS[variant].items():
        plain = MODELS[name]
        assert set(plain.inputs) <= set(spec.inputs)
        assert all(each.optional for each in set(spec.inputs) - set(plain.inputs))
        assert [each[:3] for each in tensors(spec.outputs)] == [
            each[:3] for each in tensors(plain.outputs)
        ]


@pytest.mark.parametrize("served", [*((spec, "") for spec in SINGLE), *ENSEMBLES], ids=named)
def test_names_types_and_shapes(served: Served) -> None:
    spec, variant = served
    found = config(spec.name, variant)

    assert found.name == spec.name
    assert (found.platform or found.backend) == spec.backend
    assert found.max_batch_size == spec.max_batch_size
    assert found.model_transaction_policy.decoupled == (spec.decoupled and not spec.steps)
    assert [
        (each.name, dtype(each), tuple(each.dims), each.optional) for each in found.input
    ] == tensors(spec.inputs)
    assert [(each.name, dtype(each), tuple(each.dims)) for each in found.output] == [
        each[:3] for each in tensors(spec.outputs)
    ]


@pytest.mark.parametrize("spec", SINGLE, ids=lambda spec: spec.name)
def test_a_queue_has_a_bound(spec: ModelSpec) -> None:
    found = config(spec.name)

    if spec.decoupled:  # docs/decisions/0004: the engine holds the queue
        assert found.WhichOneof("scheduling_choice") is None
        assert int(found.parameters["queue_size"].string_value) > 0
    else:
        policy = found.dynamic_batching.default_queue_policy
        assert policy.max_queue_size > 0
        assert policy.default_timeout_microseconds > 0
        assert policy.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT


@pytest.mark.parametrize("variant", ["", *ACCELERATED])
@pytest.mark.parametrize("model", ["tokenize", "embed"])
def test_questions_go_before_passages(model: str, variant: str) -> None:
    batching = config(model, variant if model == "embed" else "").dynamic_batching

    assert batching.priority_levels == PASSAGE_PRIORITY
    assert batching.default_priority_level == 1
    waiting = batching.priority_queue_policy[PASSAGE_PRIORITY]
    assert waiting.max_queue_size == batching.default_queue_policy.max_queue_size
    assert waiting.timeout_action == model_config_pb2.ModelQueuePolicy.REJECT


@pytest.mark.parametrize("spec", SINGLE, ids=lambda spec: spec.name)
def test_one_instance_is_one_copy_of_what_it_loads(spec: ModelSpec) -> None:
    (group,) = config(spec.name).instance_group

    assert group.count == 1


@pytest.mark.parametrize("served", ENSEMBLES, ids=named)
def test_an_ensembles_steps(served: Served) -> None:
    spec, variant = served
    steps = config(spec.name, variant).ensemble_scheduling.step

    assert tuple(step.model_name for step in steps) == spec.steps
    for step in steps:
        model = MODELS[step.model_name]
        inputs = {each.name: each for each in model.inputs}
        assert set(step.input_map) <= set(inputs)
        assert {name for name, each in inputs.items() if not each.optional} <= set(step.input_map)
        assert set(step.output_map) <= {each.name for each in model.outputs}


@pytest.mark.parametrize("served", ENSEMBLES, ids=named)
def test_an_ensembles_tensors_flow(served: Served) -> None:
    """What a step reads was given or made before, of the same type; every input is used."""
    spec, variant = served
    known = {each.name: each.dtype for each in spec.inputs}
    used = set()
    for step in config(spec.name, variant).ensemble_scheduling.step:
        model = MODELS[step.model_name]
        types = {each.name: each.dtype for each in (*model.inputs, *model.outputs)}
        for tensor, source in step.input_map.items():
            assert known[source] == types[tensor], f"{step.model_name}.{tensor}"
            used.add(source)
        known |= {source: types[tensor] for tensor, source in step.output_map.items()}

    assert {each.name for each in spec.inputs} <= used
    assert {each.name for each in spec.outputs} <= set(known)


@pytest.mark.parametrize("served", ENSEMBLES, ids=named)
def test_an_optional_input_of_an_ensemble_is_optional_in_its_steps(served: Served) -> None:
    spec, variant = served
    optional = {each.name for each in spec.inputs if each.optional}
    for step in config(spec.name, variant).ensemble_scheduling.step:
        inputs = {each.name: each for each in MODELS[step.model_name].inputs}
        for tensor, source in step.input_map.items():
            assert inputs[tensor].optional or source not in optional


def test_a_decoupled_step_comes_last() -> None:
    """Triton refuses an ensemble that joins tensors from before and after one."""
    for spec, _ in ENSEMBLES:
        assert not any(MODELS[step].decoupled for step in spec.steps[:-1])
        assert MODELS[spec.steps[-1]].decoupled == spec.decoupled


@pytest.mark.parametrize("spec", PYTHON, ids=lambda spec: spec.name)
def test_a_model_is_a_small_adapter_with_its_tensor_table(spec: ModelSpec) -> None:
    source = (REPOSITORY / spec.name / "1" / "model.py").read_text(encoding="utf-8")
    table = ast.get_docstring(ast.parse(source)) or ""

    assert len(source.splitlines()) <= MAX_MODEL_LINES
    assert table.startswith(f"{spec.name}: ")
    for direction, group in (("in ", spec.inputs), ("out", spec.outputs)):
        rows = " ".join(re.findall(rf"(?m)^\| {direction} .*(?:\n\|  .*)*", table))
        for each in group:
            assert re.search(rf"\b{each.name}\b", rows), f"{direction} {each.name}"


@pytest.mark.parametrize("spec", PYTHON, ids=lambda spec: spec.name)
def test_a_model_imports_the_installed_package_only(spec: ModelSpec) -> None:
    """A file beside model.py loses against site-packages, and pb_utils has no classes yet."""
    source = (REPOSITORY / spec.name / "1" / "model.py").read_text(encoding="utf-8")
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip

    assert imported <= {"__future__", "json", "typing", "numpy", "tritonrag"}
