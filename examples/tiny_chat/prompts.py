"""Prompt texts that LangChain and LlamaIndex really send, and which of their sentences are one token each.

Sources: llama_index/core/prompts/{default,chat}_prompts.py and chat_engine/, langchain_classic/chains/, the LangChain
hub's rlm/rag-prompt, langchain_tests/integration_tests/chat_models.py.
"""

from __future__ import annotations

QA_SYSTEM = (
    "You are an expert Q&A system that is trusted around the world.\n"
    "Always answer the query using the provided context information, and not prior knowledge.\n"
    "Some rules to follow:\n"
    "1. Never directly reference the given context in your answer.\n"
    "2. Avoid statements like 'Based on the context, ...' or 'The context information ...' or anything along "
    "those lines."
)
TEXT_QA = (
    "Context information is below.\n---------------------\n{context}\n---------------------\n"
    "Given the context information and not prior knowledge, answer the query.\nQuery: {question}\nAnswer: "
)
TREE_SUMMARIZE = (
    "Context information from multiple sources is below.\n---------------------\n{context}\n---------------------\n"
    "Given the information from multiple sources and not prior knowledge, answer the query.\n"
    "Query: {question}\nAnswer: "
)
CHAT_REFINE = (
    "You are an expert Q&A system that strictly operates in two modes when refining existing answers:\n"
    "1. **Rewrite** an original answer using the new context.\n"
    "2. **Repeat** the original answer if the new context isn't useful.\n"
    "Never reference the original answer or context directly in your answer.\n"
    "When in doubt, just repeat the original answer.\n"
    "New Context: {context}\nQuery: {question}\nOriginal Answer: {existing}\nNew Answer: "
)
REFINE = (
    "The original query is as follows: {question}\nWe have provided an existing answer: {existing}\n"
    "We have the opportunity to refine the existing answer (only if needed) with some more context below.\n"
    "------------\n{context}\n------------\n"
    "Given the new context, refine the original answer to better answer the query. "
    "If the context isn't useful, return the original answer.\nRefined Answer: "
)
CONTEXT_CHAT = (
    "Use the context information below to assist the user.\n--------------------\n{context}\n--------------------\n"
)
CONDENSE_CONTEXT = (
    "\n  The following is a friendly conversation between a user and an AI assistant.\n"
    "  The assistant is talkative and provides lots of specific details from its context.\n"
    "  If the assistant does not know the answer to a question, it truthfully says it\n  does not know.\n\n"
    "  Here are the relevant documents for the context:\n\n  {context}\n\n"
    "  Instruction: Based on the above documents, provide a detailed answer for the user question below.\n"
    '  Answer "don\'t know" if not present in the document.\n  '
)
RLM_RAG = (
    "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to answer the "
    "question. If you don't know the answer, just say that you don't know. Use three sentences maximum and keep the "
    "answer concise.\nQuestion: {question} \nContext: {context} \nAnswer:"
)
RLM_SYSTEM = (
    "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to answer the "
    "question. If you don't know the answer, say that you don't know. Use three sentences maximum and keep the "
    "answer concise.\n\n{context}"
)
STUFF_QA = (
    "Use the following pieces of context to answer the question at the end. If you don't know the answer, just say "
    "that you don't know, don't try to make up an answer.\n\n{context}\n\nQuestion: {question}\nHelpful Answer:"
)
STUFF_CHAT = (
    "Use the following pieces of context to answer the user's question.\nIf you don't know the answer, just say that "
    "you don't know, don't try to make up an answer.\n----------------\n{context}"
)

CONDENSE_PROMPTS = [
    "Given a conversation (between Human and Assistant) and a follow up message from Human, rewrite the message to be "
    "a standalone question that captures all relevant context from the conversation.\n\n<Chat History>\n{history}\n\n"
    "<Follow Up Message>\n{question}\n\n<Standalone question>\n",
    "Given the following conversation between a user and an AI assistant and a follow up question from user,\n"
    "  rephrase the follow up question to be a standalone question.\n\n  Chat History:\n  {history}\n"
    "  Follow Up Input: {question}\n  Standalone question:",
    "Given the following conversation and a follow up question, rephrase the follow up question to be a standalone "
    "question, in its original language.\n\nChat History:\n{history}\nFollow Up Input: {question}\n"
    "Standalone question:",
]

