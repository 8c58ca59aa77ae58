"""What others wrote, so that it stays text in a prompt: documents, questions, earlier turns.

A tokenizer reads some strings as special tokens, such as ``<|im_end|>``, and readers of an answer
take ``[2]`` for a citation. Escaped, the first has a space in it, ``<| im_end|>``, and the second
has parentheses, ``(2)``; control characters are gone. Both can still be read, by people and LLMs.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable

from tokenizers import Tokenizer

Escape = Callable[[str], str]
"""Text of others to text that an LLM's tokenizer and readers of its answer take as such."""

_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]+")
"""Control characters (Unicode's category Cc) other than white space, which no text needs. Format
characters stay: joiners make Persian words and emoji families what they are."""

_UNSEEN = (
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff"
)
"""Unicode's Default_Ignorable_Code_Point, as in a class of characters."""

_MARK = re.compile(rf"[\[［]([\s{_UNSEEN}]*\d[\d\s{_UNSEEN},、，;–-]*)[\]］]")
"""A number in brackets, or several, also with what cannot be seen between."""

_ANGLED = re.compile(r"[<＜][^<>＜＞\s]{1,64}[>＞]")
_SQUARE = re.compile(r"\[[^\[\]\s]{1,64}\]")
"""What a special token looks like; of two inside each other the inner one."""

_KNOWN = re.compile(
    r"<\|.*\|>"  # ChatML, Llama 3, Qwen, Phi, GPT, DeepSeek, in NFKC
    r"|</?(s|bos|eos|pad|unk|mask|sep|cls|end|eot|eod|eop|sys|think|tools?|tool_\w+|unused\d+)>"
    r"|<(start|end|begin)_?of_?\w+>|<end_?\w+>|<(image|audio)_soft_token>"  # Gemma
    r"|<(repo_?name|file_?name|file_sep|gh_stars|empty_output|(fim|issue|jupyter|commit)_\w+)>"
    r"|\[/?(inst|sys|img\w*|system_prompt|available_tools|tool_\w+|think|args|call_id"
    r"|pad|unk|cls|sep|mask|bos|eos|audio|begin_audio|prefix|middle|suffix)\]",  # Mistral, BERT
    re.IGNORECASE,
)
"""Special tokens of the LLM families, and what their chat templates put around turns."""


def escape_for(tokens: Iterable[str]) -> Escape:
    """Return what escapes text for a tokenizer with these special tokens.

    The well-known ones of all families are escaped too, so that without any this serves an LLM
    whose tokenizer is not known.
    """
    raw = {token.strip() for token in tokens}
    own = raw | {_folded(token) for token in raw}
    bracketed = {token for token in own if _ANGLED.fullmatch(token) or _SQUARE.fullmatch(token)}
    # One of a single character has no place for a space: no family has such. One with a control
    # character, as our sentence pointers are, is in no text that is printable.
    rest = [
        token for token in own - bracketed if len(token) > 1 and without_controls(token) == token
    ]
    others = re.compile("|".join(map(re.escape, sorted(rest))), re.IGNORECASE) if rest else None

    def parted(match: re.Match[str]) -> str:
        token = match[0]
        folded = _folded(token)
        special = folded in bracketed or _KNOWN.fullmatch(folded)
        return _parted(token) if special else token

    def escape(text: str) -> str:
        text = unmarked(without_controls(text))
        text = _SQUARE.sub(parted, _ANGLED.sub(parted, text))
        while others and others.search(text):  # each turn parts what the one before uncovered
            text = others.sub(lambda match: _parted(match[0]), text)
        return text

    return escape


escape = escape_for(())
"""Escapes text for an LLM whose tokenizer is not known."""


def special_tokens(tokenizer: Tokenizer) -> list[str]:
    """Return the strings that a tokenizer reads as special tokens, or as marks of that kind.

    Tokenizers also have added tokens that are words, or white space: those are text.
    """
    return [
        token.content
        for token in tokenizer.get_added_tokens_decoder().values()
        if token.special or _ANGLED.fullmatch(token.content) or _SQUARE.fullmatch(token.content)
    ]


def without_controls(text: str) -> str:
    """Return text without control characters other than white space."""
    return _CONTROLS.sub("", text)


def unmarked(text: str) -> str:
    """Return text in which no number can pass for a citation mark: ``[2]`` becomes ``(2)``."""
    return _MARK.sub(r"(\1)", text)


def _parted(token: str) -> str:
    """Return a token with a space after what it begins with: ``</ s>``, ``<| user|>``."""
    opening = len(token) - len(token.lstrip("<＜[|｜/"))
    place = opening if 0 < opening < len(token) else 1
    return f"{token[:place]} {token[place:]}"


def _folded(token: str) -> str:
    """Return a token as a tokenizer that normalises text may compare it."""
    return unicodedata.normalize("NFKC", token).casefold()
