"""The whole graph on the real server, spoken to with nothing of ours."""

from __future__ import annotations

import json
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from raw import inputs, search, stream
from servers import HANDBOOK, Served, tritonrag
from tritonclient.utils import InferenceServerException

from tritonrag.contract import DEFAULT_TOP_K, MAX_QUESTION_BYTES
from tritonrag.prompting import NOTHING_FOUND
from tritonrag.quoting import REFUSAL, sentences
from tritonrag.settings import ADMIN_HEADER

QUESTION = "How many days of annual leave do full-time employees receive?"


def test_search_finds_the_page(served: Served) -> None:
    passages = search(served.grpc, question=QUESTION)
    assert len(passages) == DEFAULT_TOP_K
    assert passages[0]["source"] == "leave.md"
    assert "28 days" in passages[0]["text"]
    scores = [passage["score"] for passage in passages]
    assert scores == sorted(scores, reverse=True)
    page = (HANDBOOK / "leave.md").read_text(encoding="utf-8")
    start, end = passages[0]["start"], passages[0]["end"]
    assert "28 days" in page[start:end]


def test_rag_streams_an_answer_with_citations(served: Served) -> None:
    responses = list(stream(served.grpc, question=QUESTION))
    assert len(responses) > 2
    citations = json.loads(responses[0]["citations"])
    assert [citation["mark"] for citation in citations] == [1, 2, 3, 4]
    assert all(response["citations"] == "" for response in responses[1:])
    assert [response["finish_reason"] for response in responses[:-1]] == [""] * (len(responses) - 1)
    assert responses[-1]["finish_reason"] == "stop"
    usage = json.loads(responses[-1]["usage"])
    assert usage["prompt_tokens"] > 0
    assert 0 < usage["time_to_first_token_ms"] <= usage["total_ms"]


def test_a_quoted_answer_is_verbatim_from_the_passages(served: Served) -> None:
    responses = list(stream(served.grpc, question=QUESTION, grounding="quote"))
    answer = "".join(response["text"] for response in responses)
    allowed = {
        f"{sentence} [{citation['mark']}]"
        for citation in json.loads(responses[0]["citations"])
        for sentence in sentences(citation["text"])
    }
    rest = answer
    while rest and rest != REFUSAL:
        quote = next((each for each in allowed if rest.startswith(each)), None)
        assert quote, f"not a quote: {rest!r}"
        rest = rest.removeprefix(quote).lstrip()
    assert answer


def test_curl_streams_too(served: Served) -> None:
    body = json.dumps({"question": QUESTION, "top_k": 2})
    url = f"{served.http}/v2/models/rag/generate_stream"
    curl = ["curl", "--silent", "--no-buffer", "--data", body, url]
    lines = subprocess.run(curl, capture_output=True, text=True, timeout=60, check=True).stdout
    events = [json.loads(line[6:]) for line in lines.splitlines() if line.startswith("data: ")]
    assert len(events) > 2
    assert len(json.loads(events[0]["citations"])) == 2
    assert events[-1]["finish_reason"] == "stop"


BAD = [
    ({"question": ""}, "INVALID_ARGUMENT", "question: is empty or blank"),
    ({"question": " \n\t"}, "INVALID_ARGUMENT", "question: is empty or blank"),
    ({"question": "x" * (MAX_QUESTION_BYTES + 1)}, "INVALID_ARGUMENT", "the limit is 8192"),
    ({"question": b"caf\xe9"}, "INVALID_ARGUMENT", "is not UTF-8"),
    ({"question": "x", "top_k": 0}, "INVALID_ARGUMENT", "top_k: 0 is not in 1 to 100"),
    ({"question": "x", "top_k": 101}, "INVALID_ARGUMENT", "top_k: 101 is not in 1 to 100"),
    ({"question": "x", "collection": "nope"}, "NOT_FOUND", "default"),
    ({"question": "x", "filter": "{"}, "INVALID_ARGUMENT", "filter: not JSON"),
    ({"question": "x", "filter": '{"colour": "red"}'}, "INVALID_ARGUMENT", "are `source`, `title`"),
    ({"question": "x", "filter": '{"tags": {"$x": 1}}'}, "INVALID_ARGUMENT", "operators are `$eq`"),
    ({"question": "x", "filter": '{"title": 3}'}, "INVALID_ARGUMENT", "`title` is compared with 3"),
    ({"question": "x", "groups": "staff"}, "INVALID_ARGUMENT", "groups: not JSON"),
]
BAD_GENERATION = [
    ({"max_tokens": 0}, "max_tokens: is 0"),
    ({"max_tokens": 10_000_000}, "max_tokens: is 10000000, expected 1 to"),
    ({"temperature": -1.0}, "temperature: is -1"),
    ({"top_p": 0.0}, "top_p: is 0"),
    ({"seed": -1}, "seed: is -1"),
    ({"stop": [""]}, "stop: is ''"),
    ({"grounding": "loose"}, "grounding: is 'loose', expected free or quote"),
    ({"history": "[1]"}, "history: expected a JSON list"),
]


