"""The dashboard in a real browser: the command runs as a process, and Chromium loads its pages."""

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
from synaptune.study.database import keys as schema
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
TIMEOUT = 120  # [s]
TRIALS = 40
expect = sync_api.expect


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A working folder with a study of 40 trials."""
    folder = tmp_path_factory.mktemp("work")
    make_study(folder / "outputs" / "studies", "bowl", TRIALS, sampler="cma")
    return folder


@contextlib.contextmanager
def dashboard(work: Path, *arguments: str) -> Iterator[str]:
    """Run the command on a free port and yield the printed address; Ctrl-C ends it cleanly."""
    command = [sys.executable, "-m", "synaptune.cli.main", "dashboard", "--port", "0", *arguments]
    process = subprocess.Popen(
        command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        ready, _, _ = select.select([process.stdout], [], [], TIMEOUT)
        line = process.stdout.readline() if ready else ""
        assert line.startswith("dashboard: http://"), (
            process.stderr.read() if process.poll() is not None else line
        )
        yield line.removeprefix("dashboard: ").strip()
    finally:
        process.send_signal(signal.SIGINT)
        try:
            _, stderr = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr, stderr


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
    """A page whose console must have no errors."""
    context = browser.new_context()
    new_page = context.new_page()
    new_page.set_default_timeout(TIMEOUT * 1000)
    faults: list[str] = []
    new_page.on(
        "console",
        lambda message: (
            faults.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    new_page.on("pageerror", lambda error: faults.append(str(error)))
    new_page.on(
        "response",
        lambda reply: faults.append(f"{reply.status} {reply.url}") if reply.status >= 400 else None,
    )
    yield new_page
    context.close()
    assert not faults


@pytest.fixture(autouse=True)
def _patient():
    expect.set_options(timeout=TIMEOUT * 1000)


def read_bowl(work: Path):
    return read_study(f"sqlite:///{work}/outputs/studies/bowl/study.db")


def test_the_figures_are_drawn(served, page):
    page.goto(served)
    expect(page.locator("h1")).to_have_text("bowl")
    figures = page.locator("section#search figure svg:visible")
    expect(figures.first).to_be_visible()
    expect(page.locator("#state")).to_have_count(0)  # no figure is being drawn any more
    assert figures.count() >= 2
    for figure in figures.all():
        box = figure.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 100
        assert figure.locator("path").count() >= 5
    # The paths have some length: it is not enough that the elements exist.
    long_paths = page.evaluate(
        "[...document.querySelectorAll('section#search svg path')]"
        ".filter(path => path.getTotalLength() > 20).length"
    )
    assert long_paths >= 10
    # The slow analyses run in the background, and their figures appear later.
    expect(page.locator("#figure-importance svg:visible")).to_be_visible(timeout=3 * TIMEOUT * 1000)


def test_the_trial_table_is_the_study(served, page, work):
    study = read_bowl(work)
    page.goto(f"{served}synaptune/study/bowl/trials?sort=objective&order=asc")
    rows = page.locator("#trials-table tbody tr")
    expect(rows).to_have_count(len(study.trials))
    best = find_best(study.search_trials)
    expect(rows.first).to_have_attribute("data-number", str(best.number))
    rows.first.locator("th a").click()
    expect(page.locator("h1")).to_have_text(f"Trial {best.number}")
    expect(page.locator("#result")).to_contain_text(f"{best.objective:.5g}")
    expect(page.locator("#values")).to_contain_text(f"{best.values['x']:.5g}")


def test_the_export_downloads_the_best_of_the_study(served, page, work):
    best = find_best(read_bowl(work).search_trials)
    page.goto(f"{served}synaptune/study/bowl/trials")
    for link, name, read in (
        ("Best as YAML", "bowl-best.yaml", yaml.safe_load),
        ("Best as JSON", "bowl-best.json", json.loads),
    ):
        with page.expect_download() as download:
            page.get_by_role("link", name=link).click()
        assert download.value.suggested_filename == name
        assert read(Path(download.value.path()).read_text())["parameters"] == best.values


@pytest.mark.slow
def test_optuna_dashboard_shows_the_study(served, page):
    page.goto(f"{served}synaptune/study/bowl")
    page.get_by_role("link", name="Optuna Dashboard").click()
    expect(page.get_by_text(re.compile(r"^bowl \(id=\d+\)$"))).to_be_visible()
    expect(page.get_by_text("Hyperparameter Importance").first).to_be_visible()
    expect(page.locator(".js-plotly-plot svg.main-svg").first).to_be_visible()


def test_a_page_follows_a_running_search(served, page, work):
    """This process holds the study, starts a trial and ends it as the best one."""
    snapshot = read_bowl(work)
    page.goto(f"{served}synaptune/study/bowl/trials")
    expect(page.locator("#trials-table tbody tr")).to_have_count(len(snapshot.trials))
    report = page.context.new_page()
    report.goto(f"{served}synaptune/study/bowl")
    expect(report.locator("#verdict")).to_be_visible()
    report.evaluate("document.getElementById('cost').scrollIntoView()")
    before = report.evaluate("scrollY")
    assert before > 0
    folder = work / "outputs" / "studies" / "bowl"
    with Study(
        StudyLocation("bowl", folder, f"sqlite:///{folder}/study.db", "auto"),
        snapshot.configuration,
    ) as study:
        budget = TRIALS + 5  # a command that goes on with the study
        study.write_note(schema.SEARCHES, {"search": {"budget": budget, "stopped": None}})
        ledger = PhaseLedger(study, snapshot.spaces["search"], "search", {})
        trial = ledger.start(
            len(snapshot.search_trials), (0.3, 0.01), {"x": 3.0, "n": 0}, generation=99
        )
        row = page.locator(f"#trials-table tr[data-number='{trial.number}']")
        expect(row).to_contain_text("running")
        expect(page.locator(".status span")).to_contain_text("running")
        ledger.finish(trial, Result(-5.0, 0.1))
        expect(row).to_contain_text("complete")
        expect(row).to_contain_text("-5")
        expect(page.locator(".status span")).to_contain_text(
            f"{len(snapshot.search_trials) + 1} of {budget}"
        )
        expect(report.locator("#verdict")).to_contain_text(f"trial {trial.number}")
        expect(page.locator(".status progress")).to_have_attribute("max", str(budget))
        validation = PhaseLedger(study, snapshot.spaces["search"], "validation", {})
        trial = validation.start(0, (0.3, 0.01), {"x": 3.0, "n": 0})
        expect(page.locator(".status progress")).to_have_count(0)  # the bar is the search's
        validation.finish(trial, Result(-5.0, 0.1))
    expect(page.locator(".status span")).to_contain_text("best -5")
    top = report.evaluate("document.getElementById('cost').getBoundingClientRect().top")
    assert -100 < top < 300, "the visible part has moved"
    report.close()


@pytest.mark.slow
def test_a_browser_archives_a_study_and_keeps_the_choice_for_a_comparison(page, work):
    make_study(work / "outputs" / "studies", "second", 2)
    with dashboard(work, "--write") as address:
        page.goto(f"{address}?all")
        box = page.get_by_label("Compare study bowl")
        box.check()
        with page.expect_response(lambda reply: "live=" in reply.url):
            pass  # the table is replaced, because the ages in it have changed
        expect(box).to_be_checked()
        page.get_by_label("Archive study second").click()
        expect(page.locator("summary")).to_have_text("Archived studies (1)")
        expect(page.get_by_role("link", name="second")).to_be_hidden()
        page.locator("summary").click()
        page.get_by_label("Restore study second").click()
        expect(page.locator("summary")).to_have_count(0)
        for name in ("bowl", "second"):
            page.get_by_label(f"Compare study {name}").check()
        page.get_by_role("button", name="Compare the chosen studies").click()
        expect(page.locator("h1")).to_have_text("2 studies compared")


@pytest.mark.slow
def test_a_browser_has_access_after_it_sent_the_token(browser, work):
    with dashboard(work, "--token", "auto", "--host", "127.0.0.1") as address:
        context = browser.new_context()
        page = context.new_page()
        bare, _, token = address.partition("?token=")
        assert page.goto(bare).status == 401
        page.goto(address)
        expect(page.locator(".studies")).to_contain_text("bowl")
        assert token not in page.url
        page.goto(f"{bare}synaptune/study/bowl/trials")
        expect(page.locator("#trials-table tbody tr").first).to_be_visible()
        (cookie,) = context.cookies()
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        context.close()
