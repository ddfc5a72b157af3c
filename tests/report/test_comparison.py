"""Studies are compared only where they share seeds, data and baseline."""

import csv
import dataclasses
import math

from helpers.evidence_maker import make_full_evidence, make_single_evidence
from helpers.html_checker import check
from synaptune.report.comparison import (
    make_headline,
    pair_studies,
    render_comparison,
    tabulate_best_parameters,
    tabulate_configurations,
    tabulate_results,
    write_comparison_markdown,
)


def study(name, *, seed=0, data="d", baseline="b", worse=1.0, **settings):
    """A study whose runs have fingerprints; worse is a factor on its tuned perplexities."""
    evidence = make_full_evidence(count=20, seed=seed)

    def change_runs(runs, side, factor):
        return [
            dataclasses.replace(
                run,
                facts={
                    **run.facts,
                    "data_fingerprint": data,
                    "run_fingerprint": f"{baseline}{side}{run.facts['seed']}",
                    "code_version": "1",
                    "test_perplexity": run.facts["test_perplexity"]
                    * factor
                    * (1.0 + 1e-4 * (run.facts["seed"] % 3)),
                },
            )
            for run in runs
        ]

    validation = dataclasses.replace(
        evidence.validation,
        before=change_runs(evidence.validation.before, "before", 1.0),
        after=change_runs(evidence.validation.after, name, worse),
    )
    configuration = {"scale.name": "laptop", **settings}
    return dataclasses.replace(
        evidence, name=name, validation=validation, provenance={"configuration": configuration}
    )


def test_studies_on_the_same_seeds_data_and_baseline_are_paired():
    (pair,) = pair_studies([study("a"), study("b", worse=1.05)])
    assert pair.difference.count == 5
    assert math.isclose(pair.difference.mean, -5.0, rel_tol=1e-6)
    assert pair.note == ""
    assert "a is better than b" in make_headline([study("a"), study("b")], [pair])


def test_other_data_baseline_or_no_validation_is_not_paired():
    first = study("a")
    for other, reason in (
        (study("b", data="other"), "data"),
        (study("b", baseline="other"), "baselines"),
        (dataclasses.replace(study("b"), validation=None), "no validation in b"),
        (make_full_evidence(count=20), "unknown"),
    ):
        (pair,) = pair_studies([first, other])
        assert pair.difference is None
        assert pair.note.startswith("not paired")
        assert reason in pair.note


def test_p_values_are_adjusted_for_the_pairs_that_were_compared():
    pairs = pair_studies(
        [study("a"), study("b", seed=1), study("c", seed=2), study("d", data="other")]
    )
    known = [pair for pair in pairs if pair.difference is not None]
    assert len(pairs) == 6
    assert len(known) == 3
    assert all(pair.adjusted_p >= pair.difference.p for pair in known)
    least = min(known, key=lambda pair: pair.difference.p)
    assert math.isclose(least.adjusted_p, min(1.0, 3 * least.difference.p))


def test_configurations_show_only_where_they_differ():
    table = tabulate_configurations([study("a", width=64), study("b", width=128)])
    assert table.rows == [["width", "64", "128"]]


def test_many_keys_that_differ_are_folded():
    few, many = (
        render_comparison([study("a"), study("b", **{f"key{index}": 1 for index in range(count)})])
        for count in (5, 40)
    )
    assert "<details>" not in few
    assert "40 keys differ." in many
    assert "<details>" in many


def test_ranges_and_starts_that_differ_are_named():
    ranges = [{"search.space.x": f"log {low} to 1", "search.start.x": low} for low in (0.1, 0.2)]
    table = tabulate_configurations(
        [study(name, **each) for name, each in zip("ab", ranges, strict=True)]
    )
    assert [row[0] for row in table.rows] == ["search.space.x", "search.start.x"]


def test_an_unknown_configuration_is_not_reported_as_equal(tmp_path):
    bare = dataclasses.replace(study("b"), provenance={})
    assert "Unknown: no configuration is stored for b." in render_comparison([study("a"), bare])
    assert (
        "Unknown: no configuration is stored for b."
        in write_comparison_markdown([study("a"), bare], tmp_path).read_text()
    )
    assert "The configurations do not differ." in render_comparison([study("a"), study("b")])
    three = tabulate_configurations([study("a", width=64), bare, study("c", width=128)])
    assert three.rows == [["width", "64", "(unknown)", "128"]]


def test_results_and_parameters_have_an_entry_for_every_study():
    several = [study("a"), make_single_evidence()]
    assert [row[0] for row in tabulate_results(several).rows] == ["a", "young"]
    assert tabulate_results(several).rows[1][3] == "no claim"
    assert len(tabulate_best_parameters(several).rows) == 10


def test_the_page_and_the_markdown_escape_and_overlay(tmp_path):
    several = [study('<script>"a"&$x_1$'), study("b", seed=1), make_single_evidence()]
    text = render_comparison(several)
    page = check(text)
    assert '<script>"a"' not in text
    assert '<script>"a"&$x_1$' in "".join(page.text)
    assert 'id="figure-convergences"' in text
    path = write_comparison_markdown(several, tmp_path)
    assert "<script>" not in path.read_text()
    assert (tmp_path / "figures" / "convergences.svg").is_file()
    with (tmp_path / "tables" / "claims.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["gain in test perplexity mean [%]"]) == several[0].validation.gain.mean
