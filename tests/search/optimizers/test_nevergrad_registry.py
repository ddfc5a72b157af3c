"""Nevergrad's registry: every name runs or is refused with the reason, and nothing hangs."""

import json
import os
import subprocess
import sys

import nevergrad
import pytest

from synaptune.core.errors import UserError
from synaptune.search.optimizers.base import Engine, Observation
from synaptune.search.optimizers.registry import make_optimizer
from synaptune.search.optimizers.snapshot import StateFile, StoredPoint, restore_optimizer
from synaptune.search.space.space import Dimension, Space

SPACE = Space((Dimension("a", "lin", 0.0, 1.0, start=0.2), Dimension("b", "lin", 100.0, 200.0)))


def make(name, *, workers=1, noisy=False, budget=20):
    return make_optimizer(Engine(name, 3, workers, budget, noisy), SPACE)


def run(optimizer, count):
    """The observations of a number of generations."""
    found = []
    for _ in range(count):
        units = [optimizer.ask() for _ in range(optimizer.generation_size)]
        found.append([Observation(unit, sum((u - 0.7) ** 2 for u in unit)) for unit in units])
        optimizer.tell(found[-1])
    return found


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("BOBYQA", "No module named 'pybobyqa'"),
        ("NLOPT_LN_SBPLX", "No module named 'nlopt'"),
        ("NGOptF", "a loss that it is never told"),
    ],
)
def test_an_algorithm_that_cannot_run_is_refused_with_one_that_works(name, said):
    with pytest.raises(UserError, match=rf"{said}[\s\S]*the nearest name that works is") as refusal:
        make(name)
    make(str(refusal.value).rsplit(" ", 1)[-1])


def test_a_sequential_algorithm_is_refused_for_concurrent_trials():
    with pytest.raises(UserError, match="does not support parallelization"):
        make("BFGS", workers=3)


@pytest.mark.parametrize("name", ["BFGS", "NGOpt", "CSEC", "Cobyla", "EDA"])
def test_an_algorithm_that_cannot_be_stored_is_rebuilt_exactly(tmp_path, name):
    engine = Engine(name, 3, 1, 20, False)
    state = StateFile(tmp_path / "optimizer.pkl", engine, SPACE.describe())
    whole = [point for generation in run(make(name), 12) for point in generation]
    first = make(name)
    told = [point for generation in run(first, 7) for point in generation]
    state.save(first, 7)
    restored = restore_optimizer(
        state, lambda: make(name), [StoredPoint(point, True) for point in told]
    )
    assert restored.note is None
    rest = [point for generation in run(restored.optimizer, 5) for point in generation]
    assert told + rest == whole


@pytest.mark.parametrize("name", ["BFGS", "NGOpt", "EDA", "OnePlusOne", "CMA"])
def test_an_algorithm_goes_on_from_points_that_it_did_not_ask_for(name):
    optimizer = make(name)
    for at in (0.1, 0.5, 0.9):
        optimizer.tell([Observation((at, at), at)])
    assert len(run(optimizer, 5)) == 5


@pytest.mark.slow
def test_a_process_ends_while_an_algorithm_waits_in_its_thread():
    code = """
from synaptune.search.optimizers.registry import Engine, make_optimizer
from synaptune.search.space.space import Dimension, Space
optimizer = make_optimizer(Engine("BFGS", 0, 1, 20, False), Space((Dimension("a", "lin"),)))
optimizer.ask()
keep = [optimizer]
keep.append(keep)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


_SCAN = """
import json, os, select, signal, sys, threading, time, warnings
warnings.simplefilter("ignore")
results = os.fdopen(os.dup(1), "w")
for output in 1, 2:  # some libraries print
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
import nevergrad
from synaptune.core.errors import UserError
from synaptune.search.optimizers.base import Observation
from synaptune.search.optimizers.registry import Engine, make_optimizer
from synaptune.search.space.space import Dimension, Space
space = Space((Dimension("a", "lin"), Dimension("b", "lin")))
for name in json.loads(sys.argv[1]):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        result = "runs"
        try:
            optimizer = make_optimizer(Engine(name, 0, 1, 8, sys.argv[2] == "noisy"), space)
            for _ in range(8):
                unit = optimizer.ask()
                optimizer.tell([Observation(unit, sum(unit))])
        except UserError as error:
            result = "refused: " + str(error).splitlines()[0]
        except BaseException as error:
            result = "raises " + repr(error)
        threading._shutdown()
        os.write(writer, result.encode())
        os._exit(0)
    os.close(writer)
    ready = select.select([reader], [], [], 120.0)[0]
    text = os.read(reader, 10_000).decode() if ready else "hangs"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
    print(json.dumps([name, text]), file=results, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("noisy", "part"), [("exact", 23), ("noisy", 61)])
def test_a_name_of_the_registry_runs_or_is_refused(noisy, part):
    """REGISTRY=all tries every name, for up to an hour."""
    names = sorted(nevergrad.optimizers.registry)
    names = names if os.environ.get("REGISTRY") == "all" else names[5::part]
    command = [sys.executable, "-W", "ignore", "-c", _SCAN, json.dumps(names), noisy]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = dict(map(json.loads, done.stdout.splitlines()))
    assert sorted(found) == names
    assert {
        name: text for name, text in found.items() if not text.startswith(("runs", "ref"))
    } == {}
    assert sum(text == "runs" for text in found.values()) > 0.9 * len(names)
