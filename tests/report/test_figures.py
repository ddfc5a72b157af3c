"""The figures of a report: what they show, and that a page, a file and a screen reader can use them."""

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
from synaptune.report.figures.theme import VARIABLES, make_inline_svg
from synaptune.search.space.space import Dimension, Space

SVG = "{http://www.w3.org/2000/svg}"
GROWING = (
    "convergence",
    "evolution",
    "parallel",
    "profiles",
    "failures",
)  # with the number of trials


@pytest.fixture(scope="module")
def whole():
    return make_full_evidence(count=100)


@pytest.fixture(scope="module")
def drawn(whole):
    return {found.key: found for found in draw_figures(whole)}


def words_of(found):
    """The lines of text in a figure, in their order."""
    return [element.text or "" for element in ElementTree.fromstring(found.svg).iter(f"{SVG}text")]


def test_a_whole_study_has_every_figure_in_the_order_of_the_report(drawn):
    assert tuple(drawn) == FIGURE_KEYS
    assert all(found.title and found.caption.endswith(".") for found in drawn.values())


def test_every_colour_is_a_variable_that_both_palettes_define(drawn):
    known = LIGHT.to_variables().keys()
    assert known == DARK.to_variables().keys()
    used = set()
    for found in drawn.values():
        references = re.sub(r'(href="#|url\(#)[^")]*', "", found.svg)
        assert not re.findall(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|: (?:black|white)\b", references), (
            found.key
        )
        used |= set(re.findall(r"var\(--([a-z0-9-]+)\)", found.svg))
        for element in ElementTree.fromstring(found.svg).iter():
            if element.tag == f"{SVG}text":
                assert "fill: var(--" in element.get("style", ""), (
                    f"{found.key}: {element.text} is black in the dark"
                )
    assert used <= known
    assert {"ink", "muted", "grid", "baseline", "best", "loss-5", "sign-6"} <= used
    assert all(f"--{name}:" in make_css() for name in known)


def test_a_figure_is_one_element_as_wide_as_its_place_with_a_title_for_screen_readers(drawn):
    for found in drawn.values():
        root = ElementTree.fromstring(found.svg)
        assert found.svg.startswith("<svg ")
        assert (root.tag, root.get("role"), root.get("width")) == (f"{SVG}svg", "img", "100%")
        assert root.get("viewBox").startswith("0 0 640 ")
        assert root[0].tag == f"{SVG}title"
        assert root[0].text == found.title
        assert not list(root.iter(f"{SVG}style")), "a style inside would hold for the whole page"


def test_ids_are_unique_on_a_page_and_every_reference_resolves(drawn):
    ids = [name for found in drawn.values() for name in re.findall(r' id="([^"]*)"', found.svg)]
    assert len(ids) == len(set(ids))
    for found in drawn.values():
        references = re.findall(r'(?:href="#|url\(#)([^")]*)', found.svg)
        assert set(references) <= set(re.findall(r' id="([^"]*)"', found.svg)), found.key


def test_names_are_shown_as_they_are_and_never_as_markup_or_formulas():
    study = make_full_evidence(count=30, awkward=True)
    assert study.names[0] == AWKWARD
    for key in ("correlation", "parallel", "evolution"):
        found = draw_figure(key, study)
        assert "$x_1$" in words_of(found), key
        assert "<script" not in found.svg
    assert '<script>alert("&")</script>' in words_of(draw_figure("correlation", study))


