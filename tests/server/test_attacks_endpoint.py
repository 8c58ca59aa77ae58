"""Attacks by the LLM endpoint and by what documents hold, on the real server and command line."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llm_endpoint import Endpoint, Handler, Reply, breaks_off, chunk, refuses, says
from raw import stream
from servers import REPOSITORY, Served, add, serve, tritonrag
from tritonclient.utils import InferenceServerException

from tritonrag.errors import SetupError

KEY = "sk-Xq7/93+tz"
LOG_ID = r"; the server's log has more under log id ([0-9a-f]{8})"
FORGED = "E1128 12:00:00.000000 1 model.cc:1] forged"


@pytest.fixture(scope="module")
def hostile() -> Iterator[Endpoint]:
    with Endpoint.serving() as endpoint:
        yield endpoint
        endpoint.released.set()


@pytest.fixture(scope="module")
def served(hostile: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The whole graph with the endpoint in the place of its LLM, over one page that means ill."""
    folder = tmp_path_factory.mktemp("endpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLM_API_URL", hostile.url)
        patch.setenv("LLM_API_KEY", KEY)
        patch.setenv("LLM_MODEL", "hostile-model")
        patch.setenv("LLM_TIMEOUT", "2")
        for each in serve(folder):
            page = folder / "[red]page.md"
            page.write_text(
                "# <b>Leave</b> [bold]x \x1b[31m\n\nThere are 28 days \x1b[2J of leave.\n"
            )
            add(each, page)
            yield each


def answer(served: Served) -> list[dict[str, Any]]:
    return list(stream(served.grpc, "generate", prompt="How many days?", max_tokens=16))


def log_of(served: Served, message: str) -> str:
    """Return the one line of the server's log under the log id that a message ends with."""
    found = re.search(f"{LOG_ID}$", message)
    assert found, message
    lines = served.server.log.read_text(encoding="utf-8").splitlines()
    (line,) = [each for each in lines if found[1] in each]
    assert re.match(r"E\d{4} [\d:.]{15} \d+ tritonrag\.engines\.endpoint\] log id ", line)
    return line


def elsewhere(handler: Handler) -> None:
    handler.send_response(307)
    handler.send_header("Location", f"http://localhost:{handler.server.server_port}/v1/taken")
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def floods(handler: Handler) -> None:
    """Send one line for as long as the other side reads."""
    handler.begin_stream()
    while True:
        handler.wfile.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def says_event(event: str) -> Reply:
    def reply(handler: Handler) -> None:
        handler.begin_stream()
        handler.event(event)

    return reply


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (refuses(429, "slow down"), r"UNAVAILABLE: the LLM endpoint is overloaded \(429\)"),
        (refuses(500, "boom"), r"UNAVAILABLE: the LLM endpoint failed \(500\)"),
        (refuses(401, "no"), r"INTERNAL: the LLM endpoint refused the server's key \(401\)"),
        (refuses(400, "no"), r"INVALID_ARG: the LLM endpoint refused the request \(400\)"),
        (elsewhere, r"INTERNAL: the LLM endpoint answered with a redirect, .* \(307\)"),
        (floods, "INTERNAL: the LLM endpoint sent more than an answer can be"),
        (says_event("{"), "INTERNAL: the LLM endpoint sent a bad reply"),
        (breaks_off(), "UNAVAILABLE: the LLM endpoint broke off its answer"),
    ],
)
def test_the_caller_is_told_the_kind_of_failure_and_a_log_id(
    served: Served, hostile: Endpoint, reply: Reply, told: str
) -> None:
    hostile.reset()
    hostile.replies = [reply]
    with pytest.raises(InferenceServerException) as raised:
        answer(served)
    message = raised.value.message()

    assert re.fullmatch(f"{told}{LOG_ID}", message)
    assert hostile.url in log_of(served, message)
    hostile.replies = [says("ok")]
    assert answer(served)[0]["text"] == "ok"


