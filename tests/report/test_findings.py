"""The sentences of a report agree with its numbers, and its commands with what made the study."""

import dataclasses
import math
import statistics

import pytest
from rich.console import Console

from helpers.evidence_maker import (
    BEGAN,
    make_comparison,
    make_full_evidence,
    make_single_evidence,
    make_unfinished_evidence,
)
from synaptune.analysis.results import SelectionBias, ValidationResult
from synaptune.report import next_commands as orders
from synaptune.report import tables
from synaptune.report.figures import draw_figure
from synaptune.report.findings import advise, count_needed_seeds, describe_gain, make_verdict
from synaptune.report.page import make_sections, render_html
from synaptune.report.summary import print_verdict, summarise_study


@pytest.fixture(scope="module")
def whole():
    return make_full_evidence(count=40)


def made(
    study,
    protocol,
    *,
    database="outputs/studies/shakespeare/study.db",
    decision="proceed",
    **changes,
):
    """A study as a protocol makes it; null: as another program does."""
    settings = {"search.protocol": protocol} if protocol else {"search.optimizer": "cma"}
    names = (
        study.names if protocol else tuple(name.removeprefix("synapse.") for name in study.names)
    )
    claim = (
        None
        if study.validation is None
        else dataclasses.replace(study.validation, decision=decision)
    )
    about = {"configuration": settings, "database": database}
    return dataclasses.replace(
        study, **{"provenance": about, "validation": claim, "names": names, **changes}
    )


def texts(found):
    return {entry.title: entry.text for entry in found}


def with_gains(study, gains):
    claim = study.validation
    return dataclasses.replace(
        study,
        validation=ValidationResult(
            claim.before, claim.after, make_comparison(gains), "re-evaluate", "no gain"
        ),
    )


def test_a_headline_says_against_what_and_words_a_loss_as_a_loss(whole):
    assert make_verdict(whole).headline.endswith("on 5 fresh seeds, against the start values.")
    worse, tone = describe_gain(make_comparison([-1.0, 0.6, -0.4, 0.2, -0.9]))
    assert tone == "unsure"
    assert "test perplexity rises by 0.3 % (95 % interval -0.6 to 1.2)" in worse
    assert "improves by -" not in worse


def test_a_page_calls_the_baseline_the_start(whole):
    text = render_html(dataclasses.replace(whole, phase="joint"), drawn_figures=[])
    assert "default" not in text.split("<body>")[1].split('id="provenance"')[0]
    assert "start" in [column.name for column in tables.tabulate_parameters(whole).columns]


def test_a_protocol_ends_with_the_start_against_the_tuned_values(whole, capsys):
    claim = whole.validation
    pairs = list(zip(claim.before, claim.after, strict=True))
    summary = summarise_study(
        "s", whole.trials, whole.best, pairs=pairs, defaults=whole.start, seconds=60.0
    )
    print_verdict(summary, Console(width=200))
    said = capsys.readouterr().out
    assert summary["parameters"]["synapse.vesicles.tau_rrp"]["start"] == 40.0
    assert "start" in said
    assert "default" not in said


def test_captions_say_no_more_of_the_importances_than_is_known(whole):
    caption = draw_figure("importance", whole).caption
    assert "whole range" not in caption
    assert "where the search went" in caption
    assert "default" not in caption + draw_figure("ablation", whole).caption


def test_harmful_values_alone_are_no_lack_of_differences(whole):
    harmful = [
        entry._replace(reverted=make_comparison([-9.0, -9.1, -9.2]), adjusted_reverted=0.001)
        for entry in whole.ablation[:1]
    ]
    found = texts(make_verdict(dataclasses.replace(whole, ablation=harmful)).findings)
    assert found["What carries it"] == "No tuned value is told to carry a gain."
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
    ("fresh", "said"),
    [
        (-0.08, "none of it survived"),
        (0.0, "none of it"),
        (0.15, "25 % of it did not"),
        (0.2, "all of it survived"),
    ],
)
def test_what_survived_of_a_gain_is_a_share_of_it(whole, fresh, said):
    text = texts(
        make_verdict(
            dataclasses.replace(whole, selection_bias=SelectionBias(0.2, fresh, fresh))
        ).findings
    )["Winner's luck"]
    assert said in text
    assert "140 %" not in text


def test_the_seeds_that_would_tell_a_gain_are_the_fewest_whose_interval_leaves_out_zero(whole):
    from scipy.stats import t

    gains = [3.0, -1.0, 2.5]
    found = make_comparison(gains)
    needed, spread = count_needed_seeds(found), statistics.stdev(gains)
    assert needed == 11  # scaled by the root of the seeds alone it would be 24
    for seeds, tells in ((needed - 1, False), (needed, True)):
        assert (t.ppf(0.975, seeds - 1) * spread / math.sqrt(seeds) < found.mean) == tells
    assert f"about {needed} seeds" in texts(advise(with_gains(whole, gains)))["More seeds"]
    assert count_needed_seeds(found._replace(mean=1e-6)) > 10**12  # found at once all the same


