"""Chat templates: what they get, and what they may use."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tritonrag.errors import InvalidRequest, SetupError
from tritonrag.graph.chat_template import ChatTemplate, compiled

TURNS = [{"role": "user", "content": "{{ 7 * 7 }} é 🙂\n"}]


@pytest.mark.parametrize("make", [ChatTemplate, compiled])
def test_a_chat_template_gets_its_special_tokens_and_a_generation_prompt(make: Any) -> None:
    render = make(
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}",
        bos_token="<s>",
    )

    for _ in range(2):
        assert render(TURNS) == "<s>[user]{{ 7 * 7 }} é 🙂\n[assistant]"


@pytest.mark.parametrize("make", [ChatTemplate, compiled])
def test_what_a_chat_template_refuses_is_the_callers_fault(make: Any) -> None:
    render = make("{{ raise_exception('no system role') }}")

    with pytest.raises(InvalidRequest, match="history: .* refuses it: no system role"):
        render([])


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{% for", "TemplateSyntaxError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TypeError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_a_template_that_fails_says_why(source: str, why: str) -> None:
    with pytest.raises(SetupError, match=f"the LLM's chat template fails: {why}"):
        ChatTemplate(source)(TURNS)


COUNTS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
HUGE = {
    "product": "{{ 'a' * 10 ** 10 }}",
    "product of a value": "{% set n = messages | length %}{{ 'a' * n * 10 ** 10 }}",
    "format": "{{ '%10000000000d' | format(1) }}",
    "method": "{{ 'a'.ljust(10 ** 10) }}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
    "{% endfor %}{{ n.x }}",
    "list": "{% set x = [messages] * 10 ** 9 %}{{ x | length }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
}


@pytest.mark.parametrize("source", [COUNTS, "{{ (1 + messages | length) ** (10 ** 9) }}"])
def test_a_template_that_counts_on_is_stopped(source: str) -> None:
    render = ChatTemplate(f"{{% if messages | length > 1 %}}{source}{{% endif %}}ok")
    began = time.monotonic()

    with pytest.raises(InvalidRequest, match="chat template takes over 1 s of processor time"):
        render(TURNS * 2)

    assert time.monotonic() - began < 10
    assert render(TURNS) == "ok"


@pytest.mark.parametrize("name", HUGE)
def test_a_template_that_takes_memory_is_stopped(name: str) -> None:
    render = ChatTemplate(f"{{% if messages | length > 1 %}}{HUGE[name]}{{% endif %}}ok")

    with pytest.raises(InvalidRequest, match="chat template takes over (256 MiB|1 s of processor)"):
        render(TURNS * 2)

    assert render(TURNS) == "ok"


@pytest.mark.parametrize(
    "source", [COUNTS, HUGE["product"], "{% for", "{{ raise_exception('x') }}"]
)
def test_a_template_is_checked_before_it_is_served(source: str) -> None:
    with pytest.raises(SetupError, match="chat template"):
        ChatTemplate(source).check()


def test_a_process_that_somebody_ended_is_replaced() -> None:
    render = ChatTemplate("{{ messages | length }}")
    assert render(TURNS) == "1"
    assert render._process
    render._process.kill()
    render._process.wait()

    assert render(TURNS * 2) == "2"


def test_its_process_ends_with_it() -> None:
    render = ChatTemplate("ok")
    render(TURNS)
    process = render._process
    del render

    assert process
    assert process.poll() is not None


def test_its_process_does_not_outlive_a_killed_owner() -> None:
    program = (
        "import os, signal\n"
        "from tritonrag.graph.chat_template import ChatTemplate\n"
        "render = ChatTemplate('ok')\n"
        "render([])\n"
        "print(render._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    process = Path("/proc") / done.stdout.strip()
    ends = time.monotonic() + 10
    while process.exists() and not _is_zombie(process) and time.monotonic() < ends:
        time.sleep(0.02)
    assert not process.exists() or _is_zombie(process)


def _is_zombie(process: Path) -> bool:
    """Return whether a process has ended, where no init is there to collect it."""
    with suppress(FileNotFoundError):
        return (process / "stat").read_text().rpartition(") ")[2].startswith("Z")
    return True


def test_a_usual_rendering_takes_milliseconds() -> None:
    render = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    turns = [{"role": "user", "content": "word " * 2000}] * 4
    render(turns)
    began = time.perf_counter()
    for _ in range(20):
        render(turns)

    assert (time.perf_counter() - began) / 20 < 0.02


def test_the_process_has_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_API_KEY", "secret")
    render = ChatTemplate("ok")
    render(TURNS)
    process = render._process

    assert process
    assert b"LLM_API_KEY" not in Path(f"/proc/{process.pid}/environ").read_bytes()
