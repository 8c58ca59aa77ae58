"""The embedded server and its watchdog in a process of their own, for ``tritonrag up``.

The process tells its parent by a pipe how the start goes, a JSON list a line:
``["progress", text]``, then ``["ready", ""]`` or ``["failed", "CODE: text"]``.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import TextIO

from tritonrag.errors import InternalError, TritonragError, Unavailable, from_tagged, tagged
from tritonrag.server.launch import end_on_sigterm
from tritonrag.server.monitor import monitored
from tritonrag.server.ports import HOST, Ports
from tritonrag.server.process import PROGRESS, EmbeddedServer, Running


def start(
    server: EmbeddedServer,
    repository: Path,
    index_dir: Path,
    ports: Ports,
    *,
    config: str = "",
    progress: PROGRESS = lambda line: None,
) -> Running:
    """Start a watched server that goes on after this process; return when it is ready.

    Raises:
        SetupError: as :meth:`EmbeddedServer.start`.
        Unavailable: as there.
    """
    server.make_folder()
    read, write = os.pipe()
    options = [
        str(server.folder),
        str(repository),
        str(index_dir),
        config,
        *map(str, astuple(ports)),
    ]
    with server.watchdog_log.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tritonrag.server.background", str(write), *options],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[write],
            start_new_session=True,
        )
    server.background = process
    os.close(write)
    try:
        with os.fdopen(read, encoding="utf-8") as lines:
            _follow(lines, progress)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if running := server.running():
        return running
    raise Unavailable(f"the server ended right after its start; see {server.watchdog_log}")


def watch(server: EmbeddedServer, watching: Callable[[], None] = lambda: None) -> None:
    """Watch the server that was started here until SIGTERM or Ctrl-C, then stop it.

    ``watching`` is called once it is watched.

    Raises:
        SetupError: the server does not start any more, or the watchdog's port is in use.
    """
    try:
        running = server.running()
        if running is None:
            raise Unavailable(f"the server ended by itself; see {server.log}")
        watchdog = server.watch()
        end_on_sigterm()
        with monitored(watchdog, HOST, running.ports.watchdog):
            watching()
            watchdog.run()
    finally:
        server.stop()


def _follow(lines: TextIO, progress: PROGRESS) -> None:
    for line in lines:
        kind, text = json.loads(line)
        if kind == "ready":
            return
        if kind == "failed":
            raise from_tagged(text) or InternalError(text)
        progress(text)
    raise InternalError("the process that starts the server ended; its log says why")


def _main(
    pipe: str, state_dir: str, repository: str, index_dir: str, config: str, *ports: str
) -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    end_on_sigterm()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = EmbeddedServer(Path(state_dir))
    with os.fdopen(int(pipe), "w", encoding="utf-8", buffering=1) as parent:

        def tell(kind: str, text: str = "") -> None:
            with suppress(BrokenPipeError):  # whoever asked for the server has gone
                print(json.dumps([kind, text]), file=parent)

        try:
            server.start(
                Path(repository),
                Path(index_dir),
                Ports(*map(int, ports)),
                config=config,
                bound_to_parent=True,
                progress=lambda line: tell("progress", line),
            )
            watch(server, watching=lambda: tell("ready"))
        except TritonragError as error:
            logging.error("%s", error)
            tell("failed", tagged(error))
            sys.exit(1)


if __name__ == "__main__":
    _main(*sys.argv[1:])