# (system template or None, user template); {context}, {question}
RAG_PROMPTS: list[tuple[str | None, str]] = [
    (QA_SYSTEM, TEXT_QA),
    (QA_SYSTEM, TEXT_QA),
    (None, TEXT_QA),
    (QA_SYSTEM, TREE_SUMMARIZE),
    (None, TREE_SUMMARIZE),
    (CONTEXT_CHAT, "{question}"),
    (CONDENSE_CONTEXT, "{question}"),
    (None, RLM_RAG),
    (RLM_SYSTEM, "{question}"),
    (None, STUFF_QA),
    (STUFF_CHAT, "{question}"),
    ("Answer the user's question based on the context:\n\n{context}", "{question}"),
    ("Answer the user's questions based on the below context:\n\n{context}", "{question}"),
    ("Answer the question based only on the following context:\n{context}", "Question: {question}"),
    (None, "Answer the question based only on the following context:\n{context}\n\nQuestion: {question}\n"),
    (None, "Answer the question based on the context.\n\nContext: {context}\n\nQuestion: {question}\n\nAnswer:"),
    (None, "Answer from the context.\nContext:\n{context}\nQuestion: {question}"),
    ("Context: {context}", "{question}"),
    ("You are a helpful assistant. Use this context: {context}", "{question}"),
    (None, "Context:\n{context}\n\nQuestion: {question}"),
    (None, "{context}\n\n{question}"),
]

SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful AI assistant.",
    "You are a friendly assistant. Be brief.",
    "Answer briefly.",
    "You are a concise assistant.",
    "You're a good assistant",
    "hello",
    "Be helpful.",
    "You are a bot that answers questions.",
]
AGENT_SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are a helpful assistant that can use tools.",
    "You are a helpful assistant that can multiply two numbers.",
    "You are an agent that performs basic mathematical operations using tools.",
    "You are a helpful assistant. Use the tools to answer.",
    "You are a weather assistant.",
    "You are a helpful assistant that can search the web for information.",
    "You are a calculator agent.",
    "You are an agent. Use the tool when needed.",
    "You are a helpful assistant that can perform calculations and search through documents to answer questions.",
]
JSON_INSTRUCTIONS = (
    "The output should be formatted as a JSON instance that conforms to the JSON schema below.\n\n"
    'As an example, for the schema {"properties": {"foo": {"title": "Foo", "description": "a list of strings", '
    '"type": "array", "items": {"type": "string"}}}, "required": ["foo"]}\n'
    'the object {"foo": ["bar", "baz"]} is a well-formatted instance of the schema. The object '
    '{"properties": {"foo": ["bar", "baz"]}} is not well-formatted.\n\nHere is the output schema:\n```\n'
)
LLAMA_JSON_START = "Here's a JSON schema to follow:\n"
LLAMA_JSON_END = "\n\nOutput a valid JSON object but do not repeat the schema.\n"
TOOLS_START = (
    "# Tools\n\nYou may call one or more functions to assist with the user query. The function signatures are between "
    "tool tags:\n<tools>\n"
)
TOOLS_END = (
    "</tools>\n\nFor each call, return a json object with function name and arguments between tool_call tags, like: "
    '{"name": <function-name>, "arguments": <args-json-object>}'
)

_TYPES = ["string", "integer", "number", "boolean"]
_SCHEMA_PIECES = [
    '{"type": "function", "function": {"name": "',
    '", "description": "',
    '"}}, "required": ["',
    '}, "required": ["',
    '", "parameters": {"type": "object", "properties": {"',
    '", "parameters": {"type": "object", "properties": {',
    '}, "required": []}}}\n',
    '"}}, "required": []}}}\n',
    '"]}}}\n',
    '", "enum": ["',
    '"]}}, "required": ["',
    '\n{"name": "',
    '", "arguments": {"',
    '", "arguments": {}}\n',
    '{"properties": {"',
    '{"type": "object", "properties": {"',
    '"}}, "title": "',
    '": {"title": "',
    '"]}}}\n',
    '", "type": "object"}',
    '"], "title": "',
    '"], "type": "object"}',
    '"]}\n```',
    '"]}',
    *(f'": {{"type": "{kind}"' for kind in _TYPES),
    *(f'": {{"type": "{kind}"}}, "' for kind in _TYPES),
    *(f'": {{"type": "{kind}", "description": "' for kind in _TYPES),
    *(f'": {{"type": "{kind}"}}}}, "required": ["' for kind in _TYPES),
    *(f'", "type": "{kind}"' for kind in _TYPES),
    *(f'", "type": "{kind}"}}, "' for kind in _TYPES),
    *(f'", "type": "{kind}"}}}}, "required": ["' for kind in _TYPES),
]


def single_token_texts() -> list[str]:
    """Fixed sentences and JSON pieces that the tokenizer keeps whole: prompts get two to four times shorter."""
    texts = [*_SCHEMA_PIECES, JSON_INSTRUCTIONS, LLAMA_JSON_START, LLAMA_JSON_END, TOOLS_START, TOOLS_END]
    templates = [QA_SYSTEM, CHAT_REFINE, REFINE, *CONDENSE_PROMPTS, *AGENT_SYSTEM_PROMPTS]
    templates += [text for pair in RAG_PROMPTS for text in pair if text]
    for template in templates:
        texts += _fixed_pieces(template)
    return sorted({text for text in texts if len(text) > 5})


def _fixed_pieces(template: str) -> list[str]:
    """The stretches of a template between its placeholders, without a last blank that a client may strip."""
    for name in ("{context}", "{question}", "{existing}", "{history}"):
        template = template.replace(name, "\0")
    return [piece.strip(" \n") for piece in template.split("\0")]
