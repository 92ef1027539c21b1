"""What a model writes, as the page shows it; and how it reads a stream."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.page.conftest import Open, answered, say
from tests.support.chromium import Tab
from tests.support.page_scene import DONE, END, Scene, delta

pytestmark = pytest.mark.asyncio(loop_scope="session")


def link(address: str, text: str) -> str:
    """It tells nobody where it was opened, and replaces no page."""
    return f'<a href="{address}" target="_blank" rel="noopener noreferrer" title="{address}">{text}</a>'


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("a\nb\n\nc", "<p>a<br>b</p><p>c</p>"),
        ("**b** *i* _i_ ~~s~~ `c<d`", "<p><strong>b</strong> <em>i</em> <em>i</em> <s>s</s> <code>c&lt;d</code></p>"),
        ("snake_case_name 2*3*4 \\*no\\*", "<p>snake_case_name 2*3*4 *no*</p>"),
        ("**not closed", "<p>**not closed</p>"),
        ("`` a`b ``", "<p><code>a`b</code></p>"),
        ("# One\n## Two", "<h3>One</h3><h4>Two</h4>"),
        ("#hashtag", "<p>#hashtag</p>"),
        ("- a\n- b\n  - c\n\n- d", "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("- [x] done\n- [ ] open", "<ul><li>☑ done</li><li>☐ open</li></ul>"),
        ("> a\n> b", "<blockquote><p>a<br>b</p></blockquote>"),
        ("---", "<hr>"),
        (
            "|a|b|\n|:-:|--:|\n|`x|y`|2|",
            '<div class="table" tabindex="0"><table><thead><tr><th class="to-center">a</th><th class="to-end">b</th>'
            '</tr></thead><tbody><tr><td class="to-center"><code>x|y</code></td><td class="to-end">2</td></tr></tbody>'
            "</table></div>",
        ),
        ("<script>x</script><img src=x onerror=y>", "<p>&lt;script&gt;x&lt;/script&gt;&lt;img src=x onerror=y&gt;</p>"),
        ("[x](javascript:alert(1)) [y](data:text/html,z)", "<p>[x](javascript:alert(1)) [y](data:text/html,z)</p>"),
        ("![secret](https://evil.example/?q=1)", f"<p>{link('https://evil.example/?q=1', 'image: secret')}</p>"),
        ("[**b**](https://a.example/b_(c))", f"<p>{link('https://a.example/b_(c)', '**b**')}</p>"),
        ("see https://a.example/b.", f"<p>see <span>{link('https://a.example/b', 'https://a.example/b')}.</span></p>"),
    ],
)  # fmt: skip
async def test_markdown(open_page: Open, scene: Scene, text: str, html: str) -> None:
    async with open_page(scene.url) as tab:
        assert await markdown(tab, text) == html


async def markdown(tab: Tab, text: str) -> str:
    return str(
        await tab.js(
            f"""import("./page/markdown.js").then(({{ showMarkdown }}) => {{
              const node = document.createElement("div");
              showMarkdown(node, {json.dumps(text)});
              return node.innerHTML;
            }})"""
        )
    )


async def test_code_can_be_copied_as_it_is(open_page: Open, scene: Scene) -> None:
    scene.pieces = [delta(content="```python\nif a < b:\n    print('``')\n"), delta(content="```\nDone"), END, DONE]
    async with open_page(scene.url) as tab:
        await tab.js("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
        await say(tab, "Code")
        await answered(tab)
        assert await tab.text(".code figcaption span") == "python"
        await tab.click(".code button")
        assert await tab.until("window.copied") == "if a < b:\n    print('``')"
        assert await tab.text(".answer .text > p") == "Done"


@pytest.mark.parametrize(
    "text",
    [
        "`" * 5000, "*" * 5000, "**a " * 5000, "[" * 5000, "_a" * 5000, "> " * 5000, "- " * 5000, "|" * 5000 + "\n|-|",
        "https://" * 2000, " " * 20000 + "x", "# " + " " * 20000 + "x", "~~a" * 3000, "```" + "a" * 20000,
    ],
)  # fmt: skip
async def test_no_text_takes_the_page_long(open_page: Open, scene: Scene, text: str) -> None:
    async with open_page(scene.url) as tab:
        async with asyncio.timeout(5):
            await markdown(tab, text)


async def test_a_text_that_grows_keeps_what_was_selected(open_page: Open, scene: Scene) -> None:
    async with open_page(scene.url) as tab:
        kept = await tab.js(
            """import("./page/markdown.js").then(({ showMarkdown }) => {
              const node = document.createElement("div");
              showMarkdown(node, "first\\n\\nsec");
              const first = node.firstChild;
              showMarkdown(node, "first\\n\\nsecond\\n\\n```\\nthird");
              return [node.firstChild === first, node.children.length, node.innerText];
            })"""
        )
        assert kept[:2] == [True, 3]


async def test_events_are_read_wherever_they_are_cut(open_page: Open, scene: Scene) -> None:
    stream = ': hello\n\nevent: status\ndata: {"ä": 1}\ndata: 2\n\r\ndata:x\r\n\r\n: end\n\n'
    async with open_page(scene.url) as tab:
        found = await tab.js(
            f"""import("./page/gateway.js").then(async ({{ events }}) => {{
              const bytes = new TextEncoder().encode({json.dumps(stream)});
              const all = [];
              for (let size = 1; size <= bytes.length; size += 1) {{
                const body = new ReadableStream({{ start(out) {{
                  for (let at = 0; at < bytes.length; at += size) out.enqueue(bytes.slice(at, at + size));
                  out.close();
                }} }});
                const told = [];
                for await (const each of events(body)) told.push(each);
                all.push(JSON.stringify(told));
              }}
              return [...new Set(all)];
            }})"""
        )
        assert [json.loads(each) for each in found] == [
            [{"comment": "hello"}, {"event": "status", "data": '{"ä": 1}\n2'}, {"event": "message", "data": "x"},
             {"comment": "end"}]
        ]  # fmt: skip
