"""The figures of a report, each a function of the evidence; one drawing serves pages, documents and live views.

On a page: `figure(key, evidence).svg` inside the HTML, with `css()` (or the page's own values of the same variables) in its style.
As files: `standalone(figure)` and `png(key, evidence)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from synaptune.analysis.results import Evidence
from synaptune.core.errors import find_nearest, user_error
from synaptune.report.figures import (
    cost,
    importance,
    inspection,
    profiles,
    search,
    space,
    validation,
)
from synaptune.report.figures.theme import (
    DARK,
    LIGHT,
    Drawing,
    Figure,
    Palette,
    make_css,
    make_figure,
    make_svg_file,
    make_variables,
    render_png,
)

__all__ = [
    "DARK",
    "FIGURE_KEYS",
    "LIGHT",
    "Figure",
    "Palette",
    "draw_figure",
    "draw_figures",
    "draw_png",
    "make_css",
    "make_svg_file",
    "make_variables",
]

_DRAW_FUNCTIONS: Mapping[str, Callable[[Evidence, Palette], Drawing | None]] = {
    "convergence": search.draw_convergence,
    "seeds": validation.draw_seeds,
    "curves": validation.draw_curves,
    "importance": importance.draw_importance,
    "ablation": importance.draw_ablation,
    "evolution": search.draw_evolution,
    "correlation": space.draw_correlation,
    "parallel": space.draw_parallel,
    "profiles": profiles.draw_profiles,
    "dynamics": inspection.draw_dynamics,
    "experts": inspection.draw_experts,
    "cost": cost.draw_cost,
    "failures": cost.draw_failures,
}
FIGURE_KEYS: tuple[str, ...] = tuple(_DRAW_FUNCTIONS)  # in the order of a report


def draw_figure(key: str, evidence: Evidence) -> Figure | None:
    """A figure by its key; null when the study has nothing to draw for it. Raises UserError for an unknown key."""
    draw = _find_draw_function(key)
    return make_figure(lambda palette: draw(evidence, palette), key)


def draw_figures(evidence: Evidence) -> Iterator[Figure]:
    """All figures that the study has something for, in the order of a report."""
    for key in FIGURE_KEYS:
        found = draw_figure(key, evidence)
        if found is not None:
            yield found


def draw_png(
    figure_key: str, evidence: Evidence, *, dark: bool = False, width_px: int = 1200
) -> bytes:
    """A figure as a PNG file `width_px` wide. Raises UserError when the study has nothing to draw for it."""
    draw = _find_draw_function(figure_key)
    found = render_png(lambda palette: draw(evidence, palette), dark=dark, width=width_px)
    if found is None:
        raise user_error(
            got=f"figure {figure_key} of a study without anything to draw for it",
            expected="a figure that it has",
            do="leave it out",
        )
    return found


def _find_draw_function(key: str) -> Callable[[Evidence, Palette], Drawing | None]:
    if key not in _DRAW_FUNCTIONS:
        raise user_error(
            got=f"figure {key!r}",
            expected=f"one of {', '.join(FIGURE_KEYS)}",
            do=f"correct it (closest: {find_nearest(key, FIGURE_KEYS)})",
        )
    return _DRAW_FUNCTIONS[key]