def test_the_same_study_gives_the_same_bytes_also_in_several_threads_and_leaves_matplotlib_alone(
    whole, drawn
):
    before = dict(matplotlib.rcParams)
    again = {}
    threads = [
        threading.Thread(target=lambda key=key: again.update({key: draw_figure(key, whole)}))
        for key in ("cost", "seeds", "failures")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert again == {key: drawn[key] for key in ("cost", "seeds", "failures")}
    assert dict(matplotlib.rcParams) == before


def test_ten_thousand_trials_make_a_small_page():
    study = make_full_evidence(count=10_000)
    sizes = {key: len(draw_figure(key, study).svg) for key in GROWING}
    assert sum(sizes.values()) < 800_000, (
        sizes
    )  # the others do not grow, and all together stay below 1.5 MB
    assert "of the" in draw_figure("parallel", study).caption


def test_a_whole_page_of_figures_is_small(drawn):
    assert sum(len(found.svg) for found in drawn.values()) < 500_000


def test_a_young_study_draws_what_it_has():
    assert list(draw_figures(make_empty_evidence())) == []
    assert {found.key for found in draw_figures(make_unfinished_evidence())} == {"cost", "failures"}
    assert {found.key for found in draw_figures(make_single_evidence())} == {
        "convergence",
        "parallel",
        "cost",
    }


def test_the_ablation_ranks_by_worth_and_marks_what_is_significant(whole, drawn):
    words = words_of(drawn["ablation"])
    ranked = [
        entry.name.rsplit(".", 1)[-1]
        for entry in sorted(whole.ablation, key=lambda entry: -entry.reverted.mean)
    ]
    assert [word for word in words if word in ranked] == ranked
    hollow = drawn["ablation"].svg.count("stroke: var(--paper)")
    doubtful = [
        p
        for entry in whole.ablation
        for p in (entry.adjusted_reverted, entry.adjusted_alone)
        if p is not None and p >= 0.05
    ]
    assert hollow == len(doubtful) > 0


def test_the_validation_says_its_gain_and_the_failures_their_share_of_the_study(whole, drawn):
    gain = whole.validation.gain
    assert f"mean {gain.mean:.1f} ({gain.low:.1f} to {gain.high:.1f})" in words_of(drawn["seeds"])
    failed, runs = sum(map(len, whole.failures.values())), sum(whole.runs_by_phase.values())
    assert f"{failed} of {runs} trials" in drawn["failures"].caption


def test_a_portrait_with_missing_parts_is_drawn_as_far_as_it_goes(whole):
    def portrayed(**portraits):
        return dataclasses.replace(whole, inspections=portraits)

    failed = {"unit": [], "seed": 1000, "failed": "MemoryError"}
    dense = {**whole.inspections["best"], "life": None}
    assert draw_figure("dynamics", portrayed(baseline=failed, best=failed)) is None
    assert draw_figure("experts", portrayed(best=dense)) is None
    shown = words_of(
        draw_figure(
            "dynamics",
            portrayed(baseline=failed, best={"dynamics": {"mean": {"calcium": [None, 0.1, 0.2]}}}),
        )
    )
    assert "calcium" in shown
    assert "best" in shown
    assert "baseline" not in shown


def test_a_file_of_its_own_has_real_colours_on_a_background(drawn):
    found = drawn["cost"]
    light, dark = make_svg_file(found), make_svg_file(found, dark=True)
    for text, palette in ((light, LIGHT), (dark, DARK)):
        ElementTree.fromstring(text.encode())
        assert "var(" not in text
        assert 'width="640' in text
        assert f'fill="{palette.paper}"' in text
        assert palette.best in text
    assert light != dark


def test_a_png_has_the_width_asked_for(whole):
    data = draw_png("seeds", whole, width_px=900, dark=True)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(data[16:20], "big") == 900
    with pytest.raises(UserError, match="without anything to draw"):
        draw_png("seeds", make_empty_evidence())


def test_points_are_seen_in_a_png_too(whole):
    pixels = matplotlib.image.imread(io.BytesIO(draw_png("failures", whole, width_px=640)))[..., :3]
    red = matplotlib.colors.to_rgb(LIGHT.bad)
    failed = sum(map(len, whole.failures.values()))
    assert (abs(pixels - red).max(-1) < 0.35).sum() > 20 * failed  # a dot is 9 wide


def test_a_character_that_xml_forbids_is_shown_by_a_sign_and_leaves_the_figure_whole(whole):
    portraits = copy.deepcopy(whole.inspections)
    for side in portraits.values():
        side["dynamics"]["text"] = ["a", "\0", "\x1b", "\ufffe", "b", *side["dynamics"]["text"][5:]]
    shown = words_of(draw_figure("dynamics", dataclasses.replace(whole, inspections=portraits)))
    assert shown.count("□") == 3
    ElementTree.fromstring(
        make_inline_svg(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><text>\0\x1b\ufffe</text></svg>',
            "a",
            "t",
        )
    )


def test_importances_that_are_not_numbers_are_drawn_as_nothing(whole):
    nameless = [results.Importance(name, math.nan, math.nan) for name in whole.names]
    assert (
        draw_figure("importance", dataclasses.replace(whole, importances=nameless, ablation=[]))
        is not None
    )


def test_chance_ends_where_the_search_did_and_its_label_lies_inside(whole):
    course = whole.convergence
    short = course._replace(**{part: list(getattr(course, part))[:20] for part in course._fields})
    fewer = dataclasses.replace(
        whole,
        convergence=short,
        trials=whole.trials[:20],
        losses=whole.losses[:20],
        units=whole.units[:20],
    )
    found = draw_figure("convergence", fewer)
    (label,) = [
        text
        for text in ElementTree.fromstring(found.svg).iter(f"{SVG}text")
        if (text.text or "").startswith("random search")
    ]
    assert 0.0 < float(label.get("x")) < 640.0


def test_parameters_left_out_for_room_are_counted_among_those_drawn_and_an_order_is_named_only_where_one_is(
    whole,
):
    dimensions = [dataclasses.replace(SPACE.dimensions[0], name=f"group.p{at}") for at in range(40)]
    names, profile = tuple(dimension.name for dimension in dimensions), whole.profiles[0]
    wide = dataclasses.replace(
        whole,
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


def test_a_start_that_is_not_known_has_no_place_in_a_legend(whole):
    for key in ("profiles", "parallel", "evolution"):
        assert any("start" in word for word in words_of(draw_figure(key, whole))), key
        assert not any(
            "start" in word
            for word in words_of(draw_figure(key, dataclasses.replace(whole, start={})))
        ), key


def test_an_unknown_figure_is_answered_with_those_there_are():
    with pytest.raises(UserError, match="convergence"):
        draw_figure("convergense", make_empty_evidence())


def test_choices_and_whole_numbers_have_axes_too(whole):
    dimension = Dimension(
        "model.kind", "categorical", choices=("gru <&>", "lstm", "transformer"), start="lstm"
    )
    trials = [
        dataclasses.replace(
            trial, values={**trial.values, "model.kind": dimension.to_value(trial.unit[0])}
        )
        for trial in whole.trials
    ]
    changed = dataclasses.replace(
        whole,
        names=("model.kind", *whole.names),
        trials=trials,
        units=[(trial.unit[0], *trial.unit) for trial in trials],
        space=Space((dimension, *SPACE.dimensions)),
        start={"model.kind": "lstm", **whole.start},
        best=next(trial for trial in trials if trial.number == whole.best.number),
    )
    words = words_of(draw_figure("parallel", changed))
    assert {"kind", "gru <&>", "transfor…", "lstm"} <= set(words)
    assert locate_value(dimension, "no such choice") != locate_value(
        dimension, "no such choice"
    )  # nan: not drawn


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


def test_placeholders_are_told_apart_from_every_real_colour():
    assert not set(VARIABLES.to_variables().values()) & {
        *LIGHT.to_variables().values(),
        *DARK.to_variables().values(),
    }
    assert len(set(VARIABLES.to_variables().values())) == len(LIGHT.to_variables())
