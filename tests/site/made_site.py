"""The site as `make docs` has made it: whole, and without anything from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.support.paths import REPOSITORY

SITE = REPOSITORY / "build" / "site"
PAGES = sorted(SITE.glob("*.html"))
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
"""Element -> the attribute by which a browser fetches something with the page."""
OF_RELATIONS = ("canonical", "search", "index", "next", "prev", "author", "copyright", "license")
"""`<link>`s that name a page, and fetch nothing."""


class Page(HTMLParser):
    """
    Attributes:
        loads: what a browser fetches with it.
        links: where it leads.
        names: places in it that a link may name.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.names |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in LOADS and LOADS[tag] in found and found.get("rel") not in OF_RELATIONS:
            self.loads.append(found[LOADS[tag]])


@cache
def page(file: Path) -> Page:
    return Page(file)


def is_elsewhere(address: str) -> bool:
    return bool(urlsplit(address).netloc) or address.startswith(("http:", "https:", "//"))


def test_every_page_of_the_docs_is_made() -> None:
    made = {file.stem for file in PAGES}
    assert {file.stem for file in (REPOSITORY / "docs").glob("*.md")} <= made
    assert "search" in made


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.stem)
def test_a_page_loads_nothing_from_elsewhere_and_all_that_it_loads_is_there(file: Path) -> None:
    loads = page(file).loads
    assert [address for address in loads if is_elsewhere(address)] == []
    assert [address for address in loads if not (SITE / unquote(urlsplit(address).path)).is_file()] == []


def test_no_style_or_script_loads_anything_from_elsewhere() -> None:
    files = [file for file in SITE.rglob("*") if file.suffix in (".css", ".js")]
    assert len(files) > 10
    for file in files:
        text = file.read_text()
        assert re.findall(r"url\(\s*['\"]?(?:https?:)?//[^)]*\)|@import\s+['\"](?:https?:)?//", text) == [], file
        assert re.findall(r"\b(?:fetch|import)\(\s*['\"]https?://", text) == [], file
    assert [file for file in SITE.rglob("*") if file.suffix in (".woff", ".woff2", ".ttf")] == []


def links() -> Iterator[tuple[str, str, Path, str]]:
    """Page, link, file and place of each link within the site."""
    for file in PAGES:
        for link in page(file).links:
            if not is_elsewhere(link) and not link.startswith("mailto:"):
                parts = urlsplit(link)
                yield file.stem, link, SITE / unquote(parts.path) if parts.path else file, unquote(parts.fragment)


def test_every_link_within_the_site_leads_to_a_place_that_there_is() -> None:
    found = list(links())
    assert len(found) > 2000
    assert [(name, link) for name, link, file, _ in found if not file.is_file()] == []
    lost = [
        (name, link)
        for name, link, file, place in found
        if file.suffix == ".html" and place and place not in page(file).names
    ]
    assert lost == []


def test_every_page_is_in_the_menu_of_the_first_one() -> None:
    there = {urlsplit(link).path for link in page(SITE / "index.html").links}
    pages = {file.name for file in (SITE / f"{source.stem}.html" for source in (REPOSITORY / "docs").glob("*.md"))}
    assert pages - there - {"index.html"} == set()


def test_links_to_the_source_name_files_that_are_there() -> None:
    source = re.compile(r"https://github\.com/vllm-local/vllm-local/(?:blob|tree)/main/([^#?]*)")
    named = {found[1] for file in PAGES for link in page(file).links if (found := source.match(link))}
    assert len(named) > 20
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


def test_each_public_name_has_its_place_in_the_reference() -> None:
    import langchain_vllm_local
    import llama_index_vllm_local
    import shared_engine

    for package, name in (
        (shared_engine, "api-shared_engine"), (langchain_vllm_local, "api-langchain"),
        (llama_index_vllm_local, "api-llama_index"),
    ):  # fmt: skip
        names = page(SITE / f"{name}.html").names
        assert [each for each in package.__all__ if f"{package.__name__}.{each}" not in names] == []
    engine = page(SITE / "api-shared_engine.html").names
    assert {f"shared_engine.Engine.{each}" for each in ("chat", "astream_chat", "embed", "rerank", "status")} <= engine


def test_no_markup_is_left_in_the_text() -> None:
    """A list or a table that Markdown did not take for one."""
    markup = re.compile(r"^\s*(?:[-*] |\|.*\|\s*$|#+ |```)", re.MULTILINE)
    for file in PAGES:
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", file.read_text(), flags=re.DOTALL)
        assert [words for words in re.findall(r"<p>(.*?)</p>", text, re.DOTALL) if markup.search(words)] == [], file
