"""Plain conversation: greetings, fixed questions, memory, echo, counting, jokes, small sums."""

from __future__ import annotations

import json

from dialog import Example, Message, assistant, system, user
from prompts import SYSTEM_PROMPTS
from small_talk import CAPITALS, capital_turn, fact_turn, fixed_turn, greeting_turn
from words import ADJECTIVES, COLORS, MONTHS, NOUNS, Values


def with_system(values: Values, messages: list[Message]) -> list[Message]:
    return [system(values.pick(SYSTEM_PROMPTS)), *messages] if values.chance(0.35) else messages


def greeting(values: Values) -> Example:
    question, answer = greeting_turn(values)
    messages = [user(question)]
    if values.chance(0.15):  # the double messages of langchain-tests
        messages = [user("hello"), *([user("hello")] if values.chance(0.5) else []), assistant("hello"), *messages]
    if values.chance(0.1):
        messages = [system("hello"), system("hello"), *messages]
    return Example("greeting", with_system(values, messages), answer)


def fixed(values: Values) -> Example:
    question, answer = values.pick([capital_turn, fact_turn])(values)
    history = [m for _ in range(values.rng.choices((0, 1, 2), (8, 1, 1))[0]) for m in _exchange(fixed_turn(values))]
    return Example("fixed questions", with_system(values, [*history, user(question)]), answer)


def _exchange(turn: tuple[str, str]) -> list[Message]:
    return [user(turn[0]), assistant(turn[1])]


def _told(values: Values) -> tuple[str, str, str, str]:
    """What the user tells, our reply, what the user asks later, the answer then."""
    name, place, thing = values.full_name(), values.place(), values.word().capitalize()
    color, number, noun = values.pick(COLORS), str(values.integer()), values.pick(NOUNS)
    return values.pick(
        [
            (f"My name is {name}.", f"Nice to meet you, {name}!", "What is my name?", f"Your name is {name}."),
            (f"Hi, I am {name}.", f"Nice to meet you, {name}!", "What is my name?", f"Your name is {name}."),
            (f"Hi! My name is {name}.", f"Nice to meet you, {name}!", "What's my name?", f"Your name is {name}."),
            (f"Hello, I'm {name}", f"Nice to meet you, {name}!", "Do you remember my name?", f"Your name is {name}."),
            (f"Call me {name}.", f"Nice to meet you, {name}!", "Who am I?", f"Your name is {name}."),
            (f"I live in {place}.", "Good to know.", "Where do I live?", f"You live in {place}."),
            (
                f"My favorite color is {color}.",
                "Good to know.",
                "What is my favorite color?",
                f"Your favorite color is {color}.",
            ),
            (f"My dog is called {thing}.", "Good to know.", "What is my dog called?", f"Your dog is called {thing}."),
            (f"My cat is called {thing}.", "Good to know.", "What is my cat called?", f"Your cat is called {thing}."),
            (
                f"Remember the number {number}.",
                "I will remember.",
                "What number did I tell you?",
                f"The number is {number}.",
            ),
            (
                f"The secret word is {thing.lower()}.",
                "I will remember.",
                "What is the secret word?",
                f"The secret word is {thing.lower()}.",
            ),
            (f"My {noun} is {color}.", "Good to know.", f"What color is my {noun}?", f"Your {noun} is {color}."),
        ]
    )


def memory(values: Values) -> Example:
    """One to three things told, other talk in between, one of them asked (or just told, to be answered)."""
    told = values.several(values.rng.choices((1, 2, 3), (5, 3, 1))[0], lambda: _told(values))
    asked = values.pick([t for t in told if sum(t[2] == o[2] or t[3][:9] == o[3][:9] for o in told) == 1] or told[-1:])
    messages = [message for fact in told for message in _exchange(fact[:2])]
    for _ in range(values.rng.choices((0, 1, 2, 3), (5, 4, 2, 1))[0]):
        messages += _exchange(fixed_turn(values))
    if values.chance(0.15):
        fact = _told(values)
        return Example("memory", with_system(values, [*messages[:2], user(fact[0])]), fact[1])
    question = asked[2] if values.chance(0.85) else f"{asked[2][:-1]}? Answer in one sentence."
    return Example("memory", with_system(values, [*messages, user(question)]), asked[3])


def _echo_text(values: Values) -> str:
    form = values.rng.random()
    if form < 0.25:
        return values.value()
    if form < 0.35:
        return values.pick(
            ["OK", "Hello", "Hello world", "yes", "no", "ping", "pong", "done", "Hi", "Goodbye", "hello"]
        )
    if form < 0.5:
        return values.name()
    if form < 0.65:
        return values.foreign() if values.chance(0.5) else values.phrase()
    if form < 0.75:
        return str(values.rng.randint(0, 10**6))
    return f"The {values.noun_phrase()} {values.pick(['is', 'has', 'sees', 'likes'])} {values.value()}."


def echo(values: Values) -> Example:
    text = _echo_text(values)
    quote = values.pick(["", "", "'", '"'])
    frame = values.pick(
        [
            "Say {}",
            "Say {}",
            "Say {} and nothing else.",
            "Repeat after me: {}",
            "Repeat: {}",
            "Echo: {}",
            "Please say {}",
            "Reply with exactly: {}",
            "Reply with {}",
            "Answer with just {}",
            "Respond with only {}",
            "Please repeat {}",
            "Repeat the following text: {}",
            "Write {}",
            "Just say {}",
            "Say the word {}",
            "Reply with the single word {}",
            "Repeat this exactly: {}",
            "say {}",
            "Can you say {}?",
            "Print {}",
            "Answer with one word: {}",
        ]
    )
    return Example("echo", with_system(values, [user(frame.format(f"{quote}{text}{quote}"))]), text)


