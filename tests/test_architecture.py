"""The house rules that a reader relies on: imports run one way, files stay short, starting is
quick.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import ROOT

PACKAGE = ROOT / "src" / "synaptune"
# A module imports from the left of itself.
ORDER = (
    *("core", "synapse", "data", "model", "training", "search", "study", "config"),
    *("analysis", "report", "protocols", "cli"),
)
LONGEST = 450  # lines
SLOW = (
    "torch",
    "numpy",
    "nevergrad",
    "wandb",
    "optuna",
    "lightning",
    "plotly",
    "datasets",
    "tokenizers",
    "tensorboard",
    "scipy",
)
SLOW += ("matplotlib", "sklearn", "pandas")

SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_the_package_is_folders_alone():
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    assert entries == {"__init__.py", *ORDER}


def imported(path: Path) -> set[str]:
    """The parts of the package that a file imports, at its top or inside a function."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += (
                [f"{node.module}.{alias.name}" for alias in node.names]
                if node.module == "synaptune"
                else [node.module]
            )
    return {name.split(".")[1] for name in names if name.startswith("synaptune.")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    if path.parent == PACKAGE and path.name == "__init__.py":
        pytest.skip("the package's public names")
    part = path.relative_to(PACKAGE).parts[0]
    wrong = {
        name for name in imported(path) if name in ORDER and ORDER.index(name) > ORDER.index(part)
    }
    assert not wrong, (
        f"{path.relative_to(ROOT)} imports {sorted(wrong)}, which stand to the right of {part}"
    )


def test_no_module_uses_relative_imports():
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not any(
            isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree)
        ), path


def test_the_plugin_namespace_stays_open():
    """An `__init__.py` there would hide every other Hydra plugin in silence."""
    assert not (ROOT / "src" / "hydra_plugins" / "__init__.py").exists()


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks"])
def test_files_stay_short_enough_to_read(folder):
    lengths = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / folder).rglob("*.py")
    }
    assert not {path: lines for path, lines in lengths.items() if lines > LONGEST}


TRAIN = 'runpy.run_path("train.py", run_name="__main__")'
CLI = "from synaptune.cli.main import main; main()"


@pytest.mark.parametrize(
    ("program", "words", "text"),
    [
        (TRAIN, ["train.py", "--help"], "scale: "),
        (TRAIN, ["train.py", "--cfg", "job"], "seed: 0"),
        (CLI, ["synaptune", "--help"], "usage: synaptune"),
    ],
    ids=["help", "cfg", "cli"],
)
def test_help_and_the_configuration_import_nothing_slow(program, words, text):
    code = f"""
import runpy, sys
sys.argv = {words}
try:
    {program}
except SystemExit:
    pass
print("LOADED", *sorted(sys.modules))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    shown, _, loaded = result.stdout.rpartition("LOADED")
    assert text in shown, result.stderr
    assert not set(loaded.split()).intersection(SLOW)


def test_training_imports_neither_scipy_signal_nor_matplotlib():
    """Lightning alone would import both."""
    code = "import sys, synaptune.training.module; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "torchmetrics" in result.stdout.split()
    assert not {"scipy.signal", "matplotlib"}.intersection(result.stdout.split())


def test_make_help_shows_every_command():
    targets = {
        line.split(":")[0]
        for line in (ROOT / "Makefile").read_text().splitlines()
        if " ## " in line and line[0].isalpha()
    }
    shown = subprocess.run(
        ["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    commands = [line.split()[1] for line in shown.splitlines() if line.startswith("  make ")]
    assert set(commands) == targets
    assert targets >= {
        "setup",
        "train",
        "sweep-phase1",
        "test",
        "check",
        "bench-step",
        "docs",
        "clean",
    }


@pytest.mark.parametrize(
    "name",
    [
        "from optuna.storages._rdb",
        "hydra._internal",
        "._return_value",
        "._to_model",
        "deliver_challenge(",
        "._content",
        "._get_node",
    ],
)
def test_a_private_name_of_a_library_is_used_in_one_file_at_most(name):
    files = [path for path in (ROOT / "src").rglob("*.py") if name in path.read_text("utf-8")]
    assert len(files) <= 1, files
