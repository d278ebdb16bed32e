"""The site of the documents is built strictly, has every page, and loads nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import build_site
import pytest
from doc_blocks import PAGES, ROOT
from ruamel.yaml import YAML


class Links(HTMLParser):
    """What a page of the site loads, what it links to, and its anchors."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loaded: set[str] = set()
        self.linked: set[str] = set()
        self.anchors: set[str] = {""}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Sort what one tag points to."""
        values = dict(attrs)
        self.anchors |= {values["id"] or ""} if "id" in values else set()
        if tag == "a" or (tag == "link" and values.get("rel") in ("canonical", "next", "prev")):
            self.linked.add(values.get("href") or "")
        else:
            self.loaded |= {values[name] or "" for name in ("src", "href", "data") if name in values}


@pytest.fixture(scope="module")
def site() -> dict[Path, Links]:
    """Every page of the built site."""
    assert build_site.build() == 0
    return {page: Links(page) for page in sorted(build_site.SITE.rglob("*.html")) if page.name != "404.html"}


@pytest.mark.needs("zensical")
def test_nothing_is_loaded_from_elsewhere(site: dict[Path, Links]) -> None:
    """Scripts, styles, fonts and pictures are files of the site."""
    assert len(site) > len(PAGES)
    for page, links in site.items():
        assert {url for url in links.loaded if not (page.parent / unquote(url.partition("?")[0])).is_file()} == set()
    styles = [file.read_text(encoding="utf-8") for file in build_site.SITE.rglob("*.css")]
    assert styles
    assert not [url for style in styles for url in re.findall(r"(?:url\(|@import )[\"']?(https?:[^)\"']+)", style)]


@pytest.mark.needs("zensical")
def test_links_lead_somewhere(site: dict[Path, Links]) -> None:
    """Every link within the site has its file, and every anchor its heading."""
    lost = []
    for page, links in site.items():
        for url in links.linked:
            name, _, anchor = unquote(url).partition("#")
            target = (page.parent / name).resolve() if name else page
            if re.match(r"[a-z]+:", url) or anchor.startswith("__"):
                continue
            if not target.is_file() or (target in site and anchor not in site[target].anchors):
                lost.append(f"{page.name}: {url}")
    assert not lost


@pytest.mark.needs("zensical")
def test_cog_leaves_no_trace(site: dict[Path, Links]) -> None:
    """The code that writes parts of a page is not shown in it."""
    assert not [page.name for page in site if "[[[cog" in page.read_text(encoding="utf-8")]


def in_navigation(entries: object) -> set[str]:
    """Return the pages of the navigation, at any depth."""
    if isinstance(entries, str):
        return {entries}
    below = entries.values() if isinstance(entries, dict) else entries if isinstance(entries, list) else ()
    return set().union(*map(in_navigation, below))


def test_navigation_has_every_page() -> None:
    """Whoever reads the site finds every page of docs/ in its navigation."""
    text = re.sub(r"!!python\S+", "", build_site.CONFIG.read_text(encoding="utf-8"))
    places = {str(build_site.place_of(str(page.relative_to(ROOT)))) for page in PAGES}
    assert in_navigation(YAML(typ="safe").load(text)["nav"]) == places | {"contributing.md"}


def test_links_are_pointed_at_copies() -> None:
    """A link to a page, to code, to a picture and to an anchor each lead to where the site has it; a fence stays."""
    text = (
        "<!-- [[[cog\nx\n]]] -->\n[a](../README.md#try-it) [b](../examples/t4.py) ![c](../benchmarks/results/rescue.svg)\n"
        "<!-- [[[end]]] -->\n```text\n[d](nowhere.md)\n```\n[e](https://example.org/x.md) [f](#here)\n"
    )
    page, linked = build_site.page_of("docs/plan.md", text)
    assert page == (
        "[a](index.md#try-it) [b](files/examples/t4.py.md) ![c](files/benchmarks/results/rescue.svg)\n"
        "```text\n[d](nowhere.md)\n```\n[e](https://example.org/x.md) [f](#here)\n"
    )
    assert linked == {"README.md", "examples/t4.py", "benchmarks/results/rescue.svg"}


@pytest.mark.parametrize("link", ["nowhere.md", "../../outside.md", "../examples"])
def test_broken_links_are_errors(link: str) -> None:
    """A link to what is not there, is outside of the project, or is a folder, ends the build with its page."""
    with pytest.raises(build_site.BrokenLinkError, match=re.escape(f"docs/plan.md: {link}")):
        build_site.page_of("docs/plan.md", f"[x]({link})\n")


def test_code_is_shown_whole(tmp_path: Path) -> None:
    """A file of code becomes a page whose fence is longer than any in the code."""
    page = build_site.code_page("examples/a.py", 'TEXT = """\n```\n"""\n')
    assert page.endswith('````python\nTEXT = """\n```\n"""\n````\n')
