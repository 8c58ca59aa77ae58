"""Dockerfile and docker-compose.yml name only what this project has."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pathspec import PathSpec
from typer.testing import CliRunner

from tritonrag.contract import MODELS, RERANK
from tritonrag.rollout import config_name
from tritonrag.server.launch import STACK_BYTES
from tritonrag.server.ports import GRPC_PORT, HTTP_PORT, METRICS_PORT, WATCHDOG_PORT

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
COMPOSE_RERANK = ROOT / "docker-compose.rerank.yml"
DOCKERFILE = ROOT / "Dockerfile"
GPU_LOCK = ROOT / "deploy/container/requirements-gpu.txt"
OURS = ("TRITONRAG_", "LLM_")
PORTS = {str(port) for port in (HTTP_PORT, GRPC_PORT, METRICS_PORT, WATCHDOG_PORT)}


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(COMPOSE.read_text())["services"]


@pytest.fixture(scope="module")
def dockerfile() -> DockerfileParser:
    return DockerfileParser(str(DOCKERFILE))


def instructions(dockerfile: DockerfileParser, name: str) -> list[str]:
    return [step["value"] for step in dockerfile.structure if step["instruction"] == name]


def last_command(dockerfile: DockerfileParser, name: str) -> list[str]:
    """Return the JSON argument list of the last CMD or HEALTHCHECK."""
    value = instructions(dockerfile, name)[-1]
    return json.loads(value[value.index("[") :])


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Return host path or volume by container path."""
    pairs = (with_defaults(volume).split(":") for volume in service["volumes"])
    return {target: source for source, target, *_ in pairs}


