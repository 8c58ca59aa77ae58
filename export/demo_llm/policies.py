"""Invented handbook passages with questions: the same thing with several attributes, the same
attribute of several things, so that a question needs both its form and its words.

Everything is made from the lists below; no text of a real company is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

# name | other names a user may say
_ABSENCES = """
annual leave|vacation|holiday|time off|days off|vacation days
study leave|time off for studying|leave for exams
volunteer leave|time off for volunteering|volunteering days
care leave|time off to care for family|leave to look after a relative
sabbatical leave|a sabbatical|a long break
jury leave|time off for court|jury duty
flexitime|flexible hours|time credit
"""
_REQUESTS = """
a parking permit|a parking space|parking
a travel refund|getting travel costs back|travel reimbursement
a room booking|booking a room|reserving a meeting room
a library card|borrowing books
a transfer|moving to another team|changing teams
an internship|a trainee place
a reference letter|a letter of recommendation|a work certificate
a software licence|new software|a program
a visitor pass|bringing a guest|a pass for a guest
a change of address|a new address|moving house
a complaint|complaining
a warranty claim|a claim under warranty|a repair under warranty
a refund|money back|returning a product
an equipment order|ordering equipment|new equipment
a course booking|signing up for training|a training course
a loan|borrowing money
a name change|a new surname
overtime|extra hours|working longer
"""
_ITEMS = """
the laptop|my computer|the notebook
the company phone|my mobile|the cell phone
the access card|my key card|the entry card
the locker key|the key of my locker
the uniform|work clothes
the safety helmet|the hard hat
the fuel card|the card for petrol
the company bicycle|the bike
the delivery van|the truck
the projector|the beamer
the toolbox|tools
the credit card|the company card
"""
_PAYMENTS = """
the lunch allowance|money for lunch|the meal allowance
the relocation grant|help with moving costs|money for moving
the commuting allowance|the travel to work|the subsidy for train tickets
the night supplement|extra pay at night|working at night
the clothing allowance|money for clothes
the anniversary gift|the jubilee present|long service reward
the childcare grant|help with childcare|kindergarten costs
the retirement plan|the company pension|saving for retirement
the wellness budget|money for sports|the gym
the learning budget|money for courses|the training money
the salary|pay|wages
the referral bonus|recommending a friend|bringing in a new colleague
"""
_TEAMS = """
the payroll team|payroll|the people who pay wages
the service desk|IT support|computer help
the safety officer|the person for safety
the legal team|the lawyers|legal
the front desk|the receptionist|reception
the works council|the staff council
the facility team|building services|the caretaker
the press office|media relations
the company doctor|the medical service
the travel office|travel booking
the customer line|customer service|support for customers
the archive|the records office
"""
_PLACES = """
the cafeteria|the canteen|lunch
the warehouse|the depot
the car park|the garage|parking
the laboratory|the lab
the gym room|the fitness room|sports
the workshop|the repair shop
the pool|the swimming pool
the museum shop|the shop
the server room|the data centre
the bicycle cellar|the bike room
"""
_EVENTS = """
the summer party|the staff party|the celebration
the staff meeting|the all-hands|the general assembly
the appraisal talk|the performance review|my review
the fire drill|the evacuation exercise
the safety training|the safety course
the trial period|probation|the probation time
the apprenticeship|vocational training
the audit|the yearly check
the stocktaking|the inventory
the maintenance|the service window
"""
_ROLES = (
    "the manager", "the team lead", "the department head", "the finance team", "the director",
    "the head of sales", "the personnel office", "the site manager", "the safety officer",
    "the buyer", "two managers", "the board", "Mr Halloran", "Ms Achterberg",
)  # fmt: skip
_WHERE = (
    "room 114", "the basement", "the staff portal", "building 7", "the east wing", "locker hall 2",
    "the online form", "the second floor", "the office at the gate", "the Harbour Street branch",
    "the intranet", "the blue cabinet",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September",
           "October", "November", "December")  # fmt: skip
_UNITS = ("hours", "days", "working days", "weeks", "months", "years")
_FIRM = ("the company", "the firm", "the employer", "we")
_STAFF = ("Employees", "Staff", "All employees", "Full-time staff", "Team members", "Workers")


@dataclass(frozen=True)
class Thing:
    """What a fact is about, and what else a user may call it."""

    name: str
    others: tuple[str, ...]

    def said(self, random: Random) -> str:
        """Return a name as a user would say it."""
        return random.choice((self.name, self.name, *self.others, *self.others))


@dataclass(frozen=True)
class Fact:
    """A sentence about a thing; ``kind`` is what it says about it."""

    thing: Thing
    kind: str
    sentence: str


@dataclass(frozen=True)
class Kind:
    """How an attribute is stated and asked for: ``{t}`` is the thing, other fields are values."""

    of: tuple[str, ...]
    stated: tuple[str, ...]
    asked: tuple[str, ...]


KINDS = {
    "entitlement": Kind(
        ("absences",),
        ("{staff} receive {n} days of {t} per year.", "{staff} are entitled to {n} days of {t}.",
         "{t} amounts to {n} {unit} in each calendar year.", "{staff} get {n} {unit} of {t}."),
        ("how many days of {t} do I get?", "how much {t} do I have?", "how many days is {t}?",
         "how much {t} am I entitled to?", "what is my allowance of {t} per year?", "{t} days"),
    ),
    "carry": Kind(
        ("absences",),
        ("{staff} may carry up to {n} days of {t} into the next year.",
         "Up to {n} unused {unit} of {t} can be moved to the following year.",
         "Remaining {t} is lost on {n} {month}."),
        ("can I keep unused {t}?", "what happens to {t} that I don't use?", "does {t} expire?",
         "can I take {t} over to next year?", "can I save {t} for later?"),
    ),
    "form": Kind(
        ("absences", "requests", "payments", "items"),
        ("{t} is requested with form {form}.", "Form {form} is used for {t}.",
         "To apply for {t}, fill in form {form}.", "For {t} you need form {form}.",
         "{t} is applied for in the {portal}.", "Please use the {portal} to ask for {t}."),
        ("which form do I need for {t}?", "how do I apply for {t}?", "how do I request {t}?",
         "what form is it for {t}?", "how can I get {t}?", "where do I ask for {t}?",
         "how to apply for {t}", "how do I claim {t}?"),
    ),
    "deadline": Kind(
        ("absences", "requests", "payments"),
        ("Requests for {t} must be submitted at least {n} {unit} in advance.",
         "{t} must be applied for within {n} {unit}.", "The deadline for {t} is {n} {month}.",
         "{t} has to be announced {n} {unit} before.",
         "Applications for {t} are accepted until {n} {month}."),
        ("how early do I have to ask for {t}?", "what is the deadline for {t}?",
         "when do I have to apply for {t}?", "how late can I request {t}?",
         "until when can I hand in {t}?", "how far in advance do I need to announce {t}?",
         "how much notice do I need to give for {t}?", "by when must I submit {t}?"),
    ),
    "approval": Kind(
        ("absences", "requests", "payments"),
        ("{t} is approved by {role}.", "{role} decides about {t}.",
         "{t} needs the approval of {role}.", "{t} above {n} euros is signed by {role}."),
        ("who approves {t}?", "who has to sign off {t}?", "who decides about {t}?",
         "whose approval do I need for {t}?", "do I need permission for {t}?",
         "who do I ask about {t}?"),
    ),
    "answer": Kind(
        ("requests", "absences"),
        ("Requests for {t} are answered within {n} {unit}.", "{t} is processed in {n} {unit}.",
         "{role} confirms {t} within {n} {unit}."),
        ("how long does {t} take?", "when will I hear back about {t}?",
         "how fast is {t} handled?", "how long until I get an answer about {t}?"),
    ),
    "lasts": Kind(
        ("events",),
        ("{t} lasts {n} {unit}.", "{t} takes {n} {unit}.", "The length of {t} is {n} {unit}."),
        ("how long is {t}?", "how long does {t} last?", "how long does {t} take?",
         "what is the duration of {t}?", "how many {unit} is {t}?"),
    ),
    "held": Kind(
        ("events",),
        ("{t} takes place in {month}.", "{t} is held on the first {day} of the month.",
         "{t} begins at {hour}:00.", "{t} is on {n} {month}."),
        ("when is {t}?", "when does {t} take place?", "what day is {t}?", "date of {t}",
         "what time does {t} start?", "in which month is {t}?"),
    ),
    "attend": Kind(
        ("events",),
        ("Taking part in {t} is mandatory.", "{t} is voluntary.", "{staff} must attend {t}.",
         "New colleagues attend {t} in their first {n} {unit}."),
        ("do I have to go to {t}?", "is {t} mandatory?", "must I attend {t}?",
         "who has to take part in {t}?", "can I skip {t}?"),
    ),
    "place": Kind(
        ("items", "events"),
        ("{t} is kept in {where}.", "{t} can be collected in {where}.", "You find {t} in {where}.",
         "{t} is handed out in {where}."),
        ("where is {t}?", "where do I get {t}?", "where can I find {t}?",
         "where do I pick up {t}?", "where can I collect {t}?"),
    ),
    "lost": Kind(
        ("items",),
        ("The loss of {t} is reported to {role} at once.", "If {t} is lost, call {phone}.",
         "Whoever loses {t} informs {role} within {n} {unit}.", "Losing {t} costs {n} euros."),
        ("what do I do if I lose {t}?", "I lost {t}, what now?", "my {t} was stolen",
         "who do I tell when {t} is missing?", "what happens if I lose {t}?"),
    ),
    "replaced": Kind(
        ("items",),
        ("{t} is replaced every {n} {unit}.", "{t} is exchanged after {n} {unit}.",
         "A new version of {t} is issued after {n} {unit}."),
        ("how often is {t} replaced?", "when do I get a new one for {t}?",
         "when is {t} exchanged?", "how long do I have to use {t}?"),
    ),
    "return": Kind(
        ("items",),
        ("{t} is returned on the last working day.", "{t} must be given back to {role}.",
         "When the contract ends, {t} goes back to {where}."),
        ("when do I have to give back {t}?", "do I need to return {t}?",
         "what happens to {t} when I leave?", "who gets {t} back?"),
    ),
    "private": Kind(
        ("items",),
        ("{t} may be used privately.", "Private use of {t} is forbidden.",
         "{t} must not be lent to others.", "{t} may be bought for {n} euros at the end."),
        ("can I use {t} in private?", "am I allowed to use {t} at home?", "may I buy {t}?",
         "can I lend {t} to someone?", "is private use of {t} ok?"),
    ),
    "amount": Kind(
        ("payments",),
        ("{t} is {n} euros per month.", "{firm} pays {n} euros for {t}.",
         "{t} amounts to {n} percent of the salary.", "{firm} contributes {n} percent to {t}.",
         "{t} is at most {n} euros per year."),
        ("how much is {t}?", "how much does the company pay for {t}?", "how high is {t}?",
         "what do I get for {t}?", "how much money is there for {t}?",
         "how much does the firm add to {t}?", "what is the amount of {t}?"),
    ),
    "paid": Kind(
        ("payments",),
        ("{t} is paid on the {n}th of each month.", "{t} is paid out in {month}.",
         "{t} is transferred with the pay of {month}."),
        ("when is {t} paid?", "when do I get {t}?", "what day does {t} arrive?",
         "in which month is {t} paid out?", "when will I receive {t}?"),
    ),
    "eligible": Kind(
        ("payments", "absences"),
        ("{t} is granted after {n} {unit} of service.", "Only full-time staff receive {t}.",
         "Part-time staff and trainees are also entitled to {t}.",
         "{t} requires at least {n} {unit} in the job."),
        ("who gets {t}?", "am I eligible for {t}?", "who is entitled to {t}?",
         "do part-timers get {t}?", "from when on can I have {t}?",
         "how long must I work here to get {t}?"),
    ),
    "reach": Kind(
        ("teams",),
        ("{t} can be reached at {phone}.", "Call {t} at {phone}.", "The number of {t} is {phone}.",
         "Questions are answered by {t} at {phone}."),
        ("how do I reach {t}?", "what is the phone number of {t}?", "how can I contact {t}?",
         "number of {t}", "how do I call {t}?", "who do I call for {t}?"),
    ),
    "open": Kind(
        ("teams", "places"),
        ("{t} is open from {hour}:00 to {later}:30.", "{t} is closed on {day}.",
         "On {day} {t} opens at {hour}:30.", "{t} closes at {later}:00."),
        ("when is {t} open?", "what are the opening hours of {t}?", "until when is {t} open?",
         "when does {t} close?", "is {t} open on {day}?", "what time does {t} open?"),
    ),
    "site": Kind(
        ("teams", "places"),
        ("{t} is in {where}.", "{t} has moved to {where}.", "You find {t} in {where}."),
        ("where is {t}?", "where can I find {t}?", "how do I get to {t}?", "location of {t}"),
    ),
    "duty": Kind(
        ("teams",),
        ("{t} repairs broken devices.", "{t} checks every contract above {n} euros.",
         "{t} keeps the files for {n} years.", "{t} helps with moves between buildings."),
        ("what does {t} do?", "what is {t} responsible for?", "what is {t} for?"),
    ),
    "rule": Kind(
        ("places",),
        ("Smoking is forbidden in {t}.", "Dogs are allowed in {t}.", "Guests may not enter {t}.",
         "Safety shoes are worn in {t}.", "{t} may be used by {n} people at a time."),
        ("what is allowed in {t}?", "what rules apply in {t}?", "who may enter {t}?",
         "what do I have to wear in {t}?", "what is not allowed in {t}?"),
    ),
    "cost": Kind(
        ("places", "requests"),
        ("{t} costs {n} euros.", "{t} is free of charge.", "The fee for {t} is {n} euros."),
        ("how much does {t} cost?", "what is the price of {t}?", "is {t} free?",
         "what do I pay for {t}?", "is there a fee for {t}?"),
    ),
}  # fmt: skip
_THINGS = {
    "absences": _ABSENCES, "requests": _REQUESTS, "items": _ITEMS, "payments": _PAYMENTS,
    "teams": _TEAMS, "places": _PLACES, "events": _EVENTS,
}  # fmt: skip


def _listed(text: str) -> list[Thing]:
    lines = [line.split("|") for line in text.strip().splitlines()]
    return [Thing(name, tuple(others)) for name, *others in lines]


THINGS = {group: _listed(text) for group, text in _THINGS.items()}


def fact(thing: Thing, kind: str, random: Random) -> Fact:
    """Return a sentence that states one attribute of a thing."""
    stated = random.choice(KINDS[kind].stated)
    text = stated.format(t=thing.name, **_values(random))
    return Fact(thing, kind, text[:1].upper() + text[1:])


def question(about: Fact, random: Random) -> str:
    """Return a question for what a fact says, in a user's words."""
    said = about.thing.said(random)
    return random.choice(KINDS[about.kind].asked).format(t=said, **_values(random)).replace(
        "my the ", "my "
    ).replace("my my ", "my ")  # fmt: skip


