"""The figures of a report, each a function of the evidence; one drawing serves pages, documents and live views.

On a page: `figure(key, evidence).svg` inside the HTML, with `css()` (or the page's own values of the same variables) in its style.
As files: `standalone(figure)` and `png(key, evidence)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from synaptune.analysis.results import Evidence
from synaptune.core.errors import mistake, nearest
from synaptune.report.figures import account, gain, portraits, profiles, search, space, worth
from synaptune.report.figures.theme import DARK, LIGHT, Drawing, Figure, Palette, css, image, rendered, standalone, variables

__all__ = ["DARK", "KEYS", "LIGHT", "Figure", "Palette", "css", "figure", "figures", "png", "standalone", "variables"]

_DRAWN: Mapping[str, Callable[[Evidence, Palette], Drawing | None]] = {
    "convergence": search.convergence,
    "seeds": gain.seeds,
    "curves": gain.curves,
    "importance": worth.importance,
    "ablation": worth.ablation,
    "evolution": search.evolution,
    "correlation": space.correlation,
    "parallel": space.parallel,
    "profiles": profiles.profiles,
    "dynamics": portraits.dynamics,
    "experts": portraits.experts,
    "cost": account.cost,
    "failures": account.failures,
}
KEYS: tuple[str, ...] = tuple(_DRAWN)  # in the order of a report


def figure(key: str, evidence: Evidence) -> Figure | None:
    """A figure by its key; null when the study has nothing to draw for it. Raises UserError for an unknown key."""
    draw = _drawn(key)
    return rendered(lambda palette: draw(evidence, palette), key)


def figures(evidence: Evidence) -> Iterator[Figure]:
    """All figures that the study has something for, in the order of a report."""
    for key in KEYS:
        found = figure(key, evidence)
        if found is not None:
            yield found


def png(figure_key: str, evidence: Evidence, *, dark: bool = False, width_px: int = 1200) -> bytes:
    """A figure as a PNG file `width_px` wide. Raises UserError when the study has nothing to draw for it."""
    draw = _drawn(figure_key)
    found = image(lambda palette: draw(evidence, palette), dark=dark, width=width_px)
    if found is None:
        raise mistake(
            got=f"figure {figure_key} of a study without anything to draw for it", expected="a figure that it has", do="leave it out"
        )
    return found


def _drawn(key: str) -> Callable[[Evidence, Palette], Drawing | None]:
    if key not in _DRAWN:
        raise mistake(got=f"figure {key!r}", expected=f"one of {', '.join(KEYS)}", do=f"correct it (closest: {nearest(key, KEYS)})")
    return _DRAWN[key]