def test_luck_and_the_search_are_worded_by_the_seeds_that_there_were(whole):
    assert whole.best is not None
    searched = dataclasses.replace(whole, validation=None, ablation=[])
    several = dataclasses.replace(
        searched, best=dataclasses.replace(whole.best, facts={**whole.best.facts, "seeds": 2})
    )
    seedless = dataclasses.replace(
        searched, best=dataclasses.replace(whole.best, facts={}), selection_bias=None
    )
    assert (
        "A best of many on one seed overstates"
        in texts(make_verdict(searched).findings)["In the search"]
    )
    assert (
        "on the same 2 seeds overstates" in texts(make_verdict(several).findings)["In the search"]
    )
    assert "the search's own 2 seeds" in texts(make_verdict(several).findings)["Winner's luck"]
    assert "If the objective is noisy" in texts(make_verdict(seedless).findings)["In the search"]


def test_small_objectives_are_told_apart(whole):
    tiny = dataclasses.replace(make_single_evidence().trials[0], objective=8e-7)
    study = dataclasses.replace(make_single_evidence(), trials=[tiny], best=tiny, losses=[8e-7])
    assert ("best objective, trial 0", "8e-07") in tables.list_key_numbers(study)
    assert "has objective 8e-07" in texts(make_verdict(study).findings)["In the search"]


def test_one_of_something_is_singular():
    study = dataclasses.replace(
        make_single_evidence(), names=make_single_evidence().names[:1], ended_at=BEGAN
    )
    assert texts(advise(study))["Search longer"].startswith("1 evaluation for 1 parameter is few")


def test_a_plan_is_told_only_of_the_search_it_is_of(whole):
    def planned(budget, **about):
        provenance = {
            "optimizer": {"budget": budget},
            "configuration": about.pop("configuration", {}),
        }
        return tables.read_budget(dataclasses.replace(whole, provenance=provenance, **about))

    assert planned(60) == 60
    assert planned(12) is None  # 40 have ended: the study keeps its first plan
    settings = {"search.protocol": "phase2", "search.group_budget": 45}
    assert planned(60, configuration=settings, phase="attention") == 45
    assert planned(60, configuration=settings, phase="joint") == 60


@pytest.mark.parametrize(
    ("protocol", "further"),
    [
        (
            "phase1",
            '`make sweep-phase2 ARGS="protocol.start=shakespeare"` searches all parameters from here',
        ),
        (
            "phase2",
            'The gate is passed: `make transfer ARGS="protocol.start=shakespeare"` with a larger SCALE',
        ),
        (None, "The gate is passed."),
    ],
)
def test_what_follows_a_gate_depends_on_the_protocol(whole, protocol, further):
    assert further in texts(advise(made(whole, protocol)))["Go on"]


def test_commands_name_the_study_where_it_lies(whole):
    unclaimed = {"validation": None, "ablation": []}
    first = made(whole, "phase1", **unclaimed)
    assert "`make sweep-phase1 STUDY=shakespeare`" in texts(advise(first))["Validate"]
    assert "`" not in texts(advise(made(whole, None, **unclaimed)))["Validate"]
    moved = made(whole, "phase2", database="elsewhere/study.db", **unclaimed)
    assert (
        '`make sweep-phase2 STUDY=shakespeare ARGS="study.dir=elsewhere"`'
        in texts(advise(moved))["Validate"]
    )
    shared = made(whole, "phase1", database="postgresql://me@host/db", ablation=[])
    assert (
        '`make ablation STUDY=shakespeare ARGS="study.storage=postgresql://me@host/db"`'
        in texts(advise(shared))["Take the optimum apart"]
    )
    assert "transfer" not in texts(advise(shared))["Go on"]
    assert "Take the optimum apart" not in texts(advise(made(whole, None, ablation=[])))
    spaced = made(
        whole, "phase1", ablation=[], name="my study", database="outputs/studies/my study/study.db"
    )
    assert (
        "`synaptune ablation 'study.name=my study'`"
        in texts(advise(spaced))["Take the optimum apart"]
    )


def test_an_address_is_a_name_a_folder_or_a_database():
    assert orders.make_reference("a", "") == ("a", "")
    assert orders.make_reference("a", "outputs/studies/a/study.db") == ("a", "")
    assert orders.make_reference("a", "/home/me/outputs/studies/a/study.db") == ("a", "")
    assert orders.make_reference("a", "outputs/studies/b/study.db") == ("outputs/studies/b", "")
    assert orders.make_reference("a", "all.db") == ("a", "sqlite:///all.db")


def test_commands_with_quotes_are_code_on_the_page(whole):
    text = render_html(made(whole, "phase1"), drawn_figures=[])
    assert '<code>make sweep-phase2 ARGS="protocol.start=shakespeare"</code>' in text


def test_only_our_own_runs_are_trained_again_by_train_py(whole):
    pages = [
        {part.key: part.html for part in make_sections(made(whole, protocol), [])}
        for protocol in ("phase1", None)
    ]
    assert ["train.py tuned=" in page["best"].split("<button")[0] for page in pages] == [
        True,
        False,
    ]


def test_the_note_of_the_parameters_explains_the_columns_there_are(whole):
    assert all(
        part in tables.tabulate_parameters(whole).note for part in ("Position", "Effect", "Worth")
    )
    assert "Effect" not in tables.tabulate_parameters(make_single_evidence()).note
    assert "Position" in tables.tabulate_parameters(make_single_evidence()).note


def test_many_trials_of_which_none_is_complete_are_listed_all_the_same():
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
