"""The sentences of a report agree with its numbers, and its commands with the study's protocol."""

import dataclasses
import math
import statistics

import pytest
from rich.console import Console

from helpers.evidence_maker import (
    make_comparison,
    make_full_evidence,
    make_single_evidence,
    make_unfinished_evidence,
)
from synaptune.analysis.results import (
    SelectionBias,
    ValidationResult,
)
from synaptune.report import next_commands, tables
from synaptune.report.advice import advise, count_needed_seeds
from synaptune.report.figures import draw_figure
from synaptune.report.findings import describe_gain, make_verdict, rank_moves
from synaptune.report.page import make_sections, render_html
from synaptune.report.summary import print_verdict, summarise_study


@pytest.fixture(scope="module")
def evidence():
    return make_full_evidence(count=40)


def make_protocol_study(
    study,
    protocol,
    *,
    database="outputs/studies/shakespeare/study.db",
    decision="proceed",
    **changes,
):
    """A study as a protocol creates it; protocol None means a study of another program."""
    settings = {"search.protocol": protocol} if protocol else {"search.optimizer": "cma"}
    names = (
        study.names if protocol else tuple(name.removeprefix("synapse.") for name in study.names)
    )
    validation = study.validation and dataclasses.replace(study.validation, decision=decision)
    provenance = {"configuration": settings, "database": database}
    return dataclasses.replace(
        study, **{"provenance": provenance, "validation": validation, "names": names, **changes}
    )


def texts(findings):
    return {entry.title: entry.text for entry in findings}


def with_gains(study, gains):
    validation = study.validation
    return dataclasses.replace(
        study,
        validation=ValidationResult(
            validation.before, validation.after, make_comparison(gains), "re-evaluate", "no gain"
        ),
    )


def test_a_headline_names_the_reference_and_sees_no_worsening_inside_the_interval(evidence):
    assert make_verdict(evidence).headline.endswith("on 5 fresh seeds, against the start values.")
    worse, tone = describe_gain(make_comparison([-1.0, 0.6, -0.4, 0.2, -0.9]))
    assert tone == "unsure"
    assert "not significantly different from zero (95 % interval -1.2 to 0.6 %)" in worse
    assert "-0.3" not in worse
    outside, _ = describe_gain(make_comparison([-1.0, -1.2, -0.9]))
    assert "test perplexity rises by 1.0 % (95 % interval 0.7 to 1.4)" in outside


def test_a_page_calls_the_baseline_the_start(evidence):
    text = render_html(dataclasses.replace(evidence, phase="joint"), drawn_figures=[])
    assert "default" not in text.split("<body>")[1].split('id="provenance"')[0]
    assert "start" in [column.name for column in tables.tabulate_parameters(evidence).columns]


def test_a_protocol_ends_with_the_start_against_the_tuned_values(evidence, capsys):
    validation = evidence.validation
    pairs = list(zip(validation.before, validation.after, strict=True))
    summary = summarise_study(
        "s", evidence.trials, evidence.best, pairs=pairs, defaults=evidence.start, seconds=60.0
    )
    print_verdict(summary, Console(width=200))
    output = capsys.readouterr().out
    assert summary["parameters"]["synapse.vesicles.tau_rrp"]["start"] == 40.0
    assert "start" in output
    assert "default" not in output


def test_captions_say_no_more_of_the_importances_than_is_known(evidence):
    caption = draw_figure("importance", evidence).caption
    assert "whole range" not in caption
    assert "where the search sampled" in caption
    assert "default" not in caption + draw_figure("ablation", evidence).caption


def test_harmful_values_alone_are_reported(evidence):
    harmful = [
        entry._replace(reverted=make_comparison([-9.0, -9.1, -9.2]), adjusted_reverted=0.001)
        for entry in evidence.ablation[:1]
    ]
    found = texts(make_verdict(dataclasses.replace(evidence, ablation=harmful)).findings)
    assert found["What carries the gain"] == "No tuned value has a significant gain."
    assert "Better at its start value" in found


