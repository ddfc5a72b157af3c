"""The dashboard in a real browser: the command as a process of its own, Chromium before it."""

import contextlib
import json
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from helpers.webclient import make_study
from synaptune.search.trial import Result, find_best
from synaptune.study.location import StudyLocation
from synaptune.study.reader import read_study
from synaptune.study.study import PhaseLedger, Study

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed (pip install playwright)"
)
pytest.importorskip(
    "optuna_dashboard",
    reason="optuna-dashboard is not installed (pip install 'synaptune[dashboard]')",
)

BROWSER = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
PATIENCE = 120  # s
TRIALS = 40
expect = sync_api.expect


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A folder to work in, with a study of 40 trials."""
    folder = tmp_path_factory.mktemp("work")
    make_study(folder / "outputs" / "studies", "bowl", TRIALS, sampler="cma")
    return folder


@contextlib.contextmanager
def dashboard(work: Path, *arguments: str) -> Iterator[str]:
    """The command, on any free port; its address as it prints it. Ctrl-C ends it without a complaint."""
    command = [sys.executable, "-m", "synaptune.cli.main", "dashboard", "--port", "0", *arguments]
    process = subprocess.Popen(
        command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
        line = process.stdout.readline() if ready else ""
        assert line.startswith("dashboard: http://"), (
            process.stderr.read() if process.poll() is not None else line
        )
        yield line.removeprefix("dashboard: ").strip()
    finally:
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, said
    assert "Traceback" not in said, said


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("Chromium is not installed (Debian: apt install chromium)")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def served(work) -> Iterator[str]:
    with dashboard(work, "bowl") as address:
        yield address


@pytest.fixture
def page(browser):
    """A page whose console has to stay without errors."""
    context = browser.new_context()
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE * 1000)
    faults: list[str] = []
    opened.on(
        "console",
        lambda said: faults.append(said.text) if said.type in ("error", "warning") else None,
    )
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on(
        "response",
        lambda reply: faults.append(f"{reply.status} {reply.url}") if reply.status >= 400 else None,
    )
    yield opened
    context.close()
    assert not faults


@pytest.fixture(autouse=True)
def _patient():
    expect.set_options(timeout=PATIENCE * 1000)


def record(work: Path):
    return read_study(f"sqlite:///{work}/outputs/studies/bowl/study.db")


def test_the_figures_are_drawn(served, page):
    page.goto(served)
    expect(page.locator("h1")).to_have_text("bowl")
    figures = page.locator("section#search figure svg")
    expect(figures.first).to_be_visible()
    assert figures.count() >= 2
    for figure in figures.all():
        box = figure.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 100
        assert figure.locator("path").count() >= 5
    seen = page.evaluate(
        "[...document.querySelectorAll('section#search svg path')].filter(path => path.getTotalLength() > 20).length"
    )  # lines of some length, not only that there are elements
    assert seen >= 10
    # What takes long is worked out behind the page, and appears by itself.
    expect(page.locator("#figure-importance svg")).to_be_visible(timeout=3 * PATIENCE * 1000)


def test_the_trial_table_is_the_study(served, page, work):
    known = record(work)
    page.goto(f"{served}synaptune/study/bowl/trials?sort=objective&order=asc")
    rows = page.locator("#trials-table tbody tr")
    expect(rows).to_have_count(len(known.trials))
    best = find_best(known.search_trials)
    expect(rows.first).to_have_attribute("data-number", str(best.number))
    rows.first.locator("th a").click()
    expect(page.locator("h1")).to_have_text(f"Trial {best.number}")
    expect(page.locator("#result")).to_contain_text(f"{best.objective:.5g}")
    expect(page.locator("#values")).to_contain_text(f"{best.values['x']:.5g}")


def test_the_export_downloads_the_best_of_the_study(served, page, work):
    best = find_best(record(work).search_trials)
    page.goto(f"{served}synaptune/study/bowl/trials")
    for link, name, read in (
        ("Best as YAML", "bowl-best.yaml", yaml.safe_load),
        ("Best as JSON", "bowl-best.json", json.loads),
    ):
        with page.expect_download() as kept:
            page.get_by_role("link", name=link).click()
        assert kept.value.suggested_filename == name
        assert read(Path(kept.value.path()).read_text())["parameters"] == best.values


def test_optuna_dashboard_shows_the_study(served, page):
    page.goto(f"{served}synaptune/study/bowl")
    page.get_by_role("link", name="Optuna Dashboard").click()
    expect(page.get_by_text(re.compile(r"^bowl \(id=\d+\)$"))).to_be_visible()
    expect(page.get_by_text("Hyperparameter Importance").first).to_be_visible()
    expect(page.locator(".js-plotly-plot svg.main-svg").first).to_be_visible()


def test_a_page_follows_a_search_that_runs(served, page, work):
    """The search is a real one: this process holds the study, begins a trial, and ends it as a better one than any."""
    known = record(work)
    page.goto(f"{served}synaptune/study/bowl/trials")
    expect(page.locator("#trials-table tbody tr")).to_have_count(len(known.trials))
    report = page.context.new_page()
    report.goto(f"{served}synaptune/study/bowl")
    expect(report.locator("#verdict")).to_be_visible()
    report.evaluate("document.getElementById('cost').scrollIntoView()")
    before = report.evaluate("scrollY")
    assert before > 0
    folder = work / "outputs" / "studies" / "bowl"
    with Study(
        StudyLocation("bowl", folder, f"sqlite:///{folder}/study.db", "auto"), known.configuration
    ) as study:
        ledger = PhaseLedger(study, known.spaces["search"], "search", {})
        trial = ledger.start(
            len(known.search_trials), (0.3, 0.01), {"x": 3.0, "n": 0}, generation=99
        )
        row = page.locator(f"#trials-table tr[data-number='{trial.number}']")
        expect(row).to_contain_text("running")
        expect(page.locator(".status span")).to_contain_text("running")
        ledger.finish(trial, Result(-5.0, 0.1))
        expect(row).to_contain_text("complete")
        expect(row).to_contain_text("-5")
        expect(page.locator(".status span")).to_contain_text(
            f"{len(known.search_trials) + 1} of {TRIALS}"
        )
        expect(report.locator("#verdict")).to_contain_text(f"trial {trial.number}")
        expect(page.locator(".status progress")).to_have_attribute("max", str(TRIALS))
        checked = PhaseLedger(study, known.spaces["search"], "validation", {})
        trial = checked.start(0, (0.3, 0.01), {"x": 3.0, "n": 0})
        expect(page.locator(".status progress")).to_have_count(0)  # the bar is the search's
        checked.finish(trial, Result(-5.0, 0.1))
    expect(page.locator(".status span")).to_contain_text("best -5")
    top = report.evaluate("document.getElementById('cost').getBoundingClientRect().top")
    assert -100 < top < 300, "what was being read has moved away"
    report.close()


def test_a_browser_is_let_in_once_it_has_shown_the_token(browser, work):
    with dashboard(work, "--token", "auto", "--host", "127.0.0.1") as address:
        context = browser.new_context()
        opened = context.new_page()
        bare, _, token = address.partition("?token=")
        assert opened.goto(bare).status == 401
        opened.goto(address)
        expect(opened.locator("#studies-table")).to_contain_text("bowl")
        assert token not in opened.url
        opened.goto(f"{bare}synaptune/study/bowl/trials")
        expect(opened.locator("#trials-table tbody tr").first).to_be_visible()
        (cookie,) = context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        context.close()