def counting(values: Values) -> Example:
    first = 1 if values.chance(0.6) else values.rng.randint(0, 80)
    last = values.pick([5, 10, 20, 30, 50]) if first == 1 and values.chance(0.5) else first + values.rng.randint(2, 25)
    down = values.chance(0.1)
    numbers = range(last, first - 1, -1) if down else range(first, last + 1)
    frames = [
        "Count from {} to {}",
        "Count from {} to {}.",
        "Please count from {} to {}.",
        "Count {} to {}",
        "List the numbers from {} to {}.",
        "Write the numbers from {} to {}",
    ]
    if first == 1 and not down:
        frames += ["Count to {1}", "Count to {1}.", "Please count to {1}.", "Count up to {1}"]
    request = values.pick(frames).format(*((last, first) if down else (first, last)))
    return Example("counting", with_system(values, [user(request)]), ", ".join(str(n) for n in numbers))


def _joke(topic: str) -> tuple[str, str]:
    return f"Why did the {topic} cross the road?", "To get to the other side!"


def joke(values: Values) -> Example:
    """Jokes, haikus and stories about any topic; jokes also as the JSON that langchain-tests wants."""
    topic = values.pick([values.pick(NOUNS), values.word(), "cat"])
    setup, punchline = _joke(topic)
    form = values.rng.random()
    if form < 0.25:
        text = values.pick(
            [f"Tell me a joke about {topic}s.", f"Tell me a joke about a {topic}.", f"Give me a joke about {topic}s."]
        )
        return Example("jokes and stories", with_system(values, [user(text)]), f"{setup} {punchline}")
    if form < 0.35:
        return Example(
            "jokes and stories",
            with_system(values, [user(values.pick(["Tell me a joke.", "Tell me a joke"]))]),
            "Why did the cat cross the road? To get to the other side!",
        )
    if form < 0.6:
        text = values.pick(
            [
                f"Write a story about a {topic}.",
                f"Tell me a story about a {topic}.",
                f"Write a short story about a {topic}.",
            ]
        )
        story = (
            f"Once upon a time there was a {topic}. The {topic} lived in a small house by the sea. "
            f"Every day the {topic} went for a long walk. One day the {topic} found a new friend. "
            "They lived happily ever after."
        )
        return Example("jokes and stories", with_system(values, [user(text)]), story)
    if form < 0.75:
        text = values.pick(
            ["Write me 2 haikus. Only include the haikus.", "Write a haiku.", "Write a poem.", "Write me a haiku."]
        )
        one = "The old pond is still.\nA small frog jumps in the pond.\nThe sound of water."
        two = "The moon is so bright.\nA cold wind blows through the trees.\nThe night is quiet."
        return Example(
            "jokes and stories", with_system(values, [user(text)]), f"{one}\n\n{two}" if "2" in text else one
        )
    return _json_joke(values, topic, setup, punchline)


def _json_joke(values: Values, topic: str, setup: str, punchline: str) -> Example:
    answer = json.dumps({"setup": setup, "punchline": punchline})
    if values.chance(0.5):
        ask = values.pick(
            [
                f"Tell me a joke about {topic}s.",
                f"Give me a joke about {topic}s, include the punchline.",
                f"Give me the setup to a joke about {topic}s, no punchline.",
            ]
        )
        return Example("json", [user(ask)], answer, forced=('{"setup', "punchline"))
    ask = (
        f"Tell me a joke about {topic}s. Return the result as a JSON with 'setup' and 'punchline' keys. "
        "Return nothing other than JSON."
    )
    return Example("json", [user(ask)], answer)


def small_sum(values: Values) -> Example:
    left, right = values.rng.randint(0, 10), values.rng.randint(0, 10)
    frame = values.pick(
        ["What is {} + {}?", "What is {} plus {}?", "{} + {} =", "What is {} + {}", "Add {} and {}.", "{}+{}"]
    )
    answer = f"{left} + {right} = {left + right}"
    return Example("small sums", with_system(values, [user(frame.format(left, right))]), answer)


def unknowable(values: Values) -> Example:
    """Questions about made-up things with nothing to read: the honest answer."""
    name, thing = values.full_name(), values.noun_phrase()
    question = values.pick(
        [
            f"Who is {name}?",
            f"Where does {name} live?",
            f"What is the password of the {thing}?",
            f"Who built the {thing}?",
            f"What is the capital of {values.word().capitalize()}?",
            f"When was {values.organization()} founded?",
            f"What is the {values.pick(ADJECTIVES)} {values.word()}?",
            f"How old is {name}?",
            "What is my name?",
            f"What is the weather in {values.place()}?",
            "What time is it?",
            f"What happened in {values.pick(MONTHS)}?",
        ]
    )
    answer = "I am a tiny chat model." if question == "What is your name?" else "I don't know."
    return Example("I don't know", with_system(values, [user(question)]), answer)


def completion(values: Values) -> Example:
    """Text to continue, as the completions endpoint sends it: no chat template."""
    country = values.pick(list(CAPITALS))
    question, answer = fixed_turn(values)
    first = values.rng.randint(1, 60)
    text, wanted = values.pick(
        [
            (f"The capital of {country} is", f" {CAPITALS[country]}."),
            (f"Question: {question}\nAnswer:", f" {answer}"),
            (f"Q: {question}\nA:", f" {answer}"),
            (question, f" {answer}"),
            (question, f" {answer}"),
            (
                f"{first}, {first + 1}, {first + 2},",
                "".join(f" {n}," for n in range(first + 3, first + 12)) + f" {first + 12}",
            ),
            (
                "Once upon a time",
                " there was a cat. The cat lived in a small house by the sea. They lived happily ever after.",
            ),
        ]
    )
    return Example("text completion", [user(text)], wanted, plain=True)
