"""The line of a profile follows its trials."""

import numpy as np
import pytest

from synaptune.analysis.profiles import fit_profiles
from synaptune.search.space.space import Dimension, Space


@pytest.mark.parametrize("scale", ["lin", "log"])
def test_the_line_of_an_integer_goes_through_its_values(scale):
    """The bins of integers extend half a step beyond the range, which must not shift the knots."""
    space = Space((Dimension("count", scale, 1, 4, integer=True),))
    rng = np.random.default_rng(0)
    values = rng.integers(1, 5, size=400)
    units = [(space.dimensions[0].to_unit(int(value)),) for value in values]
    (profile,) = fit_profiles(space, units, [float(value) for value in values])
    assert min(profile.line_values) == pytest.approx(1.0)
    assert max(profile.line_values) == pytest.approx(4.0)
    ends = profile.line[0], profile.line[-1]
    assert ends == pytest.approx((1.0, 4.0), abs=0.1)
    assert np.interp([2.0, 3.0], profile.line_values, profile.line) == pytest.approx(
        [2.0, 3.0], abs=0.35
    )
