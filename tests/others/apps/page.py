"""A page of Streamlit: all of it runs again for each click. There is no model in the session's state."""

from __future__ import annotations

from collections.abc import AsyncIterator

import streamlit as st

from tests.others.apps.shared import llm


async def pieces() -> AsyncIterator[str]:
    async for chunk in llm.astream("Hello"):
        yield chunk.text


st.button("Again")
st.write(llm.invoke("Hello").text)
st.write_stream(chunk.text for chunk in llm.stream("Hello"))
st.write_stream(pieces())
