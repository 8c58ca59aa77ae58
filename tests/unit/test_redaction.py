"""Secrets are taken out of texts, however they are written."""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tritonrag.redaction import PIECE, redacted

KEY = "sk-proj-Zx81/+qPp0~vW?3nä"


@pytest.mark.parametrize(
    "text",
    [
        f"the key {KEY} is wrong",
        f"the key {KEY.upper()} is wrong",
        f"the key {KEY[:6]}*****{KEY[-4:]} is wrong",
        f"the key {quote(KEY, safe='')} is wrong",
        f"the key {quote(KEY, safe='').lower()} is wrong",
        *(f"Basic {b64encode(('x' * n + KEY + 'y').encode()).decode()}" for n in range(4)),
        *(f"Basic {urlsafe_b64encode(('x' * n + KEY).encode()).decode()}" for n in range(4)),
    ],
)
def test_a_secret_is_hidden_however_it_is_written(text: str) -> None:
    safe = redacted(text, KEY)
    assert "***" in safe
    for form in (KEY, quote(KEY, safe="")):
        pieces = {form[at : at + PIECE].lower() for at in range(len(form) - PIECE + 1)}
        assert not [piece for piece in pieces if piece in safe.lower()]
    assert len(safe) < len(text)


@pytest.mark.parametrize("before", range(4))
def test_no_more_than_the_ends_are_left_of_base64(before: int) -> None:
    coded = b64encode(b"x" * before + KEY.encode() + b"yz").decode()
    start, _, end = redacted(coded, KEY).partition("***")
    assert len(start) <= before * 4 / 3 + 2
    assert len(end) <= 6


def test_a_text_without_it_is_as_it_was() -> None:
    assert redacted("no such model", KEY, "") == "no such model"
    assert redacted("", KEY) == ""


def test_a_short_secret_is_hidden_too() -> None:
    assert redacted("key abc", "abc") == "key ***"


@given(st.text(), st.text(), st.text(st.characters(exclude_characters="*"), min_size=1))
def test_the_secret_itself_is_never_left(before: str, after: str, secret: str) -> None:
    assert secret not in redacted(before + secret + after, secret)
