"""Settings: read once, validated, with bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tritonrag.errors import SetupError
from tritonrag.settings import (
    IndexSettings,
    ModelArgs,
    RemoteLlmSettings,
    VectorDbSettings,
    describe_llm,
)

REMOTE = {"LLM_API_URL": "http://llm:8000/v1", "LLM_MODEL": "m"}


def args(**parameters: str) -> ModelArgs:
    config = {"parameters": {key: {"string_value": text} for key, text in parameters.items()}}
    return ModelArgs.parse(
        {
            "model_name": "generate",
            "model_repository": "/models/generate",
            "model_version": "1",
            "model_config": json.dumps(config),
        }
    )


def test_the_repository_is_where_the_models_folder_lies() -> None:
    assert args().repository == Path("/models")
    assert args().name == "generate"


def test_a_parameter_or_its_default() -> None:
    assert args(queue_size="7").integer("queue_size", 64, 1, 100) == 7
    assert args().integer("queue_size", 64, 1, 100) == 64
    assert args(mode="fast").text("mode", "slow") == "fast"
    assert args().text("mode", "slow") == "slow"


@pytest.mark.parametrize("text", ["0", "101", "-1", "many", "", "1.5"])
def test_a_parameter_out_of_bounds_is_named(text: str) -> None:
    with pytest.raises(
        SetupError, match="model generate: parameter queue_size is '.*', expected 1"
    ):
        args(queue_size=text).integer("queue_size", 64, 1, 100)


def test_a_config_without_parameters() -> None:
    parsed = ModelArgs.parse(
        {"model_name": "m", "model_repository": "/r/m", "model_version": "2", "model_config": "{}"}
    )

    assert parsed.text("any", "default") == "default"
    assert parsed.version == 2


@pytest.mark.parametrize("environment", [{}, {"TRITONRAG_INDEX_DIR": ""}])
def test_the_index_lies_in_the_working_directory_by_default(environment: dict[str, str]) -> None:
    assert IndexSettings.from_environment(environment).directory == Path("index")


def test_the_index_directory_is_read() -> None:
    settings = IndexSettings.from_environment({"TRITONRAG_INDEX_DIR": "/data/index"})

    assert settings.directory == Path("/data/index")


@pytest.mark.parametrize("environment", [{}, {"LLM_API_URL": ""}, {"LLM_MODEL": "m"}])
def test_no_endpoint(environment: dict[str, str]) -> None:
    assert RemoteLlmSettings.from_environment(environment) is None


def test_an_endpoint_with_defaults() -> None:
    assert RemoteLlmSettings.from_environment(REMOTE) == RemoteLlmSettings(
        "http://llm:8000/v1", "", "m", 8192, 60.0
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LLM_MODEL": ""}, "LLM_MODEL is not; name the model"),
        ({"LLM_API_URL": "llm:8000"}, "LLM_API_URL is not a URL"),
        ({"LLM_API_URL": "http://"}, "LLM_API_URL is not a URL"),
        ({"LLM_API_URL": "http://[llm"}, "LLM_API_URL is not a URL"),
        ({"LLM_API_URL": "http://llm:port/v1"}, "LLM_API_URL is not a URL"),
        ({"LLM_API_URL": "http://llm/\nv1"}, "LLM_API_URL is not a URL"),
        ({"LLM_API_URL": "http://llm/v1?key=pw1"}, "put the key into LLM_API_KEY"),
        ({"LLM_API_KEY": "pw1\npw1"}, "LLM_API_KEY holds a control character"),
        ({"LLM_API_KEY": "pw1\u00e9"}, "LLM_API_KEY holds a control character"),
        ({"LLM_CONTEXT": "100"}, "LLM_CONTEXT is '100', expected a number from 256"),
        ({"LLM_CONTEXT": "big"}, "LLM_CONTEXT is 'big'"),
        ({"LLM_TIMEOUT": "0"}, "LLM_TIMEOUT is '0'"),
        ({"LLM_TIMEOUT": "nan"}, "LLM_TIMEOUT is 'nan'"),
        ({"LLM_TIMEOUT": "inf"}, "LLM_TIMEOUT is 'inf'"),
    ],
)
def test_a_bad_endpoint_stops_the_load(changes: dict[str, str], message: str) -> None:
    with pytest.raises(SetupError, match=message):
        RemoteLlmSettings.from_environment(REMOTE | changes)


PASSWORDS = [
    "http://user:pw1@llm:8000/v1",
    "http://pw1@llm:8000/v1",
    "http://user:pw1/x@llm:8000/v1",
    "https://user:pw1@llm:bad/v1",
    "ftp://user:pw1@llm",
    "user:pw1@llm:8000",
    "http://llm:8000/v1/@pw1",
]


@pytest.mark.parametrize("url", PASSWORDS)
def test_an_address_with_a_password_stops_the_load_and_is_not_repeated(url: str) -> None:
    for load, name, remedy in (
        (RemoteLlmSettings.from_environment, "LLM_API_URL", "LLM_API_KEY"),
        (VectorDbSettings.from_environment, "VECTOR_DB_URI", "VECTOR_DB_TOKEN"),
    ):
        with pytest.raises(SetupError, match=f"^{name} has a user or a password .*{remedy}") as it:
            load(REMOTE | {name: url})
        assert "pw1" not in str(it.value)
        assert it.value.__cause__ is None


def test_a_line_break_behind_the_key_is_no_part_of_it() -> None:
    settings = RemoteLlmSettings.from_environment(REMOTE | {"LLM_API_KEY": "k1\n"})

    assert settings is not None
    assert settings.key == "k1"
    assert "k1" not in repr(settings)


def test_an_endpoint_is_named_by_its_model_and_host() -> None:
    assert describe_llm(REMOTE | {"LLM_API_KEY": "k1"}) == "m at llm:8000"
    assert describe_llm({}) == ""


def test_a_vector_database_may_take_less_time_than_a_stall() -> None:
    environment = {"VECTOR_DB_URI": "http://milvus:19530", "VECTOR_DB_TIMEOUT": "30"}
    with pytest.raises(SetupError, match=r"VECTOR_DB_TIMEOUT is '30', expected .* 0\.1 to 25"):
        VectorDbSettings.from_environment(environment)
