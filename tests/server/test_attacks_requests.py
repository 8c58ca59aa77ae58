"""Requests that are made to harm: huge, endless, half sent, slowly read, or to closed doors.

The server is the real one with its watchdog, as `tritonrag up` starts it.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import httpx
import psutil
import pytest
import raw
from servers import QUESTION, RESTARTED_S, Served, eventually, found, now
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tritonrag.client import Client, marshalling, wire
from tritonrag.client.over_grpc import channel_options
from tritonrag.errors import TritonragError
from tritonrag.server.launch import SHARED_MEMORY
from tritonrag.server.watchdog import REGION_BYTES
from tritonrag.settings import ADMIN_HEADER

LATE_S = 5.0
"""No search of another caller takes so long; alone it takes 20 ms, but machines are shared."""

RESERVED_FILES = 500
"""Open files that are left to the test besides its connections."""


def healthy(served: Served) -> bool:
    url = f"http://127.0.0.1:{served.running.ports.watchdog}/health/ready"
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(url, trust_env=False).status_code == 200
    return False


def settled(served: Served) -> bool:
    """Whether no model is to be loaded again for the memory that an earlier request took."""
    regions = SHARED_MEMORY.glob(f"{now(served).prefix}*")
    return found(served) and all(each.stat().st_size <= REGION_BYTES for each in regions)


def longest_search_s(served: Served, count: int = 10) -> float:
    """The longest of some searches, one after the other, each over a new connection."""
    longest = 0.0
    for number in range(count):
        protocol = "http" if number % 2 else "grpc"
        url = served.http if number % 2 else served.grpc
        began = time.monotonic()
        with Client(url, protocol=protocol, timeout=2 * LATE_S) as client:
            assert client.search(QUESTION, top_k=1)
        longest = max(longest, time.monotonic() - began)
    return longest


def memory_mb(served: Served) -> float:
    """The memory of the server and its models, shared pages counted once (PSS)."""
    server = psutil.Process(now(served).pid)
    total = 0
    for process in (server, *server.children()):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 1e6


def connect(port: int, receive_bytes: int = 0) -> socket.socket:
    connection = socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", port))
    return connection


def post(path: str, *headers: str, body: bytes = b"") -> bytes:
    return "\r\n".join((f"POST {path} HTTP/1.1", "Host: here", *headers, "", "")).encode() + body


STREAM = "/v2/models/rag/generate_stream"
FORM = "Content-Type: application/x-www-form-urlencoded"


def whole(size: int) -> bytes:
    return post(STREAM, FORM, f"Content-Length: {size}", body=b"x" * size)


def in_chunks(count: int) -> bytes:
    body = b"1\r\nx\r\n" * count + b"0\r\n\r\n"
    return post(STREAM, FORM, "Transfer-Encoding: chunked", body=body)


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(lambda: whole(4_300_000), id="4.3 MB"),
        pytest.param(lambda: in_chunks(600_000), id="600,000 chunks"),
        pytest.param(lambda: whole(64 << 20), id="64 MB"),
        pytest.param(lambda: in_chunks(1_000_000), id="1,000,000 chunks"),
    ],
)
def test_a_body_in_many_pieces_is_refused_and_the_server_lives(
    watched: Served, request_bytes: Callable[[], bytes]
) -> None:
    pid = now(watched).pid
    with connect(watched.running.ports.http) as connection:
        with contextlib.suppress(OSError):  # closed before all was sent is an answer too
            connection.sendall(request_bytes())
        with contextlib.suppress(ConnectionError):
            line = connection.makefile("rb").readline()
            assert line == b"" or int(line.split()[1]) >= 400, line
    assert found(watched)
    assert now(watched).pid == pid


HUGE = 300_000_000


def over_http(served: Served, body: bytes, **headers: str) -> None:
    """Send a body to `search`, and expect it to be refused."""
    url = f"{served.http}/v2/models/search/infer"
    answer = httpx.post(url, content=body, headers=headers, timeout=60, trust_env=False)
    assert answer.status_code == 400, answer.text
    assert "question: is 300000000 bytes of UTF-8, the limit is 8192" in answer.text


def plain(served: Served) -> None:
    question = {"name": "question", "shape": [1, 1], "datatype": "BYTES"}
    size = {"parameters": {"binary_data_size": HUGE + 4}}
    head = json.dumps({"inputs": [question | size]}).encode()
    body = head + HUGE.to_bytes(4, "little") + b"x" * HUGE
    over_http(served, body, **{"Inference-Header-Content-Length": str(len(head))})


def zipped(served: Served) -> None:
    question = {"name": "question", "shape": [1, 1], "datatype": "BYTES", "data": ["x" * HUGE]}
    body = gzip.compress(json.dumps({"inputs": [question]}).encode(), compresslevel=1)
    assert len(body) < HUGE / 200
    over_http(served, body, **{"Content-Encoding": "gzip"})


def over_grpc(served: Served) -> None:
    with Client(served.grpc, timeout=60) as client, pytest.raises(TritonragError, match="limit is"):
        client.search("x" * HUGE)


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(plain, id="HTTP"),
        pytest.param(zipped, id="gzip"),
        pytest.param(over_grpc, id="gRPC"),
    ],
)
def test_a_request_of_300_mb_is_refused_and_its_memory_comes_back(
    watched: Served, send: Callable[[Served], None]
) -> None:
    assert found(watched)
    pid, before = now(watched).pid, memory_mb(watched)
    send(watched)
    eventually(lambda: memory_mb(watched) < before + 100, 30)
    eventually(lambda: found(watched), RESTARTED_S)
    assert now(watched).pid == pid


HALF = {
    "HTTP, silent": ("http", b""),
    "HTTP, half a header": ("http", post(STREAM)[:-2]),
    "HTTP, half a body": ("http", post(STREAM, "Content-Length: 1000", body=b'{"quest')),
    "gRPC, silent": ("grpc", b""),
    "watchdog": ("watchdog", b"GET /health"),
    "gRPC, its preface": ("grpc", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"),
}


@pytest.fixture
def many_files(watched: Served) -> Iterator[int]:
    """How many connections the test may open; the limits of the machine are put back at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    _, of_server = resource.prlimit(now(watched).pid, resource.RLIMIT_NOFILE)
    wanted = 3000
    eventually(lambda: settled(watched), 20)
    if min(hard, of_server) < wanted + RESERVED_FILES:
        pytest.skip(f"this machine allows {hard} open files, the server {of_server}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("kind", HALF)
def test_half_open_connections_move_nobody(watched: Served, many_files: int, kind: str) -> None:
    protocol, begun = HALF[kind]
    port = getattr(watched.running.ports, protocol)
    server = psutil.Process(now(watched).pid)
    before = server.memory_info().rss
    with contextlib.ExitStack() as opened:
        for _ in range(many_files):
            connection = opened.enter_context(connect(port))
            with contextlib.suppress(ConnectionError):  # the watchdog closes what is too many
                connection.sendall(begun)
        assert longest_search_s(watched) < LATE_S
        assert server.memory_info().rss - before < 200e6
    eventually(lambda: server.num_fds() < many_files / 2, 10)
    eventually(lambda: healthy(watched), 10)


@contextlib.contextmanager
def once_a_second(step: Callable[[], object]) -> Iterator[None]:
    """Do something every second beside the block."""
    stopped = threading.Event()

    def run() -> None:
        while not stopped.wait(1):
            with contextlib.suppress(OSError):
                step()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def test_slow_readers_and_writers_move_nobody(watched: Served) -> None:
    question = json.dumps({"question": QUESTION, "max_tokens": 64}).encode()
    asked = post(STREAM, f"Content-Length: {len(question)}", body=question)
    begun = post(STREAM, "Content-Length: 100000", body=b"{")
    port = watched.running.ports.http
    with contextlib.ExitStack() as opened:
        readers = [opened.enter_context(connect(port, receive_bytes=1024)) for _ in range(32)]
        writers = [opened.enter_context(connect(port)) for _ in range(32)]
        for reader, writer in zip(readers, writers, strict=True):
            reader.sendall(asked)
            writer.sendall(begun)

        def step() -> None:
            for reader, writer in zip(readers, writers, strict=True):
                reader.recv(1)
                writer.send(b" ")

        with once_a_second(step):
            end = time.monotonic() + 3
            while time.monotonic() < end:
                assert longest_search_s(watched) < LATE_S


def test_the_header_that_ends_triton_leaves_no_outage(watched: Served) -> None:
    """Release 24.10 may crash where a stream fails for which gRPC's own status was asked."""
    pid = now(watched).pid
    call = wire.to_protobuf(marshalling.call("search", question=" "))
    for _ in range(20):
        with grpc.insecure_channel(watched.grpc, channel_options(watched.grpc)) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            header = [("triton_grpc_error", "true")]
            with pytest.raises(grpc.RpcError) as failed:
                list(stub.ModelStreamInfer(iter([call]), metadata=header, timeout=10))
        if failed.value.code() is not grpc.StatusCode.INVALID_ARGUMENT:
            break
    eventually(lambda: found(watched), RESTARTED_S)
    if now(watched).pid != pid:
        log = watched.server.watchdog_log.read_text()
        assert "tritonserver: died; the server is started again" in log


REGION = {"key": "/region", "offset": 0, "byte_size": 8}
CLOSED_OVER_HTTP = [
    ("GET", "systemsharedmemory/status", None),
    ("POST", "systemsharedmemory/region/mine/register", REGION),
    ("POST", "systemsharedmemory/region/mine/unregister", {}),
    ("POST", "systemsharedmemory/unregister", {}),
    ("GET", "cudasharedmemory/status", None),
    ("POST", "cudasharedmemory/region/mine/register", {"raw_handle": {"b64": "AA=="}}),
    ("POST", "cudasharedmemory/unregister", {}),
    ("GET", "trace/setting", None),
    ("POST", "trace/setting", {"trace_file": "/tmp/trace", "trace_level": ["TENSORS"]}),
    ("POST", "models/rag/trace/setting", {"trace_rate": "1"}),
    ("GET", "logging", None),
    ("POST", "logging", {"log_file": "/tmp/log", "log_verbose_level": 1}),
    ("GET", "models/stats", None),
    ("GET", "models/rag/stats", None),
    ("GET", "models/retrieve/versions/1/stats", None),
    ("POST", "repository/index", {}),
    ("POST", "repository/models/retrieve/load", {}),
    ("POST", "repository/models/retrieve/unload", {}),
]


@pytest.mark.parametrize("key", ["", "0" * 32])
@pytest.mark.parametrize(("method", "path", "body"), CLOSED_OVER_HTTP)
def test_what_controls_the_server_is_closed_over_http(
    watched: Served, method: str, path: str, body: object, key: str
) -> None:
    headers = {ADMIN_HEADER: key} if key else {}
    url = f"{watched.http}/v2/{path}"
    answer = httpx.request(method, url, json=body, headers=headers, trust_env=False)
    assert answer.status_code == 403, answer.text


CLOSED_OVER_GRPC = {
    "SystemSharedMemoryStatus": {},
    "SystemSharedMemoryRegister": {"name": "mine", **REGION},
    "SystemSharedMemoryUnregister": {},
    "CudaSharedMemoryStatus": {},
    "CudaSharedMemoryRegister": {"name": "mine", "raw_handle": b"\0", "byte_size": 8},
    "CudaSharedMemoryUnregister": {},
    "TraceSetting": {},
    "LogSettings": {},
    "ModelStatistics": {},
    "RepositoryIndex": {},
    "RepositoryModelLoad": {"model_name": "retrieve"},
    "RepositoryModelUnload": {"model_name": "retrieve"},
}


@pytest.mark.parametrize("key", ["", "0" * 32])
@pytest.mark.parametrize("method", CLOSED_OVER_GRPC)
def test_what_controls_the_server_is_closed_over_grpc(
    watched: Served, method: str, key: str
) -> None:
    request = getattr(service_pb2, f"{method}Request")(**CLOSED_OVER_GRPC[method])
    metadata = [(f"triton-grpc-protocol-{ADMIN_HEADER}", key)] if key else []
    with grpc.insecure_channel(watched.grpc, channel_options(watched.grpc)) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            getattr(stub, method)(request, metadata=metadata, timeout=5)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "restricted" in refused.value.details()


def test_a_tensor_in_a_shared_region_is_refused(watched: Served) -> None:
    """Nothing can be registered, so no request may name a region either."""
    question = raw.inputs(question=QUESTION)[0]
    question.set_shared_memory("mine", 8)
    with pytest.raises(Exception, match="[Ss]hared memory region"):
        raw.triton.InferenceServerClient(watched.grpc).infer("search", [question])


def test_after_all_attacks_the_server_answers(watched: Served) -> None:
    assert found(watched)
    assert longest_search_s(watched) < LATE_S
