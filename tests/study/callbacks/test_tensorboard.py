import io
import math
import time
from dataclasses import replace

import numpy as np
import pytest

from synaptune.search.optimizers.diagnostics import diagnose
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Trial
from synaptune.study.callbacks.base import TERMINAL_ONLY, PhaseTrials, open_callbacks
from synaptune.study.callbacks.images import sort_by_subsystem
from synaptune.study.callbacks.tensorboard import (
    TensorBoardCallback,
    convert_to_unit,
)
from synaptune.study.location import StudyConfig, resolve_location
from synaptune.study.study import PhaseLedger, Study

SPACE = Space(
    (
        Dimension("synapse.calcium.tau_c", "log", 1.0, 100.0),
        Dimension("synapse.energy.cost", "lin", 0.0, 4.0),
        Dimension("synapse.calcium.rank", "lin", 1, 9, integer=True),
        Dimension("model.kind", "categorical", choices=("x", "y")),
    )
)


def distribution(generation):
    covariance = np.diag([0.01, 0.04, 0.01, 0.01])
    covariance[0, 1] = covariance[1, 0] = 0.01
    return diagnose(
        generation=generation,
        names=SPACE.names,
        mean=np.full(4, 0.5),
        step=0.25,
        covariance=covariance,
        stagnation=generation - 1,
    )


def trial(number, objective, state="complete"):
    unit = (0.5, number % 5 / 4.0, 0.5, 0.25)
    facts = {"seconds": 2.0 + number, "generation": number // 5}
    return Trial(
        number, number, unit, SPACE.to_values(unit), state=state, objective=objective, facts=facts
    )


def log_generation(log, generation, objectives):
    members = []
    for position, objective in enumerate(objectives):
        number = 5 * (generation - 1) + position
        members.append(trial(number, objective, "failed" if objective is None else "complete"))
        log.on_end(members[-1], number + 1)
    log.on_generation(distribution(generation), members)


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "images": 0, "histograms": 0}
    ).Reload()


def scalar(events, tag):
    return [(entry.step, entry.value) for entry in events.Scalars(tag)]


