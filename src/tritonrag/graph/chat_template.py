"""The chat template of an LLM: messages to the prompt, rendered in a process of its own.

A template is a program that comes with a downloaded model. Jinja's sandbox keeps it from files and
from Python, but not from counting to a billion or from a string of gigabytes, and nothing in Python
can stop it there. The kernel can: the process is confined as those that parse files are
(:mod:`tritonrag.confinement`), and one that uses too much is ended and replaced.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import IO, Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

from tritonrag.confinement import confine
from tritonrag.errors import InternalError, InvalidRequest, SetupError

RENDER_S = 1.0
"""Processor time that one rendering may take; a usual one takes a few milliseconds."""

RENDER_MIB = 256
"""Memory that a rendering may take, beside that of the process."""

MAX_RENDERED_CHARS = 16 * 1024 * 1024
"""Longest text that is taken from a template."""

ANSWER_S = 20.0
"""A process that has not answered by then is ended too: the machine may give it no time."""

Message = dict[str, str]
Render = Callable[[list[Message]], str]

_PROGRAM = "from tritonrag.graph.chat_template import serve; serve()"
_INHERITED = ("HOME", "LANG", "LC_", "LD_", "PATH", "PYTHON", "TMPDIR", "VIRTUAL_ENV")
"""Starts of the environment variables that it gets; the server's may hold credentials."""
_NO_MEMORY = 3
"""Exit status of a process that a template has left without memory."""
_TOO_MUCH = {
    None: f"{ANSWER_S:g} s",
    -signal.SIGPROF: f"{RENDER_S:g} s of processor time",
    _NO_MEMORY: f"{RENDER_MIB} MiB",
    -signal.SIGSEGV: f"{RENDER_MIB} MiB",
    -signal.SIGABRT: f"{RENDER_MIB} MiB",
}
"""How a process ended, to what the template used up."""
_EXAMPLE: list[Message] = [
    {"role": "system", "content": "Answer."},
    {"role": "user", "content": "How?"},
]


class ChatTemplate:
    """A Hugging Face chat template. One rendering at a time; any thread may ask."""

    def __init__(self, source: str, **special_tokens: str) -> None:
        """Take a template and the special tokens it may name (``bos_token``, ``eos_token``).

        The process is started by the first rendering.
        """
        self._first = _line({"source": source, "special_tokens": special_tokens})
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finish: Callable[[], object] = lambda: None

    def check(self) -> None:
        """Render an example.

        Raises:
            SetupError: the template fails, or uses too much.
        """
        try:
            self(_EXAMPLE)
        except InvalidRequest as error:
            raise SetupError(f"the LLM cannot be asked: {error}; export another") from error

    def __call__(self, messages: list[Message]) -> str:
        """Return the prompt.

        Raises:
            InvalidRequest: the template refuses the messages, or uses too much for them.
            SetupError: it fails.
        """
        with self._lock:
            reply = self._ask(messages)
        if "text" in reply:
            return str(reply["text"])
        if "refused" in reply:
            raise InvalidRequest(str(reply["refused"]))
        raise SetupError(f"the LLM's chat template fails: {reply.get('failed')}")

    def _ask(self, messages: list[Message]) -> dict[str, Any]:
        process = self._started()
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(_line(messages))
            process.stdin.flush()
            if select.select([process.stdout], [], [], ANSWER_S)[0]:
                reply = json.loads(process.stdout.readline())
                return reply if isinstance(reply, dict) else {}
        except (OSError, ValueError):  # the kernel ended it
            pass
        return self._end()

    def _started(self) -> subprocess.Popen[bytes]:
        """Return the process, a new one where somebody ended the last."""
        if self._process is None or self._process.poll() is not None:
            self._finish()
            self._process = _process()
            self._finish = weakref.finalize(self, _finish, self._process)
            assert self._process.stdin
            self._process.stdin.write(self._first)
        return self._process

    def _end(self) -> dict[str, str]:
        """End the process and return why."""
        assert self._process
        try:
            status: int | None = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            status = None
        self._finish()
        if status in _TOO_MUCH:
            what = f"takes over {_TOO_MUCH[status]} to render it; send fewer turns"
            return {"refused": f"history: the LLM's chat template {what}"}
        return {"failed": f"its process ended with status {status}"}


def compiled(source: str, **special_tokens: str) -> Render:
    """Return a function that renders messages in this process, without bounds.

    Raises:
        Exception: the template is not one; the function raises what it raises.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise
    template = environment.from_string(source)
    return lambda turns: template.render(
        messages=turns, add_generation_prompt=True, **special_tokens
    )


def serve() -> None:
    """Render what standard input asks for until it ends; the program of the process."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    given = json.loads(requests.readline())
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    confine(RENDER_MIB << 20)
    render: Render | None = None
    for line in requests:
        signal.setitimer(signal.ITIMER_PROF, RENDER_S)
        try:
            render = render or compiled(given["source"], **given["special_tokens"])
            reply = _line(_reply(render(json.loads(line))))
        except InvalidRequest as error:
            reply = _line({"refused": str(error)})
        except MemoryError:
            os._exit(_NO_MEMORY)  # nothing else is sure to work now
        except Exception as error:  # a template is a program: it may fail in any way
            reply = _line({"failed": f"{type(error).__name__}: {error}"[:500]})
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(replies, reply)


def _reply(text: str) -> dict[str, str]:
    if len(text) > MAX_RENDERED_CHARS:
        raise MemoryError
    return {"text": text}


def _write(stream: IO[bytes], line: bytes) -> None:
    stream.write(line)
    stream.flush()


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _process() -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [sys.executable or shutil.which("python3") or "python3", "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={key: value for key, value in os.environ.items() if key.startswith(_INHERITED)},
            start_new_session=True,  # Ctrl-C is for the caller
        )
    except OSError as error:
        raise InternalError(f"the chat template's process cannot be started: {error}") from error


def _finish(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def _raise(message: str) -> None:
    raise InvalidRequest(f"history: the LLM's chat template refuses it: {message}")
