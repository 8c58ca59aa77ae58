"""Finding the server: what is missing is one line with the remedy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import sysconfig
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from tritonrag.errors import SetupError
from tritonrag.server import installation
from tritonrag.server.installation import Installation, environment, find, lay_out_backends

Version = namedtuple("Version", "major minor micro releaselevel serial")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that can run the server."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.26.4")
    monkeypatch.setattr(sys, "version_info", Version(3, 11, 7, "final", 0))
    return monkeypatch


@pytest.fixture
def wheel(tmp_path: Path) -> Installation:
    """What the wheel puts into site-packages, as far as it matters."""
    root = tmp_path / "pytriton" / "tritonserver"
    for file in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_utils.py",
        "backends/python/models/skipped",
        f"python_backend_stubs/{HERE}/triton_python_backend_stub",
    ):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(file)
    return Installation(root, tmp_path / "nvidia_pytriton.libs")


class Spec:
    def __init__(self, folder: Path) -> None:
        self.submodule_search_locations = [str(folder)]


def test_the_wheel_is_found(machine: pytest.MonkeyPatch, wheel: Installation) -> None:
    machine.setattr(importlib.util, "find_spec", lambda name: Spec(wheel.root.parent))

    assert find() == wheel
    assert find().binary.is_file()


@pytest.mark.parametrize("found", [None, Spec(Path("/nowhere"))])
def test_without_the_wheel_the_command_is_named(machine: pytest.MonkeyPatch, found: Any) -> None:
    machine.setattr(importlib.util, "find_spec", lambda name: found)

    with pytest.raises(SetupError, match=r"pip install 'tritonrag\[embedded\]'"):
        find()


@pytest.mark.parametrize(
    ("target", "name", "value", "message"),
    [
        (sys, "platform", "darwin", "runs on Linux x86-64, this is darwin x86_64; use `docker"),
        (platform, "machine", lambda: "aarch64", "this is linux aarch64"),
        (
            platform,
            "libc_ver",
            lambda: ("glibc", "2.31"),
            "needs glibc 2.35 or later .* glibc 2.31",
        ),
        (platform, "libc_ver", lambda: ("", ""), "this system has another libc"),
        (sys, "version_info", Version(3, 13, 0, "final", 0), "is not supported; make the env"),
        (sys, "version_info", Version(3, 9, 0, "final", 0), "is not supported; make the env"),
        (importlib.metadata, "version", lambda name: "2.1.0", "NumPy 2.1.0 breaks .*'numpy<2'"),
    ],
)
def test_a_machine_that_cannot_run_it(
    machine: pytest.MonkeyPatch, target: Any, name: str, value: Any, message: str
) -> None:
    machine.setattr(target, name, value)

    with pytest.raises(SetupError, match=message) as raised:
        find()
    assert "\n" not in str(raised.value)


def test_without_numpy(machine: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    machine.setattr(importlib.metadata, "version", missing)

    with pytest.raises(SetupError, match="NumPy is not installed"):
        find()


def test_backends_are_laid_out_with_the_stub_of_this_python(
    wheel: Installation, tmp_path: Path
) -> None:
    target = tmp_path / "backends"
    (target / "old").mkdir(parents=True)
    lay_out_backends(wheel, target)

    assert sorted(
        str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()
    ) == [
        "onnxruntime/model.py",
        "openvino/model.py",
        "python/libtriton_python.so",
        "python/triton_python_backend_stub",
        "python/triton_python_backend_utils.py",
    ]
    assert not any(path.is_symlink() for path in target.rglob("*")), "the server refuses links"


def test_a_python_without_a_stub(wheel: Installation, tmp_path: Path) -> None:
    (wheel.root / "python_backend_stubs" / HERE / "triton_python_backend_stub").unlink()

    with pytest.raises(SetupError, match=f"no Python backend for Python {HERE}"):
        lay_out_backends(wheel, tmp_path / "backends")


def test_the_servers_environment(
    wheel: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/lib/mine")
    monkeypatch.setenv("LLM_API_URL", "http://llm/v1")
    monkeypatch.chdir(tmp_path)
    found = environment(wheel, Path("index"))

    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    libpython = sysconfig.get_config_var("LIBDIR")
    assert found["LD_LIBRARY_PATH"] == f"{wheel.libraries}:/usr/lib/mine:{libpython}"
    assert found["TRITONRAG_INDEX_DIR"] == str(tmp_path / "index")
    assert found["LLM_API_URL"] == "http://llm/v1"


def test_no_empty_entry_in_the_library_path(
    wheel: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty entry would mean the working directory."""
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)

    found = environment(wheel, Path("index"))["LD_LIBRARY_PATH"]
    assert found == f"{wheel.libraries}:{sysconfig.get_config_var('LIBDIR')}"


def test_our_backends_ship_with_the_package() -> None:
    assert (Path(installation.__file__).parent / "backends/onnxruntime/model.py").is_file()