@pytest.mark.parametrize(("fields", "code", "message"), BAD)
def test_bad_requests_are_answered_by_search(
    served: Served, fields: dict[str, object], code: str, message: str
) -> None:
    with pytest.raises(InferenceServerException) as raised:
        search(served.grpc, **fields)
    assert raised.value.status() == f"StatusCode.{code}"
    assert message in raised.value.message()
    assert "/" not in raised.value.message().replace("http://", "")


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [*BAD, *(({"question": "x", **each}, "INVALID_ARGUMENT", why) for each, why in BAD_GENERATION)],
)
def test_bad_requests_are_answered_by_rag(
    served: Served, fields: dict[str, object], code: str, message: str
) -> None:
    with pytest.raises(InferenceServerException) as raised:
        list(stream(served.grpc, **fields))
    # Triton drops the status of an error in a stream: the message carries it.
    assert raised.value.message().startswith(f"in ensemble 'rag', {code.removesuffix('UMENT')}: ")
    assert message in raised.value.message()


def test_top_k_that_is_no_integer_is_refused(served: Served) -> None:
    wrong = triton.InferInput("top_k", [1, 1], "FP32")
    wrong.set_data_from_numpy(np.array([[1.5]], dtype=np.float32))
    with (
        triton.InferenceServerClient(served.grpc) as client,
        pytest.raises(InferenceServerException, match="top_k.*INT32") as raised,
    ):
        client.infer("search", [*inputs(question="x"), wrong])
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_one_bad_request_does_not_fail_its_neighbours(served: Served) -> None:
    def ask(number: int) -> str:
        try:
            question = " " if number % 4 == 0 else f"{QUESTION} {number}"
            return str(search(served.grpc, question=question)[0]["source"])
        except InferenceServerException as error:
            return str(error.status())

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(64)))
    refused = [number for number, answer in enumerate(answers) if answer.startswith("StatusCode")]
    assert refused == list(range(0, 64, 4))


def test_every_step_batches_across_clients(served: Served) -> None:
    """At 64 clients `embed` runs batches of 8 or more on average, by Triton's own count."""
    models = ("tokenize", "embed", "retrieve", "prompt")
    before = {model: executions(served, model) for model in models}

    def ask(client: triton.InferenceServerClient, number: int) -> None:
        for turn in range(20):
            client.infer("search", inputs(question=f"question {number} about topic {turn}?"))

    with triton.InferenceServerClient(served.grpc) as client, ThreadPoolExecutor(64) as pool:
        for done in [pool.submit(ask, client, number) for number in range(64)]:
            done.result()
    for model in models[:3]:
        served_now, run_now = executions(served, model)
        requests, runs = served_now - before[model][0], run_now - before[model][1]
        assert requests == 64 * 20
        assert requests / runs >= (8 if model == "embed" else 3), f"{model}: {requests} in {runs}"


def executions(served: Served, model: str) -> tuple[int, int]:
    key = {f"triton-grpc-protocol-{ADMIN_HEADER}": served.running.key}
    with triton.InferenceServerClient(served.grpc) as client:
        stats = client.get_inference_statistics(model, headers=key).model_stats[0]
    return stats.inference_count, stats.execution_count


LONG = {"max_tokens": 8000}