def section(random: Random, least: int, most: int) -> list[Fact]:
    """Return facts about a few things, each with several attributes, no attribute twice."""
    groups = random.sample(sorted(THINGS), 2)
    things = [random.choice(THINGS[random.choice(groups)]) for _ in range(random.randint(1, 4))]
    found: dict[tuple[str, str], Fact] = {}
    for _ in range(4 * most):
        thing = random.choice(things)
        kind = random.choice(_kinds_of(thing))
        found.setdefault((thing.name, kind), fact(thing, kind, random))
        if len(found) >= most:
            break
    facts = list(found.values())[: random.randint(least, most)]
    return sorted(facts, key=lambda one: one.thing.name) if random.random() < 0.6 else facts


def _kinds_of(thing: Thing) -> list[str]:
    groups = {group for group, members in THINGS.items() if thing in members}
    return [kind for kind, of in KINDS.items() if groups & set(of.of)]


def _values(random: Random) -> dict[str, object]:
    hour = random.randint(6, 11)
    choose: Callable[[Sequence[str]], str] = random.choice
    number = random.choice((random.randint(1, 31), random.randint(1, 12), random.randint(10, 2500)))
    return {
        "n": random.randint(2, 28) if random.random() < 0.7 else number,
        "unit": choose(_UNITS), "staff": choose(_STAFF), "role": choose(_ROLES),
        "where": choose(_WHERE), "firm": choose(_FIRM), "day": choose(_DAYS),
        "month": choose(_MONTHS), "hour": hour, "later": random.randint(14, 22),
        "form": f"{choose('ABCDEFGHJKLMNPQRSTUVWXYZ')}-{random.randint(1, 40)}",
        "portal": f"{choose(('staff', 'finance', 'travel', 'service', 'online'))} portal",
        "phone": choose((f"extension {random.randint(100, 9999)}",
                         f"0{random.randint(30, 99)} {random.randint(1000, 99999)}")),
    }  # fmt: skip