def test_pruned_trials_have_ended():
    pruned = [
        dataclasses.replace(
            make_unfinished_evidence().trials[0], number=at, state="pruned", estimate=2.0
        )
        for at in range(9)
    ]
    study = dataclasses.replace(
        make_unfinished_evidence(), trials=pruned, losses=[2.0] * 9, units=[()] * 9, failures={}
    )
    assert (
        make_verdict(study).headline
        == "No claim: no trial is complete (0 failed, 9 pruned, 0 not ended)."
    )


@pytest.mark.parametrize(
    ("fresh", "expected"),
    [
        (-0.08, "none of it remains"),
        (0.0, "none of it"),
        (0.15, "25 % of it is lost"),
        (0.2, "all of it remains"),
    ],
)
def test_the_remaining_gain_is_a_share_of_the_gain(evidence, fresh, expected):
    text = texts(
        make_verdict(
            dataclasses.replace(evidence, selection_bias=SelectionBias(0.2, fresh, fresh))
        ).findings
    )["Selection bias"]
    assert expected in text
    assert "140 %" not in text


def test_the_needed_seeds_are_the_fewest_whose_interval_excludes_zero(evidence):
    from scipy.stats import t

    gains = [3.0, -1.0, 2.5]
    found = make_comparison(gains)
    needed, spread = count_needed_seeds(found), statistics.stdev(gains)
    assert needed == 11  # scaled by the root of the seeds alone it would be 24
    for seeds, significant in ((needed - 1, False), (needed, True)):
        assert (t.ppf(0.975, seeds - 1) * spread / math.sqrt(seeds) < found.mean) == significant
    assert f"about {needed} seeds" in texts(advise(with_gains(evidence, gains)))["More seeds"]
    assert count_needed_seeds(found._replace(mean=1e-6)) > 10**12  # and it is fast


def test_selection_bias_names_the_number_of_seeds(evidence):
    assert evidence.best is not None
    searched = dataclasses.replace(evidence, validation=None, ablation=[])
    several = dataclasses.replace(
        searched, best=dataclasses.replace(evidence.best, facts={**evidence.best.facts, "seeds": 2})
    )
    seedless = dataclasses.replace(
        searched, best=dataclasses.replace(evidence.best, facts={}), selection_bias=None
    )
    assert (
        "The best of many candidates on one seed overstates"
        in texts(make_verdict(searched).findings)["In the search"]
    )
    assert (
        "on the same 2 seeds overstates" in texts(make_verdict(several).findings)["In the search"]
    )
    assert "the search's own 2 seeds" in texts(make_verdict(several).findings)["Selection bias"]
    assert "If the objective is noisy" in texts(make_verdict(seedless).findings)["In the search"]


def test_small_objectives_keep_their_digits(evidence):
    tiny = dataclasses.replace(make_single_evidence().trials[0], objective=8e-7)
    study = dataclasses.replace(make_single_evidence(), trials=[tiny], best=tiny, losses=[8e-7])
    assert (
        "best objective, trial 0",
        "8e-07",
    ) in tables.list_key_numbers(study)
    assert "has objective 8e-07" in texts(make_verdict(study).findings)["In the search"]


def test_the_verdict_compares_with_random_points_and_attributes_nothing_without_an_ablation(
    evidence,
):
    curve = evidence.random_curve._replace(count=6, best=[2.5, 2.38], source="the sanity phase")
    course = evidence.convergence._replace(evaluation=[1, 2, 3], best=[2.6, 2.4, 2.3])
    study = dataclasses.replace(evidence, random_curve=curve, convergence=course, ablation=[])
    found = texts(make_verdict(study).findings)
    assert found["Against random points"] == (
        "The lowest objective is 2.38 in 6 random points (the sanity phase) and 2.3 in the search "
        "(3 evaluations, of which number 3 was the first below all random points)."
    )
    worse = dataclasses.replace(study, convergence=course._replace(best=[2.6, 2.45, 2.4]))
    assert texts(make_verdict(worse).findings)["Against random points"].endswith(
        "2.4 in the search (3 evaluations), which is no better than random points."
    )
    moved = found["What moved most"]
    assert moved.endswith("The gain is not attributed to any of them until an ablation is there.")
    name, old, _ = rank_moves(study)[0]
    assert moved.startswith(f"{name.rpartition('.')[2]} ({old:g} to ")
    assert "What moved most" not in texts(make_verdict(evidence).findings)


