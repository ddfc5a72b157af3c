"""Figures of a report. Each figure is a function of the evidence.

On a page: `draw_figure(key, evidence).svg` inside the HTML, with `make_css()` in its style. A page
can also define the same CSS variables itself.
As files: `make_svg_file(figure)` and `draw_png(key, evidence)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from synaptune.analysis.results import Evidence
from synaptune.core.errors import suggest, user_error
from synaptune.report.figures import (
    cost,
    importance,
    inspection,
    lineage,
    profiles,
    regimes,
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
    "screening": importance.draw_screening,
    "regimes": lambda evidence, palette: regimes.draw_regimes(evidence.regimes, palette),
    "curves": validation.draw_curves,
    "importance": importance.draw_importance,
    "ablation": importance.draw_ablation,
    "evolution": search.draw_evolution,
    "lineage": lineage.draw_lineage,
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
    """Draw the figure of a key.

    Returns:
        The figure; None when the study has no data for it.

    Raises:
        UserError: the key is unknown.
    """
    return make_figure(_bind_draw_function(key, evidence), key)


def draw_figures(evidence: Evidence) -> Iterator[Figure]:
    """Draw all figures for which the study has data, in the order of a report."""
    figures = (draw_figure(key, evidence) for key in FIGURE_KEYS)
    return (figure for figure in figures if figure is not None)


def draw_png(
    figure_key: str, evidence: Evidence, *, dark: bool = False, width_px: int = 1200
) -> bytes:
    """Draw a figure as a PNG file.

    Args:
        figure_key: one of FIGURE_KEYS.
        evidence: the study.
        dark: use the dark palette.
        width_px: width of the image [px].

    Raises:
        UserError: the key is unknown, or the study has no data for the figure.
    """
    image = render_png(_bind_draw_function(figure_key, evidence), dark=dark, width=width_px)
    if image is None:
        raise user_error(
            got=f"figure {figure_key} of a study without data for it",
            expected="a figure for which the study has data",
            do="leave it out",
        )
    return image


def _bind_draw_function(key: str, evidence: Evidence) -> Callable[[Palette], Drawing | None]:
    if key not in _DRAW_FUNCTIONS:
        raise user_error(
            got=f"figure {key!r}",
            expected=f"one of {', '.join(FIGURE_KEYS)}",
            do=f"correct it{suggest(key, FIGURE_KEYS)}",
        )
    return partial(_DRAW_FUNCTIONS[key], evidence)
