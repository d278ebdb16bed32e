"""Whether a page is one file: what a browser would load of it, and what would run."""

from __future__ import annotations

from html.parser import HTMLParser

_VOID = {"meta", "br", "wbr", "link", "img", "input", "hr", "path", "polyline"}
_LOADING = {"src", "href", "data", "srcset", "action", "poster", "background"}


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what loads or runs."""
        if tag in ("script", "iframe", "object", "embed", "link", "base", "form", "img"):
            self.problems.append(tag)
        self.problems += [f"{tag} {name}" for name, _ in attrs if name in _LOADING or name.startswith("on")]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """The same of a tag that ends itself."""
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        """Note what was opened and not closed."""
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}>")


def loads_nothing(page: str) -> None:
    """Hold that a page is whole, loads nothing, runs nothing, and tells the browser to refuse all that would."""
    parsed = _Page(page)
    assert parsed.problems == []
    assert parsed.open == []
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