def test_the_interval_is_said_to_cover_no_repeated_search(evidence):
    text = texts(make_verdict(make_protocol_study(evidence, "phase1")).findings)
    assert "11.7, 15.3 and 12.4 %" in text["What the interval covers"]
    assert "11.7" not in texts(make_verdict(evidence).findings)["What the interval covers"]


def test_sections_without_a_signal_fold_to_a_sentence(evidence):
    open_claims = [entry._replace(holds=None) for entry in evidence.hypotheses]
    study = dataclasses.replace(evidence, correlation_noise=0.999, hypotheses=open_claims)
    figures = [draw_figure("correlation", study)]
    page = {section.key: section.html for section in make_sections(study, figures)}
    assert "No two parameters are correlated" in page["search"]
    assert "<svg" not in page["search"]
    assert "None of the 4 hypotheses can be decided" in page["hypotheses"]
    assert "<details>" in page["hypotheses"]
    page = {section.key: section.html for section in make_sections(evidence, figures)}
    assert "<svg" in page["search"]
    assert "<details>" not in page["hypotheses"]


def test_one_of_something_is_singular():
    study = dataclasses.replace(make_single_evidence(), names=make_single_evidence().names[:1])
    assert texts(advise(study))["Search longer"].startswith(
        "1 evaluation for 1 parameter is a short search"
    )


def test_advice_attributes_no_gain_where_there_is_none(evidence):
    study = make_protocol_study(evidence, "phase1", ablation=[], decision="stop")
    assert "Ablate the optimum" in texts(advise(study))
    nothing = with_gains(study, [-1.0, 0.6, -0.4, 0.2, -0.9])
    assert "Ablate the optimum" not in texts(advise(nothing))
    ablated = with_gains(evidence, [-1.0, 0.6, -0.4, 0.2, -0.9])
    assert "What carries the gain" not in texts(make_verdict(ablated).findings)


def test_a_validation_that_is_older_than_the_best_is_stale(evidence):
    newer = dataclasses.replace(evidence.best, number=41, objective=evidence.best.objective - 0.1)
    study = dataclasses.replace(evidence, best=newer, validated=evidence.best)
    verdict, found = make_verdict(study), texts(advise(make_protocol_study(study, "phase1")))
    assert verdict.headline.startswith(
        f"An earlier best, trial {evidence.best.number}: tuning lowers"
    )
    assert (verdict.tone, verdict.findings[0].title) == ("unsure", "Stale validation")
    assert "trial 41" in verdict.findings[0].text
    assert "Validate again" in found
    assert "Continue" not in found
    assert f"of trial {evidence.best.number}, an earlier best" in tables.render_best_yaml(study)
    page = {section.key: section.html for section in make_sections(study, [])}
    assert "which is not validated" in page["validation"]
    assert "validated on 5 fresh seeds" in tables.render_best_yaml(evidence)


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        (
            "phase1",
            (
                '`make sweep-phase2 ARGS="protocol.start=shakespeare"` searches all parameters from'
                " this"
            ),
        ),
        (
            "phase2",
            (
                'The gate is passed: `make transfer ARGS="protocol.start=shakespeare"` with a'
                " larger SCALE"
            ),
        ),
        (None, "The gate is passed."),
    ],
)
def test_what_follows_a_gate_depends_on_the_protocol(evidence, protocol, expected):
    assert expected in texts(advise(make_protocol_study(evidence, protocol)))["Continue"]


