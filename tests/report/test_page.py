"""The page is well formed, loads nothing, escapes everything, and agrees with the study."""

import base64
import dataclasses
import hashlib
import shutil

import pytest

from helpers.evidence_maker import (
    AWKWARD,
    make_comparison,
    make_empty_evidence,
    make_full_evidence,
    make_single_evidence,
    make_unfinished_evidence,
)
from helpers.html_checker import Page, check
from synaptune.report.advice import advise
from synaptune.report.findings import make_verdict
from synaptune.report.page import BEST_ROWS, make_sections, render_html
from synaptune.report.table_model import UNKNOWN
from synaptune.report.tables import find_positions, tabulate_parameters

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def awkward() -> str:
    return render_html(make_full_evidence(count=60, awkward=True))


def test_a_page_is_well_formed_and_loads_nothing(awkward):
    page = check(awkward)
    policy = next(value for value in page.of("content") if "default-src" in value)
    assert "default-src 'none'" in policy
    script = awkward.rsplit("<script>", 1)[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    assert page.tags.count("script") == 2  # the code, and the trials as JSON


def test_names_are_shown_as_text_and_never_as_markup(awkward):
    assert "<script>alert" not in awkward
    assert "<speare>" not in awkward
    text = "".join(Page(awkward).text)
    assert 'shake<speare> & "co" $x$' in text
    assert AWKWARD in text


@pytest.mark.parametrize(
    "make", [make_empty_evidence, make_single_evidence, make_unfinished_evidence]
)
def test_a_study_without_results_has_a_page_without_a_claim(make):
    page = check(render_html(make()))
    assert any("No claim" in text for text in page.text)


def test_a_running_study_is_marked_as_running():
    assert "running" in "".join(Page(render_html(make_unfinished_evidence())).text)
    assert "running" not in make_verdict(make_full_evidence(count=20)).headline


@pytest.mark.slow
def test_a_page_of_ten_thousand_trials_is_small_and_shows_the_best():
    full = make_full_evidence(count=10)
    trials = [
        dataclasses.replace(
            full.trials[index % 10], number=index, objective=2.0 + index / 1e4, state="complete"
        )
        for index in range(10_000)
    ]
    text = render_html(
        dataclasses.replace(
            full,
            trials=trials,
            units=[trial.unit for trial in trials],
            losses=[trial.objective for trial in trials],
            profiles=[],
        )
    )
    assert len(text.encode()) < 5e6
    rows = text.split('<table id="table-trials"')[1].split("</table>")[0]
    assert rows.count("<tr") == 1 + BEST_ROWS
    assert f"The best {BEST_ROWS} of 10000 trials" in text


def test_the_verdict_leads_with_gain_interval_and_decision():
    study = make_full_evidence(count=20)
    verdict = make_verdict(study)
    gain = study.validation.gain
    assert (
        f"{gain.mean:.1f} % (95 % interval {gain.low:.1f} to {gain.high:.1f}) on 5 fresh seeds"
        in verdict.headline
    )
    assert verdict.tone == "good"
    assert verdict.findings[0].title == f"Decision: {study.validation.decision}"
    carried = next(
        entry.text for entry in verdict.findings if entry.title == "What carries the gain"
    )
    assert carried.index("barrier_strength") < carried.index("lambda_loge")
    assert "rank_eligibility" not in carried
    assert "rank_eligibility" in next(
        entry.text for entry in verdict.findings if entry.title == "Not significant"
    )


def test_a_gain_whose_interval_includes_zero_is_not_significant():
    study = make_full_evidence(count=20)
    unsure = dataclasses.replace(
        study,
        validation=dataclasses.replace(
            study.validation, gain=make_comparison([-1.0, 2.0, 0.5, 1.0, -0.2])
        ),
    )
    assert make_verdict(unsure).headline.startswith("The gain is not significant")
    assert any(entry.title == "More seeds" for entry in advise(unsure))
    worse = dataclasses.replace(
        study,
        validation=dataclasses.replace(study.validation, gain=make_comparison([-5.0, -5.2, -4.9])),
    )
    assert make_verdict(worse).tone == "bad"


def test_a_best_value_at_the_end_of_its_range_advises_a_wider_range_if_it_has_an_effect():
    study = make_full_evidence(count=20)
    unit = (0.99, *study.best.unit[1:])
    values = study.space.to_values(unit)
    edged = dataclasses.replace(
        study, best=dataclasses.replace(study.best, unit=unit, values=values)
    )
    name = edged.space.names[0]
    assert name.endswith("alpha_ca")
    row = next(entry for entry in edged.ablation if entry.name == name)
    for in_effects, in_ablation in ((True, True), (False, True), (True, False)):
        changed = dataclasses.replace(
            edged,
            effects=[
                entry._replace(significant=in_effects or entry.name != name)
                for entry in edged.effects
            ],
            ablation=[row._replace(adjusted_reverted=0.01 if in_ablation else 0.5)],
        )
        advice = [entry.text for entry in advise(changed) if entry.title == "Widen the range"]
        is_advised = any("alpha_ca" in text and "upper" in text for text in advice)
        assert is_advised == (in_effects and in_ablation)
    assert find_positions(edged)["synapse.calcium.alpha_ca"] == 0.99


def test_parameters_without_an_effect_are_fixed_only_after_a_long_search():
    assert any(entry.title == "Fix" for entry in advise(make_full_evidence(count=100)))
    short = [entry.title for entry in advise(make_full_evidence(count=40))]
    assert "Fix" not in short
    assert "Search longer" in short


def test_a_search_that_still_gains_at_its_end_advises_more_evaluations():
    study = make_full_evidence(count=120)
    for late_gain, advised in ((0.0, False), (0.3, True)):
        best = [
            1.0 - 0.8 * min(1.0, index / 50) - late_gain * (index == 119) for index in range(120)
        ]
        course = study.convergence._replace(best=best)
        assert (
            any(
                "not converged" in entry.text
                for entry in advise(dataclasses.replace(study, convergence=course))
            )
            == advised
        )


def test_a_table_omits_columns_without_data():
    headings = [column.name for column in tabulate_parameters(make_single_evidence()).columns]
    assert "best" in headings
    assert "fANOVA" not in headings


def test_figures_are_in_their_sections():
    study = make_full_evidence(count=20)
    by_key = {section.key: section.html for section in make_sections(study)}
    assert list(by_key)[:2] == ["verdict", "next"]
    assert 'id="figure-ablation"' in by_key["parameters"]
    assert 'id="figure-convergence"' in by_key["search"]
    assert "more" not in by_key


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_in_a_browser_the_trials_sort_and_filter_and_nothing_is_fetched(awkward, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    path = tmp_path / "report.html"
    path.write_text(awkward, encoding="utf-8")
    requests, messages = [], []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"], timeout=120_000
        )
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.set_default_timeout(120_000)
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.click("#table-trials thead th:nth-child(4) button")
        objectives = page.eval_on_selector_all(
            "#table-trials tbody tr td:nth-child(4)", "cells => cells.map(cell => cell.textContent)"
        )
        over_objective = page.locator('[data-view="pairs"] path.band').count()
        page.select_option('[data-axis="x"]', "2")
        page.select_option('[data-axis="y"]', "3")
        pairs = page.locator('[data-view="pairs"]')
        bands, lines = pairs.locator("path.band").count(), pairs.locator("path.contour").count()
        point = page.locator('[data-view="pairs"] circle').first
        point.dispatch_event("pointerenter")
        told = page.locator(".tip").text_content()
        point.dispatch_event("click")
        chosen = page.locator("tr.chosen").get_attribute("id")
        bars = page.locator('[data-view="times"] rect').count()
        page.fill("input[data-filters]", "failed")
        rows = page.eval_on_selector_all(
            "#table-trials tbody tr:not([hidden])", "rows => rows.map(row => row.textContent)"
        )
        browser.close()
    assert over_objective == 0  # contours of the objective over itself say nothing
    assert bands > 1
    assert lines > 0
    values = [float(text) for text in objectives if text != UNKNOWN]
    assert values == sorted(values)
    assert objectives[-1] == UNKNOWN  # trials without an objective are last
    assert told.startswith(f"Trial {chosen.removeprefix('trial-')}, ")
    assert bars == 2
    assert rows
    assert all("failed" in row for row in rows)
    assert requests == [path.as_uri()]
    assert messages == []


@pytest.mark.slow
def test_the_page_of_phase_2_shows_the_gates():
    kept = {
        "gate": "calcium",
        "decision": "winner",
        "reason": "on 3 fresh <seeds>",
        "improvement": {"mean": 1.234, "low": -0.5, "high": 3.0},
    }
    rejected = {
        "gate": "energy",
        "decision": "start",
        "reason": "no point better than the start was found",
    }
    shown = render_html(dataclasses.replace(make_full_evidence(), gates=[kept, rejected]))
    assert "<h3>Gates</h3>" in shown
    assert "on 3 fresh &lt;seeds&gt;" in shown
    assert "1.234" in shown
    assert "<h3>Gates</h3>" not in render_html(make_full_evidence())