def test_trials_and_generations_can_be_read_back_by_tensorboard(tmp_path):
    log = TensorBoardCallback(tmp_path, SPACE)
    log_generation(log, 1, [5.0, 4.0, None, 3.0, 6.0])
    log_generation(log, 2, [4.0, 2.0, 3.0, 2.0, 4.0])
    log.close(0)
    trials, generations = read(tmp_path / "trials"), read(tmp_path / "generations")
    assert scalar(trials, "trial/objective")[:4] == [(1, 5.0), (2, 4.0), (4, 3.0), (5, 6.0)]
    assert scalar(trials, "trial/seconds")[9] == (10, 11.0)
    assert [value for _, value in scalar(trials, "search/failed")] == [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert [value for _, value in scalar(trials, "search/best")] == [5, 4, 4, 3, 3, 3, 2, 2, 2, 2]
    assert [
        scalar(generations, f"generation/{name}") for name in ("best", "mean", "worst", "failed")
    ] == [
        [(1, 3.0), (2, 2.0)],
        [(1, 4.5), (2, 3.0)],
        [(1, 6.0), (2, 4.0)],
        [(1, 1.0), (2, 0.0)],
    ]
    assert scalar(generations, "distribution/stagnation") == [(1, 0.0), (2, 1.0)]
    assert scalar(generations, "distribution/step") == [(1, 0.25), (2, 0.25)]
    assert scalar(generations, "distribution/condition")[0][1] == pytest.approx(
        distribution(1).condition
    )
    assert scalar(generations, "mean/synapse.calcium.tau_c") == [(1, 10.0), (2, 10.0)]
    assert scalar(generations, "sigma/synapse.energy.cost")[0][1] == pytest.approx(0.8)


def test_histograms_hold_every_value_of_a_generation(tmp_path):
    log = TensorBoardCallback(tmp_path, SPACE)
    log_generation(log, 1, [5.0, 4.0, None, 3.0, 6.0])
    log.close(0)
    generations = read(tmp_path / "generations")
    costs = generations.Histograms("values/synapse.energy.cost")[0].histogram_value
    assert (costs.num, costs.min, costs.max, costs.sum) == (5, 0.0, 4.0, 10.0)
    assert sum(costs.bucket) == 5
    assert (costs.bucket_limit[0], costs.bucket_limit[-1]) == (0.0, 4.0)
    assert generations.Histograms("generation/objectives")[0].histogram_value.num == 4
    assert (
        generations.Histograms("values/model.kind")[0].histogram_value.max == 0.0
    )  # all are the first choice


def test_the_correlation_is_an_image_of_the_first_and_the_last_generation(tmp_path):
    from matplotlib.image import imread

    log = TensorBoardCallback(tmp_path, SPACE)
    log_generation(log, 1, [1.0] * 5)
    log._next_drawing = math.inf  # as after a slow drawing
    log_generation(log, 2, [1.0] * 5)
    log_generation(log, 3, [1.0] * 5)
    log.close(0)
    images = read(tmp_path / "generations").Images("correlation")
    assert [image.step for image in images] == [1, 3]
    pixels = imread(io.BytesIO(images[0].encoded_image_string), format="png")
    assert pixels.shape[:2] == (images[0].height, images[0].width)
    matrix = pixels[:, : int(0.38 * pixels.shape[1])]  # the correlation without its colour bar
    red, blue = matrix[..., 0] - matrix[..., 2] > 0.4, matrix[..., 2] - matrix[..., 0] > 0.4
    assert red.sum() > 100  # the diagonal, 1
    assert blue.sum() < 0.05 * red.sum()  # nothing is below 0


def test_parameters_of_a_subsystem_are_adjacent():
    assert sort_by_subsystem(["s.calcium.a", "s.energy.b", "s.calcium.c", "plain"]) == [
        "s.calcium.a",
        "s.calcium.c",
        "s.energy.b",
        "plain",
    ]


def test_a_resumed_log_has_no_step_twice(tmp_path):
    log = TensorBoardCallback(tmp_path, SPACE)
    log_generation(log, 1, [5.0] * 5)
    log_generation(log, 2, [4.0] * 5)
    log.close(130)
    time.sleep(1.0)  # TensorBoard reads files in the order of the second in their names
    earlier = [trial(number, 5.0 if number < 5 else 4.0) for number in range(5)]
    resumed = TensorBoardCallback(tmp_path, SPACE, earlier=[*earlier, trial(9, None, "failed")])
    log_generation(resumed, 2, [3.0] * 5)  # a generation that is repeated after a kill
    log_generation(resumed, 3, [2.0] * 5)
    resumed.close(0)
    trials, generations = read(tmp_path / "trials"), read(tmp_path / "generations")
    assert scalar(generations, "generation/best") == [(1, 5.0), (2, 3.0), (3, 2.0)]
    assert [step for step, _ in scalar(trials, "trial/objective")] == list(range(1, 16))
    assert scalar(trials, "search/failed")[-1] == (15, 1.0)
    assert [entry.step for entry in generations.Histograms("generation/objectives")] == [1, 2, 3]
    assert max(entry.step for entry in generations.Images("correlation")) == 3


def test_the_log_is_readable_while_the_search_runs(tmp_path):
    log = TensorBoardCallback(tmp_path, SPACE)
    log.on_end(trial(0, 5.0), 1)
    assert scalar(read(tmp_path / "trials"), "trial/objective") == [(1, 5.0)]
    log.close(0)


def test_a_maximised_objective_keeps_its_sign(tmp_path):
    log = TensorBoardCallback(tmp_path, SPACE, maximize=True)
    log_generation(log, 1, [0.2, 0.9, 0.4, 0.5, 0.6])
    log.close(0)
    generations = read(tmp_path / "generations")
    assert scalar(generations, "generation/best")[0][1] == pytest.approx(0.9)
    assert scalar(generations, "generation/worst")[0][1] == pytest.approx(0.2)
    assert scalar(generations, "search/best")[0][1] == pytest.approx(0.9)


def test_a_generation_without_a_complete_trial_is_still_a_step(tmp_path):
    log = TensorBoardCallback(tmp_path, SPACE)
    log_generation(log, 1, [None] * 5)
    log.close(0)
    generations = read(tmp_path / "generations")
    assert scalar(generations, "generation/failed") == [(1, 5.0)]
    assert "generation/best" not in generations.Tags()["scalars"]


def test_mean_and_sigma_are_in_the_unit_of_the_parameter():
    tau, cost, rank, kind = SPACE.dimensions
    center, half = convert_to_unit(tau, 0.5, 0.1)
    assert center == pytest.approx(10.0)
    assert half == pytest.approx((10**1.2 - 10**0.8) / 2.0, rel=1e-4)
    assert convert_to_unit(cost, 0.25, 0.1) == pytest.approx((1.0, 0.4))
    assert convert_to_unit(rank, 0.5, 0.25) == pytest.approx((5.0, 2.0), abs=0.51)
    assert convert_to_unit(kind, 0.3, 0.2) == (0.3, 0.2)


def test_the_log_is_written_only_if_it_is_enabled(tmp_path):
    study = Study(resolve_location(StudyConfig("s", str(tmp_path / "s")), "s"), {"x": 1})
    ledger = PhaseLedger(study, SPACE, "joint", {})
    disabled = replace(TERMINAL_ONLY, progress="off")
    enabled = replace(disabled, tensorboard=True)
    with study:
        phases, ended = [PhaseTrials(ledger, 5)], trial(0, 1.0)
        ended.facts["phase"] = "joint"
        for logger, logs in ((disabled, True), (enabled, False)):
            with open_callbacks(phases, logger, logs=logs) as callbacks:
                callbacks.on_end(ended, 1)
            assert not (tmp_path / "s" / "controller").exists()
        with open_callbacks(phases, enabled) as callbacks:
            callbacks.on_end(ended, 1)
    assert scalar(read(tmp_path / "s" / "controller" / "joint" / "trials"), "trial/objective") == [
        (1, 1.0)
    ]
