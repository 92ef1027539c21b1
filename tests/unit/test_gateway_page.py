"""The files of the gateway's page: that they are all there, that a browser is told to trust nothing else, and that they
need no key. What they do is tested in Chromium, by ``make test-page``."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from shared_engine.gateway.app import gateway_app
from shared_engine.gateway.catalog import Catalog
from shared_engine.gateway.config import read_config
from shared_engine.gateway.page.files import FILES, PAGES

FOLDER = FILES["/"].parent
SCRIPTS = sorted(FOLDER.glob("*.js"))
FILE = """
models: {far: {base_url: http://127.0.0.1:9/v1}}
api_keys: [{name: alice, key: alices-secret}]
"""


@asynccontextmanager
async def asking(folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway with keys, which gives none."""
    file = folder / "models.yaml"
    file.write_text(FILE)
    catalog = Catalog(read_config(file))
    transport = httpx.ASGITransport(gateway_app(catalog, is_loopback=True))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
        yield client
    await catalog.close()


class Named(HTMLParser):
    """What a page names: other files, ids, and what the security policy would stop."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.unsafe: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.unsafe += [name for name in given if name == "style" or name.startswith("on")]
        self.unsafe += [tag] * (tag == "style" or (tag == "script" and "src" not in given))
        self.ids += [given["id"]] if "id" in given else []
        self.files += [given[name] for name in ("src", "href") if name in given and not given[name].startswith("#")]
        self.references += [given["href"][1:] for _ in "x" if tag == "use"]
        self.references += [given[name] for name in ("aria-controls", "aria-labelledby") if name in given]


@pytest.fixture(params=PAGES.values())
def html(request: pytest.FixtureRequest) -> Named:
    return names_in(request.param)


def names_in(page: str) -> Named:
    named = Named()
    named.feed(FILES[page].read_text())
    return named


async def test_the_page_and_its_files_need_no_key_and_all_else_does(tmp_path: Path) -> None:
    async with asking(tmp_path) as client:
        for path, file in FILES.items():
            answer = await client.get(path)
            assert (answer.status_code, answer.content) == (200, file.read_bytes())
        for path in ("/page/", "/page", "/page/nothing.js", "/page/../v1/models", "/index.html", "/v1/models"):
            assert (await client.get(path)).status_code == 401, path
        assert (await client.post("/", json={})).status_code == 405
        assert (await client.head("/")).status_code == 200


async def test_a_host_of_another_name_gets_no_page(tmp_path: Path) -> None:
    async with asking(tmp_path) as client:
        assert (await client.get("/", headers={"Host": "evil.example"})).status_code == 403


async def test_each_file_has_its_type_and_a_policy_that_trusts_nothing_else(tmp_path: Path) -> None:
    types = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    async with asking(tmp_path) as client:
        for path, file in FILES.items():
            headers = (await client.get(path)).headers
            assert headers["content-type"].partition(";")[0] == types[file.suffix]
            policy = dict(each.split(" ", 1) for each in headers["content-security-policy"].split("; "))
            assert policy["default-src"] == "'none'"
            assert {policy["script-src"], policy["style-src"], policy["connect-src"]} == {"'self'"}
            assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
            assert policy["require-trusted-types-for"] == "'script'"
            assert "unsafe" not in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"


async def test_a_file_that_is_known_is_not_sent_again(tmp_path: Path) -> None:
    async with asking(tmp_path) as client:
        first = await client.get("/")
        known = {"If-None-Match": first.headers["etag"]}
        again = await client.get("/", headers=known)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["content-security-policy"] == first.headers["content-security-policy"]
        assert (await client.get("/page/main.js", headers=known)).status_code == 200


def test_every_file_that_a_page_names_is_served_and_every_one_served_is_named() -> None:
    elsewhere = {"/.", "/docs", "/openapi.json"}
    named = {f"/{name}" for page in PAGES.values() for name in names_in(page).files} - elsewhere
    for script in SCRIPTS:
        for imported in re.findall(r'from "(.*?)"', script.read_text()):
            assert imported.startswith("./"), f"{script.name} imports {imported}"
            named.add(f"/page/{imported[2:]}")
    assert named == set(FILES) - set(PAGES.values())


def test_every_id_that_is_used_is_there_and_once(html: Named) -> None:
    """dom.js's notes are in both pages; what else it has, main.js alone uses."""
    assert len(html.ids) == len(set(html.ids))
    is_docs = "page/docs.js" in html.files
    scripts = [each for each in SCRIPTS if (each.name == "docs.js") is is_docs]
    used = [*html.references, *(f"i-{name}" for name in named_in_scripts(r'\bicon\("([\w-]+)"\)', scripts))]
    used += named_in_scripts(r'\bbyId\("([\w-]+)"\)', scripts)
    assert {*used, "notes"} <= set(html.ids)


def named_in_scripts(pattern: str, scripts: Sequence[Path] = SCRIPTS) -> list[str]:
    return [name for script in scripts for name in re.findall(pattern, script.read_text())]


def test_nothing_stands_in_the_page_that_its_policy_would_stop(html: Named) -> None:
    assert html.unsafe == []
    for script in SCRIPTS:
        found = re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|import\(", script.read_text()
        )
        assert not found, script.name


def test_no_file_names_another_host() -> None:
    for file in FILES.values():
        hosts = set(re.findall(r"https?://[\w.-]+", file.read_text())) - {"http://www.w3.org"}
        assert not hosts, file.name


def test_the_key_is_kept_for_the_tab_only() -> None:
    assert named_in_scripts(r"(\w+)\.\w+Item\(KEY[,)]").count("sessionStorage") == 3
    assert set(named_in_scripts(r"(\w+)\.\w+Item\(KEY[,)]")) == {"sessionStorage"}
