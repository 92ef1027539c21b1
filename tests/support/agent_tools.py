"""The tools and questions that tiny_chat was trained on, for the tests of agents."""

from __future__ import annotations

SUM = "Add 12 and 30, then multiply the result by 7."
SUM_ANSWER = "The result is 294."
WEATHER = "What is the weather in Paris?"
TWO_CITIES = "What is the weather in Oslo and in Madrid?"


def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


def multiply(a: int, b: int) -> int:
    """Multiply two integers and return the result."""
    return a * b


def get_weather(city: str) -> str:
    """Get the weather for a city."""
    return f"It's sunny in {city}."
