"""No parameter of the registry is dead in its regime, and its effect exceeds rounding noise."""

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
    sensitivities, rounding_noise = measure_sensitivities(ShortRun(seeds=2))
    assert [sensitivity.spec.name for sensitivity in sensitivities] == [spec.name for spec in SPECS]
    assert [
        sensitivity.spec.name for sensitivity in sensitivities if sensitivity.effect < MIN_EFFECT
    ] == []
    assert rounding_noise < MIN_EFFECT / 10
    assert "0 dead" in format_summary(sensitivities, rounding_noise)
