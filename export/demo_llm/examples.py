"""Training examples: drawn at random from passages and question rows, tokenised as served.

Knows neither torch nor the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from policies import Fact, question, section
from questions import Asker, content_words
from tokenizers import Tokenizer

from tritonrag.prompting import assembled, chat_template, messages
from tritonrag.quoting import MAX_QUOTES, REFUSAL, mark, numbered, pointed, pointer

PAD, END = "<pad>", "<end>"
CONTEXT = 1024
POINTERS = 128
"""Sentences of one prompt that the model can tell apart; see ``tritonrag.quoting``."""
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")

render = chat_template(CHAT_TEMPLATE)


@dataclass(frozen=True)
class Passage:
    """Sentences under a heading (may be empty)."""

    heading: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """A question over passages; ``targets`` are (passage, sentence) numbers, none for a refusal."""

    question: str
    passages: tuple[Passage, ...]
    targets: tuple[tuple[int, int], ...]

    def prompt(self) -> str:
        """Return the prompt as the server builds it."""
        texts = pointed((passage.sentences for passage in self.passages), POINTERS)
        pairs = zip((passage.heading for passage in self.passages), texts, strict=True)
        return render(messages(assembled(self.question, list(pairs))))

    def sentences(self) -> list[tuple[str, int, bool]]:
        """Return the sentences that can be quoted, in order: text, passage number, whether it
        answers."""
        targets = {self.passages[p].sentences[s] for p, s in self.targets}
        found = numbered(passage.sentences for passage in self.passages)
        return [
            (sentence, place, sentence in targets)
            for place, passage in enumerate(found)
            for number, sentence in passage
            if number
        ]


@dataclass(frozen=True)
class Example:
    """Token ids of prompt and answer.

    ``pointers`` are the places of the sentences' pointers in the prompt, ``answers`` says which of
    them are of a target. ``choices`` are (place, wanted id): the places whose next token is a
    choice, the first after the prompt.
    """

    ids: list[int]
    prompt_length: int
    pointers: list[int]
    answers: list[bool]
    choices: list[tuple[int, int]]
    task: Task


@dataclass(frozen=True)
class Stage:
    """One step of the curriculum: it ends when a share ``enough`` of the choices is right, or when
    a share ``until`` of the time is over. Sizes are lower and upper bounds, shares are of the
    examples."""

    name: str
    enough: float
    until: float
    passages: tuple[int, int]
    sentences: tuple[int, int]
    sentence_words: int
    length: int
    real: float
    invented: float
    refused: float
    hard: float
    headed: float = 0.5
    picked: float = 0.0


CURRICULUM = (
    Stage("pick", 0.90, 0.15, (1, 2), (2, 4), 12, 160, 0.0, 0.0, 0.0, 0.0, 0.0, picked=1.0),
    Stage("short", 0.85, 0.20, (2, 3), (1, 2), 18, 240, 0.2, 0.3, 0.05, 0.2, 0.2, picked=0.2),
    Stage("medium", 0.80, 0.30, (2, 4), (1, 3), 28, 350, 0.4, 0.25, 0.12, 0.3, 0.5, picked=0.05),
    Stage("long", 0.75, 0.42, (3, 4), (2, 4), 45, 600, 0.5, 0.2, 0.15, 0.4, 0.5),
    Stage("full", 1.01, 1.00, (4, 4), (2, 9), 120, 980, 0.6, 0.15, 0.18, 0.4, 0.5),
)


def encode(task: Task, tokenizer: Tokenizer, shift: int = 0) -> Example:
    """Return the tokens of a task's prompt and answer.

    ``shift`` turns the numbers of the pointers, so that high ones are learnt as well.
    """
    ids = list(tokenizer.encode(task.prompt()).ids)
    length = len(ids)
    first = tokenizer.token_to_id(pointer(1))
    sentences = task.sentences()[: POINTERS - 1]
    places = [place for place, id in enumerate(ids) if first <= id < first + POINTERS - 1]
    for place in places:
        ids[place] = first + (ids[place] - first + shift) % (POINTERS - 1)
    choices = []
    for number, (sentence, passage, answers) in enumerate(sentences):
        if answers:
            choices.append((len(ids) - 1, ids[places[number]]))
            ids.append(ids[places[number]])
            ids += tokenizer.encode(f" {sentence} {mark(passage + 1)}").ids
    if not choices:
        choices.append((len(ids) - 1, first - 1))
        ids += tokenizer.encode(f"{pointer(0)} {REFUSAL}").ids
    elif len(choices) < MAX_QUOTES:
        choices.append((len(ids) - 1, tokenizer.token_to_id(END)))
    ids.append(tokenizer.token_to_id(END))
    answers = [answers for _, _, answers in sentences]
    places = places[: len(sentences)]
    return Example(ids, length, places, answers, choices, task)


def window(sentences: Sequence[str], around: Sequence[int], most: int, random: Random) -> range:
    """Return at most ``most`` consecutive sentence numbers that hold those of ``around``."""
    low, high = (min(around), max(around)) if around else (random.randrange(len(sentences)),) * 2
    start, stop = low, high + 1
    while stop - start < min(most, len(sentences)):
        if (random.random() < 0.5 and start > 0) or stop == len(sentences):
            start -= 1
        else:
            stop += 1
    return range(start, stop)


@dataclass
class Sampler:
    """Draws tasks from a pool of passages and from question rows."""

    pool: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    asker: Asker
    _by_word: dict[str, list[int]] = field(default_factory=dict)
    _by_source: dict[str, list[int]] = field(default_factory=dict)
    _short: dict[int, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Index the pool by word and by source."""
        by_word: defaultdict[str, list[int]] = defaultdict(list)
        by_source: defaultdict[str, list[int]] = defaultdict(list)
        for number, passage in enumerate(self.pool):
            by_source[passage["group"]].append(number)
            for word in {w.lower() for s in passage["sentences"] for w in content_words(s)}:
                by_word[word].append(number)
        self._by_word = {word: found for word, found in by_word.items() if 1 < len(found) < 400}
        sources = {row["source"] for row in self.rows}
        self._by_source = {source: by_source[source] for source in sources}
        self._from_rows = [n for source in sorted(sources) for n in by_source[source]]
        self.rows = [row for row in self.rows if len(content_words(row["question"])) > 1]

    def draw(self, stage: Stage, random: Random) -> Task:
        """Return one task of a stage of the curriculum."""
        while True:
            of = random.random()
            if of < stage.real:
                task = self._real(stage, random)
            elif of < stage.real + stage.invented:
                task = self._invented(stage, random)
            elif of < stage.real + stage.invented + stage.picked:
                task = self._picked(stage, random)
            else:
                task = self._made(stage, random)
            if task:
                return task

    def _made(self, stage: Stage, random: Random) -> Task | None:
        number = self._any(random)
        passage = self.pool[number]
        fitting = [
            index
            for index, sentence in enumerate(passage["sentences"])
            if 3 < len(sentence.split()) <= stage.sentence_words
        ]
        if not fitting:
            return None
        target = random.choice(fitting)
        asked = self.asker.ask(passage["sentences"][target], random)
        if not asked:
            return None
        others = self._others(stage, asked, number, None, random)
        return self._task(stage, asked, passage, [target], others, random)

    def _real(self, stage: Stage, random: Random) -> Task | None:
        row = random.choice(self.rows)
        others = self._others(stage, row["question"], None, row["source"], random)
        asked = row["question"]
        if random.random() < 0.15:
            asked = asked.rstrip("?")
        passage = {"heading": "", "sentences": row["sentences"]}
        return self._task(stage, asked, passage, row["targets"], others, random)

    def _picked(self, stage: Stage, random: Random) -> Task | None:
        """Return the easiest task: a few short sentences, asked for by words of one of them."""
        wanted = random.randint(3, 5)
        found: list[str] = []
        while len(found) < wanted:
            sentence = random.choice(self.pool[self._any(random)]["sentences"])
            if 4 < len(sentence.split()) <= stage.sentence_words and sentence not in found:
                found.append(sentence)
        target = random.randrange(wanted)
        asked = self.asker.topic(found[target], random, 4)
        cut = random.randint(1, wanted) if stage.passages[1] > 1 else wanted
        parts = [part for part in (found[:cut], found[cut:]) if part]
        where = (0, target) if target < cut else (1, target - cut)
        return Task(asked + "?", tuple(Passage("", tuple(part)) for part in parts), (where,))

    def _invented(self, stage: Stage, random: Random) -> Task:
        least, most = stage.sentences
        many = range(random.randint(*stage.passages))
        sections = [section(random, least, 2 * most) for _ in many]
        facts = [fact for found in sections for fact in found]
        about = random.choice(facts)
        asked = question(about, random)
        if random.random() < stage.refused:
            said = (about.thing.name, about.kind)
            sections = [[f for f in of if (f.thing.name, f.kind) != said] for of in sections]
        passages = tuple(
            Passage(self._over(found, stage, random), tuple(fact.sentence for fact in found))
            for found in sections
            if found
        ) or (Passage("", ("Nothing else is regulated here.",)),)
        golds = [
            (number, index)
            for number, passage in enumerate(passages)
            for index, sentence in enumerate(passage.sentences)
            if sentence == about.sentence
        ]
        return Task(asked, passages, tuple(golds[:1]))

    def _over(self, facts: Sequence[Fact], stage: Stage, random: Random) -> str:
        if random.random() > stage.headed:
            return ""
        return " > ".join(fact.thing.name[:1].upper() + fact.thing.name[1:] for fact in facts[:2])

    def _task(
        self, stage: Stage, asked: str, passage: Mapping[str, Any], targets: Sequence[int],
        others: list[int], random: Random,
    ) -> Task | None:  # fmt: skip
        golds = {passage["sentences"][index] for index in targets}
        refused = random.random() < stage.refused
        distractors = [self._part(self.pool[n], [], stage, random) for n in others]
        distractors = [d for d in distractors if d and not golds & set(d.sentences)]
        own = self._part(passage, targets, stage, random)
        if not own:
            return None
        if refused:
            left = tuple(s for s in own.sentences if s not in golds)
            keep = left and random.random() < 0.3
            passages = [*distractors, Passage(own.heading, left)] if keep else distractors
        else:
            passages = [*distractors[: len(others) - 1], own]
        if not passages:
            return None
        random.shuffle(passages)
        found = tuple(
            (n, i) for n, p in enumerate(passages) for i, s in enumerate(p.sentences)
            if not refused and p is own and s in golds
        )  # fmt: skip
        return Task(asked, tuple(passages), found)

    def _part(
        self, passage: Mapping[str, Any], targets: Sequence[int], stage: Stage, random: Random
    ) -> Passage | None:
        most = random.randint(*stage.sentences)
        sentences = passage["sentences"]
        numbers = window(sentences, targets, most, random)
        kept = tuple(
            sentences[n]
            for n in numbers
            if n in targets or len(sentences[n].split()) <= stage.sentence_words
        )
        if not kept:
            return None
        heading = ""
        if random.random() < stage.headed:
            heading = passage["heading"] or self._heading(sentences, random)
        return Passage(heading, kept)

    def _heading(self, sentences: Sequence[str], random: Random) -> str:
        words = self.asker.topic(random.choice(sentences), random, 4).title().split()
        cut = random.randint(1, len(words)) if words else 0
        return " > ".join(part for part in (" ".join(words[:cut]), " ".join(words[cut:])) if part)

    def _any(self, random: Random) -> int:
        if random.random() < 0.5:
            return random.choice(self._from_rows)
        return random.randrange(len(self.pool))

    def _others(
        self, stage: Stage, asked: str, near: int | None, source: str | None, random: Random
    ) -> list[int]:
        """Return distractors, as many as passages: sharing a word, of the same document, or any."""
        words = [w.lower() for w in content_words(asked) if w.lower() in self._by_word]
        found: list[int] = []
        for _ in range(random.randint(*stage.passages)):
            if words and random.random() < stage.hard:
                found.append(random.choice(self._by_word[random.choice(words)]))
            elif near is not None and random.random() < 0.5:
                found.append((near + random.randint(1, 4)) % len(self.pool))
            elif source and random.random() < 0.9:
                found.append(random.choice(self._by_source[source]))
            else:
                found.append(self._any(random))
        return [n for n in dict.fromkeys(found) if n != near]
