"""The screening of phase 1: a designed experiment says which of all parameters matter.

Each run is a trial of the phase `screen`, stored at once. The chosen parameters are stored with the
study, in `screening.json`, and as a search space in `screened.yaml`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from synaptune.analysis.results import Screening
from synaptune.analysis.screening import (
    analyse_screen,
    from_note,
    group_by_subsystem,
    plan_screen,
    to_note,
    to_points,
)
from synaptune.core.errors import user_error
from synaptune.core.text import get_override_key
from synaptune.protocols.config import SEED_OFFSETS, Phase1Config
from synaptune.protocols.protocol import Protocol, print_message
from synaptune.protocols.sanity import TRYOUT_STEPS
from synaptune.protocols.stages import run_points
from synaptune.search.space.space import Space
from synaptune.search.trial import get_loss
from synaptune.study.database.keys import RUN_EVALUATIONS, RUN_STEPS
from synaptune.study.reader import SCREEN, SCREENING

SPACE = "screened"  # name of the search space
# Runs of a screening, and of one that only tries the commands [run]; chosen by `make bench-screen`.
DEFAULT_RUNS, TRYOUT_RUNS = 100, 8
_SHOWN_EFFECTS = 12


def run_screening(overrides: Sequence[str]) -> dict[str, Any]:
    """Run phase 1 up to its screening (`synaptune screen`); phase 1 continues the same study."""
    from synaptune.protocols.phase1 import run_phase1

    return run_phase1(overrides, until=SCREEN)


def add_space(overrides: Sequence[str], *, is_on: bool) -> list[str]:
    """Return the overrides with the screened space, unless they name another or switch it off.

    A search that starts at another study has the space of that study's search.
    """
    is_named = any(
        (key := get_override_key(word)).startswith("search_space") or key == "search.start"
        for word in overrides
    )
    return [*overrides] if is_named or not is_on else [*overrides, f"search_space={SPACE}"]


def count_runs(config: Phase1Config, *, parameters: int, steps: int) -> int:
    """Return the number of runs of the screening."""
    wanted = config.screen_runs
    if wanted is None:
        wanted = TRYOUT_RUNS if steps < TRYOUT_STEPS else DEFAULT_RUNS
    return len(plan_screen(parameters, wanted, 0).signs)


def count_evaluations(base: DictConfig) -> int:
    """Return the validations of a screening run: the last one, where nothing needs the others."""
    is_judged = base.objective.name == "proxy" or base.pruner.name != "none"
    return int(base.training.evaluations) if is_judged else 1


def run_screen(protocol: Protocol, config: Phase1Config) -> Protocol:
    """Run the screening, or read its result; return the protocol over the chosen parameters.

    Raises:
        UserError: too few of its runs are complete.
    """
    note = protocol.study.read_note(SCREENING)
    if note is None:
        note = protocol.study.write_note_once(SCREENING, to_note(_measure(protocol, config)))
    screening = from_note(note)
    _print_screening(screening)
    space = select_space(protocol.space, screening)
    _write_files(protocol, screening, space)
    return replace(protocol, space=space, full_space=protocol.space)


def select_space(space: Space, screening: Screening) -> Space:
    """Return the chosen parameters of a space, in its order."""
    chosen = {effect.name for effect in screening.effects if effect.chosen}
    return Space(tuple(entry for entry in space.dimensions if entry.name in chosen))


def _measure(protocol: Protocol, config: Phase1Config) -> Screening:
    space, steps = protocol.space, int(protocol.base.training.steps)
    count = count_runs(config, parameters=len(space.names), steps=steps)
    plan = plan_screen(len(space.names), count, protocol.seed)
    short = max(1, round(config.screen_fraction * steps))
    print_message(
        f"screening: {len(plan.signs)} runs of {short} steps over {len(space.names)} parameters"
    )
    first_seed = protocol.seed + SEED_OFFSETS[SCREEN]
    seeds = [first_seed + block for block in plan.blocks]
    evaluations = count_evaluations(protocol.base)
    facts: dict[str, Any] = {RUN_STEPS: short, RUN_EVALUATIONS: evaluations}
    ledger = protocol.make_ledger(SCREEN, **facts)
    points = list(zip(to_points(plan, space), seeds, strict=True))
    trials = run_points(protocol, ledger, points, label="screening run")
    screening = analyse_screen(plan, space.names, [get_loss(trial) for trial in trials])
    if screening is None:
        failed = [trial for trial in trials if trial.state == "failed"]
        raise user_error(
            got=f"a screening of which {len(failed)} of {len(trials)} runs failed"
            + (f", the first because: {failed[0].reason}" if failed else ""),
            expected="at least half of them, each with its mirror",
            do="narrow the ranges, or search without it: protocol.screen=false study.name=OTHER",
        )
    return screening


def _print_screening(screening: Screening) -> None:
    from synaptune.core.console import make_console
    from synaptune.report.console import print_table
    from synaptune.report.screening import describe_screening, tabulate_effects

    table = tabulate_effects(screening, limit=_SHOWN_EFFECTS)
    print_table(table, make_console())
    for line in describe_screening(screening):
        print_message(f"screening: {line}")


def _write_files(protocol: Protocol, screening: Screening, space: Space) -> None:
    from synaptune.core.yaml_text import dump_yaml
    from synaptune.study.artifacts import write_json, write_text

    location = protocol.study.location
    shares = group_by_subsystem(screening)
    write_json(location.folder / "screening.json", to_note(screening) | {"subsystems": shares})
    head = f"# chosen by the screening of study {location.name}; use: search_space=FILE\n"
    content = {"name": SPACE, "parameters": list(space.names)}
    write_text(location.folder / "screened.yaml", head + dump_yaml(content))
    print_message(f"screening: written to {location.shown_folder}/screened.yaml")
