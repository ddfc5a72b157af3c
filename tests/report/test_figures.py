"""The figures of a report: their content, and their use in a page, a file and a screen reader."""

import copy
import dataclasses
import io
import math
import re
import threading
from xml.etree import ElementTree

import matplotlib.colors
import matplotlib.image
import pytest

from helpers.evidence_maker import (
    AWKWARD,
    SPACE,
    make_empty_evidence,
    make_full_evidence,
    make_single_evidence,
    make_unfinished_evidence,
)
from helpers.figures import SVG, list_texts
from synaptune.analysis import results
from synaptune.core.errors import UserError
from synaptune.core.text import format_duration, make_label, make_labels
from synaptune.report.figures import (
    DARK,
    FIGURE_KEYS,
    LIGHT,
    draw_figure,
    draw_figures,
    draw_png,
    make_css,
    make_svg_file,
)
from synaptune.report.figures.axis import list_round_values, locate_value
from synaptune.report.figures.layout import MINUS, format_number, spread_apart
from synaptune.report.figures.theme import (
    NARROW_WIDTH,
    VARIABLES,
    WIDTH,
    make_inline_svg,
)
from synaptune.search.space.space import Dimension, Space

GROWING_FIGURES = (
    "convergence",
    "evolution",
    "parallel",
    "profiles",
    "failures",
)  # their size grows with the number of trials


def test_a_full_study_has_every_figure_in_the_order_of_the_report(figures):
    # tests/protocols has a study with a screening, and one of population-based training.
    others = ("screening", "lineage")
    assert tuple(figures) == tuple(key for key in FIGURE_KEYS if key not in others)
    assert all(figure.title and figure.caption.endswith(".") for figure in figures.values())


def test_every_colour_is_a_variable_that_both_palettes_define(figures):
    known = LIGHT.to_variables().keys()
    assert known == DARK.to_variables().keys()
    used = set()
    for figure in figures.values():
        references = re.sub(r'(href="#|url\(#)[^")]*', "", figure.svg)
        assert not re.findall(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|: (?:black|white)\b", references), (
            figure.key
        )
        used |= set(re.findall(r"var\(--([a-z0-9-]+)\)", figure.svg))
        for element in ElementTree.fromstring(figure.svg).iter():
            if element.tag == f"{SVG}text":
                assert "fill: var(--" in element.get("style", ""), (
                    f"{figure.key}: {element.text} has a fixed colour"
                )
    assert used <= known
    assert {"ink", "muted", "grid", "baseline", "best", "loss-5", "sign-6"} <= used
    assert all(f"--{name}:" in make_css() for name in known)


def test_a_figure_is_one_element_as_wide_as_its_place_with_a_title_for_screen_readers(figures):
    for figure in figures.values():
        root = ElementTree.fromstring(figure.svg)
        assert figure.svg.startswith("<svg ")
        assert (root.tag, root.get("role"), root.get("width")) == (f"{SVG}svg", "img", "100%")
        assert root.get("viewBox").startswith(f"0 0 {WIDTH} ")
        assert f'viewBox="0 0 {NARROW_WIDTH} ' in figure.narrow
        assert root[0].tag == f"{SVG}title"
        assert root[0].text == figure.title
        assert not list(root.iter(f"{SVG}style")), "a style inside would hold for the evidence page"


def test_ids_are_unique_on_a_page_and_every_reference_resolves(figures):
    ids = [name for figure in figures.values() for name in re.findall(r' id="([^"]*)"', figure.svg)]
    assert len(ids) == len(set(ids))
    for figure in figures.values():
        references = re.findall(r'(?:href="#|url\(#)([^")]*)', figure.svg)
        assert set(references) <= set(re.findall(r' id="([^"]*)"', figure.svg)), figure.key


def test_names_are_shown_as_they_are_and_never_as_markup_or_formulas():
    study = make_full_evidence(count=30, awkward=True)
    assert study.names[0] == AWKWARD
    for key in ("correlation", "parallel", "evolution"):
        figure = draw_figure(key, study)
        assert "$x_1$" in list_texts(figure), key
        assert "<script" not in figure.svg
    assert '<script>alert("&")</script>' in list_texts(draw_figure("correlation", study))


