"""``tritonrag search`` and ``ask`` against models of a few lines."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from fake_triton import HOSTILE, PASSAGE, SPAN, FakeTriton, keys

from tritonrag import cli
from tritonrag.client import probe


@pytest.fixture
def run(triton: FakeTriton, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setenv("TRITONRAG_URL", triton.urls["grpc"])
        monkeypatch.setattr(sys, "argv", ["tritonrag", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return (ended.value.code or 0, *capsys.readouterr())  # type: ignore[return-value]

    return run


def test_search_lists_passages(run) -> None:
    code, out, _ = run("search", "How much leave?", "--top-k", "1")

    assert code == 0
    assert out.splitlines() == [
        "  1  0.750  leave.md › Leave > Annual",
        "     Zoë has “25” days of leave.",
    ]


def test_search_that_finds_nothing_says_so(run) -> None:
    assert run("search", "x", "--top-k", "0")[1].startswith("nothing found; ")


def test_search_as_json_is_what_the_server_sent(run) -> None:
    _, out, _ = run("search", "x", "--top-k", "2", "--filter", '{"source": "leave.md"}', "--json")
    assert json.loads(out) == {"passages": [PASSAGE, PASSAGE]}


def test_groups_go_along(run, triton: FakeTriton) -> None:
    for command in ("search", "ask"):
        run(command, "x", "--group", "hr", "--group", "it")
        assert triton.models.requests[-1].inputs["groups"] == ['["hr", "it"]']
        run(command, "x")
        assert "groups" not in triton.models.requests[-1].inputs


def test_ask_prints_the_answer_then_the_sources(run) -> None:
    code, out, _ = run("ask", "How much leave?")

    assert code == 0
    assert out.splitlines() == [
        "Zoë has 25 days [1].",
        "  [1] leave.md › Leave > Annual  0.750",
        "   -  leave.md › Leave > Annual  0.750 (left out: context)",
        "stop; 9 prompt tokens (1 cached), 4 generated; first token 2 ms, total 4 ms",
    ]


def test_what_others_wrote_never_steers_the_terminal(run) -> None:
    code, out, _ = run("ask", "hostile")

    assert code == 0
    assert out.splitlines() == [
        r"ok \x1b[2J\x9b31m [red][1]",
        "",
        r"  [1] [red]a\x1b[31m.md › [link=http://x]T\nfake\x1b[2J  0.750 (also read)",
        "stop; prompt tokens not reported (cached not reported), generated not reported; "
        "first token 2 ms, total 4 ms",
    ]
    code, out, _ = run("search", "hostile", "--top-k", "1")
    assert out.splitlines() == [
        r"  1  0.750  [red]a\x1b[31m.md › [link=http://x]T\nfake\x1b[2J",
        r"     <script>x</script>\x7f \x1b]0;owned\x07 \x9b2J \u202e red over",
    ]
    code, _, err = run("search", "hostile error")
    assert (code, err) == (2, "tritonrag: question: \\x1b[2J [red]\n")


@pytest.mark.parametrize("command", ["ask", "search"])
def test_json_is_for_terminals_too_and_loses_nothing(run, command: str) -> None:
    _, out, _ = run(command, "hostile", "--json")

    assert out.removesuffix("\n").isprintable()
    answer = json.loads(out)
    passage = answer["citations" if command == "ask" else "passages"][0]
    assert {name: passage[name] for name in HOSTILE} == HOSTILE
    if command == "ask":
        assert answer["text"] == "ok \x1b[2J\x9b31m [red][1]\n"
        assert answer["usage"]["prompt_tokens"] is None


def test_ask_as_json_is_one_object(run, triton: FakeTriton) -> None:
    url = ["--url", triton.urls["http"], "--protocol", "http"]
    code, out, _ = run("ask", "How much leave?", "--json", "--stop", "a", "--stop", "b", *url)

    assert code == 0
    answer = json.loads(out)
    assert answer["text"] == "Zoë has 25 days [1]."
    assert answer["citations"][0] == {"mark": 1, **PASSAGE, "spans": [SPAN]}
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["generated_tokens"] == 4
    assert triton.models.requests[-1].inputs["stop"] == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("ask", " "), 2, "tritonrag: question: is blank\n"),
        (("search", "x", "--collection", "nope"), 2, "tritonrag: collection: no collection"),
        (("ask", "busy"), 1, "tritonrag: generate: its queue is full"),
        (("ask", "x", "--url", "127.0.0.1:9"), 1, "tritonrag: no server at 127.0.0.1:9; start"),
        (("ask", "x", "--protocol", "tcp"), 2, "tritonrag: protocol: is 'tcp'"),
    ],
)
def test_an_error_is_one_line_and_a_status(
    run, arguments: tuple[str, ...], code: int, message: str
) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (code, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


def test_a_probe_says_at_once_what_is_wrong(
    run, triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as an engine that is stuck: the cancel beforehand is answered, the question refused."""
    monkeypatch.setattr(probe, "QUESTION", "busy")
    began = time.monotonic()
    status, out, _ = run("status", "--url", triton.urls["grpc"], "--probe")

    assert status == 1
    assert "error: generate: its queue is full (1)" in out
    assert time.monotonic() - began < 2
    assert triton.models.cancelled == keys(triton)


def test_ctrl_c_stops_the_generation_and_exits_130(triton: FakeTriton) -> None:
    command = [sys.executable, "-m", "tritonrag", "ask", "endless", "--url", triton.urls["grpc"]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)

    assert process.returncode == 130
    assert b"Traceback" not in err
    ends = time.monotonic() + 1
    while not triton.models.cancelled and time.monotonic() < ends:
        time.sleep(0.01)
    assert len(triton.models.cancelled) == 1
