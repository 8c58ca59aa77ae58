"""Questions made from arbitrary text: a sentence in, a question that it answers out.

The forms are rough on purpose: what matters is that the form and the words of the question
together point to one sentence. Knows neither torch nor a tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random

from tritonrag.overlap import STOPWORDS, WORD, content_words, words

_NUMBER = r"(?:\d[\d,.]*|one|two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty)"
_DATE = re.compile(
    r"\b(?:(?:January|February|March|April|May|June|July|August|September|October|November"
    r"|December)\b[ \d,]*|(?:1[5-9]|20)\d\d\b)"
)
_DURATION = re.compile(
    rf"\b{_NUMBER}[ -](?:(?:business|working|calendar|full) )?"
    r"(second|minute|hour|day|week|month|year)s?\b",
    re.I,
)
_AMOUNT = re.compile(r"[$€£]\s?\d[\d,.]*|\b\d[\d,.]*\s?(?:%|percent|euros?|dollars?)", re.I)
_COUNT = re.compile(rf"\b{_NUMBER} ([a-z]{{3,}}s)\b", re.I)
_IS = re.compile(r"^((?:[\w'’-]+ ){0,5}[\w'’-]+) (is|are|was|were|means) (?!not\b)(.{12,})$")
_MODAL = re.compile(
    r"\b(can|may|could|must|should|need to|needs to|have to|has to|will) (?!not\b|be\b|have\b)"
    r"([a-z]+(?: [\w'’-]+){1,8})"
)
_IF = re.compile(r"\b(if|when|unless|before|after|while) ([\w'’-]+(?: [\w'’-]+){2,9})", re.I)
_WHY = re.compile(r"^(.{15,}?)[,]? (because|since|so that|in order to|due to) ")
_BY = re.compile(r"\b(\w+(?:ed|en|wn|de|lt)) by (?:the )?[A-Z]")
_NAMED = re.compile(r"^(?:[A-Z][\w.'’-]+ ){1,3}([a-z]\w+(?: [\w'’-]+){2,9})")
_PLACE = re.compile(
    r"\b(?:in|at|near|from|to) (?:the )?[A-Z]\w+|\b(?:at|in|on|from|via) the [a-z]+"
)

_TOPIC_FORMS = (
    "{}", "{}?", "{}", "what about {}?", "tell me about {}", "what is said about {}?",
    "what are the rules on {}?", "is there anything on {}?", "how does {} work?",
    "what do I need to know about {}?", "which {}?", "explain {}", "what is {}?",
    "how is {} handled?", "what applies to {}?", "information on {}",
)  # fmt: skip
_MODAL_FORMS = {
    "can": ("can I {}?", "how can I {}?", "how do I {}?", "who can {}?", "am I allowed to {}?"),
    "must": ("do I have to {}?", "must I {}?", "who has to {}?", "what must I {}?",
             "is it required to {}?", "should I {}?", "how do I {}?"),
}  # fmt: skip
_IF_FORMS = (
    "what happens {} {}?", "what should I do {} {}?", "what do I do {} {}?", "what {} {}?",
    "{} {}, what then?", "{} {}",
)  # fmt: skip
_MINE = {"your": "my", "yours": "mine", "you": "I", "yourself": "myself", "their": "my"}


class Asker:
    """Makes questions. ``rarity`` weighs words (lower-cased, 1 where missing); ``neighbours`` are
    words that may stand for another."""

    def __init__(
        self, rarity: Mapping[str, float], neighbours: Mapping[str, Sequence[str]]
    ) -> None:
        self._rarity, self._neighbours = rarity, neighbours

    def ask(self, sentence: str, random: Random) -> str | None:
        """Return a question that ``sentence`` answers, or None where it says too little."""
        if len(content_words(sentence)) < 3:
            return None
        forms = [form for form in _FORMS if (asked := form(self, sentence, random))]
        form = random.choice(forms) if forms and random.random() < 0.7 else None
        asked = form(self, sentence, random) if form else None
        return self.vary(asked or self._about(sentence, random), random)

    def topic(self, text: str, random: Random, most: int = 5) -> str:
        """Return two to ``most`` content words of a text, rare ones preferred, in their order."""
        found = list(dict.fromkeys(content_words(text)))
        keyed = sorted(found, key=lambda word: random.random() ** self._weight(word))
        kept = set(keyed[-random.randint(2, most) :])
        return " ".join(word for word in found if word in kept)

    def _weight(self, word: str) -> float:
        return 1 / max(self._rarity.get(word.lower(), 8.0), 0.5)

    def _about(self, sentence: str, random: Random) -> str:
        return random.choice(_TOPIC_FORMS).format(self.topic(sentence, random, 7))

    def vary(self, question: str, random: Random) -> str:
        """Return a question with some words replaced by near ones, and another case or ending."""
        changed = WORD.sub(lambda found: self._neighbour(found[0], random), question)
        if random.random() < 0.35:
            changed = changed.lower()
        elif random.random() < 0.7:
            changed = changed[:1].upper() + changed[1:]
        return changed.rstrip("?") if random.random() < 0.2 else changed

    def _neighbour(self, word: str, random: Random) -> str:
        near = self._neighbours.get(word.lower())
        return random.choice(near) if near and random.random() < 0.25 else word

    def _definition(self, sentence: str, random: Random) -> str | None:
        found = _IS.match(sentence)
        if not found or not content_words(found[1]):
            return None
        verb = "is" if found[2] == "means" else found[2]
        subject = _mine(found[1][:1].lower() + found[1][1:])
        form = random.choice(
            ("what {v} {s}?", "who {v} {s}?", "what {v} {s}?", "{s}", "define {s}")
        )
        return form.format(v=verb, s=subject)

    def _date(self, sentence: str, random: Random) -> str | None:
        rest = _without(_DATE, sentence)
        return rest and self._wh(("when did", "when was", "what year", "when is", "since when"),
                                 rest, random)  # fmt: skip

    def _duration(self, sentence: str, random: Random) -> str | None:
        found = _DURATION.search(sentence)
        rest = _without(_DURATION, sentence)
        starts = ("how long", f"how many {found[1]}s", "how soon", "when") if found else ()
        return rest and self._wh(starts, rest, random)

    def _amount(self, sentence: str, random: Random) -> str | None:
        rest = _without(_AMOUNT, sentence)
        return rest and self._wh(("how much", "what does it cost", "what is the amount of",
                                  "what percentage of"), rest, random)  # fmt: skip

    def _count(self, sentence: str, random: Random) -> str | None:
        found = _COUNT.search(sentence)
        return found and self._wh((f"how many {found[1]}",), _without(_COUNT, sentence), random)

    def _modal(self, sentence: str, random: Random) -> str | None:
        found = _MODAL.search(sentence)
        if not found or not content_words(found[2]):
            return None
        forms = _MODAL_FORMS["can" if found[1] in ("can", "may", "could") else "must"]
        return random.choice(forms).format(_mine(found[2]))

    def _if(self, sentence: str, random: Random) -> str | None:
        found = _IF.search(sentence)
        if not found or len(content_words(found[2])) < 2:
            return None
        return random.choice(_IF_FORMS).format(found[1].lower(), _mine(found[2]))

    def _why(self, sentence: str, random: Random) -> str | None:
        found = _WHY.match(sentence)
        return found and self._wh(("why", "why does", "why is", "for what reason"),
                                  found[1], random)  # fmt: skip

    def _who(self, sentence: str, random: Random) -> str | None:
        found = _NAMED.match(sentence)
        if found and words(sentence)[0].lower() not in STOPWORDS:
            return f"who {found[1]}?"
        found = _BY.search(sentence)
        return found and self._wh(
            ("who", "who was", "by whom"), sentence[: found.end() - 4], random
        )

    def _where(self, sentence: str, random: Random) -> str | None:
        rest = _without(_PLACE, sentence)
        return rest and self._wh(("where", "where is", "where did", "where can I find"),
                                 rest, random)  # fmt: skip

    def _wh(self, starts: Sequence[str], rest: str | None, random: Random) -> str | None:
        if not rest or len(content_words(rest)) < 2:
            return None
        kept = words(rest)
        if len(kept) > 8 or random.random() < 0.5:
            return f"{random.choice(starts)} {self.topic(rest, random, 6)}?"
        return f"{random.choice(starts)} {_mine(' '.join(kept))}?"


_FORMS = (
    Asker._definition, Asker._date, Asker._duration, Asker._amount, Asker._count, Asker._modal,
    Asker._if, Asker._why, Asker._who, Asker._where,
)  # fmt: skip


def _without(pattern: re.Pattern[str], sentence: str) -> str | None:
    return pattern.sub(" ", sentence) if pattern.search(sentence) else None


def _mine(text: str) -> str:
    return " ".join(_MINE.get(word.lower(), word) for word in text.split())
