"""The programs of client/, as a reader would start them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from servers import ROOT, Served

QUESTION = "Who approves remote work?"
PROGRAMS = {"ask_streaming.py", "ask_async.py", "ask_http.py", "ask_grpc.py", "ask_batch.py"}


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "client" / program), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def lines(program: str, *arguments: str) -> list[str]:
    done = run(program, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_program_is_tested() -> None:
    assert {path.name for path in (ROOT / "client").iterdir() if path.is_file()} == PROGRAMS


def test_streaming_over_grpc_and_http_says_the_same(served: Served) -> None:
    over_grpc = lines("ask_streaming.py", QUESTION, "--url", served.grpc)
    over_http = lines("ask_streaming.py", QUESTION, "--url", served.http, "--protocol", "http")

    assert over_grpc == over_http
    assert over_grpc[0]
    assert over_grpc[1].startswith("[1] remote-work.md: Remote work")


def test_with_nothing_of_ours(served: Served) -> None:
    """The same answer from the standard library, from bare tritonclient and from our client."""
    ours = lines("ask_streaming.py", QUESTION, "--url", served.grpc)
    for program, url in (("ask_http.py", served.http), ("ask_grpc.py", served.grpc)):
        assert "tritonrag" not in _imports(program)
        theirs = lines(program, QUESTION, "--url", url)
        assert theirs[0] == ours[0]
        assert len(theirs) == len(ours) == 5


def test_with_nothing_of_ours_an_error_is_shown(served: Served) -> None:
    for program, url in (("ask_http.py", served.http), ("ask_grpc.py", served.grpc)):
        done = run(program, " ", "--url", url)
        assert done.returncode == 1
        assert "question: is empty or blank" in done.stderr


def test_curl_as_the_program_shows_it(served: Served) -> None:
    body = json.dumps({"id": "1", "question": QUESTION})
    command = ["curl", "-sN", f"{served.http}/v2/models/rag/generate_stream", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    events = [json.loads(line.removeprefix("data:")) for line in done.stdout.split("\n") if line]
    assert json.loads(events[0]["citations"])[0]["source"] == "remote-work.md"
    assert "".join(event["text"] for event in events)
    assert [event["finish_reason"] for event in events if event["finish_reason"]] == ["stop"]


def test_async(served: Served) -> None:
    questions = [QUESTION, "How many characters must a password have?", " "]
    said = "\n".join(lines("ask_async.py", *questions, "--url", served.grpc))

    assert all(f"> {question}\n" in said + "\n" for question in questions)
    assert "InvalidRequest: question: " in said


def test_batch_keeps_order_and_names_failures(served: Served, tmp_path: Path) -> None:
    questions = [QUESTION, "x" * 9000, "How many characters must a password have?"]
    path = tmp_path / "questions.txt"
    path.write_text("\n\n".join(questions))
    done = run("ask_batch.py", str(path), "--url", served.grpc)
    answers = [json.loads(line) for line in done.stdout.splitlines()]

    assert done.returncode == 1
    assert [answer["question"] for answer in answers] == questions
    assert answers[0]["answer"]
    assert answers[1]["error"].startswith("InvalidRequest: question: ")
    assert answers[2]["usage"]["generated_tokens"] > 0


def _imports(program: str) -> str:
    source = (ROOT / "client" / program).read_text()
    return "\n".join(line for line in source.splitlines() if line.startswith(("import ", "from ")))
