"""Finds the server binary and lays out its backends; says what is missing and what to do."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tritonrag.errors import SetupError

MIN_GLIBC = (2, 35)
PYTHONS = ((3, 11), (3, 12))
_INSTALL = "pip install 'tritonrag[embedded]'"


@dataclass(frozen=True)
class Installation:
    """Where the wheel put the server: its root folder and its shared libraries."""

    root: Path
    libraries: Path

    @property
    def binary(self) -> Path:
        """The ``tritonserver`` program."""
        return self.root / "bin" / "tritonserver"


def find() -> Installation:
    """Return the installed server.

    Raises:
        SetupError: this machine cannot run it, or it is not installed.
    """
    _check_machine()
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise SetupError(f"tritonserver is not installed here; run {_INSTALL}")
    package = Path(next(iter(spec.submodule_search_locations)))
    found = Installation(package / "tritonserver", package.parent / "nvidia_pytriton.libs")
    if not found.binary.is_file():
        raise SetupError(f"{found.binary}: no such program; run {_INSTALL} --force-reinstall")
    return found


def lay_out_backends(installation: Installation, directory: Path) -> None:
    """Make ``directory`` a backend directory: Triton's Python backend and our ``onnxruntime``.

    Raises:
        SetupError: the wheel has no stub for this Python.
    """
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = installation.root / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise SetupError(f"the server has no Python backend for Python {version}; use 3.11 or 3.12")
    shutil.rmtree(directory, ignore_errors=True)
    python = directory / "python"
    python.mkdir(parents=True)
    for file in (installation.root / "backends" / "python").iterdir():
        if file.is_file():
            shutil.copy2(file, python)  # the server refuses a library behind a link
    shutil.copy2(stub, python)
    ours = Path(__file__).parent / "backends"
    for backend in ours.iterdir():
        if (backend / "model.py").is_file():
            (directory / backend.name).mkdir()
            shutil.copy2(backend / "model.py", directory / backend.name)


def environment(installation: Installation, index_dir: Path) -> dict[str, str]:
    """Return the server's environment.

    The Python backend takes the packages of the first ``python3`` on PATH and ignores PYTHONPATH,
    so that this interpreter's folder has to come first.
    """
    inherited = dict(os.environ)
    # The models' processes are linked to libpython, which a Python of uv or pyenv has beside it.
    libraries = (
        str(installation.libraries),
        inherited.get("LD_LIBRARY_PATH"),
        sysconfig.get_config_var("LIBDIR"),
    )
    return inherited | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{inherited.get('PATH', os.defpath)}",
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
        "TRITONRAG_INDEX_DIR": str(index_dir.resolve()),
        "PYTHONUNBUFFERED": "1",
        # Bytecode beside a model.py makes Triton load that model again with the next one it loads.
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _check_machine() -> None:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise SetupError(
            f"the embedded server runs on Linux x86-64, this is {sys.platform} "
            f"{platform.machine()}; use `docker compose up` instead"
        )
    low, high = PYTHONS
    if not low <= sys.version_info[:2] <= high:
        raise SetupError(
            f"Python {platform.python_version()} is not supported; "
            f"make the environment with Python {low[0]}.{low[1]} or {high[0]}.{high[1]}"
        )
    name, version = platform.libc_ver()
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < MIN_GLIBC:
        raise SetupError(
            f"the server needs glibc {MIN_GLIBC[0]}.{MIN_GLIBC[1]} or later (Debian 12, Ubuntu "
            f"22.04), this system has {name or 'another libc'} {version}"
        )
    _check_numpy()


def _check_numpy() -> None:
    try:
        version = importlib.metadata.version("numpy")
    except importlib.metadata.PackageNotFoundError:
        raise SetupError(f"NumPy is not installed here; run {_INSTALL}") from None
    if int(version.split(".")[0]) >= 2:
        raise SetupError(
            f"NumPy {version} breaks this server's Python backend; run pip install 'numpy<2'"
        )
