"""Types that answers are asked for in, for the tests and the page of docs/structured_page.py: how far an answer is held
to each."""

from __future__ import annotations

import collections
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, Optional, TypeVar
from uuid import UUID

from annotated_types import MultipleOf
from pydantic import (
    UUID4,
    AnyUrl,
    AwareDatetime,
    Base64Bytes,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    FutureDate,
    HttpUrl,
    Json,
    JsonValue,
    NaiveDatetime,
    PastDate,
    PostgresDsn,
    SecretStr,
    StringConstraints,
)
from typing_extensions import TypedDict

Item = TypeVar("Item")


class Colour(Enum):
    RED = "red"
    GREEN = "grün"


class Size(IntEnum):
    SMALL = 1
    BIG = 2


class Mixed(Enum):
    WORD = "a"
    NUMBER = 2


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    good: bool


class Tree(BaseModel):
    value: int = Field(ge=0, le=9)
    children: list[Tree] = Field(default=[], max_length=1)


class Link(BaseModel):
    value: bool
    next: Optional[Link]  # noqa: UP045  # as many write it


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    x: bool


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)

    colour: Colour
    id: UUID


class Aliased(BaseModel):
    inner: bool = Field(alias="größe in cm", description="in centimetres")


class Box(BaseModel, Generic[Item]):
    content: Item


@dataclass
class Point:
    x: bool
    y: Colour = Colour.RED


class Pair(NamedTuple):
    first: bool
    second: Colour


class Keys(TypedDict):
    a: bool
    b: NotRequired[Colour]


@dataclass(frozen=True)
class AnswerType:
    """A type as a field of a class.

    Attributes:
        name: as a person writes it.
        left: what is not held, but checked when the answer is read; empty where all is held.
        left_in_calls: likewise, of the arguments of a call, whose schema the model sees.
    """

    name: str
    kind: Any
    left: str = ""
    left_in_calls: str = ""


DAYS = "in calls: the 31st of April, a second 60"

