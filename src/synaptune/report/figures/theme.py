"""Palettes, and the conversion of a drawing to an SVG that follows the page's light or dark mode.

A drawing is made in one of three palettes. LIGHT and DARK have real colours. VARIABLES has
placeholder colours, which `make_inline_svg` replaces by the CSS variables of `make_variables`:
--paper, --ink, --muted, --grid, --baseline, --best, --accent, --bad, --other, --strong (text on the
ends of a colour scale), --loss-1 (worst) to --loss-5 (best), and --sign-1 (-1) to --sign-11 (+1).
The middle of the sign scale is close to the paper's colour. Two quantities differ by blue and
orange, which all common forms of colour blindness distinguish.
"""

from __future__ import annotations

import hashlib
import io
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

WIDTH = 640  # of every figure, in the same units as font sizes and heights
SMALL_SIZE, NORMAL_SIZE = 14.0, 15.0
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Palette:
    """A colour for each role, as #rrggbb."""

    paper: str
    ink: str
    muted: str
    grid: str
    baseline: str
    best: str
    accent: str
    bad: str
    other: str
    strong: str
    loss: tuple[str, ...]
    sign: tuple[str, ...]

    def to_variables(self) -> dict[str, str]:
        """Return the colours by the names of their CSS variables, without the leading dashes."""
        colours: dict[str, str] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str):
                colours[field.name] = value
            else:
                colours |= {
                    f"{field.name}-{index}": colour for index, colour in enumerate(value, 1)
                }
        return colours


LIGHT = Palette(
    paper="#ffffff",
    ink="#1b2129",
    muted="#5b6673",
    grid="#e1e5ea",
    baseline="#b35a00",
    best="#0a5fb4",
    accent="#0b7a63",
    bad="#c02942",
    other="#a3adb8",
    strong="#ffffff",
    loss=("#d9dee4", "#c3cfc6", "#8fbfa6", "#4e9d84", "#1d6f60"),
    sign=(
        *("#8f4700", "#c06a12", "#dc9347", "#efbb87", "#f8e0c8"),
        "#f4f5f6",
        *("#d3e3f4", "#9fc4ea", "#5e9bd8", "#2673bd", "#0a4f96"),
    ),
)
DARK = Palette(
    paper="#14181d",
    ink="#e6eaef",
    muted="#9aa5b1",
    grid="#2b323a",
    baseline="#f0a052",
    best="#6cb2ff",
    accent="#46c9ab",
    bad="#ff7d8f",
    other="#66717d",
    strong="#0d1014",
    loss=("#343c45", "#3c5450", "#3f7a6c", "#4fa78f", "#86dcc0"),
    sign=(
        *("#ffb262", "#d98a3c", "#a66a31", "#71502f", "#44372a"),
        "#20262d",
        *("#24384d", "#2b5277", "#3a78af", "#569cde", "#8cc5ff"),
    ),
)


def _make_placeholders() -> Palette:
    numbers = iter(range(1, 100))

    def of(value: Any) -> Any:
        return f"#0a0b{next(numbers):02x}" if isinstance(value, str) else tuple(map(of, value))

    return Palette(**{field.name: of(getattr(LIGHT, field.name)) for field in fields(Palette)})


VARIABLES = _make_placeholders()
_VARIABLE_OF_COLOUR = {
    colour: f"var(--{name})" for name, colour in VARIABLES.to_variables().items()
}


class Drawing(NamedTuple):
    """A matplotlib figure with its title and caption."""

    canvas: Canvas
    title: str
    caption: str


class Figure(NamedTuple):
    """A figure for a page.

    Attributes:
        key: one of FIGURE_KEYS.
        title: heading.
        caption: text below the figure.
        svg: SVG element with CSS variables for colours, as wide as its container.
    """

    key: str
    title: str
    caption: str
    svg: str


# Matplotlib's settings are global, and the dashboard draws in several threads.
_DRAW_LOCK = threading.RLock()
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "synaptune",
    "text.parse_math": False,
    # Wider than the fonts of the pages, so a text that fits here also fits there.
    "font.family": ["DejaVu Sans"],
    "font.size": NORMAL_SIZE,
    "axes.linewidth": 0.8,
    "axes.xmargin": 0.0,
    "axes.ymargin": 0.0,
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": False,
    "axes.axisbelow": True,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "xtick.major.pad": 6.0,
    "ytick.major.pad": 6.0,
    "path.simplify": True,
}


def make_variables(dark: bool = False) -> str:
    """Return the CSS declarations `--paper: #ffffff; ...` for the style of a page."""
    return " ".join(
        f"--{name}: {colour};" for name, colour in (DARK if dark else LIGHT).to_variables().items()
    )


def make_css() -> str:
    """Return a style sheet: light colours, dark where the reader prefers them, light in print."""
    return (
        f":root {{ {make_variables()} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {make_variables(dark=True)} }} }}\n"
        f"@media print {{ :root {{ {make_variables()} }} }}\n"
    )


def make_figure(draw: Callable[[Palette], Drawing | None], key: str) -> Figure | None:
    """Make a figure for a page with a drawing function; None when the function draws nothing."""
    saved = _save_drawing(draw, VARIABLES, "svg")
    return (
        None
        if saved is None
        else Figure(
            key,
            saved[0].title,
            saved[0].caption,
            make_inline_svg(saved[1].decode(), key, saved[0].title),
        )
    )


