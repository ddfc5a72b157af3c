"""The texts of a figure."""

from __future__ import annotations

from xml.etree import ElementTree

from synaptune.report.figures.theme import Figure

SVG = "{http://www.w3.org/2000/svg}"


def list_texts(figure: Figure) -> list[str]:
    """The lines of text in a figure, in their order."""
    return [element.text or "" for element in ElementTree.fromstring(figure.svg).iter(f"{SVG}text")]
