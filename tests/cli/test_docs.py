"""docs/parameters.md is what the declarations say."""

from synaptune.cli.docs import PARAMETERS_PAGE, render
from synaptune.core.parameters import CONSTANTS
from synaptune.synapse.circuit import SPECS


def test_the_committed_table_is_fresh():
    assert PARAMETERS_PAGE.read_text(encoding="utf-8") == render(), "run `make docs`"


def test_the_table_names_every_parameter_and_constant():
    page = render()
    for name in [*(spec.name for spec in SPECS), *CONSTANTS]:
        assert page.count(f"| `{name}`") == 1
