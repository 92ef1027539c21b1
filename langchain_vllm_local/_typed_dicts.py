"""TypedDicts as pydantic classes: for their JSON schema, and to check answers against. Pure.

Of either typing module, on every Python; LangChain's descriptions in ``Annotated[int, ..., "in years"]`` are kept, and
those of a docstring's ``Args:``.
"""

from __future__ import annotations

import inspect
import re
from typing import Annotated, Any, ForwardRef, NotRequired, Required, Union, get_args, get_origin

import typing_extensions
from pydantic import BaseModel, Field, create_model

_UNIONS = (Union, type(int | str))
_MARKS = (Required, NotRequired, typing_extensions.ReadOnly)
_ARGUMENT = re.compile(r"\s+(\w+)(?: \([^)]*\))?: (.+)")


def is_typed_dict(kind: Any) -> bool:
    """Python's own, or that of typing_extensions, which typing.is_typeddict does not know."""
    return isinstance(kind, type) and issubclass(kind, dict) and hasattr(kind, "__total__")


def pydantic_class(kind: Any) -> type[BaseModel]:
    """A class whose instances have the TypedDict's keys as fields.

    Raises:
        NameError, PydanticUserError, ...: a field has a type that there is not, or that pydantic does not know.
    """
    made: dict[Any, type[BaseModel]] = {}
    _make(kind, made)
    names = {_name(each): model for each, model in made.items()}
    for model in made.values():
        model.model_rebuild(force=True, _types_namespace=names)
    return made[kind]


def description_of(kind: Any) -> str | None:
    """What the docstring says before its ``Args:``; None where there is none."""
    said = _docstring(kind).partition("Args:")[0].strip()
    return said or None


def _make(kind: Any, made: dict[Any, type[BaseModel]]) -> None:
    made[kind] = BaseModel  # under way: a reference to it is made by name
    arguments = dict(_ARGUMENT.findall(_docstring(kind).partition("Args:")[2]))
    fields: dict[str, Any] = {}
    for name, hint in typing_extensions.get_type_hints(kind, include_extras=True).items():
        bare, marks = _without_marks(hint)
        annotation, description = _described(bare, made)
        # Of annotations that are text, as under `from __future__ import annotations`, Python does not see the marks.
        is_required = Required in marks or (name in kind.__required_keys__ and NotRequired not in marks)
        presence: dict[str, Any] = {} if is_required else {"default_factory": lambda: None}
        description = description or arguments.get(name)
        said: dict[str, Any] = {} if description is None else {"description": description}  # None would replace another
        field = Field(alias=name, **said, **presence)
        fields[f"field_{len(fields)}"] = (annotation, field)  # a key may have a name that no field can have
    made[kind] = create_model(kind.__name__, __doc__=description_of(kind), __module__=__name__, **fields)


def _described(hint: Any, made: dict[Any, type[BaseModel]]) -> tuple[Any, str | None]:
    """The annotation for pydantic, and LangChain's description in it."""
    if get_origin(hint) is not Annotated:
        return _translated(hint, made), None
    said = get_args(hint)[-1]
    return _translated(hint, made), said if isinstance(said, str) else None


def _without_marks(hint: Any) -> tuple[Any, set[Any]]:
    """The annotation, and the marks that were around it."""
    marks = set()
    while get_origin(hint) in _MARKS:
        marks.add(get_origin(hint))
        (hint,) = get_args(hint)
    return hint, marks


def _translated(hint: Any, made: dict[Any, type[BaseModel]]) -> Any:
    """The annotation, with pydantic classes in place of the TypedDicts in it."""
    if is_typed_dict(hint):
        if hint not in made:
            _make(hint, made)
        return ForwardRef(_name(hint))
    parts = get_args(hint)
    if get_origin(hint) is Annotated:  # of its remarks pydantic takes what it knows: bounds, validators
        return Annotated[(_translated(parts[0], made), *parts[1:])]
    if not parts or get_origin(hint) is None or get_origin(hint) is typing_extensions.Literal:
        return hint
    new = tuple(_translated(part, made) for part in parts)
    if new == parts:
        return hint
    if get_origin(hint) in _UNIONS:
        return Union[new]  # noqa: UP007  # of any number of types
    return hint.copy_with(new) if hasattr(hint, "copy_with") else get_origin(hint)[new]


def _name(kind: Any) -> str:
    return f"{kind.__name__}_{id(kind)}"


def _docstring(kind: Any) -> str:
    return inspect.cleandoc(kind.__doc__) if kind.__doc__ else ""
