"""Writes docs/errors.md from the docstrings of the errors: ``python docs/errors_page.py > docs/errors.md``."""

from __future__ import annotations

import builtins
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from langchain_vllm_local import _errors as of_langchain
from shared_engine import errors

HEAD = """\
# Errors

What vllm-local raises on purpose: when, and what to do. Import the classes from `shared_engine`; `except VLLMError` catches all of them. A name
leads to more about it in [troubleshooting](troubleshooting.md).

```python
from shared_engine import EngineStartError, VLLMError


def ask(engine, messages):
    try:
        return engine.chat(messages).text
    except EngineStartError as error:
        print(error.message, *error.log_tail, sep="\\n")  # what failed, and vLLM's last log lines
    except VLLMError as error:
        print(error)
```

This page is written by `docs/errors_page.py` from the docstrings in `shared_engine/errors.py`.
"""
TABLES = {
    "Before anything is sent": ("SettingsError", "InvalidInputError"),
    "The engine": (
        "EngineError",
        "EngineStartError",
        "EngineNotInstalledError",
        "EngineStartTimeoutError",
        "EngineDiedError",
        "EngineStoppedError",
        "EngineBusyError",
    ),
    "A request": (
        "RequestError",
        "RequestTimeoutError",
        "ServerConnectionError",
        "ServerUnreachableError",
        "ServerError",
        "RequestRejectedError",
        "ContextLengthError",
        "AuthenticationError",
        "PermissionDeniedError",
        "ModelNotFoundError",
        "RateLimitError",
    ),
    "An answer": ("LengthFinishReasonError",),
    "The command line": ("InstallError", "FetchError", "EngineNameError"),
    "All of them": ("VLLMError",),
}
FIELDS = """
## Fields

A class has the fields of those that it is derived from, too. Every error can be pickled, and keeps them.

| error | field | what it is |
|---|---|---|
"""
LANGCHAIN = """
## In LangChain

Errors of a call are LangChain's too, so that its middleware and `except` clauses find them. LlamaIndex has no classes of its own for errors of models
([more](llama_index.md#errors)).

| error | is also LangChain's |
|---|---|
"""


def in_cell(text: str) -> str:
    return " ".join(text.split()).replace("``", "`").replace("|", "\\|")


def parts(error: type[Exception]) -> tuple[str, str, dict[str, str]]:
    """When it is raised, what to do, and what its fields are."""
    docstring = inspect.cleandoc(error.__doc__ or "")
    text, _, attributes = docstring.partition("\n\nAttributes:\n")
    when, found, remedy = text.partition("\n\nRemedy: ")
    assert found, f"{error.__name__} names no remedy"
    fields = re.findall(r"^    (\w+): (.+?)(?=^    \w+: |\Z)", attributes, re.MULTILINE | re.DOTALL)
    return in_cell(when), in_cell(remedy), {name: in_cell(meaning) for name, meaning in fields}


def beside(error: type[Exception]) -> str:
    """Python's own class that it is too."""
    names = [base.__name__ for base in error.__bases__ if hasattr(builtins, base.__name__) and base is not Exception]
    return "".join(f" It is also a `{name}`." for name in names)


def page() -> Iterator[str]:
    """The page, in pieces."""
    classes = {name: getattr(errors, name) for names in TABLES.values() for name in names}
    yield HEAD
    for title, names in TABLES.items():
        yield f"\n## {title}\n\n| error | when | what to do |\n|---|---|---|\n"
        for name in names:
            when, remedy, _ = parts(classes[name])
            link = f"[`{name}`](troubleshooting.md#{name.lower()})"
            yield f"| {link} | {when}{beside(classes[name])} | {remedy[0].upper()}{remedy[1:]} |\n"
    yield FIELDS
    for name, error in classes.items():
        for field, meaning in parts(error)[2].items():
            yield f"| `{name}` | `{field}` | {meaning} |\n"
    yield LANGCHAIN
    for name in classes:
        if there := getattr(of_langchain, name, None):
            theirs = [base.__name__ for base in there.__bases__ if base.__module__ == "langchain_core.exceptions"]
            for base in theirs:
                yield f"| `{name}` | `{base}` |\n"


if __name__ == "__main__":
    sys.stdout.writelines(page())