def render_png(
    draw: Callable[[Palette], Drawing | None], *, dark: bool, width: int
) -> bytes | None:
    """Render a PNG `width` pixels wide; None when the function draws nothing."""
    saved = _save_drawing(draw, DARK if dark else LIGHT, "png", dpi=72.0 * width / WIDTH)
    return None if saved is None else saved[1]


def _save_drawing(
    draw: Callable[[Palette], Drawing | None], palette: Palette, kind: str, dpi: float = 72.0
) -> tuple[Drawing, bytes] | None:
    import matplotlib

    with _DRAW_LOCK, matplotlib.rc_context(_SETTINGS):
        drawing = draw(palette)
        if drawing is None:
            return None
        file = io.BytesIO()
        metadata = (
            {"Date": None, "Creator": None, "Format": None, "Type": None}
            if kind == "svg"
            else {"Software": None}
        )
        face = "none" if kind == "svg" else palette.paper
        drawing.canvas.savefig(file, format=kind, dpi=dpi, metadata=metadata, facecolor=face)
        return drawing, file.getvalue()


_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_DOT = re.compile(r"M (\S+ \S+) L \1(?= |$)")
# Characters that XML 1.0 forbids (section 2.2).
_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_FONT = re.compile(r"font-family: [^;]*;? ?|font: (?=\d)")


def make_inline_svg(svg: str, key: str, title: str) -> str:
    """Convert matplotlib's SVG to an element of a page.

    Placeholder colours become CSS variables, numbers are shortened, and ids get a prefix that is
    unique to this figure.
    """
    # Matplotlib copies texts unchanged; a single forbidden character would make the XML invalid.
    svg = _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", svg)
    id_prefix = f"{key}-{hashlib.sha256(svg.encode()).hexdigest()[:8]}-"
    root = ElementTree.fromstring(svg)
    used_ids = set(re.findall(r"#([mp][0-9a-f]{10})\b", svg))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{_SVG}style" or child.tag.endswith("}metadata"):
                parent.remove(child)
    for element in root.iter():
        _shorten(element, used_ids, id_prefix)
    _flatten(root)
    body = "".join(_serialise(child) for child in root)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{root.get("viewBox")}" width="100%" '
        f'role="img" class="figure figure-{key}" font-family="{FONTS}" stroke-linejoin="round" '
        f'stroke-linecap="butt"><title>{escape(title)}</title>{body}</svg>'
    )


def make_svg_file(figure: Figure, *, dark: bool = False) -> str:
    """Make a standalone SVG file: real colours on a background, with a width in pixels."""
    colours = (DARK if dark else LIGHT).to_variables()
    svg = re.sub(r"var\(--([a-z]+(?:-\d+)?)\)", lambda match: colours[match[1]], figure.svg)
    _, _, width, height = re.search(r'viewBox="([^"]*)"', svg)[1].split()  # type: ignore[index]
    svg = svg.replace('width="100%"', f'width="{width}" height="{height}"', 1)
    svg = svg.replace(
        "</title>", f'</title><rect width="100%" height="100%" fill="{colours["paper"]}"/>', 1
    )
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg}\n'


def _shorten(element: ElementTree.Element, used_ids: set[str], id_prefix: str) -> None:
    attributes = element.attrib
    name = attributes.pop("id", "")
    if name in used_ids:
        attributes["id"] = id_prefix + name
    link = attributes.pop(_LINK, "")
    if link:
        attributes["href"] = f"#{id_prefix}{link[1:]}" if link.startswith("#") else link
    if "clip-path" in attributes:
        attributes["clip-path"] = attributes["clip-path"].replace("url(#", f"url(#{id_prefix}")
    for key in ("d", "x", "y", "width", "height", "transform"):
        if key in attributes:
            attributes[key] = _NUMBER.sub(
                lambda match: f"{float(match[0]):.1f}".replace("-0.0", "0"),
                attributes[key].replace("\n", ""),
            )
    if "d" in attributes:
        attributes["d"] = _DOT.sub(r"M \1h0", attributes["d"])
    if "style" in attributes:
        style = _FONT.sub("", attributes["style"])
        attributes["style"] = _COLOUR.sub(
            lambda match: _VARIABLE_OF_COLOUR.get(match[0], match[0]), style
        ).strip("; ")
    if attributes.get("transform", "").startswith(("rotate(-0 ", "rotate(0 ")):
        del attributes["transform"]
    if name.startswith("halo"):
        for text in element.iter(f"{_SVG}text"):
            text.attrib["style"] += (
                f"; paint-order: stroke; stroke: {VARIABLES.paper}; stroke-width: 4px"
            )
    element.text, element.tail = (element.text if element.tag == f"{_SVG}text" else None), None


def _flatten(parent: ElementTree.Element) -> None:
    """Replace groups without attributes by their children."""
    for child in list(parent):
        _flatten(child)
    for index in range(len(parent) - 1, -1, -1):
        child = parent[index]
        if (
            child.tag in (f"{_SVG}g", f"{_SVG}defs")
            and not child.attrib
            and (child.tag == f"{_SVG}g" or not len(child))
        ):
            parent[index : index + 1] = list(child)


def _serialise(element: ElementTree.Element) -> str:
    name = element.tag.rpartition("}")[2]
    attributes = "".join(
        f' {key}="{escape(value, {chr(34): "&quot;"})}"' for key, value in element.attrib.items()
    )
    body = escape(element.text or "") + "".join(_serialise(child) for child in element)
    return f"<{name}{attributes}>{body}</{name}>" if body else f"<{name}{attributes}/>"