def test_commands_name_the_location_of_the_study(evidence):
    unvalidated = {"validation": None, "ablation": []}
    first = make_protocol_study(evidence, "phase1", **unvalidated)
    assert "`make sweep-phase1 STUDY=shakespeare`" in texts(advise(first))["Validate"]
    assert "`" not in texts(advise(make_protocol_study(evidence, None, **unvalidated)))["Validate"]
    moved = make_protocol_study(evidence, "phase2", database="elsewhere/study.db", **unvalidated)
    assert (
        '`make sweep-phase2 STUDY=shakespeare ARGS="study.dir=elsewhere"`'
        in texts(advise(moved))["Validate"]
    )
    shared = make_protocol_study(
        evidence, "phase1", database="postgresql://me@host/db", ablation=[]
    )
    assert (
        '`make ablation STUDY=shakespeare ARGS="study.storage=postgresql://me@host/db"`'
        in texts(advise(shared))["Ablate the optimum"]
    )
    assert "transfer" not in texts(advise(shared))["Continue"]
    assert "Ablate the optimum" not in texts(
        advise(make_protocol_study(evidence, None, ablation=[]))
    )
    spaced = make_protocol_study(
        evidence,
        "phase1",
        ablation=[],
        name="my study",
        database="outputs/studies/my study/study.db",
    )
    assert (
        "`synaptune ablation 'study.name=my study'`" in texts(advise(spaced))["Ablate the optimum"]
    )


def test_a_reference_is_a_name_a_folder_or_a_database():
    assert next_commands.make_reference("a", "") == ("a", "")
    assert next_commands.make_reference("a", "outputs/studies/a/study.db") == ("a", "")
    assert next_commands.make_reference("a", "/home/me/outputs/studies/a/study.db") == ("a", "")
    assert next_commands.make_reference("a", "outputs/studies/b/study.db") == (
        "outputs/studies/b",
        "",
    )
    assert next_commands.make_reference("a", "all.db") == ("a", "sqlite:///all.db")


def test_commands_with_quotes_are_code_on_the_page(evidence):
    text = render_html(make_protocol_study(evidence, "phase1"), drawn_figures=[])
    assert '<code>make sweep-phase2 ARGS="protocol.start=shakespeare"</code>' in text


def test_only_training_studies_recommend_train_py(evidence):
    pages = [
        {part.key: part.html for part in make_sections(make_protocol_study(evidence, protocol), [])}
        for protocol in ("phase1", None)
    ]
    assert ["train.py tuned=" in page["best"].split("<button")[0] for page in pages] == [
        True,
        False,
    ]


def test_the_note_of_the_parameters_explains_the_shown_columns(evidence):
    assert all(
        part in tables.tabulate_parameters(evidence).note
        for part in ("Position", "Effect", "Worth")
    )
    assert "Effect" not in tables.tabulate_parameters(make_single_evidence()).note
    assert "Position" in tables.tabulate_parameters(make_single_evidence()).note


def test_many_trials_without_a_complete_one_are_listed():
    failed = make_unfinished_evidence().trials[0]
    trials = [dataclasses.replace(failed, number=at) for at in range(450)]
    study = dataclasses.replace(
        make_unfinished_evidence(), trials=trials, losses=[None] * 450, units=[()] * 450
    )
    text = render_html(study, drawn_figures=[])
    assert 'id="table-trials"' in text
    assert "The first 200 of 450 trials" in text


def test_cells_are_sorted_by_the_number_and_not_by_its_text():
    close = [
        dataclasses.replace(make_single_evidence().trials[0], number=at, objective=2.31 + at * 1e-9)
        for at in range(2)
    ]
    study = dataclasses.replace(
        make_single_evidence(),
        trials=close,
        losses=[trial.objective for trial in close],
        units=[trial.unit for trial in close],
    )
    (trials,) = [part.html for part in make_sections(study, []) if part.key == "trials"]
    assert f'data-v="{close[1].objective}"' in trials
