"""`tuned=` reads the plan's best_params.json."""

import json

import pytest

from synaptune.core.errors import UserError
from synaptune.study.artifacts import read_best


def write(folder, content, name="best_params.json"):
    path = folder / name
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("wrap", [lambda values: values, lambda values: {"best_params": values}])
def test_short_names_and_powers_of_ten_become_parameters(tmp_path, wrap):
    values = {"tau_c": 6.5, "alpha_ca_log": -0.5, "rank_eligibility": 12.0}
    found = read_best(write(tmp_path, wrap(values)))
    assert found == {
        "synapse.calcium.tau_c": 6.5,
        "synapse.calcium.alpha_ca": pytest.approx(10**-0.5),
        "synapse.postsynaptic.rank_eligibility": 12,
    }
    assert isinstance(found["synapse.postsynaptic.rank_eligibility"], int)


def test_unknown_names_are_all_named(tmp_path):
    path = write(tmp_path, {"tau_x": 1.0, "tau_c": "long", "alpha_ca": 0.5})
    with pytest.raises(UserError) as refused:
        read_best(path)
    assert "tau_x" in str(refused.value)
    assert "tau_c='long'" in str(refused.value)


def test_a_yaml_file_without_parameters_is_still_refused(tmp_path):
    with pytest.raises(UserError, match=r"not a best\.yaml"):
        read_best(write(tmp_path, {"tau_c": 6.5}, "other.yaml"))
