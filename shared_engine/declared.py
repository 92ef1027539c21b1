"""How a setting is declared: once, in the annotation of its field. All tables of settings are read off the fields.

max_model_len: Annotated[int | None, Field(gt=0), Setting("VLLM_MAX_MODEL_LEN", Decides.ENGINE, "--max-model-len")]
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, Never, TypeVar

from pydantic import BaseModel

Kept = TypeVar("Kept")
Taken = TypeVar("Taken")


class Converted(Generic[Kept, Taken]):
    """Annotation of a field that takes a ``Taken`` and holds the ``Kept`` that a validator makes of it.

    For pydantic it is ``Kept``. Type checkers see a descriptor, and take its ``__set__`` for the constructor's
    parameter (the typing specification, on descriptors in dataclasses); its default must then be an ``UNSET``. With
    pydantic's plugin mypy would show it as ``Taken`` where it is read, too: it is not used here.
    """

    if TYPE_CHECKING:

        def __get__(self, instance: object, owner: type) -> Kept: ...

        def __set__(self, instance: object, value: Taken) -> None: ...

    else:

        def __class_getitem__(cls, kinds):
            return kinds[0]


UNSET: Any = None
"""The default None of a ``Converted``."""
Alias = Converted[Never, Taken]
"""For type checkers alone: another name of a field, which only the constructor takes."""


class Decides(Enum):
    """What a setting decides; the values are headings for people."""

    ENGINE = "Which engine: other values are another process"
    KEEPING = "How the engine is kept: of callers that share one, the longest value holds"
    CALLS = "How this process asks and waits"
    REQUESTS = "Defaults of requests"


@dataclass(frozen=True)
class Setting:
    """What there is to know of a setting beside its type, range, default and docstring.

    Attributes:
        env: the environment variable it is read from. Not passed on to vLLM, which warns of names it does not know.
        flag: the flag of ``vllm serve`` that it stands for; ``engine_args`` must not set it a second time.
        is_json: whether the variable holds JSON.
        is_secret: it is never shown, dumped or pickled.
    """

    env: str
    decides: Decides
    flag: str | None = None
    is_json: bool = False
    is_secret: bool = False


def declared(model: type[BaseModel]) -> dict[str, Setting]:
    """The settings among the fields of ``model``, by name, in the order of their definition."""
    settings = ((name, each) for name, field in model.model_fields.items() for each in field.metadata)
    return {name: each for name, each in settings if isinstance(each, Setting)}


@cache
def docstrings(module: ModuleType) -> dict[str, str]:
    """Of the fields of all classes in ``module``, by name."""
    found = {}
    for kind in ast.parse(inspect.getsource(module)).body:
        for field, text in zip(getattr(kind, "body", ()), getattr(kind, "body", ())[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = inspect.cleandoc(str(text.value.value))
    return found
