"""The line along a parameter lies where its trials lie."""

import numpy as np
import pytest

from synaptune.analysis.profiles import fit_profiles
from synaptune.search.space.space import Dimension, Space


@pytest.mark.parametrize("scale", ["lin", "log"])
def test_the_line_of_an_integer_goes_through_its_values(scale):
    """Integers own bins that reach half a step beyond the range: read over the range itself, every knot would be moved."""
    space = Space((Dimension("count", scale, 1, 4, integer=True),))
    stream = np.random.default_rng(0)
    values = stream.integers(1, 5, size=400)
    units = [(space.dimensions[0].to_unit(int(value)),) for value in values]
    (found,) = fit_profiles(space, units, [float(value) for value in values])
    assert min(found.line_values) == pytest.approx(1.0)
    assert max(found.line_values) == pytest.approx(4.0)
    ends = found.line[0], found.line[-1]
    assert ends == pytest.approx((1.0, 4.0), abs=0.1)
    assert np.interp([2.0, 3.0], found.line_values, found.line) == pytest.approx(
        [2.0, 3.0], abs=0.35
    )