@pytest.mark.parametrize("echo", [KEY, b64encode(KEY.encode()).decode(), f"{KEY[:6]}..{KEY[-4:]}"])
def test_what_the_endpoint_says_is_one_line_of_the_log_without_the_key(
    served: Served, hostile: Endpoint, echo: str
) -> None:
    hostile.reset()
    hostile.replies = [refuses(401, f"key {echo}\n{FORGED}\r\x1b[2J\u202e")]
    with pytest.raises(InferenceServerException) as raised:
        answer(served)
    line = log_of(served, raised.value.message())

    assert "***" in line
    assert FORGED in line
    assert line.isprintable()
    log = served.server.log.read_text(encoding="utf-8")
    assert echo not in log
    assert FORGED not in log.splitlines()


def test_an_error_within_an_answer_is_told_alike(served: Served, hostile: Endpoint) -> None:
    def reply(handler: Handler) -> None:
        handler.begin_stream()
        handler.delta("half")
        handler.event(json.dumps({"error": {"message": f"boom {KEY}", "type": "t"}}))

    hostile.reset()
    hostile.replies = [reply]
    *_, last = answer(served)
    message = json.loads(last["usage"])["error"]

    assert last["finish_reason"] == "error"
    assert re.fullmatch(f"the LLM endpoint reported an error within its answer{LOG_ID}", message)
    assert "boom ***" in log_of(served, message)


def ask(served: Served) -> list[str]:
    done = tritonrag("ask", "How many days of leave?", "--url", served.grpc)
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace("\n", "").isprintable()
    return done.stdout.splitlines()


def test_no_escape_of_an_answer_or_a_document_reaches_the_terminal(
    served: Served, hostile: Endpoint
) -> None:
    hostile.reset()
    hostile.replies = [says("28 days [1] \x1b", "[2J\x9b", "31m [red]")]
    text, source, end = ask(served)

    assert text == r"28 days [1] \x1b[2J\x9b31m [red]"
    assert source.startswith("  [1] [red]page.md › ")
    assert end.startswith("stop; 11 prompt tokens (cached not reported), 3 generated; ")
    found = tritonrag("search", "leave", "--url", served.grpc)
    assert found.stdout.replace("\n", "").isprintable()
    assert r"28 days \x1b[2J of leave" in found.stdout


def test_what_the_endpoint_does_not_count_is_not_reported(
    served: Served, hostile: Endpoint
) -> None:
    def reply(handler: Handler) -> None:
        handler.begin_stream()
        handler.delta("28 days [1]", "stop")
        handler.event(json.dumps(chunk(choices=[], usage=None)))
        handler.event("[DONE]")
        handler.wfile.write(b"0\r\n\r\n")

    hostile.reset()
    hostile.replies = [reply]
    *_, end = ask(served)

    assert "prompt tokens not reported (cached not reported), generated not reported" in end


def test_models_and_status_name_the_endpoint_whatever_the_environment_of_the_command_says(
    served: Served, hostile: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_API_URL", "http://other.example/v1")
    state = str(served.server.log.parent)
    done = tritonrag("models", "--state-dir", state, "--repository", str(REPOSITORY))

    assert done.returncode == 0, done.stderr
    host = f"127.0.0.1:{hostile.server_port}"
    assert f"generate: hostile-model at {host} (LLM_API_URL)" in done.stdout.splitlines()
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("generate ")]
    assert row.split()[2] == "unused"
    done = tritonrag("status", "--state-dir", state)
    assert f"llm: hostile-model at {host}" in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("variable", "remedy"), [("LLM_API_URL", "LLM_API_KEY"), ("VECTOR_DB_URI", "VECTOR_DB_TOKEN")]
)
def test_an_address_with_a_password_is_refused_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, remedy: str
) -> None:
    monkeypatch.setenv("LLM_MODEL", "m")
    monkeypatch.setenv(variable, "http://user:Sesam77@127.0.0.1:9/v1")
    with pytest.raises(SetupError, match=f"{variable} has a user or a password .*{remedy}") as it:
        next(serve(tmp_path))

    assert "Sesam77" not in str(it.value)
    log = tmp_path / "state" / "server.log"
    assert not log.exists() or "Sesam77" not in log.read_text()
