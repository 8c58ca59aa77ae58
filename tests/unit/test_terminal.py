"""What of foreign texts reaches a terminal."""

from __future__ import annotations

import pytest

from tritonrag.cli.terminal import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("over\rwritten", r"over\rwritten"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x7f\x9b31m\x00", r"\x7f\x9b31m\x00"),
        ("abc\u202ecba\u2066x\u200f", r"abc\u202ecba\u2066x\u200f"),
        ("one\u2028two\u2029", r"one\u2028two\u2029"),
        ("\ufeffhidden\u00ad\u200b\U000e0041", r"\ufeffhidden\xad\u200b\U000e0041"),
        ("half\udc9b", r"half\udc9b"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(text).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "Größe: 3 µm",
        "会议记录",
        "نص عربي",
        "नमस्ते",
        "👩\u200d🚒 ❤\ufe0f",
        "می\u200cخواهم",
        "a\u00a0b",
    ],
)
def test_ordinary_text_of_any_script_stays(text: str) -> None:
    assert printable(text) == text


def test_lines_stay_where_asked_for_and_nothing_else() -> None:
    assert printable("a\n\tb\x1b\r\n", newlines=True) == "a\n\tb\\x1b\\r\n"