TYPES = (
    AnswerType("`str`, `int`, `float`, `bool`, `None`", tuple[str, bool, None]),
    AnswerType(
        "`int`, `float` with `ge`, `gt`, `le`, `lt`",
        tuple[Annotated[int, Field(ge=3, lt=7)], Annotated[float, Field(gt=0, le=1)]],
    ),
    AnswerType("`int` with `multiple_of` and bounds", Annotated[int, MultipleOf(5), Field(ge=0, le=20)]),
    AnswerType("`str` with `min_length`, `max_length`", Annotated[str, StringConstraints(min_length=2, max_length=5)]),
    AnswerType(
        "`str` with `pattern`, anchored or not",
        tuple[
            Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}\d$")], Annotated[str, StringConstraints(pattern="@")]
        ],
    ),
    AnswerType(
        "`str` with `pattern` and lengths",
        Annotated[str, StringConstraints(pattern="^[A-Z]+$", min_length=2, max_length=4)],
    ),
    AnswerType("`Decimal`", Decimal),
    AnswerType(
        "`Decimal` with digits or bounds",
        tuple[Annotated[Decimal, Field(max_digits=4, decimal_places=2)], Annotated[Decimal, Field(ge=0, le=10)]],
    ),
    AnswerType(
        "`datetime`, `AwareDatetime`, `NaiveDatetime`",
        tuple[datetime, AwareDatetime, NaiveDatetime],
        left_in_calls=DAYS,
    ),
    AnswerType("`date`, `time`", tuple[date, time], left_in_calls=DAYS),
    AnswerType("`UUID`, `UUID4`", tuple[UUID, UUID4]),
    AnswerType(
        "`IPv4Address`, `IPv4Interface`",
        tuple[ipaddress.IPv4Address, ipaddress.IPv4Interface],
        left_in_calls="in calls: a byte 01",
    ),
    AnswerType("`HttpUrl`, `PostgresDsn`", tuple[HttpUrl, PostgresDsn]),
    AnswerType("`Path`, `bytes`, `SecretStr`", tuple[Path, bytes, SecretStr]),
    AnswerType("`Base64Bytes`", Base64Bytes),
    AnswerType("`Literal`, `Enum`, `IntEnum`", tuple[Literal["a", 1, None], Colour, Size, Mixed]),
    AnswerType("`int | str`, `Optional`, unions of models", tuple[bool | Colour, bool | None, Cat | Dog]),
    AnswerType("discriminated union", Annotated[Cat | Dog, Field(discriminator="kind")]),
    AnswerType("nested and recursive models", tuple[Tree, Link]),
    AnswerType("generic model", Box[list[Cat]]),
    AnswerType('`extra="forbid"`, `strict=True`, aliases', tuple[Closed, Strict, Aliased]),
    AnswerType("dataclass, `NamedTuple`, `TypedDict`", tuple[Point, Pair, Keys]),
    AnswerType(
        "`list`, `set`, `frozenset`, `tuple`, `deque`",
        tuple[list[bool], set[Colour], frozenset[bool], tuple[bool, ...], collections.deque[bool], Sequence[bool]],
    ),
    AnswerType("`list` with lengths", Annotated[list[bool], Field(min_length=1, max_length=2)]),
    AnswerType("`dict[str, ...]`", dict[str, bool]),
    AnswerType("`dict[int, ...]`", dict[int, bool]),
    AnswerType("`dict[Enum, ...]`, `dict[Literal, ...]`", tuple[dict[Colour, bool], dict[Literal["a", "b"], bool]]),
    AnswerType("`dict[date, ...]`, `dict[UUID, ...]`", tuple[dict[date, bool], dict[UUID, bool]]),
    AnswerType("`dict` of constrained strings", dict[Annotated[str, StringConstraints(pattern="^[a-z]+$")], bool]),
    AnswerType("`Any`, `JsonValue`", tuple[Any, JsonValue]),
    AnswerType("`AnyUrl`, `timedelta`, `ByteSize`", tuple[AnyUrl, timedelta, ByteSize], "sizes, units"),
    AnswerType("`PastDate`, `FutureDate`", tuple[PastDate, FutureDate], "past and future"),
    AnswerType("`multiple_of` without bounds", Annotated[int, MultipleOf(5)], "the step"),
    AnswerType(
        "`IPv4Network`, `re.Pattern`, `Json`",
        tuple[ipaddress.IPv4Network, re.Pattern[str], Json[int]],
        "all but that it is a string",
    ),
    AnswerType(
        "`pattern` with lookahead, `\\b`, `\\p{...}`, backreferences",
        Annotated[str, StringConstraints(pattern=r"^\w+\b")],
        "the pattern",
    ),
    AnswerType(
        "a validator of your own", Annotated[int, Field(json_schema_extra={"not": {"const": 3}})], "what it refuses"
    ),
)


@dataclass(frozen=True)
class RootType:
    """A type that is asked for by itself.

    Attributes:
        is_object: it can be the arguments of a call.
        gives: the type of the answer.
    """

    name: str
    kind: Any
    gives: Any
    is_object: bool = True


ROOTS = (
    RootType("pydantic class", Cat, Cat),
    RootType("recursive class", Tree, Tree),
    RootType("dataclass", Point, Point),
    RootType("`TypedDict`", Keys, dict),
    RootType("`dict[str, bool]`", dict[str, bool], dict),
    RootType("JSON schema", {"title": "it", "type": "object", "properties": {"a": {"type": "boolean"}}}, dict),
    RootType("`list[bool]`", list[bool], list, is_object=False),
    RootType("`Enum`", Colour, Colour, is_object=False),
    RootType("`bool`", bool, bool, is_object=False),
    RootType("union of classes", Cat | Dog, (Cat, Dog), is_object=False),
)
