"""The commands in odd environments, each as a process of its own."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers.mounts import mount_read_only
from helpers.paths import ROOT
from synaptune import TrialManager
from synaptune.cli.main import main
from synaptune.core.errors import UserError, suggest
from synaptune.core.files import cache_dir
from synaptune.search.space.file import read_space_file
from synaptune.study.artifacts import read_best
from synaptune.training.checkpoint import load_model

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
COMMAND = f"{sys.executable} -m synaptune.cli"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the study `made`, whose names an ASCII terminal cannot show."""
    folder = tmp_path_factory.mktemp("environments")
    manager = TrialManager(
        "é", 4, sampler="random", directory=folder / "made", progress=False, max_failure_rate=1.0
    )
    manager.optimize(lambda values: values["λ"], {"λ": ("uniform", 0, 1)})
    return folder


def run(line: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# A search space cannot have the name λ, since the override grammar has none of its letters.
@pytest.mark.parametrize(("command", "code"), [("export", 0), ("refine", 2)])
def test_a_terminal_of_ascii_shows_every_name(folder, command, code):
    done = run(f"{COMMAND} {command} made", folder, **ASCII)
    assert done.returncode == code, done.stderr
    assert "λ" in done.stdout or "\\u03bb" in done.stdout + done.stderr


def test_a_terminal_of_unknown_width_gets_every_row(folder):
    done = run(f"{COMMAND} list .", folder, COLUMNS="0")
    assert done.returncode == 0, done.stderr
    assert "é" in done.stdout


def test_a_reader_that_leaves_is_no_error(folder):
    """`head` has left before the table is printed."""
    done = run(f"set -o pipefail; {COMMAND} parameters | head -c 0", folder)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_name_that_the_locale_cannot_write_is_refused(folder):
    done = run(f"{COMMAND} report é", folder, **ASCII)
    assert done.returncode == 2
    assert "LC_ALL=C.UTF-8" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_report_is_written_without_standard_streams(folder):
    assert run(f"{COMMAND} report made <&- >&- 2>&-", folder).returncode == 0
    assert (folder / "made" / "report" / "report.html").exists()


def test_an_export_without_an_output_asks_for_a_file(folder):
    done = run(f"{COMMAND} export made >&-", folder)
    assert (done.returncode, "--out FILE" in done.stderr) == (2, True)


def test_an_export_to_a_file_of_another_kind_is_refused(folder):
    done = run(f"{COMMAND} export made --out n.xlsx", folder)
    assert done.returncode == 2
    assert "expected: a name that ends in .csv or .parquet" in done.stderr
    assert run(f"{COMMAND} export made --out n.txt --format csv", folder).returncode == 0


@pytest.mark.slow
def test_a_study_in_a_folder_that_cannot_be_written_is_read(folder, tmp_path):
    before = run(f"{COMMAND} export made", folder).stdout
    with mount_read_only(folder):
        assert run(f"{COMMAND} export made", folder).stdout == before
        done = run(f"{COMMAND} report made --format md --out {tmp_path}/report", folder)
        assert done.returncode == 0, done.stderr
        refused = run(f"{COMMAND} report made --format md --out new", folder)
    assert refused.returncode == 2
    assert "expected: a writable folder\n  to do: make room there, or choose" in refused.stderr


@pytest.mark.parametrize("command", [f"{COMMAND} report s", f"{sys.executable} {ROOT}/train.py"])
def test_a_removed_working_folder_is_refused(tmp_path, command):
    done = run(f"mkdir gone && cd gone && rmdir ../gone && {command}", tmp_path)
    assert done.returncode == 2
    assert "no longer exists" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [f"{sys.executable} {ROOT}/train.py --help", f"{COMMAND} -h"])
def test_help_into_a_closed_pipe_ends_quietly(tmp_path, command):
    done = run(f"{command} | true", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_user_without_a_home_has_a_private_cache(tmp_path, monkeypatch):
    def find_no_home(self):
        raise RuntimeError("Could not determine home directory.")

    for name in ("SYNAPTUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "expanduser", find_no_home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = cache_dir()
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    with pytest.raises(UserError, match="other users can change"):
        cache_dir()


@pytest.mark.parametrize("value", ["'${oc.env:SECRET}'", "[1, '${oc.decode:x}']"])
def test_a_best_file_computes_nothing(tmp_path, monkeypatch, value):
    monkeypatch.setenv("SECRET", "s3cr3t")
    path = tmp_path / "best.yaml"
    path.write_text(f"parameters: {{name: {value}}}\n")
    with pytest.raises(UserError, match="values that are not computed") as caught:
        read_best(path)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "parameters: ['${oc.env:SECRET}']",
        "ranges: {seed: {choices: ['${oc.env:SECRET}', a]}}",
        "ranges: {seed: {low: 1, high: 3}}\nfixed: {name: '${oc.env:SECRET}'}",
        "name: '${oc.env:SECRET}'\nparameters: [seed]",
        "parameters: !!python/object/apply:os.system ['touch ran']",
    ],
)
def test_a_space_file_computes_nothing(tmp_path, monkeypatch, text):
    monkeypatch.setenv("SECRET", "s3cr3t")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_space_file(path)
    assert "s3cr3t" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "setting",
    ["workers.parameters: {slurm_setup: [touch ran]}", "notify.urls: [https://a]", "logger: wandb"],
)
def test_a_file_sets_nothing_that_belongs_to_the_command(tmp_path, setting):
    best, space = tmp_path / "best.yaml", tmp_path / "space.yaml"
    best.write_text(f"parameters: {{seed: 1, {setting}}}")
    space.write_text(f"parameters: [seed]\nfixed: {{{setting}}}")
    for read, path in ((read_best, best), (read_space_file, space)):
        with pytest.raises(UserError, match=f"{setting.split(':')[0]}.*a setting of the command"):
            read(path)


def test_a_name_without_a_near_one_gets_no_suggestion():
    assert suggest("lerning_rate", ["training.learning_rate", "seed"]) != ""
    assert suggest("qqqq", ["seed"]) == ""


class Payload:
    """A pickle that runs a command when it is read."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    with open("checkpoint.pt", "wb") as file:
        write({"format": 1, "about": Payload()}, file)
    with pytest.raises(UserError, match=r"unreadable checkpoint checkpoint\.pt"):
        load_model("checkpoint.pt")
    assert not (tmp_path / "ran").exists()


def test_a_report_shows_hostile_names_and_choices_as_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "x\"><script>alert(1)</script>'|\n# head"
    choices = ["</script><img src=x onerror=alert(1)>", "a\n\n# Title | b", "[x](javascript:y)"]
    TrialManager("s", 4, sampler="random", directory="s", progress=False).optimize(
        lambda values: choices.index(values["c"]) + values[name],
        {name: ("uniform", 0, 1), "c": ("categorical", choices)},
    )
    assert main(["report", "s"]) == 0
    page = (tmp_path / "s/report/report.html").read_text(encoding="utf-8")
    assert not re.search(r"<script>alert|<img src=x|href=.javascript", page)
    text = (tmp_path / "s/report/report.md").read_text(encoding="utf-8")
    outside_code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert not re.search(
        r"(?<!\\)<(script|img)|^# (head|Title)|(?<!\\)\]\(java", outside_code, re.M
    )
