"""A notebook of marimo: cells that depend on each other; a cell may await."""

from typing import Any

import marimo

app = marimo.App()


@app.cell
def _() -> Any:
    from tests.others.apps.shared import llm

    return (llm,)


@app.cell
def _(llm: Any) -> Any:
    text = llm.invoke("Hello").text
    return (text,)


@app.cell
async def _(llm: Any, text: str) -> Any:
    texts = [text, (await llm.ainvoke("Hello")).text, "".join([chunk.text async for chunk in llm.astream("Hello")])]
    return (texts,)


if __name__ == "__main__":
    _, shown = app.run()
    print(shown["texts"])
