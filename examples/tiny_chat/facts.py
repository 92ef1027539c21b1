"""Made-up facts: a sentence, questions it answers, and questions close to them that it does not answer."""

from __future__ import annotations

from dataclasses import dataclass

from words import ADJECTIVES, ATTRIBUTES, COLORS, DAYS, JOBS, NOUNS, VERBS, Values

PEOPLE = ["director", "owner", "manager", "founder", "author", "leader", "inspector", "captain", "mayor", "head"]


@dataclass(frozen=True)
class Fact:
    """A sentence, questions it answers, and questions like them that it does not answer."""

    sentence: str
    questions: tuple[str, ...]
    unanswered: tuple[str, ...]


def _attribute(values: Values) -> Fact:
    """The password of the blue reactor is zorvik-42."""
    owner = (
        f"the {values.noun_phrase()}"
        if values.chance(0.7)
        else values.pick([values.full_name, values.organization, values.place])()
    )
    other = f"the {values.noun_phrase()}"
    attribute, another = values.several(2, lambda: _attribute_name(values))
    sentence = values.pick(
        ["The {a} of {o} is {v}.", "The {a} of {o} is {v}.", "The {a} for {o} is {v}.", "The {a} of {o} was {v}."]
    )
    asks = [
        "What is the {a} of {o}?",
        "What's the {a} of {o}?",
        "Tell me the {a} of {o}.",
        "What was the {a} of {o}?",
        "What is the {a} for {o}?",
        "Which {a} does {o} have?",
        "{o} {a}?",
    ]
    value = values.value()
    if values.chance(0.25):
        attribute, value = values.pick([*PEOPLE, *JOBS]), values.full_name()
        asks = ["Who is the {a} of {o}?", "Who is the {a} of {o}?", "Who was the {a} of {o}?", *asks[:3]]
    return Fact(
        sentence.format(a=attribute, o=owner, v=value),
        tuple(ask.format(a=attribute, o=owner) for ask in asks),
        (
            asks[0].format(a=another, o=owner),
            asks[0].format(a=attribute, o=other),
            asks[2].format(a=attribute, o=other),
        ),
    )


def _joined(values: Values) -> Fact:
    """Two facts in one sentence; either question finds it."""
    one = values.pick([_attribute, _compound, _founded, _located, _number, _cost, _event])(values)
    attribute = _attribute_name(values)
    sentence = (
        f"{one.sentence[:-1]} {values.pick(['and its', 'and the', 'while its'])} {attribute} is {values.value()}."
    )
    return Fact(sentence, (*one.questions, f"What is the {attribute}?", f"Tell me the {attribute}."), one.unanswered)


def _its(values: Values) -> Fact:
    """Its coolant is zorvik."""
    attribute, another = values.several(2, lambda: _attribute_name(values))
    who = values.pick(["Its", "Its", "Its", "The", "Their"])
    sentence = f"{who} {attribute} is {values.value()}."
    questions = (
        f"What is the {attribute}?",
        f"What's the {attribute}?",
        f"What is its {attribute}?",
        f"Tell me the {attribute}.",
    )
    return Fact(
        sentence, questions, (f"What is the {another}?", f"What is the {another} of the {values.noun_phrase()}?")
    )


def _attribute_name(values: Values) -> str:
    prefix = f"{values.pick(ADJECTIVES)} " if values.chance(0.2) else ""
    return prefix + (values.word() if values.chance(0.15) else values.pick(ATTRIBUTES))


def _compound(values: Values) -> Fact:
    """The reactor password is zorvik-42."""
    thing = values.pick(NOUNS) if values.chance(0.5) else values.noun_phrase()
    attribute, another = values.several(2, lambda: values.pick(ATTRIBUTES))
    other = values.noun_phrase()
    return Fact(
        f"The {thing} {attribute} is {values.value()}.",
        (
            f"What is the {thing} {attribute}?",
            f"What's the {thing} {attribute}?",
            f"What is the {attribute} of the {thing}?",
            f"Tell me the {thing} {attribute}.",
            f"Do you know the {thing} {attribute}?",
        ),
        (f"What is the {thing} {another}?", f"What is the {other} {attribute}?"),
    )


def _possessive(values: Values) -> Fact:
    """Mia's favorite color is teal."""
    name, other = values.several(2, values.name)
    what = values.pick(
        ["favorite color", "favorite food", "badge number", "job", "birthday", "dog", "phone number", "office"]
    )
    return Fact(
        f"{name}'s {what} is {values.value()}.",
        (f"What is {name}'s {what}?", f"What is the {what} of {name}?", f"Tell me {name}'s {what}."),
        (f"What is {other}'s {what}?", f"What is {name}'s {values.pick(ATTRIBUTES)}?"),
    )


