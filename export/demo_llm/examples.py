"""Training examples: drawn at random from passages and question rows, tokenised as served.

An example is one set of passages with many questions, each of which sees the passages and itself
alone, as if it stood after them by itself: the passages, which are most of a prompt, are read once.

Knows neither torch nor the model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from policies import Fact, section
from policies import question as asked_of
from questions import Asker
from tokenizers import Tokenizer

from tritonrag.graph.chat_template import compiled
from tritonrag.overlap import Overlap, content_words
from tritonrag.prompting import asked_last, messages, pointed_message
from tritonrag.quoting import MAX_QUOTES, mark, numbered, pointer

PAD, END = "<pad>", "<end>"
CONTEXT = 1024
POINTERS = 128
"""Sentences of one prompt that the model can tell apart; see ``tritonrag.quoting``."""
MADE_ALONE = 14
"""Most questions of an example without real ones."""
HELPED = 0.5
"""Share of the questions made from a sentence's words whose list of shared words is given: where it
always is, following it is all that is learnt."""
FOLLOWED = 0.3
"""Share of the real answers of one sentence that go on with the next: what is quoted second, where
one is not enough, is then what belongs to the first."""
VARIED = 0.2
"""Share of the real questions in which words are replaced by near ones."""
CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")

render = compiled(CHAT_TEMPLATE)


@dataclass(frozen=True)
class Passage:
    """Sentences under a heading (may be empty)."""

    heading: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A question; ``targets`` are (passage, sentence) numbers of its answer, none for a refusal.

    ``written`` says whether the answer is trained in full; else only the choice of its first
    sentence is. ``helped`` says whether the sentences that share words with it are named,
    ``followed`` whether an answer of one sentence goes on with the next one.
    """

    text: str
    targets: tuple[tuple[int, int], ...]
    written: bool = False
    helped: bool = True
    followed: bool = False


@dataclass(frozen=True)
class Task:
    """Passages, and questions over them."""

    passages: tuple[Passage, ...]
    questions: tuple[Question, ...]

    def prompt(self, question: str) -> str:
        """Return the prompt of a question as the server builds it."""
        headings = [passage.heading for passage in self.passages]
        found = [passage.sentences for passage in self.passages]
        return render(messages(pointed_message(question, headings, found, POINTERS)))

    def sentences(self) -> list[tuple[str, int]]:
        """Return the sentences that can be quoted, in order, with the number of their passage."""
        found = numbered(passage.sentences for passage in self.passages)
        return [
            (sentence, place)
            for place, passage in enumerate(found)
            for number, sentence in passage
            if number
        ]


@dataclass(frozen=True)
class Choice:
    """Where the next token is a choice, and which it should be; ``first`` of its answer or not."""

    place: int
    wanted: int
    first: bool


@dataclass(frozen=True)
class Example:
    """Token ids of the passages (part 0) and of each question with its answer (parts 1 on).

    ``pointers`` are the places of the sentences' second pointers, where they have been read.
    ``answers`` says for each question which of them are of a target.
    """

    ids: list[int]
    positions: list[int]
    parts: list[int]
    pointers: list[int]
    choices: list[Choice]
    answers: list[list[bool]]
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
    made: int = 8
    """Most questions made for an example's sentences beside real ones."""


CURRICULUM = (
    Stage("pick", 0.90, 0.10, (1, 2), (2, 4), 12, 160, 0.0, 0.0, 0.0, 0.0, 0.0, picked=1.0),
    Stage("short", 0.80, 0.15, (2, 3), (1, 3), 20, 240, 0.3, 0.2, 0.10, 0.2, 0.2, picked=0.2),
    Stage("medium", 0.75, 0.25, (2, 4), (1, 4), 40, 400, 0.4, 0.2, 0.15, 0.3, 0.4),
    Stage("full", 0.85, 0.70, (3, 4), (2, 9), 120, 900, 0.6, 0.15, 0.20, 0.3, 0.4),
    Stage("real", 1.01, 1.00, (4, 4), (2, 9), 120, 900, 0.75, 0.15, 0.20, 0.3, 0.4, made=3),
)