def test_the_same_study_gives_the_same_bytes_in_threads_and_keeps_matplotlib_settings(
    evidence, figures
):
    before = dict(matplotlib.rcParams)
    again = {}
    threads = [
        threading.Thread(target=lambda key=key: again.update({key: draw_figure(key, evidence)}))
        for key in ("cost", "seeds", "failures")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert again == {key: figures[key] for key in ("cost", "seeds", "failures")}
    assert dict(matplotlib.rcParams) == before


@pytest.mark.slow
def test_ten_thousand_trials_make_a_small_page():
    study = make_full_evidence(count=10_000)
    sizes = {key: len(draw_figure(key, study).svg) for key in GROWING_FIGURES}
    assert sum(sizes.values()) < 800_000, (
        sizes
    )  # the others do not grow, and all together stay below 1.5 MB
    assert "of the" in draw_figure("parallel", study).caption


def test_all_figures_of_a_page_are_small(figures):
    assert sum(len(figure.svg) for figure in figures.values()) < 500_000


def test_a_study_without_results_has_few_figures():
    assert list(draw_figures(make_empty_evidence())) == []
    assert {figure.key for figure in draw_figures(make_unfinished_evidence())} == {
        "cost",
        "failures",
    }
    assert {figure.key for figure in draw_figures(make_single_evidence())} == {
        "convergence",
        "parallel",
        "cost",
    }


def test_an_ablation_of_the_optimum_alone_does_not_name_the_start(evidence):
    rows = [entry._replace(alone=None, adjusted_alone=None) for entry in evidence.ablation]
    drawn = draw_figure("ablation", dataclasses.replace(evidence, ablation=rows))
    assert "alone, from the start" not in list_texts(drawn)
    assert "Green" not in drawn.caption


def test_the_ablation_ranks_by_worth_and_marks_what_is_significant(evidence, figures):
    words = list_texts(figures["ablation"])
    ranked = [
        entry.name.rsplit(".", 1)[-1]
        for entry in sorted(evidence.ablation, key=lambda entry: -entry.reverted.mean)
    ]
    assert [word for word in words if word in ranked] == ranked
    hollow = figures["ablation"].svg.count("stroke: var(--paper)")
    doubtful = [
        p
        for entry in evidence.ablation
        for p in (entry.adjusted_reverted, entry.adjusted_alone)
        if p is not None and p >= 0.05
    ]
    assert hollow == len(doubtful) > 0


def test_the_validation_shows_its_gain_and_the_failures_their_share(evidence, figures):
    gain = evidence.validation.gain
    assert f"mean {gain.mean:.1f} ({gain.low:.1f} to {gain.high:.1f})" in list_texts(
        figures["seeds"]
    )
    failed, runs = sum(map(len, evidence.failures.values())), sum(evidence.runs_by_phase.values())
    assert f"{failed} of {runs} trials" in figures["failures"].caption


def test_a_maximised_objective_is_shown_by_its_name_and_its_own_numbers():
    maximised = make_full_evidence(count=60, maximize=True)
    for key in ("convergence", "profiles"):
        figure = draw_figure(key, maximised)
        words = list_texts(figure)
        assert "objective (higher is better)" in words
        assert not any(re.search(r"\bloss\b", text, re.I) for text in [*words, figure.caption])
    best = max(trial.objective for trial in maximised.trials if trial.objective is not None)
    assert f"best {format_number(best, 4)}" in list_texts(draw_figure("convergence", maximised))


def test_an_inspection_with_missing_parts_is_drawn_partially(evidence):
    def with_inspections(**inspections):
        return dataclasses.replace(evidence, inspections=inspections)

    failed = {"unit": [], "seed": 1000, "failed": "MemoryError"}
    dense = {**evidence.inspections["best"], "life": None}
    assert draw_figure("dynamics", with_inspections(baseline=failed, best=failed)) is None
    assert draw_figure("experts", with_inspections(best=dense)) is None
    shown = list_texts(
        draw_figure(
            "dynamics",
            with_inspections(
                baseline=failed, best={"dynamics": {"mean": {"calcium": [None, 0.1, 0.2]}}}
            ),
        )
    )
    assert "calcium [1]" in shown
    assert "best" in shown
    assert "baseline" not in shown


def test_a_standalone_file_has_real_colours_on_a_background(figures):
    figure = figures["cost"]
    light, dark = make_svg_file(figure), make_svg_file(figure, dark=True)
    for text, palette in ((light, LIGHT), (dark, DARK)):
        ElementTree.fromstring(text.encode())
        assert "var(" not in text
        assert f'width="{WIDTH}' in text
        assert f'fill="{palette.paper}"' in text
        assert palette.best in text
    assert light != dark


def test_a_png_has_the_width_asked_for(evidence):
    data = draw_png("seeds", evidence, width_px=900, dark=True)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == 900
    with pytest.raises(UserError, match="without data"):
        draw_png("seeds", make_empty_evidence())


def test_points_are_visible_in_a_png(evidence):
    pixels = matplotlib.image.imread(io.BytesIO(draw_png("failures", evidence, width_px=640)))[
        ..., :3
    ]
    red = matplotlib.colors.to_rgb(LIGHT.bad)
    failed = sum(map(len, evidence.failures.values()))
    assert (abs(pixels - red).max(-1) < 0.35).sum() > 20 * failed  # a dot is 9 wide


def test_a_character_that_xml_forbids_is_replaced_by_a_symbol(evidence):
    inspections = copy.deepcopy(evidence.inspections)
    for side in inspections.values():
        side["dynamics"]["text"] = ["a", "\0", "\x1b", "\ufffe", "b", *side["dynamics"]["text"][5:]]
    shown = list_texts(
        draw_figure("dynamics", dataclasses.replace(evidence, inspections=inspections))
    )
    assert shown.count("□") == 3
    ElementTree.fromstring(
        make_inline_svg(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1">'
            "<text>\0\x1b\ufffe</text></svg>",
            "a",
            "t",
        )
    )


def test_importances_that_are_nan_are_not_drawn(evidence):
    nameless = [results.Importance(name, math.nan, math.nan) for name in evidence.names]
    assert (
        draw_figure("importance", dataclasses.replace(evidence, importances=nameless, ablation=[]))
        is not None
    )


def test_the_random_curve_ends_with_the_search_and_its_label_lies_inside(evidence):
    course = evidence.convergence
    short = course._replace(**{part: list(getattr(course, part))[:20] for part in course._fields})
    fewer = dataclasses.replace(
        evidence,
        convergence=short,
        trials=evidence.trials[:20],
        losses=evidence.losses[:20],
        units=evidence.units[:20],
    )
    figure = draw_figure("convergence", fewer)
    (label,) = [
        text
        for text in ElementTree.fromstring(figure.svg).iter(f"{SVG}text")
        if (text.text or "").startswith("random search")
    ]
    assert 0.0 < float(label.get("x")) < WIDTH


def test_a_caption_counts_the_parameters_with_data_and_names_an_order_only_if_there_is_one(
    evidence,
):
    dimensions = [dataclasses.replace(SPACE.dimensions[0], name=f"group.p{at}") for at in range(40)]
    names, profile = tuple(dimension.name for dimension in dimensions), evidence.profiles[0]
    wide = dataclasses.replace(
        evidence,
        names=names,
        space=Space(tuple(dimensions)),
        start={},
        importances=[],
        ablation=[],
        effects=[],
        best=None,
    )
    few = dataclasses.replace(wide, profiles=[profile._replace(name=name) for name in names[:20]])
    assert "Shown are" not in draw_figure("profiles", few).caption
    many = dataclasses.replace(wide, profiles=[profile._replace(name=name) for name in names])
    assert "Shown are 24 of 40 parameters, the first ones." in draw_figure("profiles", many).caption
    ranked = dataclasses.replace(
        many, importances=[results.Importance(name, 0.1, None) for name in names]
    )
    assert (
        "Shown are 24 of 40 parameters, by importance." in draw_figure("profiles", ranked).caption
    )


def test_an_unknown_start_is_not_in_a_legend(evidence):
    for key in ("profiles", "parallel", "evolution"):
        assert any("start" in word for word in list_texts(draw_figure(key, evidence))), key
        assert not any(
            "start" in word
            for word in list_texts(draw_figure(key, dataclasses.replace(evidence, start={})))
        ), key


def test_an_unknown_figure_raises_an_error_that_names_the_known_ones():
    with pytest.raises(UserError, match="convergence"):
        draw_figure("convergense", make_empty_evidence())


def test_choices_and_integers_have_axes(evidence):
    dimension = Dimension(
        "model.kind", "categorical", choices=("gru <&>", "lstm", "transformer"), start="lstm"
    )
    trials = [
        dataclasses.replace(
            trial, values={**trial.values, "model.kind": dimension.to_value(trial.unit[0])}
        )
        for trial in evidence.trials
    ]
    changed = dataclasses.replace(
        evidence,
        names=("model.kind", *evidence.names),
        trials=trials,
        units=[(trial.unit[0], *trial.unit) for trial in trials],
        space=Space((dimension, *SPACE.dimensions)),
        start={"model.kind": "lstm", **evidence.start},
        best=next(trial for trial in trials if trial.number == evidence.best.number),
    )
    words = list_texts(draw_figure("parallel", changed))
    assert {"kind", "gru <&>", "transfor…", "lstm"} <= set(words)
    assert locate_value(dimension, "no such choice") != locate_value(
        dimension, "no such choice"
    )  # nan: not figures


def test_ticks_of_a_parameter_are_round_values_of_its_scale():
    assert list_round_values(Dimension("a", "log", 0.1, 2.0), 5) == pytest.approx(
        [0.1, 0.2, 0.5, 1.0, 2.0]
    )
    assert list_round_values(Dimension("a", "log", 1e-4, 1e-2), 4) == pytest.approx(
        [1e-4, 1e-3, 1e-2]
    )
    assert list_round_values(Dimension("a", "lin", 4.0, 32.0, integer=True), 4) == [
        10.0,
        20.0,
        30.0,
    ]
    assert list_round_values(Dimension("a", "log", 3.1, 3.9), 4) == [3.1, 3.9]


def test_numbers_names_and_places_are_short_unique_and_apart():
    assert [
        format_number(value) for value in (0.0015, 0.000466, -0.42, 12_000, 5.0, True, "a")
    ] == [
        *("0.0015", "4.66e-4", f"{MINUS}0.42", "12,000", "5", "True", "a"),
    ]
    assert [format_duration(seconds) for seconds in (31.0, 403.0, 9288.0, 300_000.0)] == [
        "31 s",
        "6.7 min",
        "2.6 h",
        "3.5 days",
    ]
    assert make_labels(("a.calcium.tau", "a.energy.tau", "b.x")) == {
        "a.calcium.tau": "calcium.tau",
        "a.energy.tau": "energy.tau",
        "b.x": "x",
    }
    assert [format_duration(seconds) for seconds in (0.0, 8.24, 89.0, 9.97, -1.0)] == [
        "0 s",
        "8.2 s",
        "89 s",
        "10 s",
        "-1 s",
    ]
    deep = ("model.layer.dropout", "head.layer.dropout", "dropout", "head.rate")
    assert make_labels(deep) == dict(
        zip(deep, ("model.layer.dropout", "head.layer.dropout", "dropout", "rate"), strict=True)
    )
    assert make_label("head.rate", deep) == "rate"
    assert spread_apart([1.0, 1.0, 5.0], 1.0) == [0.5, 1.5, 5.0]


def test_placeholders_differ_from_every_real_colour():
    assert not set(VARIABLES.to_variables().values()) & {
        *LIGHT.to_variables().values(),
        *DARK.to_variables().values(),
    }
    assert len(set(VARIABLES.to_variables().values())) == len(LIGHT.to_variables())