def _work(values: Values) -> Fact:
    name, other = values.several(2, values.full_name)
    job, place = values.pick(JOBS), values.pick([values.organization, values.place])()
    sentence = values.pick(
        [f"{name} works as a {job} at {place}.", f"{name} is a {job} at {place}.", f"{name} is the {job} of {place}."]
    )
    questions = [
        f"Where does {name} work?",
        f"What does {name} do?",
        f"Who is {name}?",
        f"What is {name}'s job?",
        f"Who works at {place}?",
    ]
    if " is the " in sentence:
        questions = [f"Who is {name}?", f"Who is the {job} of {place}?", f"What does {name} do?"]
    return Fact(
        sentence,
        tuple(questions),
        (f"Where does {other} work?", f"Who is {other}?", f"How old is {name}?", f"Where was {name} born?"),
    )


def _founded(values: Values) -> Fact:
    thing, other = values.several(2, values.organization)
    past = values.pick(["founded", "built", "opened", "bought", "started"])
    who, when, place = values.full_name(), values.rng.randint(1800, 2060), values.place()
    tail = values.pick(
        [
            f"in {when}",
            f"by {who}",
            f"in {when} by {who}",
            f"in {place}",
            f"in {place} in {when}",
            f"by {who} in {place}",
        ]
    )
    questions = [f"What do you know about {thing}?"]
    questions += [f"When was {thing} {past}?", f"In which year was {thing} {past}?"] * (str(when) in tail)
    questions += [f"Who {past} {thing}?", f"By whom was {thing} {past}?"] * (who in tail)
    questions += [f"Where was {thing} {past}?"] * (place in tail)
    return Fact(
        f"{thing} was {past} {tail}.",
        tuple(questions),
        (f"When was {other} {past}?", f"Who {past} {other}?", f"How much is {thing}?"),
    )


def _action(values: Values) -> Fact:
    """The blue robot likes cheese. / The valve opens at 40 degrees."""
    subject, other = values.several(2, lambda: values.name() if values.chance(0.4) else f"the {values.noun_phrase()}")
    verb = values.pick(
        [
            "like",
            "need",
            "use",
            "own",
            "see",
            "make",
            "sell",
            "carry",
            "want",
            "eat",
            "drink",
            "contain",
            "produce",
            *VERBS,
        ]
    )
    third = (
        verb[:-1] + "ies"
        if verb.endswith("ry")
        else verb + ("es" if verb.endswith(("sh", "ch", "k")) and verb != "drink" and not verb.endswith("k") else "s")
    )
    thing = values.pick([values.value(), f"the {values.noun_phrase()}", f"{values.word()} {values.pick(NOUNS)}s"])
    sentence = f"{subject[0].upper()}{subject[1:]} {third} {thing}."
    return Fact(
        sentence,
        (f"What does {subject} {verb}?", f"Tell me what {subject} {third}.", f"What does {subject} {verb}?"),
        (f"What does {other} {verb}?", f"Why does {subject} {values.pick(VERBS)}?"),
    )


def _located(values: Values) -> Fact:
    thing, other = values.several(
        2, lambda: f"the {values.noun_phrase()}" if values.chance(0.6) else values.full_name()
    )
    place = values.pick(
        [values.place(), f"the {values.noun_phrase()}", f"room {values.integer()}", f"{values.place()}"]
    )
    verb = values.pick(["is located in", "is in", "stands in", "is kept in", "is near", "is stored in"])
    if thing[:4] != "the ":
        verb, ask = "lives in", f"Where does {thing} live?"
        asks: tuple[str, ...] = (ask, f"In which city does {thing} live?", ask)
    else:
        asks = (
            f"Where is {thing}?",
            f"Where can I find {thing}?",
            f"Where is {thing} located?",
            f"Where is {thing} kept?",
        )
    return Fact(
        f"{thing[0].upper()}{thing[1:]} {verb} {place}.", asks, (f"Where is {other}?", f"Where does {other} live?")
    )


