"""Tables on terminals of several widths, and in a pipe."""

import io

import pytest
from rich.console import Console

from synaptune.report.console import print_table
from synaptune.report.table_model import Column, Table

NAMES = ("synapse.vesicles.unprime_per_release", "synapse.stochastic.stochastic_train_frac")
COLUMNS = (
    Column("parameter", "name"),
    Column("effect", "value", "nats/token"),
    *(Column("95 % interval"), Column("p"), Column("p (Holm)"), Column("searched")),
)
ROWS = [(name, -0.00546, "-0.0118 to 0.0009", "0.086", "1.000", "yes") for name in NAMES]
TABLE = Table("effects", "Effects", COLUMNS, ROWS, " ".join(["a note"] * 30))


def show(width: int, *, terminal: bool = True) -> list[str]:
    stream = io.StringIO()
    options = {"width": width, "force_terminal": terminal, "color_system": None}
    print_table(TABLE, Console(file=stream, **options))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 110, 140])
def test_a_table_on_a_terminal_breaks_no_word_and_is_no_wider(width):
    lines = show(width)
    assert max(map(len, lines)) <= width
    for name in NAMES:
        row = next(line for line in lines if name.rpartition(".")[2] in line)
        assert "-0.0118 to 0.0009" in row
        assert (name in row) == (width == 140)  # whole names where they fit
    assert any("┃" in line for line in lines) == (width > 80)
    notes = [line.rstrip() for line in lines if "note" in line]
    assert len(notes) > 1
    assert " ".join(notes) == TABLE.note  # wrapped between its words


def test_a_table_in_a_pipe_has_whole_names_whatever_its_width():
    lines = show(40, terminal=False)
    for name in NAMES:
        assert sum(line.startswith(name) and "yes" in line for line in lines) == 1
