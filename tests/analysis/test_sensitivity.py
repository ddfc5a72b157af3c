"""Liveness: no parameter of the registry is dead in its regime, and what moves the loss is the parameter, not rounding."""

import pytest

from synaptune.analysis.sensitivity import (
    MIN_EFFECT,
    ShortRun,
    format_summary,
    measure_sensitivities,
)
from synaptune.synapse.circuit import SPECS


@pytest.mark.slow
def test_every_parameter_moves_the_training_loss_of_a_short_deterministic_run():
    effects, dust = measure_sensitivities(ShortRun(seeds=2))
    assert [effect.spec.name for effect in effects] == [spec.name for spec in SPECS]
    assert [effect.spec.name for effect in effects if effect.effect < MIN_EFFECT] == []
    assert dust < MIN_EFFECT / 10
    assert "0 dead" in format_summary(effects, dust)
