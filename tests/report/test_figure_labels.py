"""The texts of the figures: their size, their place on a phone, and the same word for one thing."""

import dataclasses
import re
from xml.etree import ElementTree

from helpers.figures import SVG, list_texts
from synaptune.analysis import results
from synaptune.report.figures import LIGHT, draw_figure
from synaptune.report.figures.importance import draw_ablation
from synaptune.report.figures.layout import measure_text
from synaptune.report.figures.theme import NARROW_WIDTH, TINY_SIZE, WIDTH


def find_ends(text):
    """The left and the right end of an SVG text of one line."""
    style, x = text.get("style") or "", float(text.get("x"))
    width = measure_text(text.text or "", float(re.search(r"([\d.]+)px", style)[1]))
    anchor = re.search(r"anchor: (\w+)", style)
    before = {"end": 1.0, "middle": 0.5}.get(anchor[1] if anchor else "start", 0.0)
    return x - before * width, x + (1.0 - before) * width


def make_screened(evidence, adjusted_p):
    """The evidence with a screening whose first effect has this p-value."""
    effects = [
        results.ScreenEffect(name, 0.01, -0.01, 0.03, 0.09, 1.0, index < 3)
        for index, name in enumerate(evidence.names)
    ]
    effects[0] = effects[0]._replace(adjusted_p=adjusted_p)
    screening = results.Screening(effects, [], 96, 0, 0.01, True)
    return dataclasses.replace(evidence, screening=screening)


def test_no_text_of_a_figure_is_smaller_than_11_pixels_or_leaves_a_phone(evidence, figures):
    screening = draw_figure("screening", make_screened(evidence, 0.01))
    for figure in (*figures.values(), screening):
        for svg, width in ((figure.svg, WIDTH), (figure.narrow, NARROW_WIDTH)):
            sizes = [
                float(size) for size in re.findall(r"font(?:-size)?: (?:\w+ )*([\d.]+)px", svg)
            ]
            assert sizes, figure.key
            assert min(sizes) >= TINY_SIZE, figure.key
            texts = ElementTree.fromstring(svg).iter(f"{SVG}text")
            for left, right in (find_ends(text) for text in texts if text.get("x")):
                # A label at the end of an axis may reach into the margin.
                assert -8.0 <= left <= right <= width + 8.0, figure.key


def test_the_interval_of_a_single_ablated_parameter_lies_inside_the_frame(evidence):
    gain = dataclasses.replace(evidence, ablation=evidence.ablation[:1])
    gain.ablation[0] = gain.ablation[0]._replace(
        reverted=results.Comparison(3, 1.4, 0.5, 2.3, *gain.ablation[0].reverted[4:]), alone=None
    )
    axes, *_ = draw_ablation(gain, LIGHT).canvas.axes
    low, high = axes.get_xlim()
    assert low <= 0.0
    assert high >= 2.3


def test_a_page_calls_both_sides_of_the_validation_the_same_in_every_figure(figures):
    for key in ("seeds", "curves", "dynamics", "experts"):
        words = " ".join([*list_texts(figures[key]), figures[key].caption])
        assert "start" in words
        assert "baseline" not in words
