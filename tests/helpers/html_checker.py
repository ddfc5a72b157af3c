"""A check of HTML pages: they are well formed and load nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = {"meta", "br", "wbr", "input", "link", "img", "hr"}


class Page(HTMLParser):
    """The content of a page.

    Attributes:
        open: tags that are not closed yet.
        faults: faults of the form.
        tags: all tags in their order.
        attributes: (tag, attribute, value) in their order.
        text: all pieces of text.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.faults: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"{tag} is never closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag in _VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"{tag} is closed and was not open")

    def handle_data(self, data):
        self.text.append(data)

    def of(self, name: str) -> list[str]:
        """List the values of an attribute."""
        return [value for _, attribute, value in self.attributes if attribute == name]


def check(text: str) -> Page:
    """Assert that a page has no faults and loads nothing, and return it."""
    page = Page(text)
    assert page.faults == []
    ids = page.of("id")
    assert len(ids) == len(set(ids))
    links = page.of("href")
    assert all(link.startswith("#") for link in links)
    assert {link[1:] for link in links} <= set(ids)
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert page.of("src") == []
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", text)
    return page
