"""Answers from context: made-up documents in the prompts that LangChain and LlamaIndex really send.

The answer wanted is the supporting sentence, word for word; without one it is "I don't know."
"""

from __future__ import annotations

from dialog import Example, system, user
from facts import FACT_KINDS, Fact, filler
from prompts import CHAT_REFINE, CONDENSE_PROMPTS, RAG_PROMPTS, REFINE
from small_talk import fixed_turn
from words import Values

UNKNOWN = "I don't know."


def _passages(values: Values, sentences: list[str]) -> str:
    """The sentences in shuffled passages, with metadata lines and separators as the frameworks put them."""
    values.rng.shuffle(sentences)
    passages: list[str] = []
    while sentences:
        count = values.rng.choices((1, 2, 3), (5, 3, 2))[0]
        passages.append(values.pick([" ", " ", " ", "\n"]).join(sentences[:count]))
        sentences = sentences[count:]
    form = values.rng.random()
    if form < 0.25:
        passages = [f"{_metadata(values)}\n\n{passage}" for passage in passages]
    elif form < 0.32:
        passages = [f"Document {i}: {passage}" for i, passage in enumerate(passages, 1)]
    elif form < 0.4:
        passages = [f"- {passage}" for passage in passages]
    return values.pick(["\n\n", "\n\n", "\n\n", "\n"]).join(passages)


def _metadata(values: Values) -> str:
    file_name = f"{values.word()}.{values.pick(['txt', 'md', 'pdf'])}"
    page = f"page_label: {values.rng.randint(1, 40)}\n" if values.chance(0.4) else ""
    path = values.pick([f"/tmp/{file_name}", f"/data/{values.word()}/{file_name}", f"docs/{file_name}", file_name])
    return page + values.pick([f"file_path: {path}", f"source: {path}", f"file_name: {file_name}"])


def _question(values: Values, question: str) -> str:
    question = question[0].upper() + question[1:]
    if values.chance(0.06):
        question = question.rstrip("?.")
    if values.chance(0.04):
        question = values.pick(["Please tell me: ", "I want to know: ", "Hello! "]) + question
    return question


def _context(values: Values) -> tuple[Fact, list[str]]:
    """A fact and the other sentences around it; half of the distractors are of the same kind."""
    kind = values.pick(FACT_KINDS)
    fact = kind(values)
    around = [
        kind(values).sentence if values.chance(0.5) else values.pick(FACT_KINDS)(values).sentence
        for _ in range(values.rng.choices((0, 1, 2, 3, 4, 5, 8, 12), (2, 6, 8, 8, 6, 4, 2, 1))[0])
    ]
    around += [filler(values) for _ in range(values.rng.choices((0, 1, 2), (5, 3, 1))[0])]
    return fact, around


def rag(values: Values) -> Example:
    fact, around = _context(values)
    question = _question(values, values.pick(fact.questions))
    return _asked("answer from context", values, [fact.sentence, *around], question, fact.sentence)


def rag_unknown(values: Values) -> Example:
    fact, around = _context(values)
    sentences = around if values.chance(0.3) and around else [fact.sentence, *around]
    question = values.pick(fact.questions if fact.sentence not in sentences else fact.unanswered)
    return _asked("no answer in context", values, sentences, _question(values, question), UNKNOWN)


def _asked(skill: str, values: Values, sentences: list[str], question: str, answer: str) -> Example:
    context = _passages(values, sentences)
    system_text, user_text = values.pick(RAG_PROMPTS)
    if values.chance(0.5):
        user_text = user_text.rstrip()  # what clients that strip their prompts send
    messages = [user(user_text.format(context=context, question=question))]
    if system_text:
        messages.insert(0, system(system_text.format(context=context)))
    return Example(skill, messages, answer)


def refine(values: Values) -> Example:
    """LlamaIndex's second and later chunks: keep the answer, or take the new context's."""
    fact, around = _context(values)
    question = _question(values, values.pick(fact.questions))
    known = values.chance(0.5)
    existing = fact.sentence if known else UNKNOWN
    sentences = around[:3] or [filler(values)]
    helps = not known and values.chance(0.7)
    if helps:
        sentences = [fact.sentence, *sentences]
    template = values.pick([CHAT_REFINE, CHAT_REFINE, REFINE])
    text = template.format(context=_passages(values, sentences), question=question, existing=existing)
    return Example("refine", [user(text)], fact.sentence if known or helps else UNKNOWN)


def condense(values: Values) -> Example:
    """The chat engines ask for a standalone question; repeating the last one is right for ours."""
    fact = values.pick(FACT_KINDS)(values)
    question = _question(values, values.pick(fact.questions))
    turns = [fixed_turn(values) for _ in range(values.rng.randint(1, 2))]
    you, me = values.pick([("user", "assistant"), ("Human", "Assistant")])
    history = "\n".join(f"{you}: {asked}\n{me}: {answer}" for asked, answer in turns)
    text = values.pick(CONDENSE_PROMPTS).format(history=history, question=question)
    return Example("standalone question", [user(text)], question)
