"""The verdict of a report: its headline, what it names, and the lines that a protocol prints."""

import dataclasses
import io

import pytest
from rich.console import Console

from helpers.evidence_maker import make_full_evidence
from synaptune.analysis.repeats import Repeats
from synaptune.analysis.results import ScreenEffect, Screening
from synaptune.report import tables
from synaptune.report.advice import advise
from synaptune.report.figures import draw_figure
from synaptune.report.findings import make_verdict
from synaptune.report.page import make_sections
from synaptune.report.summary import print_verdict, summarise_study


@pytest.fixture(scope="module")
def evidence():
    return make_full_evidence(count=40)


def texts(findings):
    return {entry.title: entry.text for entry in findings}


def test_findings_in_a_pipe_are_lines(evidence):
    baseline, best = evidence.validation.before, evidence.validation.after
    summary = summarise_study(
        "s",
        evidence.trials,
        evidence.best,
        pairs=list(zip(baseline, best, strict=True)),
        defaults=evidence.start,
        seconds=1.0,
        findings=make_verdict(evidence).findings,
    )
    stream = io.StringIO()
    print_verdict(summary, Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    for finding in make_verdict(evidence).findings:
        assert f"{finding.title}: {finding.text}" in lines


def test_a_recommended_trial_is_not_called_the_one_with_the_best_objective(evidence):
    trials = [trial for trial in evidence.trials if trial.objective is not None]
    first, second, *_ = sorted(trials, key=lambda trial: trial.objective)
    study = dataclasses.replace(evidence, best=second, validated=second)
    text = texts(make_verdict(study).findings)["Recommended trial"]
    assert f"{first.objective:.6g}, is that of trial {first.number}." in text
    assert f"trial {second.number} ({second.objective:.6g})" in text
    numbers = dict(tables.list_key_numbers(study))
    assert numbers[f"best objective, trial {first.number}"] == f"{first.objective:.6g}"
    assert (
        numbers[f"objective of the recommended trial {second.number}"] == f"{second.objective:.6g}"
    )
    assert "Recommended trial" not in texts(make_verdict(evidence).findings)


@pytest.mark.parametrize(("other", "tone"), [(6.0, "good"), (-0.1, "unsure")])
def test_the_headline_of_repeated_searches_has_their_mean(evidence, other, tone):
    own = evidence.validation.gain.mean
    repeats = Repeats(["a", "b"], [own, other], [8.0, 9.0], [])
    verdict = make_verdict(dataclasses.replace(evidence, repeats=repeats))
    assert verdict.headline.endswith(f"The mean over 2 searches is {(own + other) / 2:.1f} %.")
    assert verdict.tone == tone
    covered = texts(verdict.findings)["What the interval covers"]
    assert f"found {own:.1f} and {other:.1f} % (mean" in covered


@pytest.mark.parametrize("adjusted_p", [0.01, 0.5])
def test_a_screening_without_a_significant_effect_shows_no_ranking(evidence, adjusted_p):
    effects = [
        ScreenEffect(name, 0.01, -0.01, 0.03, adjusted_p, adjusted_p, True)
        for name in evidence.names
    ]
    screening = Screening(effects, [], 96, 0, 0.005, True)
    study = dataclasses.replace(evidence, screening=screening)
    sections = make_sections(study, [draw_figure("screening", study)])
    html = {section.key: section.html for section in sections}["screening"]
    assert ("<svg" in html) == (adjusted_p < 0.05) == ("by subsystem" in html)
    assert "<details>" in html


def test_a_study_that_was_only_screened_says_what_was_found_and_how_it_goes_on(evidence):
    effects = [ScreenEffect(evidence.names[0], -0.1, -0.11, -0.09, 0.001, 0.001, True)]
    study = dataclasses.replace(
        evidence,
        screening=Screening(effects, [], 96, 0, 0.005, True),
        trials=[],
        best=None,
        validation=None,
        state="ended",
    )
    headline = make_verdict(study).headline
    assert headline.startswith("Screening only: 1 of 1 effects are significant")
    assert headline.endswith("No search has started.")
    assert "sweep-phase1" in texts(advise(study))["Search"]


def test_a_gain_that_is_too_small_to_go_on_has_no_tone_of_success(evidence):
    validation = dataclasses.replace(evidence.validation, decision="stop")
    assert make_verdict(dataclasses.replace(evidence, validation=validation)).tone == "unsure"
    assert make_verdict(evidence).tone == "good"


def test_the_verdict_says_what_was_compared_and_what_a_parameter_is(evidence):
    sizes = {"model.layers": 2, "model.width": 64, "training.steps": 200}
    facts = {"search.protocol": "phase1", "data.source": "stdlib"} | sizes
    study = dataclasses.replace(evidence, provenance={"configuration": facts})
    found = texts(make_verdict(study).findings)
    assert "2 layers of width 64, 200 training steps, data stdlib" in found["What was compared"]
    assert f"trial {study.validated.number}" in found["What was compared"]
    carried = found["What carries the gain"]
    assert "barrier_strength: how much less a head attends to a key a full context away." in carried
    assert "What was compared" not in texts(make_verdict(evidence).findings)
