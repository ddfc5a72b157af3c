"""Values of any YAML type come back equal in type and value, wherever a search takes them."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from synaptune import TrialManager
from synaptune.config.settings import apply_tuned
from synaptune.search.space.space import Dimension, Space, make_choices
from synaptune.search.space.values import (
    decode_choice,
    encode_choices,
    find_choice,
    is_same,
    make_key,
)
from synaptune.study.artifacts import read_best, write_best
from synaptune.study.reader import find_study

NAMES = ["alpha", "group.beta", "c d", "\N{GREEK SMALL LETTER DELTA}", "e?", "f%20"]
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
    | st.sampled_from(["1", "true", "null", "1e3", "[1]", "!literal 1", " a ", "${x}", "a,b"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=5,
)
numbers = st.floats(-1e9, 1e9, allow_subnormal=False)


@st.composite
def dimensions(draw: st.DrawFn, name: str) -> Dimension:
    kind = draw(st.sampled_from(["choice", "weighted", "lin", "log", "int"]))
    if kind in ("choice", "weighted"):
        choices = draw(st.lists(values, min_size=1, max_size=4, unique_by=make_key))
        weights = [1.0 + index for index in range(len(choices))] if kind == "weighted" else ()
        return make_choices(name, choices, None, weights)
    if kind == "int":
        low = draw(st.integers(-(2**40), 2**40))
        return Dimension(name, "lin", low, low + draw(st.integers(1, 1000)), integer=True)
    low = draw(numbers if kind == "lin" else st.floats(1e-9, 1e9))
    high = low + max(abs(low), 1e-9) * draw(st.floats(1e-6, 1e3))
    return Dimension(name, kind, low, high)  # type: ignore[arg-type]


spaces = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True).flatmap(
    lambda names: st.tuples(*(dimensions(name) for name in names)).map(Space)
)


def to_entry(dimension: Dimension) -> tuple[Any, ...]:
    """Return a dimension as an entry of TrialManager's search_space."""
    if dimension.scale == "categorical":
        weights = [list(dimension.weights)] if dimension.weights else []
        return ("categorical", list(dimension.choices), *weights)
    if dimension.integer:
        return ("int", int(dimension.low), int(dimension.high))
    kind = {"lin": "uniform", "log": "log_uniform"}[dimension.scale]
    return (kind, dimension.low, dimension.high)


@given(values)
def test_a_choice_is_stored_as_a_scalar_and_read_back(value):
    (stored,) = encode_choices([value])
    assert is_same(decode_choice(json.loads(json.dumps(stored))), value)


@given(st.lists(values, min_size=1, max_size=6, unique_by=make_key))
def test_every_choice_is_found_under_its_own_index(choices):
    dimension = make_choices("a", choices)
    for index, choice in enumerate(choices):
        assert find_choice(choices, choice) == index
        assert is_same(dimension.to_value(dimension.to_unit(choice)), choice)
    encoded = encode_choices(choices)
    assert all(encoded.index(stored) == index for index, stored in enumerate(encoded))


@pytest.mark.slow
@settings(max_examples=15, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(spaces, st.randoms(use_true_random=False))
def test_what_was_asked_is_run_stored_and_given_back(space, rng):
    with tempfile.TemporaryDirectory() as folder:
        check_round_trip(space, rng, Path(folder))


def check_round_trip(space: Space, rng: random.Random, folder: Path) -> None:
    seen: list[dict[str, Any]] = []

    def objective(params: dict[str, Any]) -> float:
        seen.append(json.loads(json.dumps(list(params.values()))) and dict(params))
        return float(len(seen))

    entries = {dimension.name: to_entry(dimension) for dimension in space.dimensions}
    for count in (3, 6):  # a restart, with the names in another order
        manager = TrialManager(
            "values", n_trials=count, sampler="random", directory=folder, progress=False
        )
        manager.optimize(objective, entries)
        entries = dict(rng.sample(list(entries.items()), len(entries)))
    stored = [trial.values for trial in manager.trials]
    assert make_key(stored) == make_key(seen)
    assert all(
        dimension.contains(trial[dimension.name])
        for trial in stored
        for dimension in space.dimensions
    )
    snapshot = find_study(str(folder))
    assert make_key([trial.values for trial in snapshot.trials]) == make_key(seen)
    found = snapshot.spaces["search"]
    assert {d.name: d.describe() for d in found.dimensions} == space.describe()
    check_best(snapshot.trials[0], seen[0], folder)


def check_best(trial, values, folder: Path) -> None:
    """best.yaml is plain YAML, and `tuned=` sets what it holds."""
    path = folder / "best.yaml"
    write_best(path, "values", trial, {})
    assert make_key(yaml.safe_load(path.read_text(encoding="utf-8"))["parameters"]) == make_key(
        values
    )
    texts = [text for text in map(str, values.values()) if "${" in text]
    if texts:  # an interpolation in a text is one for OmegaConf too
        return
    assert make_key(read_best(path)) == make_key(values)
    names = [name for name in values if "." not in name]
    cfg = OmegaConf.create({"tuned": str(path), "group": {"beta": 0}} | dict.fromkeys(names, 0))
    apply_tuned(cfg, [])
    given = {name: OmegaConf.select(cfg, name) for name in values if "." in name} | {
        name: cfg[name] for name in names
    }
    plain = {
        name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for name, value in given.items()
    }
    assert make_key(plain) == make_key(values)


@pytest.mark.parametrize("choices", [[(1, 2), [1, 2]], [(1,), (2, (3,))]])
def test_a_tuple_stays_a_tuple(choices, tmp_path):
    manager = TrialManager("t", n_trials=8, sampler="random", directory=tmp_path, progress=False)
    seen = []
    manager.optimize(lambda p: (seen.append(p["x"]), 1.0)[1], {"x": ("categorical", choices)})
    assert make_key([trial.values["x"] for trial in manager.trials]) == make_key(seen)
    assert {type(value) for value in seen} == {type(choice) for choice in choices}
