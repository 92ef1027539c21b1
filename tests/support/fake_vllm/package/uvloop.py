"""Stands for uvloop."""

from asyncio import run

__all__ = ["run"]
