"""A small stand-in for the Hugging Face hub: the calls that ``huggingface_hub`` makes of it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40


@dataclass
class Hub:
    """Serves ``files`` of the model ``id``; ``gated`` and ``missing`` answer as the hub does."""

    id: str
    files: dict[str, bytes]
    gated: bool = False
    damaged: set[str] = field(default_factory=set)
    """Files whose contents are other than the hash that is told of them."""
    cut: int = 0
    """Ends the next download of a file after this many bytes."""
    ranges: list[str] = field(default_factory=list)
    """What downloads asked to go on from."""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a GET or HEAD."""
        path = request.path.partition("?")[0]
        if not path.startswith((f"/api/models/{self.id}", f"/{self.id}/")):
            self._send(request, 404, {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/"):
            self._api(request, path)
        elif self.gated:
            self._send(request, 403, {"X-Error-Code": "GatedRepo"})
        else:
            self._file(request, path.split("/", 5)[-1])

    def _api(self, request: BaseHTTPRequestHandler, path: str) -> None:
        revision = path.partition("/revision/")[2] or path.partition("/tree/")[2] or "main"
        if revision.split("/")[0] not in ("main", COMMIT):
            self._send(request, 404, {"X-Error-Code": "RevisionNotFound"})
        elif "/tree/" in path:
            self._send(request, 200, {}, json.dumps([self._entry(name) for name in self.files]))
        else:
            siblings = [{"rfilename": name, **self._entry(name)} for name in self.files]
            body = {"id": self.id, "sha": COMMIT, "siblings": siblings}
            self._send(request, 200, {}, json.dumps(body))

    def _entry(self, name: str) -> dict[str, Any]:
        size = len(self.files[name])
        entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": "a" * 40}
        if name.endswith(".safetensors"):
            digest = self._hash(name)
            lfs = {"sha256": digest, "oid": digest, "size": size, "pointerSize": 130}
            entry["lfs"] = lfs
        return entry

    def _hash(self, name: str) -> str:
        content = b"another" if name in self.damaged else self.files[name]
        return hashlib.sha256(content).hexdigest()

    def _file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        if name not in self.files:
            self._send(request, 404, {"X-Error-Code": "EntryNotFound"})
            return
        content = self.files[name]
        headers = {"ETag": f'"{self._hash(name)}"', "X-Repo-Commit": COMMIT}
        wanted = request.headers.get("Range", "")
        status, start, stop = 200, 0, len(content)
        if wanted:
            self.ranges.append(wanted)
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(len(content), int(last) + 1 if last else len(content))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
            status = 206
        sent = content[start:stop]
        if self.cut and request.command == "GET" and len(sent) > self.cut:
            headers["Content-Length"] = str(len(sent))
            sent, self.cut = sent[: self.cut], 0
        self._send(request, status, headers, sent)

    def _send(
        self, request: BaseHTTPRequestHandler, status: int, headers: dict[str, str],
        body: str | bytes = b"",
    ) -> None:  # fmt: skip
        content = body.encode() if isinstance(body, str) else body
        request.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content)


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Yield the address of a hub while it is served."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            hub.answer(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
