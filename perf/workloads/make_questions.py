"""Writes ``questions.json``: the questions that every load asks, in perf_analyzer's input format.

A server that answers one question over and over shows caches and one sequence length, so that the
load asks a few hundred different ones. They come from what the sample handbook covers, each subject
worded in several ways as people do (terse, polite, with a sentence of context before), together
with ``samples/questions.jsonl`` and general questions that the handbook does not answer. Lengths
run from 6 to 42 tokens, and neighbours differ: the shuffle is seeded, so that the same
program always writes the same file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TARGET = Path(__file__).with_name("questions.json")

AMOUNTS = {
    "a hotel room on a domestic trip": "travel",
    "meals on a business trip": "travel",
    "a meal with guests": "expenses",
    "driving my own car for work": "expenses",
    "cycling to a customer on my own bicycle": "expenses",
    "setting up a home office": "remote work",
    "my internet connection at home": "remote work",
    "training courses": "training",
    "a leased bicycle": "the bicycle scheme",
    "a monthly public transport ticket": "public transport",
    "the private use of a company car": "company cars",
    "a lunch in the canteen": "the canteen",
    "a parking space": "parking",
    "a new access badge": "building access",
    "referring a friend who is hired": "referrals",
    "work on Sundays": "overtime",
    "work at night": "overtime",
    "the annual bonus": "pay",
    "a salary advance": "pay",
    "the pension plan": "pensions",
}
AMOUNT_WORDINGS = (
    "How much money is there for {x}?",
    "{x}: what amount applies",
    "Could you please tell me what the firm pays or charges for {x}, and whether there is a limit?",
    "I have just read the page about {topic} and I am still not sure about one thing. What is the "
    "exact amount for {x}?",
)

FORMS = {
    "annual leave": "leave",
    "leave for moving house": "leave",
    "parental leave": "a baby",
    "reduced hours after parental leave": "a baby",
    "a medical certificate": "an illness",
    "crediting sick days that fell into a holiday": "an illness",
    "a domestic business trip": "a trip",
    "a business trip abroad": "a trip",
    "travel expenses": "a trip",
    "a lost receipt": "an expense claim",
    "working from home": "remote work",
    "working from abroad for a month": "remote work",
    "new equipment": "my desk",
    "a damaged laptop": "my desk",
    "giving back my equipment": "my last day",
    "an IT ticket": "a computer problem",
    "software outside the catalogue": "a computer problem",
    "a written security incident report": "a security incident",
    "a data breach": "a security incident",
    "a new tool that handles personal data": "a new supplier",
    "a gift from a supplier": "a new supplier",
    "a conflict of interest": "a new supplier",
    "a side job": "a second job",
    "a training course": "a course",
    "the self-assessment": "my review",
    "an appeal against a rating": "my review",
    "leaving the pension plan": "my pension",
    "early retirement": "my pension",
    "a company car accident": "an accident",
    "a defect in the building": "a broken window",
}
FORM_WORDINGS = (
    "Which form do I need for {x}?",
    "form for {x}",
    "What is the name of the form for {x}, where do I find it, and who has to sign it?",
    "My manager asked me to sort out {topic} before the end of the week, and a colleague said that "
    "there is a form. Which one is it for {x}?",
)

DEADLINES = {
    "announce parental leave": "People Team",
    "ask for a week of holiday": "manager",
    "use holiday left over from last year": "manager",
    "hand in an expense claim": "expenses team",
    "report that I am ill": "manager",
    "hand in a doctor's note": "People Team",
    "request a trip abroad": "travel desk",
    "report a lost laptop": "IT help desk",
    "report a lost hardware key": "security desk",
    "report a data breach": "data protection officer",
    "answer a request for personal data": "data protection officer",
    "record a gift": "compliance officer",
    "change my bank details": "payroll",
    "complain about an error in my pay slip": "payroll",
    "return the signed contract": "onboarding coordinator",
    "finish the safety course": "onboarding coordinator",
    "send the self-assessment": "manager",
    "appeal against my rating": "manager",
    "agree on my goals for the year": "manager",
    "request a course": "learning team",
    "order a public transport ticket": "mobility programme",
    "send the accident report for a company car": "mobility programme",
    "announce my retirement": "pension adviser",
    "leave the pension plan after joining": "pension adviser",
}
DEADLINE_WORDINGS = (
    "By when must I {x}?",
    "deadline to {x}",
    "How many days do I have to {x}, and what happens if I am late?",
    "The {topic} was not at the desk today, and I do not want to miss a date. Until when can I {x} "
    "at the latest?",
)

CONTACTS = (
    "the IT help desk", "the engineer on call at night", "the travel desk",
    "somebody during an emergency abroad", "the expenses team", "the sickness line",
    "the occupational health nurse", "the confidential adviser", "the data protection officer",
    "the security desk", "the reception", "the kitchen about an allergy", "the learning team",
    "the onboarding coordinator", "the pension adviser", "the person who handles stolen equipment",
    "whoever deals with company car accidents", "the building team about repairs",
)  # fmt: skip
CONTACT_WORDINGS = (
    "How do I reach {x}?",
    "extension of {x}",
    "It is half past six in the evening and I would like to speak to {x}; which number do I dial, "
    "and is anybody there at this time?",
)

TIMES = (
    "is the canteen open", "is the reception open", "is the library open", "are salaries paid",
    "does the salary review take place", "is the annual bonus paid", "is the fire alarm tested",
    "is the maintenance window", "are promotions effective", "does the mid-year review take place",
    "are approved expense claims paid", "are pension statements sent", "do new employees start",
    "may access badges be used", "is the common office day", "are language lessons held",
    "is the site closed over Christmas", "is the first feedback talk",
)  # fmt: skip
TIME_WORDINGS = (
    "When {x}?",
    "I could not find it in the calendar: when exactly {x}, and does that change in summer?",
)

DURATIONS = (
    "does the probation period last", "is the notice period during probation",
    "is paid parental leave per parent", "is full salary paid when I am ill",
    "is half salary paid when I am ill", "may I work from abroad in one year",
    "is a remote work agreement valid", "are invoices kept", "are camera recordings kept",
    "are visitor lists kept", "is lost property kept", "can deleted files be restored",
    "is a password reset link valid", "does an improvement plan last", "does a bicycle lease run",
    "is a company car kept", "does a written warning stay in the file",
    "does the stay agreement after a course last", "may an electric car charge",
    "does travel insurance cover a trip", "does a phased return last",
)  # fmt: skip
DURATION_WORDINGS = (
    "How long {x}?",
    "Hello, I am new here and trying to understand the rules: how long {x} at most?",
)

GENERAL = (
    "What is the boiling point of helium?", "Who wrote Around the World in Eighty Days?",
    "Which gas makes balloons rise?", "How far is it from Paris to Lyon by train?",
    "What does HTTP status 418 mean?", "Explain the difference between latency and throughput.",
    "How many bones are there in a human hand?", "What is the capital of Mongolia?",
    "Which year did the Montgolfier brothers first fly?", "Why is the sky blue?",
    "How do vaccines work?", "What is the square root of 1764?",
    "Name three rivers that flow into the Black Sea.", "How is paper recycled?",
    "What is a cosine similarity, and why is it used to compare sentences?",
    "Which planets have rings?", "How do I convert miles to kilometres?",
    "Who painted The Night Watch, and in which museum does it hang today?",
    "What is the weather like tomorrow?", "Can you book a flight to Oslo for me?",
    "Translate good morning into Portuguese.", "What is the best recipe for onion soup?",
    "Does the company own a balloon that employees may fly?", "Is there a swimming pool on site?",
    "How many people work here?", "Who is the chief executive?", "Are cats allowed in the office?",
    "What is the share price?", "Where was the first factory built?", "Is the cafeteria vegan?",
    "Does the firm pay for glasses?", "Can I bring my children to the summer party?",
    "How do I get a visa for a business trip to Japan?", "What is the dress code?",
    "Do we have a choir or a football team?", "Which union represents the workshop?",
)  # fmt: skip


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, default=TARGET, help="file to write")
    target = parser.parse_args().target
    found = questions()
    target.write_text(as_input_data(found), encoding="utf-8")
    print(f"{target}: {len(found)} questions")


def questions() -> list[str]:
    """Return the distinct questions in a shuffled, reproducible order."""
    found = list(dict.fromkeys(itertools.chain(_worded(), _samples(), GENERAL)))
    random.Random(20).shuffle(found)
    return found


def as_input_data(texts: list[str]) -> str:
    """Return perf_analyzer's ``--input-data`` JSON, a line for each question."""
    steps = (json.dumps({"question": {"content": [text], "shape": [1]}}) for text in texts)
    return '{"data": [\n' + ",\n".join(steps) + "\n]}\n"


def _worded() -> Iterator[str]:
    about = ((AMOUNTS, AMOUNT_WORDINGS), (FORMS, FORM_WORDINGS), (DEADLINES, DEADLINE_WORDINGS))
    for subjects, wordings in about:
        for (subject, topic), wording in itertools.product(subjects.items(), wordings):
            yield wording.format(x=subject, topic=topic)
    yield from (wording.format(x=x) for x in CONTACTS for wording in CONTACT_WORDINGS)
    yield from (wording.format(x=x) for x in TIMES for wording in TIME_WORDINGS)
    yield from (wording.format(x=x) for x in DURATIONS for wording in DURATION_WORDINGS)


def _samples() -> Iterator[str]:
    with (ROOT / "samples" / "questions.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["question"]


if __name__ == "__main__":
    main()
