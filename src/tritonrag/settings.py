"""Settings of the served models: read once at load, validated, frozen.

Two sources: ``parameters`` of a ``config.pbtxt`` (what belongs to the model) and environment
variables (what belongs to the place it runs in). A value out of bounds stops the load with a
message that names it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from tritonrag.errors import SetupError
from tritonrag.redaction import redacted

INDEX_DIR_VARIABLE = "TRITONRAG_INDEX_DIR"
"""Folder of the index, one sub-folder per collection."""

KEEP_VARIABLE = "TRITONRAG_KEEP_SNAPSHOTS"
"""How many snapshots of a collection are kept; the live ones are in any case."""

KEPT_SNAPSHOTS = 5
"""How many, unless the variable says."""

REPOSITORY_VARIABLE = "TRITONRAG_REPOSITORY"
"""Model repository that the command line works on."""

ADMIN_KEY_VARIABLE = "TRITONRAG_ADMIN_KEY"
"""Key that opens the server's closed APIs, such as loading models; the embedded server makes its
own."""

ADMIN_HEADER = "tritonrag-key"
"""Header that carries this key (in gRPC Triton puts ``triton-grpc-protocol-`` before it). Whoever
may load models may run code in the server (docs/decisions/0006)."""

URL_VARIABLE = "TRITONRAG_URL"
"""Server that the command line talks to, ``host:port``."""

WATCHDOG_VARIABLE = "TRITONRAG_WATCHDOG"
"""Watchdog of that server, ``host:port``."""

MAX_VECTOR_DB_TIMEOUT_S = 25.0
"""Longest wait for a vector database: less than the watchdog takes for a stall of ``retrieve``."""


@dataclass(frozen=True)
class ModelArgs:
    """What Triton hands to a Python model's ``initialize``, typed.

    ``repository`` is the model repository that the model's own folder lies in; the model reads the
    artefact of its own ``version`` there.
    """

    name: str
    repository: Path
    config: dict[str, Any]
    version: int

    @classmethod
    def parse(cls, args: Mapping[str, str]) -> ModelArgs:
        """Read the arguments of ``TritonPythonModel.initialize``."""
        return cls(
            name=args["model_name"],
            repository=Path(args["model_repository"]).parent,
            config=json.loads(args["model_config"]),
            version=int(args["model_version"]),
        )

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """Return the config parameter ``key`` as an integer within ``low`` and ``high``.

        Raises:
            SetupError: it is not an integer or out of bounds.
        """
        text = self.text(key, str(default))
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise SetupError(
                f"model {self.name}: parameter {key} is {text!r}, expected {low} to {high}"
            )
        return value

    def text(self, key: str, default: str) -> str:
        """Return the config parameter ``key``, or ``default``."""
        parameter = self.config.get("parameters", {}).get(key, {})
        return str(parameter.get("string_value", default))


@dataclass(frozen=True)
class IndexSettings:
    """Where the index lies."""

    directory: Path

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> IndexSettings:
        """Read ``TRITONRAG_INDEX_DIR`` (default ``index`` in the working directory)."""
        return cls(Path(environment.get(INDEX_DIR_VARIABLE) or "index"))


def kept_snapshots(environment: Mapping[str, str] = os.environ) -> int:
    """Return how many snapshots of a collection are kept.

    Raises:
        SetupError: the variable is not a number from 1 to 1000.
    """
    return int(_number(environment, KEEP_VARIABLE, KEPT_SNAPSHOTS, 1, 1000))


@dataclass(frozen=True)
class VectorDbSettings:
    """The Milvus that holds the vectors; its token is in no ``repr`` and no message."""

    uri: str
    token: str = field(repr=False)
    timeout_s: float

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ
    ) -> VectorDbSettings | None:
        """Read ``VECTOR_DB_URI`` and its companions; None where that variable is unset or empty.

        Raises:
            SetupError: the address is no URL or has credentials in it, or the timeout is not a
                number.
        """
        uri = environment.get("VECTOR_DB_URI", "")
        if not uri:
            return None
        _address("VECTOR_DB_URI", uri, "http://milvus:19530", "VECTOR_DB_TOKEN as user:password")
        return cls(
            uri=uri,
            token=environment.get("VECTOR_DB_TOKEN", ""),
            timeout_s=_number(environment, "VECTOR_DB_TIMEOUT", 5, 0.1, MAX_VECTOR_DB_TIMEOUT_S),
        )

    @property
    def address(self) -> str:
        """Host and port."""
        return urlsplit(self.uri).netloc

    def redacted(self, text: str) -> str:
        """Return ``text`` without the token, should it hold any of it."""
        return redacted(text, self.token)


@dataclass(frozen=True)
class RemoteLlmSettings:
    """An OpenAI-compatible chat endpoint that generates instead of the local engine.

    ``context_tokens`` is a budget for prompts: the endpoint's tokenizer is not known here.
    """

    url: str
    key: str = field(repr=False)
    model: str
    context_tokens: int
    timeout_s: float

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] = os.environ
    ) -> RemoteLlmSettings | None:
        """Read ``LLM_API_URL`` and its companions; None where that variable is unset or empty.

        Raises:
            SetupError: the address is no URL or has credentials in it, the key cannot be sent,
                ``LLM_MODEL`` is missing, or a number is not one.
        """
        url = environment.get("LLM_API_URL", "")
        if not url:
            return None
        parts = _address("LLM_API_URL", url, "http://llm:8000/v1", "LLM_API_KEY")
        if parts.query or parts.fragment:
            raise SetupError(
                "LLM_API_URL has a query or a fragment, which no request would have; leave it as "
                "http://llm:8000/v1 and put the key into LLM_API_KEY"
            )
        key = environment.get("LLM_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):
            raise SetupError(
                "LLM_API_KEY holds a control character or one that is not ASCII, which no header "
                "takes; set the key as the endpoint's operator gave it"
            )
        model = environment.get("LLM_MODEL", "")
        if not model:
            raise SetupError("LLM_API_URL is set but LLM_MODEL is not; name the model to ask for")
        return cls(
            url=url,
            key=key,
            model=model,
            context_tokens=int(_number(environment, "LLM_CONTEXT", 8192, 256, 10_000_000)),
            timeout_s=_number(environment, "LLM_TIMEOUT", 60, 0.1, 3600),
        )

    @property
    def address(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc


def describe_llm(environment: Mapping[str, str] = os.environ) -> str:
    """Return what generates in place of the installed LLM, ``MODEL at HOST``; empty if nothing.

    Raises:
        SetupError: as :meth:`RemoteLlmSettings.from_environment` does.
    """
    remote = RemoteLlmSettings.from_environment(environment)
    return f"{remote.model} at {remote.address}" if remote else ""


def _address(name: str, url: str, example: str, credentials: str) -> SplitResult:
    """Return the parts of the address in a variable; no message has it, as it may hold a password.

    Any ``@`` is refused: what stands before it is a user for some libraries and a path for others.
    """
    if "@" in url:
        raise SetupError(
            f"{name} has a user or a password in it; set it like {example}, and {credentials}"
        )
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or not url.isprintable() or " " in url:
        raise SetupError(f"{name} is not a URL with http:// or https://; it is like {example}")
    return parts


def _number(
    environment: Mapping[str, str], name: str, default: float, low: float, high: float
) -> float:
    text = environment.get(name) or str(default)
    try:
        value = float(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise SetupError(f"{name} is {text!r}, expected a number from {low:g} to {high:g}")
    return value