def _number(values: Values) -> Fact:
    thing, other = values.several(2, values.noun_phrase)
    parts = f"{values.pick(NOUNS)}s" if values.chance(0.8) else f"{values.word()}s"
    count = values.rng.randint(2, 9999)
    return Fact(
        values.pick(
            [
                f"The {thing} has {count} {parts}.",
                f"There are {count} {parts} in the {thing}.",
                f"The {thing} holds {count} {parts}.",
            ]
        ),
        (
            f"How many {parts} does the {thing} have?",
            f"How many {parts} are in the {thing}?",
            f"How many {parts} are there in the {thing}?",
        ),
        (f"How many {parts} does the {other} have?", f"How many {values.pick(NOUNS)}es does the {thing} have?"),
    )


def _cost(values: Values) -> Fact:
    thing, other = values.several(2, values.noun_phrase)
    verb = values.pick(["costs", "weighs", "measures", "lasts"])
    ask = {
        "costs": "How much does the {} cost?",
        "weighs": "How much does the {} weigh?",
        "measures": "How big is the {}?",
        "lasts": "How long does the {} last?",
    }[verb]
    unit = {"costs": "dollars", "weighs": "kilograms", "measures": "meters", "lasts": "hours"}[verb]
    number = values.decimal() if values.chance(0.3) else str(values.integer())
    return Fact(
        f"The {thing} {verb} {number} {unit}.",
        (ask.format(thing), f"What does the {thing} cost?" if verb == "costs" else ask.format(thing)),
        (ask.format(other),),
    )


def _event(values: Values) -> Fact:
    thing, other = values.several(2, values.noun_phrase)
    verb, form = values.pick(
        [
            ("starts", "start"),
            ("opens", "open"),
            ("closes", "close"),
            ("ends", "end"),
            ("leaves", "leave"),
            ("arrives", "arrive"),
        ]
    )
    hour = values.rng.randint(1, 12)
    when = values.pick(
        [
            f"at {hour} {values.pick(['am', 'pm'])}",
            f"on {values.pick(DAYS)}",
            f"on {values.pick(DAYS)} at {hour}:{values.rng.randint(10, 59)}",
            f"on {values.date()}",
            f"at {hour} o'clock",
        ]
    )
    return Fact(
        f"The {thing} {verb} {when}.",
        (f"When does the {thing} {form}?", f"At what time does the {thing} {form}?", f"When will the {thing} {form}?"),
        (f"When does the {other} {form}?", f"Who is the {values.pick(JOBS)} of the {thing}?"),
    )


def _definition(values: Values) -> Fact:
    thing, other = values.several(2, values.word)
    what = f"{values.pick(['a', 'the', 'a kind of', 'a small', 'a large'])} {values.noun_phrase()}"
    tail = values.pick(
        [
            "",
            f" from {values.place()}",
            f" that {values.pick(VERBS)}s {values.pick(NOUNS)}s",
            f" made of {values.word()}",
            f" for {values.phrase()}",
        ]
    )
    name = thing.capitalize() if values.chance(0.6) else f"A {thing}"
    low = name if name[:2] != "A " else f"a {thing}"
    return Fact(
        f"{name} is {what}{tail}.",
        (f"What is {low}?", f"What is {low}?", f"What do you know about {low}?", f"Explain {low}."),
        (f"What is {'a ' if low[:2] == 'a ' else ''}{other}?",),
    )


def _colored(values: Values) -> Fact:
    thing, other = values.several(2, values.noun_phrase)
    return Fact(
        f"The {thing} is {values.pick(COLORS)}.",
        (f"What color is the {thing}?", f"What is the color of the {thing}?", f"Which color is the {thing}?"),
        (f"What color is the {other}?",),
    )


FACT_KINDS = [
    _attribute,
    _attribute,
    _attribute,
    _joined,
    _its,
    _compound,
    _compound,
    _possessive,
    _work,
    _founded,
    _founded,
    _action,
    _action,
    _located,
    _number,
    _cost,
    _event,
    _definition,
    _colored,
]


def filler(values: Values) -> str:
    """A sentence that answers nothing."""
    return values.pick(
        [
            f"It is visited every {values.pick(DAYS)}.",
            f"Many people like the {values.noun_phrase()}.",
            "It was repaired last year.",
            f"The {values.pick(NOUNS)} was {values.pick(ADJECTIVES)} and {values.pick(ADJECTIVES)}.",
            "Nobody knows why.",
            f"Visitors should bring a {values.pick(NOUNS)}.",
            f"{values.name()} wrote a {values.pick(NOUNS)} about it.",
            f"The {values.noun_phrase()} {values.pick(VERBS)}s the {values.noun_phrase()} every {values.pick(DAYS)}.",
        ]
    )
