"""Benchmarks run: those of the objectives go on from the runs they kept, and the search under
attack ends as it should.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from helpers.paths import ROOT
from helpers.servers import find_postgres

BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "runs", "said"),
    [("bench_curve", [], 12, "rank correlation"), ("bench_noise", ["--seeds", "2"], 6, "ratio")],
)
def test_a_benchmark_makes_each_run_once(name, options, runs, said, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    main = importlib.import_module(name).main
    arguments = [
        name,
        "--candidates",
        "3",
        "--threads",
        "1",
        "--folder",
        str(tmp_path),
        *options,
        "scale=smoke",
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    assert main() == 0
    first = capsys.readouterr().out
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(kept) == runs
    assert said in first
    assert main() == 0
    again = capsys.readouterr().out
    assert first.endswith(again)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == kept


@pytest.mark.parametrize("name", ["bench_curve", "bench_noise"])
def test_a_benchmark_refuses_what_it_cannot_judge(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    main = importlib.import_module(name).main
    monkeypatch.setattr(sys, "argv", [name, "--candidates", "1"])
    assert main() == 2
    assert "expected: candidates >= 3" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("server", [False, True])
def test_a_search_survives_kills_of_all_its_parts(server):
    if server and find_postgres() is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    command = [
        sys.executable,
        str(BENCHMARKS / "chaos.py"),
        "--kills",
        "3",
        "--trials",
        "40",
        *(["--server"] if server else []),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 trials" in done.stdout
    assert "the same as undisturbed" in done.stdout


@pytest.mark.slow
def test_the_gpu_benchmark_writes_every_part(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    words = ["gpu", "--device", "cpu", "--quick", "--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", words)
    assert importlib.import_module("gpu").main() == 0, capsys.readouterr().err
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert all(isinstance(rows, list) for rows in parts.values())
    assert len(parts) == 8
    errors = [row["error of the bias"] for row in parts["Release against the reference"]]
    assert max(errors) < 1e-4
    assert "| candidates |" in (tmp_path / "gpu.md").read_text()
