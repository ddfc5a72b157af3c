"""Portraits: the traces against the synapse's own scan, the run against the validation's, and what
goes wrong against the verdict.
"""

import json

import pytest
import torch

from helpers.phase1_study import NAMES, SEEDS, TUNED, make_study
from synaptune.model.attention import rms_norm
from synaptune.model.config import ModelConfig
from synaptune.model.gpt import GPT
from synaptune.protocols.inspection import (
    INSPECTIONS,
    SHOWN_KEYS,
    TRACES,
    inspect_point,
    record_traces,
    store_inspections,
)
from synaptune.protocols.session import reopen_protocol
from synaptune.study.reader import find_study
from synaptune.synapse.circuit import SynapseParams
from synaptune.synapse.terminal import terminal_scan

LENGTH = 24


@pytest.fixture(scope="module")
def model():
    """A small model whose weights are all at random, with a tick that is not the portrait's."""
    small = GPT(
        ModelConfig(layers=1, width=16, heads=2, context=LENGTH, tick=8), SynapseParams(), 30, 0
    )
    return small.double()


@pytest.fixture(scope="module")
def traces(model):
    """Of a text of random tokens."""
    return record_traces(
        model, torch.randint(0, 30, (LENGTH,), generator=torch.Generator().manual_seed(1))
    )


def test_the_efficacy_of_a_portrait_is_that_of_the_scan_at_every_token(model, traces):
    tokens = torch.randint(0, 30, (LENGTH,), generator=torch.Generator().manual_seed(1))
    block = model.blocks[0]
    q, k, _ = block.attention.project(
        rms_norm(rms_norm(model.embedding(tokens[None]))), model.make_shared_inputs(LENGTH).rope
    )
    scanned = terminal_scan(block.presynapse.compute_drive(q, k), model.synapse, 1)[
        0
    ]  # a row before each token, and one after the last
    expected = (scanned[:, 1:] + model.synapse.attention.epsilon).log().mean(0)
    born = torch.ones(LENGTH, LENGTH).tril().bool()
    assert torch.allclose(traces["efficacy"][born], expected[born], atol=1e-9)
    assert traces["efficacy"][~born].isnan().all()


def test_the_release_of_a_portrait_is_what_the_ready_pool_loses_beyond_its_refill(model, traces):
    params = model.synapse.vesicles
    ready, reserve, release = traces["ready"], traces["reserve"], traces["release"]
    for key in (0, 5):
        for at in range(key + 1, LENGTH):
            # The mean over heads of the refill is bounded by the refill of a pool that is empty
            # before a reserve that is full.
            refill = ready[at, key] - ready[at - 1, key] + release[at, key]
            assert 0.0 <= refill <= params.init_rrp / params.tau_rrp
            assert 0.0 < release[at, key] < ready[at - 1, key]
    pools = ready[LENGTH - 1, 0] + reserve[LENGTH - 1, 0]
    assert pools < params.init_rrp + params.init_reserve  # the rest is endocytosed or recycling


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A validated study."""
    folder = tmp_path_factory.mktemp("studies") / "small"
    make_study(folder)
    return folder


@pytest.fixture
def protocol(study):
    """The study at work."""
    record = find_study(str(study))
    with reopen_protocol(
        record,
        study,
        ["workers.count=1", "logger=csv", "logger.every=2"],
        space=record.spaces["validation"],
        seeds=SEEDS,
    ) as opened:
        yield opened


def test_portraits_repeat_the_validation_and_are_made_once(protocol, capsys):
    start, best = protocol.space.get_start(), protocol.space.to_unit(TUNED)
    store_inspections(protocol, start, best)
    note = protocol.study.read_note(INSPECTIONS)
    assert len(json.dumps(note)) < 60_000
    validation = {
        (trial.unit, trial.facts["seed"]): trial.facts["val_loss"]
        for trial in protocol.study.read_trials("validation")
    }
    for side, unit in (("baseline", start), ("best", best)):
        found = note[side]
        assert found["reproduced"] is True
        assert found["val_loss"] == found["validated"] == validation[unit, SEEDS[0]]
        assert found["values"] == protocol.space.to_values(unit)
        assert found["curve"][-1][0] == 6
        assert found["life"]["steps"] == [2, 4, 6]
        assert all(
            len(shares) == 4 and min(shares) > 0.0 for shares in found["life"]["utilisation"]
        )
        dynamics = found["dynamics"]
        assert [terminal["key"] for terminal in dynamics["terminals"]] == [
            key for key in SHOWN_KEYS if key < 64
        ]
        assert "".join(dynamics["text"]).count(" ") > 3
        for terminal in dynamics["terminals"]:
            for name in TRACES:
                born = [value is not None for value in terminal[name]]
                assert born == [at >= terminal["key"] for at in range(len(dynamics["text"]))]
        assert all(None not in dynamics["mean"][name] for name in TRACES)
    assert (
        note["baseline"]["dynamics"]["mean"]["calcium"]
        != note["best"]["dynamics"]["mean"]["calcium"]
    )
    folder = protocol.study.location.folder / "portraits/best"
    written = (folder / "result.json").stat().st_mtime_ns
    said = capsys.readouterr().out
    store_inspections(protocol, start, best)
    assert said.count("inspection:") == 1
    assert capsys.readouterr().out == ""
    assert (folder / "result.json").stat().st_mtime_ns == written
    assert protocol.study.read_note(INSPECTIONS) == note


def test_a_portrait_that_fails_is_said_and_stored_and_spoils_nothing(protocol, capsys):
    protocol.study.write_note(INSPECTIONS, None)
    start, best = protocol.space.get_start(), protocol.space.to_unit(TUNED)
    protocol.base.data.path = "nowhere.txt"
    store_inspections(protocol, start, best)
    assert "none of the best (UserError" in capsys.readouterr().out
    note = protocol.study.read_note(INSPECTIONS)
    assert "nowhere.txt" in note["baseline"]["failed"]
    assert note["best"]["seed"] == SEEDS[0]


def test_a_plain_model_has_a_portrait_without_dynamics_and_life(protocol):
    for key, value in {
        "release": "off",
        "fast_weights": "off",
        "experts": 1,
        "top_k": 1,
        "distance": "off",
    }.items():
        protocol.base.model[key] = value
    found = inspect_point(protocol, protocol.space.get_start(), 7, side="plain")
    assert (found["dynamics"], found["life"]) == (None, None)
    assert (found["validated"], found["reproduced"]) == (None, None)
    assert found["curve"]
    assert set(found["values"]) == set(NAMES)