def encode(task: Task, tokenizer: Tokenizer, shift: int = 0) -> Example:
    """Return the tokens of a task.

    ``shift`` turns the numbers of the pointers, so that high ones are learnt as well.
    """
    first = tokenizer.token_to_id(pointer(1))
    end = tokenizer.token_to_id(END)
    sentences = task.sentences()[: POINTERS - 1]
    overlap = Overlap(sentence for sentence, _ in sentences)
    said = [
        [sentence for sentence, of in sentences if of == place]
        for place in range(len(task.passages))
    ]
    before, _, asked = task.prompt("").rpartition("\n\n")
    ending = asked.rpartition("\n")[2]

    def shifted(text: str) -> list[int]:
        return [
            first + (id - first + shift) % (POINTERS - 1) if id in pointers else id
            for id in tokenizer.encode(text).ids
        ]

    pointers = range(first, first + POINTERS - 1)
    ids = shifted(before)
    read = [place for place, id in enumerate(ids) if id in pointers][1::2][: len(sentences)]
    length = len(ids)
    positions, parts = list(range(length)), [0] * length
    choices, answers = [], []
    for part, question in enumerate(task.questions, 1):
        golds = {task.passages[p].sentences[s] for p, s in question.targets}
        answers.append([sentence in golds for sentence, _ in sentences])
        text = asked_last(question.text, said, overlap, POINTERS)
        if not question.helped:
            text = text.partition("\n")[0]
        written = shifted(f"\n\n{text}\n{ending}")
        start = len(ids)
        targets = [number for number, gold in enumerate(answers[-1]) if gold][:MAX_QUOTES]
        if question.followed and len(targets) == 1:
            after, (_, passage) = targets[0] + 1, sentences[targets[0]]
            targets += [after] if any(p == passage for _, p in sentences[after : after + 1]) else []
        for number in targets:
            id = ids[read[number]]
            choices.append(Choice(start + len(written) - 1, id, number == targets[0]))
            if not question.written:
                break
            sentence, passage = sentences[number]
            written.append(id)
            written += tokenizer.encode(f" {sentence} {mark(passage + 1)}").ids
        if not targets:
            choices.append(Choice(start + len(written) - 1, first - 1, True))
        elif question.written and len(targets) < MAX_QUOTES:
            choices.append(Choice(start + len(written) - 1, end, False))
        ids += written
        positions += range(length, length + len(written))
        parts += [part] * len(written)
    return Example(ids, positions, parts, read, choices, answers, task)


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
    _rows_by_word: dict[str, list[int]] = field(default_factory=dict)
    _rows_by_source: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Index the pool and the rows by word, and the rows by source."""
        self.rows = [row for row in self.rows if len(content_words(row["question"])) > 1]
        self._by_word = _by_word(self.pool)
        self._rows_by_word = _by_word(self.rows)
        by_source: defaultdict[str, list[int]] = defaultdict(list)
        for number, row in enumerate(self.rows):
            by_source[row["source"]].append(number)
        self._rows_by_source = dict(by_source)
        sources = set(by_source)
        self._from_rows = [n for n, passage in enumerate(self.pool) if passage["group"] in sources]

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
            if task.questions:
                return task

    def _real(self, stage: Stage, random: Random) -> Task:
        """Return rows of one source, each other's distractors, with made questions besides."""
        first = random.randrange(len(self.rows))
        numbers = [
            first,
            *self._other_rows(first, random.randint(*stage.passages) - 1, stage, random),
        ]
        random.shuffle(numbers)
        passages: list[Passage] = []
        questions: list[Question] = []
        unanswered: list[dict[str, Any]] = []
        for row in (self.rows[number] for number in numbers):
            own = self._part({"heading": "", **row}, row["targets"], stage, random)
            if not own or any(set(own.sentences) & set(other.sentences) for other in passages):
                continue
            golds = [row["sentences"][index] for index in row["targets"]]
            left = tuple(sentence for sentence in own.sentences if sentence not in golds)
            if left and random.random() < 0.3 * stage.refused:
                passages.append(Passage(own.heading, left))
                unanswered.append(row)
                continue
            passages.append(own)
            targets = tuple((len(passages) - 1, own.sentences.index(gold)) for gold in golds)
            followed = random.random() < FOLLOWED
            asked = self._worded(row, random)
            questions.append(Question(asked, targets, written=True, followed=followed))
        others = self._other_rows(first, len(questions), stage, random)
        unanswered += [self.rows[n] for n in others if random.random() < stage.refused]
        known = " ".join(sentence for passage in passages for sentence in passage.sentences)
        questions += [
            Question(self._worded(row, random), (), written=True)
            for row in unanswered
            if row["answer"] not in known
        ]
        questions += self._asked(passages, stage.made, random)
        return Task(tuple(passages), tuple(questions))

    def _made(self, stage: Stage, random: Random) -> Task:
        """Return passages of one document, or that share a word, with made questions."""
        number = self._any(random)
        numbers = [
            number,
            *self._others(number, random.randint(*stage.passages) - 1, stage, random),
        ]
        random.shuffle(numbers)
        parts = [self._part(self.pool[n], [], stage, random) for n in dict.fromkeys(numbers)]
        passages = [part for part in parts if part]
        questions = self._asked(passages, MADE_ALONE, random)
        known = {sentence for passage in passages for sentence in passage.sentences}
        for other in self._others(number, len(questions), stage, random):
            sentence = random.choice(self.pool[other]["sentences"])
            asked = self.asker.ask(sentence, random) if sentence not in known else None
            if asked and random.random() < stage.refused:
                questions.append(Question(asked, ()))
        return Task(tuple(passages), tuple(questions))

    def _picked(self, stage: Stage, random: Random) -> Task:
        """Return the easiest task: a few short sentences, asked for by words of one of them."""
        wanted = random.randint(3, 5)
        found: list[str] = []
        while len(found) < wanted:
            sentence = random.choice(self.pool[self._any(random)]["sentences"])
            if 4 < len(sentence.split()) <= stage.sentence_words and sentence not in found:
                found.append(sentence)
        cut = random.randint(1, wanted) if stage.passages[1] > 1 else wanted
        parts = [tuple(part) for part in (found[:cut], found[cut:]) if part]
        questions = tuple(
            Question(
                self.asker.topic(sentence, random, 4) + "?",
                ((place, index),),
                written=index == 0,
                helped=random.random() < HELPED,
            )
            for place, part in enumerate(parts)
            for index, sentence in enumerate(part)
        )
        return Task(tuple(Passage("", part) for part in parts), questions)

    def _invented(self, stage: Stage, random: Random) -> Task:
        least, most = stage.sentences
        said: set[tuple[str, str]] = set()
        passages: list[Passage] = []
        questions: list[Question] = []
        for _ in range(random.randint(*stage.passages)):
            fresh = [
                f for f in section(random, least, 2 * most) if (f.thing.name, f.kind) not in said
            ]
            said.update((fact.thing.name, fact.kind) for fact in fresh)
            kept = [fact for fact in fresh if random.random() > stage.refused / 2] or fresh[:1]
            if not kept:
                continue
            for fact in fresh:
                targets = ((len(passages), kept.index(fact)),) if fact in kept else ()
                questions.append(Question(asked_of(fact, random), targets))
            sentences = tuple(fact.sentence for fact in kept)
            passages.append(Passage(self._over(kept, stage, random), sentences))
        random.shuffle(questions)
        return Task(tuple(passages), tuple(questions[:MADE_ALONE]))

    def _over(self, facts: Sequence[Fact], stage: Stage, random: Random) -> str:
        if random.random() > stage.headed:
            return ""
        return " > ".join(fact.thing.name[:1].upper() + fact.thing.name[1:] for fact in facts[:2])

    def _asked(self, passages: Sequence[Passage], most: int, random: Random) -> list[Question]:
        """Return made questions for at most ``most`` sentences."""
        places = [
            (number, index)
            for number, passage in enumerate(passages)
            for index in range(len(passage.sentences))
        ]
        chosen = random.sample(places, min(most, len(places)))
        asked = [(self.asker.ask(passages[p].sentences[s], random), (p, s)) for p, s in chosen]
        return [
            Question(text, (place,), helped=random.random() < HELPED)
            for text, place in asked
            if text
        ]

    def _worded(self, row: Mapping[str, Any], random: Random) -> str:
        asked = str(row["question"])
        if random.random() < VARIED:
            return self.asker.vary(asked, random)
        return asked.rstrip("?") if random.random() < 0.15 else asked

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

    def _others(self, near: int, count: int, stage: Stage, random: Random) -> list[int]:
        """Return passages that share a word with one, or stand near it, or any."""
        text = " ".join(self.pool[near]["sentences"])
        words = [w.lower() for w in content_words(text) if w.lower() in self._by_word]
        found: list[int] = []
        for _ in range(count):
            if words and random.random() < stage.hard:
                found.append(random.choice(self._by_word[random.choice(words)]))
            elif random.random() < 0.6:
                found.append((near + random.randint(1, 4)) % len(self.pool))
            else:
                found.append(self._any(random))
        return found

    def _other_rows(self, first: int, count: int, stage: Stage, random: Random) -> list[int]:
        """Return rows that share a word with a row's question, or of the same source."""
        row = self.rows[first]
        asked = [w.lower() for w in content_words(row["question"])]
        words = [word for word in asked if word in self._rows_by_word]
        return [
            random.choice(
                self._rows_by_word[random.choice(words)]
                if words and random.random() < stage.hard
                else self._rows_by_source[row["source"]]
            )
            for _ in range(count)
        ]


def _by_word(passages: Iterable[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return the passages that hold each word which a few but not many hold."""
    found: defaultdict[str, list[int]] = defaultdict(list)
    for number, passage in enumerate(passages):
        for word in {w.lower() for s in passage["sentences"] for w in content_words(s)}:
            found[word].append(number)
    return {word: numbers for word, numbers in found.items() if 1 < len(numbers) < 400}
