"""Sphinx's settings for the site: ``make docs``. The pages are plain Markdown, as a code host shows them too; what only
the site has, its menu and the API reference, is put in here."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
sys.path[:0] = [str(REPOSITORY), str(HERE)]

import api
import navigation

_ABOUT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
_SOURCE = _ABOUT["urls"]["Homepage"]

project = "vllm-local"
author = "The vllm-local authors"
project_copyright = author
release = version = _ABOUT["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown"}
root_doc = navigation.HOME
exclude_patterns = ["site"]
suppress_warnings = ["ref.python"]  # both adapters have classes of the same names
highlight_language = "default"  # Python where it is
smartquotes = False
default_role = "literal"  # in docstrings

# As on a code host: anchors of headings, and nothing that it would not show.
myst_heading_anchors = 4
myst_enable_extensions = ["html_image"]

autodoc_inherit_docstrings = False  # what the frameworks say of their methods is in their own documentation
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
python_trailing_comma_in_multi_line_signatures = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Every request raises", "params_style")]

copybutton_prompt_text = r"\$ |# "
copybutton_prompt_is_regexp = True
copybutton_only_copy_prompt_lines = False
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "vllm-local"
html_static_path = [str(HERE / "static")]
html_css_files = ["site.css"]
html_search_scorer = str(HERE / "static" / "scorer.js")
html_favicon = str(HERE / "static" / "icon.svg")
html_theme_options = {
    "source_repository": f"{_SOURCE}/",
    "source_branch": "main",
    "source_directory": "docs/",
    "top_of_page_buttons": [],
    "light_css_variables": {"color-brand-primary": "#0b5cad", "color-brand-content": "#0b5cad"},
    "dark_css_variables": {"color-brand-primary": "#7db8f7", "color-brand-content": "#7db8f7"},
    "footer_icons": [],
}
html_copy_source = False
html_show_sphinx = False
html_last_updated_fmt = None
pygments_style = "friendly"
pygments_dark_style = "github-dark"

_AWAY = re.compile(r"\]\(\.\./([^)#\s]*)(#[^)\s]*)?\)")
"""A link to a file of the repository that is no page."""


def _at_the_source(link: re.Match[str]) -> str:
    path, anchor = link[1].rstrip("/"), link[2] or ""
    kind = "tree" if (REPOSITORY / path).is_dir() else "blob"
    return f"]({_SOURCE}/{kind}/main/{path}{anchor})"


def _menu(page: str) -> str:
    """What the menu has below a page, as Sphinx wants it."""
    if page != navigation.HOME:
        return _toctree("", navigation.BELOW[page]) if page in navigation.BELOW else ""
    there = {f"{_SOURCE}/blob/main/{file}": title for file, title in navigation.OF_THE_REPOSITORY.items()}
    groups = {**navigation.GROUPS, navigation.LAST: {**navigation.GROUPS[navigation.LAST], **there}}
    return "".join(_toctree(f":caption: {name}\n", entries) for name, entries in groups.items())


def _toctree(options: str, entries: dict[str, str]) -> str:
    lines = "\n".join(f"{title} <{page}>" for page, title in entries.items())
    return f"\n```{{toctree}}\n:hidden:\n{options}\n{lines}\n```\n"


def _complete(app: Any, page: str, source: list[str]) -> None:
    source[0] = _AWAY.sub(_at_the_source, api.filled(source[0])) + _menu(page)


def setup(app: Any) -> None:
    app.connect("source-read", _complete)
    api.setup(app)
