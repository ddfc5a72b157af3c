"""Palettes, and the conversion of a drawing to an SVG that follows the page's light or dark mode.

A drawing is made in one of three palettes. LIGHT and DARK have real colours. VARIABLES has
placeholder colours, which `make_inline_svg` replaces by the CSS variables of `make_variables`:
--paper, --ink, --muted, --grid, --baseline, --best, --accent, --bad, --other, --strong (text on the
ends of a colour scale), --loss-1 (worst) to --loss-5 (best), and --sign-1 (-1) to --sign-11 (+1).
The middle of the sign scale is close to the paper's colour. Two quantities differ by blue and
orange, which all common forms of colour blindness distinguish.
"""

from __future__ import annotations

import io
import itertools
import re
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

# Widths of a figure and of its one-column form for a phone, in the units of font sizes. A page
# shows a unit as about a pixel, at least 0.92 (page.css), so that no text is below 11 pixels.
WIDTH, NARROW_WIDTH = 760, 360
TINY_SIZE, SMALL_SIZE, NORMAL_SIZE = 12.0, 14.0, 15.0
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


class Palette(SimpleNamespace):
    """A colour #rrggbb for each role, as in LIGHT; `loss` and `sign` are scales of colours.

    Attributes:
        width: width of the figures.
        is_narrow: whether they have one column, for a phone.
    """

    width = WIDTH
    is_narrow = False

    def to_variables(self) -> dict[str, str]:
        """Return the colours by the names of their CSS variables, without the leading dashes."""
        colours: dict[str, str] = {}
        for role, value in vars(self).items():
            scale = {f"{role}-{index}": colour for index, colour in enumerate(value, 1)}
            colours |= {role: value} if isinstance(value, str) else scale
        return colours


class NarrowPalette(Palette):
    """The colours of figures for a phone."""

    width = NARROW_WIDTH
    is_narrow = True


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


_numbers = itertools.count(1)


def _make_placeholder(colour: Any) -> Any:
    if isinstance(colour, str):
        return f"#0a0b{next(_numbers):02x}"
    return tuple(map(_make_placeholder, colour))


VARIABLES = Palette(**{role: _make_placeholder(value) for role, value in vars(LIGHT).items()})
NARROW_VARIABLES = NarrowPalette(**vars(VARIABLES))
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
        narrow: the figure in one column, for a phone; empty without one.
    """

    key: str
    title: str
    caption: str
    svg: str
    narrow: str = ""


# Matplotlib's settings are global, and the dashboard draws in several threads.
_DRAW_LOCK = threading.RLock()
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
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
    saved = _save_drawing(draw, VARIABLES, format="svg", salt=key)
    if saved is None:
        return None
    drawing, wide = saved
    _, narrow = _save_drawing(draw, NARROW_VARIABLES, format="svg", salt=f"{key}-narrow") or saved
    wide_svg, narrow_svg = (
        make_inline_svg(svg.decode(), key, drawing.title) for svg in (wide, narrow)
    )
    return Figure(key, drawing.title, drawing.caption, wide_svg, narrow_svg)


def render_png(
    draw: Callable[[Palette], Drawing | None], *, dark: bool, width: int
) -> bytes | None:
    """Render a PNG `width` pixels wide; None when the function draws nothing."""
    palette = DARK if dark else LIGHT
    saved = _save_drawing(
        draw, palette, format="png", dpi=72.0 * width / WIDTH, facecolor=palette.paper
    )
    return None if saved is None else saved[1]


def _save_drawing(
    draw: Callable[[Palette], Drawing | None], palette: Palette, *, salt: str = "", **options: Any
) -> tuple[Drawing, bytes] | None:
    """Draw and save a file.

    Args:
        draw: the drawing function.
        palette: its colours.
        salt: makes the ids inside an SVG different from those of figures with another salt.
        options: options of matplotlib's `savefig`.

    Returns:
        The drawing and the content of the file; None when the function draws nothing.
    """
    import matplotlib

    settings: Any = {**_SETTINGS, "svg.hashsalt": f"synaptune-{salt}"}
    with _DRAW_LOCK, matplotlib.rc_context(settings):
        drawing = draw(palette)
        if drawing is None:
            return None
        file = io.BytesIO()
        drawing.canvas.savefig(file, metadata=_METADATA[options["format"]], **options)
        return drawing, file.getvalue()


# Without dates and versions, the same drawing gives the same bytes.
_METADATA = {
    "svg": {"Date": None, "Creator": None, "Format": None, "Type": None},
    "png": {"Software": None},
}
_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_DOT = re.compile(r"M (\S+ \S+) L \1(?= |$)")
_HASHED_ID = re.compile(r"[mp][0-9a-f]{10}")
# Characters that XML 1.0 forbids (section 2.2).
_FORBIDDEN = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_FONT = re.compile(r"font-family: [^;]*;? ?|font: (?=\d)")
ElementTree.register_namespace("", _SVG[1:-1])


def make_inline_svg(svg: str, key: str, title: str) -> str:
    """Convert matplotlib's SVG to an element of a page.

    Placeholder colours become CSS variables, and numbers are shortened. Of the ids only those that
    are referenced remain: the others are not unique on a page.
    """
    # Matplotlib copies texts unchanged; a single forbidden character would make the XML invalid.
    drawn = ElementTree.fromstring(_FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", svg))
    attributes = {
        "viewBox": drawn.get("viewBox", ""),
        "width": "100%",
        "role": "img",
        "class": f"figure figure-{key}",
        "font-family": FONTS,
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
    }
    root = ElementTree.Element(f"{_SVG}svg", attributes)
    ElementTree.SubElement(root, f"{_SVG}title").text = title
    for part in drawn:
        # Matplotlib's style sheet would apply to the whole page.
        if part.tag in (f"{_SVG}g", f"{_SVG}defs") and part.find(f"{_SVG}style") is None:
            for element in part.iter():
                _shorten(element)
            root.append(part)
    return ElementTree.tostring(root, encoding="unicode")


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


def _shorten(element: ElementTree.Element) -> None:
    attributes = element.attrib
    name = attributes.get("id", "")
    if not _HASHED_ID.fullmatch(name):
        attributes.pop("id", None)
    if _LINK in attributes:
        attributes["href"] = attributes.pop(_LINK)
    for key in ("d", "x", "y", "width", "height", "transform"):
        if key in attributes:
            numbers = _NUMBER.sub(
                lambda match: f"{float(match[0]):.1f}".replace("-0.0", "0"), attributes[key]
            )
            attributes[key] = _DOT.sub(r"M \1h0", numbers.replace("\n", ""))
    if "style" in attributes:
        style = _COLOUR.sub(
            lambda match: _VARIABLE_OF_COLOUR.get(match[0], match[0]), attributes["style"]
        )
        attributes["style"] = _FONT.sub("", style).strip("; ")
    if name.startswith("halo"):
        for text in element.iter(f"{_SVG}text"):
            text.attrib["style"] += (
                f"; paint-order: stroke; stroke: {VARIABLES.paper}; stroke-width: 4px"
            )
    element.text, element.tail = (element.text if element.tag == f"{_SVG}text" else None), None