def test_cancel_by_request_id_stops_a_generation(endless: Served) -> None:
    request_id = uuid.uuid4().hex
    responses = stream(endless.grpc, request_id=request_id, question=QUESTION, **LONG)
    next(responses)
    began = time.monotonic()
    list(stream(endless.grpc, "generate", request_id, prompt="", cancel=True))
    rest = list(responses)
    assert rest[-1]["finish_reason"] == "cancelled"
    assert time.monotonic() - began < 0.5


def test_closing_a_stream_on_generate_stops_it(endless: Served) -> None:
    responses = stream(endless.grpc, "generate", prompt="Once upon a time", **LONG)
    next(responses)
    began = time.monotonic()
    responses.close()
    short = list(stream(endless.grpc, "generate", prompt="Once", max_tokens=1))
    assert short[-1]["finish_reason"] == "length"
    assert time.monotonic() - began < 1


def test_greedy_answers_are_the_same_each_time(served: Served) -> None:
    fields = {"question": QUESTION, "grounding": "free", "max_tokens": 20}
    first, second = (
        "".join(response["text"] for response in stream(served.grpc, **fields)) for _ in range(2)
    )
    assert first == second


def test_deltas_are_whole_characters(served: Served) -> None:
    """Each character here takes the tokenizer several tokens of single bytes."""
    text = '第一章，🙂 مرحبا “ünïcödé” "ends" ﷺ here.'
    fields = {"prompt": "Question: 第一?", "citations": json.dumps([{"mark": 1, "text": text}])}
    grammar_allows = {f"{text} [1]", f"{text} [1] {text} [1]", f"{text} [1] " * 3, REFUSAL}
    deltas = [each["text"] for each in stream(served.grpc, "generate", **fields)]
    assert not any("\ufffd" in delta for delta in deltas)
    assert "".join(deltas) in {each.strip() for each in grammar_allows}


def test_a_prompt_over_the_context_drops_the_lowest_ranked(served: Served) -> None:
    responses = list(stream(served.grpc, question=QUESTION, top_k=100))
    citations = json.loads(responses[0]["citations"])
    marks = [citation["mark"] for citation in citations]
    kept = [mark for mark in marks if mark]
    assert kept == list(range(1, len(kept) + 1))
    assert marks[len(kept) :] == [None] * (len(marks) - len(kept))
    assert 0 < len(kept) < len(marks)
    assert {each["dropped"] for each in citations[len(kept) :]} == {"context"}
    assert responses[-1]["finish_reason"] in ("stop", "length")


def test_an_empty_index_says_so(empty: Served) -> None:
    assert search(empty.grpc, question=QUESTION) == []
    responses = list(stream(empty.grpc, question=QUESTION))
    assert "".join(response["text"] for response in responses) == NOTHING_FOUND
    assert responses[-1]["finish_reason"] == "stop"


def test_a_damaged_snapshot_leaves_the_old_one_live(empty: Served, tmp_path: Path) -> None:
    index = ["--url", empty.grpc, "--index-dir", str(empty.index_dir)]
    (tmp_path / "one.md").write_text("# One\n\nThe first page is about herons.\n")
    assert tritonrag("index", "add", str(tmp_path), *index).returncode == 0
    assert "herons" in search(empty.grpc, question="herons")[0]["text"]
    collection = empty.index_dir / "default"
    good = (collection / "CURRENT").read_text().strip()
    bad = collection / "99990101T000000.000000Z-0bad"
    bad.mkdir()
    for file in (collection / good).iterdir():
        (bad / file.name).write_bytes(file.read_bytes()[:-1] + b"X")
    (pointer,) = collection.glob("CURRENT-*")
    (collection / ".new").write_text(bad.name)
    (collection / ".new").replace(pointer)
    time.sleep(1.2)
    assert "herons" in search(empty.grpc, question="herons")[0]["text"]
    stats = tritonrag("index", "stats", "--index-dir", str(empty.index_dir))
    assert bad.name in stats.stdout + stats.stderr
    refusals = [line for line in empty.server.log.read_text().splitlines() if "refused" in line]
    assert len(refusals) == 1
    assert f"{good} stays live" in refusals[0]
