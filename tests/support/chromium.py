"""Debian's Chromium without a window, driven by its own protocol: clicks, keys and pictures, as a person's would be."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

START_S = 30.0
WAIT_S = 30.0
LEAVE_S = 10.0
_KEYS = {
    "Enter": (13, "\r"), "Escape": (27, ""), "Tab": (9, ""), "ArrowDown": (40, ""), "ArrowUp": (38, ""), " ": (32, " "),
}  # fmt: skip
_CONTROL, _SHIFT = 2, 8


def program() -> str | None:
    """Where it is; None where it is not installed (``apt-get install chromium``)."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    """One that runs."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tabs: dict[str, Tab] = {}

    async def read(self) -> None:
        """Hand on what it says, until it has left."""
        async for message in self._socket:
            told = json.loads(message.data)
            if "id" in told:
                answer = self._answers.pop(told["id"])
                if not answer.done():
                    answer.set_result(told)
            elif told.get("sessionId") in self._tabs:
                self._tabs[told["sessionId"]].heard(told["method"], told["params"])

    async def send(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        told = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        await self._socket.send_json(told)
        async with asyncio.timeout(WAIT_S):
            answer = await self._answers[number]
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    async def tab(
        self, url: str, *, width: int = 1280, height: int = 800, scale: float = 1, is_dark: bool = False,
        is_phone: bool = False,
    ) -> Tab:  # fmt: skip
        """A page in a profile of its own, once it is loaded."""
        profile = (await self.send("Target.createBrowserContext"))["browserContextId"]
        target = (await self.send("Target.createTarget", url="about:blank", browserContextId=profile))["targetId"]
        session = (await self.send("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        tab = self._tabs[session] = Tab(self, session, profile)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await tab.send(f"{domain}.enable")
        await tab.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=is_phone
        )
        await tab.send("Emulation.setTouchEmulationEnabled", enabled=is_phone)
        await tab.likes("dark" if is_dark else "light")
        await tab.go(url)
        return tab


class Tab:
    """A page.

    Attributes:
        errors: what it has complained of: exceptions, the security policy, files that are missing.
        answers: the status of each address that it has asked for.
    """

    def __init__(self, browser: Browser, session: str, profile: str) -> None:
        self._browser = browser
        self._session = session
        self._profile = profile
        self._is_loaded = asyncio.Event()
        self.errors: list[str] = []
        self.answers: dict[str, int] = {}

    def heard(self, method: str, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self._is_loaded.set()
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.errors.append(str(params["args"]))
        elif method == "Network.responseReceived":
            self.answers[params["response"]["url"]] = params["response"]["status"]

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        return await self._browser.send(method, self._session, **params)

    async def go(self, url: str) -> None:
        self._is_loaded.clear()
        if "loaderId" in await self.send("Page.navigate", url=url):  # else it is only another place of this page
            async with asyncio.timeout(WAIT_S):
                await self._is_loaded.wait()

    async def likes(self, scheme: str, *, motion: str = "reduce") -> None:
        """What a person has chosen in the system's settings."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": motion}
        ]  # fmt: skip
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def js(self, expression: str) -> Any:
        """What an expression is there, in JSON's types; a promise is waited for."""
        told = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, expression: str, timeout_s: float = WAIT_S) -> Any:
        """What the expression is, once that is something; an element is not, which has no JSON."""
        deadline = time.monotonic() + timeout_s
        while not (value := await self.js(expression)):
            assert time.monotonic() < deadline, (
                f"waited {timeout_s:g} s for {expression}; there is: {await self.text()}"
            )
            await asyncio.sleep(0.03)
        return value

    async def text(self, selector: str = "body") -> str:
        return str(await self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def shows(self, text: str, selector: str = "body", timeout_s: float = WAIT_S) -> None:
        """Return once it does."""
        found = f"document.querySelector({json.dumps(selector)})?.innerText.includes({json.dumps(text)})"
        await self.until(found, timeout_s)

    async def click(self, selector: str) -> None:
        """In the middle of what is found, which must not be covered."""
        name = json.dumps(selector)
        await self.until(f"document.querySelector({name})?.checkVisibility()")
        x, y, is_on_top = await self.js(
            f"""(() => {{
              const node = document.querySelector({name});
              node.scrollIntoView({{ block: "nearest" }});
              const box = node.getBoundingClientRect();
              const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
              return [x, y, node.contains(document.elementFromPoint(x, y))];
            }})()"""
        )
        assert is_on_top, f"{selector} is covered"
        for kind in ("mousePressed", "mouseReleased"):
            await self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def type(self, text: str) -> None:
        await self.send("Input.insertText", text=text)

    async def press(self, key: str, *, control: bool = False, shift: bool = False) -> None:
        code, text = _KEYS.get(key, (ord(key[0].upper()), key))
        params: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code}
        params["modifiers"] = _CONTROL * control + _SHIFT * shift
        await self.send("Input.dispatchKeyEvent", type="keyDown", **params, **({"text": text} if text else {}))
        await self.send("Input.dispatchKeyEvent", type="keyUp", **params)

    async def choose_files(self, selector: str, *files: Path) -> None:
        root = (await self.send("DOM.getDocument"))["root"]["nodeId"]
        node = (await self.send("DOM.querySelector", nodeId=root, selector=selector))["nodeId"]
        await self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    async def focused(self) -> str:
        """What the next key goes to: its id, or its text."""
        return str(await self.js("document.activeElement.id || document.activeElement.innerText"))

    async def hide(self, is_hidden: bool) -> None:
        """As if another tab were before it, or no longer."""
        await self.js(
            f"""Object.defineProperty(document, "hidden", {{ value: {json.dumps(is_hidden)}, configurable: true }});
            document.dispatchEvent(new Event("visibilitychange"))"""
        )

    async def close(self) -> None:
        await self._browser.send("Target.disposeBrowserContext", browserContextId=self._profile)

    async def picture(self, file: Path) -> None:
        """Of what is seen of the page: PNG, JPEG or WebP by the file's name."""
        kind = file.suffix[1:]
        shot = await self.send("Page.captureScreenshot", format=kind, **({} if kind == "png" else {"quality": 86}))
        file.write_bytes(base64.b64decode(shot["data"]))


@asynccontextmanager
async def chromium(folder: Path) -> AsyncIterator[Browser]:
    """One with nothing of its own, which has left at the end.

    Args:
        folder: for its profile.
    """
    found = program()
    assert found, "there is no Chromium: apt-get install chromium"
    process = await asyncio.create_subprocess_exec(
        found, "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}", "--no-first-run",
        "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--lang=en-US",
        "--disable-background-networking", "--disable-component-update", "--force-color-profile=srgb", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        port = folder / "DevToolsActivePort"
        async with asyncio.timeout(START_S):
            while not (port.exists() and len(port.read_text().splitlines()) == 2):
                assert process.returncode is None, f"{found} has ended with {process.returncode}"
                await asyncio.sleep(0.05)
        number, path = port.read_text().splitlines()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://127.0.0.1:{number}{path}", max_msg_size=0) as socket,
        ):
            browser = Browser(socket)
            reading = asyncio.create_task(browser.read())
            try:
                yield browser
                await browser.send("Browser.close")
            finally:
                reading.cancel()
    finally:
        try:
            await asyncio.wait_for(process.wait(), LEAVE_S)
        except TimeoutError:
            process.kill()
            await process.wait()