def with_defaults(text: str) -> str:
    """Interpolate as Compose does where no variable is set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def tool(name: str, *arguments: str) -> None:
    program = Path(sysconfig.get_path("scripts"), name)
    done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def parse(argv: list[str]) -> None:
    """Fail unless the CLI has this command and its options; ``--help`` keeps it from running."""
    from tritonrag.cli import app

    program, *rest = argv
    assert program == "tritonrag"
    result = CliRunner().invoke(app, [*rest, "--help"])
    assert result.exit_code == 0, result.output


def strings_of_the_code() -> Iterator[str]:
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.parametrize("file", [COMPOSE, COMPOSE_RERANK], ids=lambda file: file.name)
def test_compose_file_follows_the_schema(file: Path) -> None:
    tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(file))


def test_a_server_with_a_reranker_loads_it_and_its_variant(
    dockerfile: DockerfileParser, services: dict[str, dict[str, Any]]
) -> None:
    plain = set(last_command(dockerfile, "CMD"))
    for name, service in yaml.safe_load(COMPOSE_RERANK.read_text())["services"].items():
        assert services[name]["image"].startswith("tritonrag:")
        options = set(service["command"])
        added = {f"--load-model={RERANK}", f"--model-config-name={config_name(RERANK)}"}
        assert options - plain == added
        assert plain - options == {f"--model-config-name={config_name()}"}


def test_dockerfile_passes_the_linter() -> None:
    tool("hadolint", str(DOCKERFILE))


def test_base_image_is_pinned_to_one_release(dockerfile: DockerfileParser) -> None:
    images = set(dockerfile.parent_images)
    assert len(images) == 1
    assert re.fullmatch(r"nvcr\.io/nvidia/tritonserver:\d\d\.\d\d-py3", images.pop())


def test_copied_files_exist_and_nothing_else_enters_the_build(dockerfile: DockerfileParser) -> None:
    # Unlike git, Docker and PathSpec let a later line bring back what lies in an ignored folder.
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    ignored = PathSpec.from_lines("gitignore", lines)
    copies = (shlex.split(value) for value in instructions(dockerfile, "COPY"))
    sources = {
        source
        for copy in copies
        if "--from=" not in copy[0]
        for source in copy[:-1]
        if not source.startswith("--")
    }
    assert "src/" in sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored.match_file(source), f"{source} is kept out by .dockerignore"
    for kept_out in (
        ".env",
        ".git/config",
        "index/a/CURRENT",
        "model_repository/embed/1/model.onnx",
    ):
        assert ignored.match_file(kept_out), f"{kept_out} would enter the build"


def test_stages_take_from_one_another(dockerfile: DockerfileParser) -> None:
    stages = {
        value.split(" AS ")[1] for value in instructions(dockerfile, "FROM") if " AS " in value
    }
    taken = {match for value in instructions(dockerfile, "COPY")
             for match in re.findall(r"--from=(\S+)", value)}  # fmt: skip
    assert taken == stages


def test_gpu_lock_has_all_that_the_package_needs_but_the_cpu_wheels() -> None:
    locked = {
        canonicalize_name(name): version
        for line in GPU_LOCK.read_text().splitlines()
        for name, separator, version in [line.partition("==")]
        if separator
    }
    needed = {
        canonicalize_name(requirement.name): requirement
        for requirement in map(Requirement, importlib.metadata.requires("tritonrag") or [])
        if not requirement.marker or requirement.marker.evaluate({"extra": "serve"})
    }
    wanted = [Requirement(line) for line in GPU_LOCK.with_suffix(".in").read_text().splitlines()
              if not line.startswith("#")]  # fmt: skip
    assert needed.keys() - locked.keys() == {"faiss-cpu", "onnxruntime", "onnxruntime-genai"}
    for name in needed.keys() & locked.keys():
        assert locked[name] in needed[name].specifier, name
    for requirement in wanted:
        assert locked[requirement.name] in requirement.specifier, requirement.name


def test_every_variable_is_read_by_the_code(
    dockerfile: DockerfileParser, services: dict[str, dict[str, Any]]
) -> None:
    named = {name for name in dockerfile.envs if name.startswith(OURS)}
    for service in services.values():
        named |= set(service["environment"])
    assert named >= {"TRITONRAG_REPOSITORY", "TRITONRAG_INDEX_DIR", "TRITONRAG_URL", "LLM_API_URL"}
    theirs = {name for name in named if name.startswith("AWS_")}  # read by S3's own library
    assert named - theirs <= set(strings_of_the_code())


def test_every_setting_of_the_compose_file_is_explained_and_has_a_default() -> None:
    head, body = COMPOSE.read_text().split("\nname:")
    used = re.findall(r"\$\{(\w+)(:-[^}]+)?\}", body)
    assert used
    for name, default in used:
        assert default, f"{name} has no default"
        assert re.search(rf"\b{name}\b", head), f"{name} is not explained"


def test_commands_are_those_of_the_command_line(
    dockerfile: DockerfileParser, services: dict[str, dict[str, Any]]
) -> None:
    parse(last_command(dockerfile, "HEALTHCHECK"))
    parse([*services["index"]["entrypoint"], *services["index"]["command"]])
    parse([*services["models"]["entrypoint"], *services["models"]["command"]])
    assert services["index"]["command"][-1] in mounts(services["index"])


def test_the_server_runs_under_the_watchdog(
    dockerfile: DockerfileParser, services: dict[str, dict[str, Any]]
) -> None:
    """What closes its APIs is tried on a real server in tests/server/test_attacks_processes.py."""
    command = last_command(dockerfile, "CMD")
    end = command.index("--")
    parse(command[:end])
    program, *options = command[end + 1 :]
    assert program == "tritonserver"
    assert not [option for option in options if "restricted" in option or "key" in option]
    loaded = {f"--load-model={name}" for name, spec in MODELS.items() if not spec.variant}
    assert {"--model-control-mode=explicit", *loaded} < set(options)
    assert f"--model-config-name={config_name()}" in options
    for name in ("server-cpu", "server-gpu"):
        assert services[name]["ulimits"]["stack"] == STACK_BYTES
        assert services[name]["pids_limit"] > 0
        assert services[name]["mem_limit"]


def test_health_checks_send_a_real_request(
    dockerfile: DockerfileParser, services: dict[str, dict[str, Any]]
) -> None:
    probe = last_command(dockerfile, "HEALTHCHECK")
    assert probe == ["tritonrag", "status", "--probe"]
    for name in ("server-cpu", "server-gpu"):
        assert services[name]["healthcheck"]["test"] == ["CMD", *probe]


def test_ports_are_the_defaults_and_bound_to_this_machine(
    dockerfile: DockerfileParser, services: dict[str, dict[str, Any]]
) -> None:
    assert set(instructions(dockerfile, "EXPOSE")[-1].split()) == PORTS
    command = last_command(dockerfile, "CMD")
    assert not [option for option in command if "-port" in option]
    assert dockerfile.envs["TRITONRAG_WATCHDOG"] == f"127.0.0.1:{WATCHDOG_PORT}"
    urls = [dockerfile.envs["TRITONRAG_URL"]]
    for service in services.values():
        urls += [url for url in [service["environment"].get("TRITONRAG_URL")] if url]
        for port in service.get("ports", []):
            address, outside, inside = with_defaults(port).split(":")
            assert address == "127.0.0.1"
            assert outside == inside
            assert inside in PORTS
    assert {url.rpartition(":")[2] for url in urls} == {str(GRPC_PORT)}


def test_service_names_resolve(services: dict[str, dict[str, Any]]) -> None:
    host, _, _ = services["index"]["environment"]["TRITONRAG_URL"].partition(":")
    servers = services["index"]["depends_on"]
    assert set(servers) == {"server-cpu", "server-gpu"}
    for name in servers:
        assert host in services[name]["networks"]["default"]["aliases"]


def test_profiles_serve_one_repository(services: dict[str, dict[str, Any]]) -> None:
    cpu, gpu = services["server-cpu"], services["server-gpu"]
    assert cpu["profiles"] == ["cpu"]
    assert gpu["profiles"] == ["gpu"]
    assert (cpu["build"]["args"], gpu["build"]["args"]) == ({"VARIANT": "cpu"}, {"VARIANT": "gpu"})
    differing = {"profiles", "image", "build", "deploy"}
    assert {key: cpu[key] for key in cpu.keys() - differing} == {
        key: gpu[key] for key in gpu.keys() - differing
    }
    devices = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]


def test_paths_inside_agree(
    dockerfile: DockerfileParser, services: dict[str, dict[str, Any]]
) -> None:
    repository = dockerfile.envs["TRITONRAG_REPOSITORY"]
    index = dockerfile.envs["TRITONRAG_INDEX_DIR"]
    assert f"--model-repository={repository}" in last_command(dockerfile, "CMD")
    for service in services.values():
        assert mounts(service)[repository] == "./model_repository"
        assert mounts(service)[index] == "index"
        if service is not services["models"]:  # the one that writes which version is live
            assert f"./model_repository:{repository}:ro" in service["volumes"]
        for source in mounts(service).values():
            assert source == "index" or (ROOT / source).is_dir()


def test_images_carry_the_version_of_the_package(services: dict[str, dict[str, Any]]) -> None:
    version = importlib.metadata.version("tritonrag")
    assert {service["image"] for service in services.values()} == {
        f"tritonrag:{version}-cpu", f"tritonrag:{version}-gpu"
    }  # fmt: skip


def test_containers_have_no_privileges(
    dockerfile: DockerfileParser, services: dict[str, dict[str, Any]]
) -> None:
    user = instructions(dockerfile, "USER")[-1]
    assert user.split(":")[0] not in ("root", "0")
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    for name in ("server-cpu", "server-gpu"):
        assert services[name]["shm_size"] == "2gb"


def test_no_secret_is_inside(
    dockerfile: DockerfileParser, services: dict[str, dict[str, Any]]
) -> None:
    secret = re.compile("KEY|TOKEN|SECRET|PASSWORD")
    assert not [
        value
        for name in ("ARG", "ENV")
        for value in instructions(dockerfile, name)
        if secret.search(value)
    ]
    for service in services.values():
        kept = [
            value for name, value in service["environment"].items() if secret.search(name) and value
        ]
        assert not kept
