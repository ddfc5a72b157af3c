"""Inspection of two points of a study: each is trained again, and its synapses are recorded.

The study's note `portraits` is {"baseline": inspection, "best": inspection}. An inspection holds

    unit, seed, values  the point, and the seed of its run (the first seed of the validation)
    val_loss            validation loss of this run [nats/token]
    validated           validation loss of the validation's run of the same point and seed
                        [nats/token]; None if there is no such run
    reproduced          whether the two are equal to the last bit; None if there is no such run
    curve               [[step, validation loss [nats/token]], ...]
    life                history of the experts, None for a dense model:
                          steps        [step, ...]
                          utilisation  [[share of each expert, mean over the layers], ...] by step
                          events       [[step, "merge" or "split", layer], ...]
    dynamics            traces of the terminals, None for a model without dynamic release:
                          text         [token as text, ...], the beginning of the validation split
                          layer        layer of the terminals: the first, counted from 0
                          terminals    [{"key": position, **traces}, ...], mean over the heads
                          mean         traces, mean over the heads and all terminals born by then

Traces are {"calcium": C [1], "ready": R [vesicle], "reserve": V [vesicle], "energy": A [1],
"release": x [vesicle/token], "efficacy": ln e [1]}. Each is a list with one entry for each token of
the text: the state after the token, None before the terminal is born. The synapse is updated at
every token (tick 1), so the traces follow the per-token equations, whatever the tick of the
training. An inspection that failed is {"unit", "seed", "failed": reason}.

    x = Q' - (1 - 1 / endo_delay) Q                                                              (1)

Source: (1) is eq. (3) of synapse/vesicles.py, solved for the release.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from synaptune.core.text import get_first_line
from synaptune.protocols.protocol import Protocol, print_message
from synaptune.search.space.space import UnitPoint
from synaptune.search.workers.pool import Pool
from synaptune.search.workers.spawners import count_threads
from synaptune.training.config import CHECKPOINT_FILE, RESULT_FILE

if TYPE_CHECKING:
    from torch import Tensor

    from synaptune.model.gpt import GPT
    from synaptune.synapse.tensors import SynapseTensors
    from synaptune.synapse.terminal import TerminalState

INSPECTIONS = "portraits"
SIDES = ("baseline", "best")
SHOWN_KEYS = (0, 16, 48)  # recorded terminals: the first, and two born later
TRACES = ("calcium", "ready", "reserve", "energy", "release", "efficacy")
TEXT_TOKENS = 128  # length of the text [token]; chosen: a figure's width
MAX_STEPS = 60  # most steps of `life` and `curve`; chosen: a figure's width
INSPECTION_DIGITS = 4
# The run is that of the validation without logging. These values do not affect its results.
_QUIET_OVERRIDES = {
    "training.test": False,
    "training.resume": False,
    "objective.name": "val_loss",
    "pruner.name": "none",
}
_QUIET_OVERRIDES |= {"logger.wandb": "off", "logger.tensorboard": False, "logger.progress": "off"}


def store_inspections(protocol: Protocol, before: UnitPoint, after: UnitPoint) -> None:
    """Inspect two points and store the results in the study, unless it has them.

    An error is printed and stored, and does not end the protocol.

    Args:
        protocol: the protocol of the study.
        before: the start point.
        after: the best point.
    """
    seed, inspections = protocol.seeds[0], protocol.study.read_note(INSPECTIONS) or {}
    points = dict(zip(SIDES, (before, after), strict=True))
    missing = {
        side: unit
        for side, unit in points.items()
        if not _is_current(inspections.get(side), unit, seed)
    }
    if not missing:
        return
    print_message(
        f"inspection: {' and '.join(missing)} again with seed {seed}, to record the synapses"
    )
    for side, unit in missing.items():
        try:
            result = inspect_point(protocol, unit, seed, side=side)
        except Exception as error:  # an illustration must not end a protocol that has its verdict
            reason = f"{type(error).__name__}: {error}"
            print_message(f"inspection: none of the {side} ({get_first_line(reason)})")
            result = {"unit": list(unit), "seed": seed, "failed": reason}
        inspections[side] = result
        if result.get("reproduced") is False:
            print_message(
                f"inspection: the loss of the {side} is {result['val_loss']:.6f}, "
                f"in the validation {result['validated']:.6f}"
            )
    protocol.study.write_note(INSPECTIONS, inspections)


def _is_current(inspection: Any, unit: UnitPoint, seed: int) -> bool:
    return (
        inspection is not None
        and "failed" not in inspection
        and (tuple(inspection["unit"]), inspection["seed"]) == (tuple(unit), seed)
    )


def inspect_point(protocol: Protocol, unit: UnitPoint, seed: int, *, side: str) -> dict[str, Any]:
    """Train a point again in the study's folder `portraits/<side>` and record its synapses.

    Args:
        protocol: the protocol of the study.
        unit: the point.
        seed: seed of the run.
        side: name of the folder.

    Returns:
        The inspection; the docstring of the module describes it.

    Raises:
        UserError, DivergedError: as config.run.run.
    """
    from synaptune.config.run import run

    values = protocol.space.to_values(unit)
    folder = protocol.study.location.folder / INSPECTIONS / side
    shutil.rmtree(folder, ignore_errors=True)
    changes = {**values, "seed": seed, **_QUIET_OVERRIDES}
    if protocol.final_steps is not None:
        changes["training.steps"] = protocol.final_steps
    with _limit_threads(protocol):
        outcome = run(
            _apply_changes(protocol.base, changes),
            folder,
            overrides=[],
            report=_ignore_report,
        )
    result = json.loads((folder / RESULT_FILE).read_text())
    validated = _find_validation_loss(protocol, values, seed)
    loss = outcome.metrics["val_loss"]
    return {
        "unit": list(unit),
        "seed": seed,
        "values": values,
        "val_loss": loss,
        "validated": validated,
        "reproduced": None if validated is None else validated == loss,
        "curve": [[step, _round_number(value)] for step, value in _thin_out(result["curve"])],
        "life": _summarise_life(result.get("life")),
        "dynamics": record_dynamics(folder / CHECKPOINT_FILE),
    }


def _ignore_report(step: int, loss: float) -> None:
    """Ignore the reports: an inspection is not part of a search."""


def _apply_changes(base: DictConfig, changes: dict[str, Any]) -> DictConfig:
    cfg = base.copy()
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value)
    return cfg


def _find_validation_loss(protocol: Protocol, values: dict[str, Any], seed: int) -> float | None:
    """Return the loss [nats/token] of a point and seed in the validation; None if it has none."""
    for trial in protocol.study.read_trials():
        if (
            trial.state == "complete"
            and trial.facts.get("test")
            and trial.facts["seed"] == seed
            and trial.values == values
        ):
            return trial.facts["val_loss"]
    return None


@contextlib.contextmanager
def _limit_threads(protocol: Protocol) -> Iterator[None]:
    """Use as many threads as the validation's runs, so that the results are equal.

    Another number of threads sums in another order.
    """
    import os

    import torch

    before = torch.get_num_threads()
    if isinstance(protocol.pool, Pool) and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(count_threads(protocol.pool.processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _summarise_life(life: dict[str, Any] | None) -> dict[str, Any] | None:
    if life is None:
        return None
    rows = _thin_out(list(zip(life["steps"], life["utilisation"], strict=True)))
    use = [[_round_number(share) for share in shares] for _, shares in rows]
    return {"steps": [step for step, _ in rows], "utilisation": use, "events": life["events"]}


def _thin_out(rows: Sequence[Any]) -> list[Any]:
    """Return at most MAX_STEPS rows, evenly spaced, the first and the last included."""
    if len(rows) <= MAX_STEPS:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / (MAX_STEPS - 1))] for index in range(MAX_STEPS)]


def _round_number(number: float) -> float:
    return float(f"{number:.{INSPECTION_DIGITS}g}")


def record_dynamics(checkpoint: Path) -> dict[str, Any] | None:
    """Record the terminals of a model's first layer along the beginning of its validation text.

    Returns:
        `dynamics` of an inspection; None for a model without dynamic release.
    """
    from synaptune.data.batches import make_eval_batches
    from synaptune.data.corpus import load_corpus
    from synaptune.training.checkpoint import load_model

    model, config, data = load_model(checkpoint)
    if model.release_off or config.release != "dynamic":
        return None
    corpus = load_corpus(data, config.context)
    batches = make_eval_batches(corpus, data, "val", size=1, context=config.context, limit=1)
    tokens = batches[0].tokens[0, :TEXT_TOKENS]
    traces = record_traces(model, tokens)
    keys = [key for key in SHOWN_KEYS if key < len(tokens)]
    return {
        "text": [corpus.decode([token]) for token in tokens.tolist()],
        "layer": 0,
        "terminals": [
            {"key": key} | {name: _to_list(trace[:, key]) for name, trace in traces.items()}
            for key in keys
        ],
        "mean": {name: _to_list(trace.nanmean(-1)) for name, trace in traces.items()},
    }


def _to_list(trace: Tensor) -> list[float | None]:
    return [None if value != value else _round_number(value) for value in trace.tolist()]


def record_traces(model: GPT, tokens: Tensor) -> dict[str, Tensor]:
    """Record the terminals of the first layer along a text.

    Args:
        model: the model.
        tokens: (token,), the text.

    Returns:
        For each of TRACES (token, key), mean over the heads; NaN before the terminal is born.
    """
    import torch

    from synaptune.model.attention import rms_norm
    from synaptune.synapse.terminal import init_terminals, map_state, terminal_step

    block, params = model.blocks[0], model.get_synapse(0)
    assert block.presynapse is not None
    with torch.no_grad():
        q, k, _ = block.attention.project(
            rms_norm(rms_norm(model.embedding(tokens[None]))),
            model.make_shared_inputs(len(tokens)).rope,
        )
        drive = block.presynapse.compute_drive(q, k)[0]
        state = init_terminals(drive.new_zeros(drive.shape[0], len(tokens)), params)
        rows = {name: drive.new_full((len(tokens), len(tokens)), torch.nan) for name in TRACES}
        for token in range(len(tokens)):
            born = token + 1
            before = map_state(state, lambda value, born=born: value[:, :born])
            after, e = terminal_step(before, drive[:, token, :born], params, 1)
            for name, value in _read_traces(before, after, e, params).items():
                rows[name][token, :born] = value.mean(0)
            state = map_state(
                state, lambda old, new, born=born: torch.cat([new, old[:, born:]], -1), after
            )
    return rows


def _read_traces(
    before: TerminalState, after: TerminalState, efficacy: Tensor, params: SynapseTensors
) -> dict[str, Tensor]:
    """Return the traces of one token, each (head, key)."""
    vesicles = after.vesicles
    dwelling = (1.0 - 1.0 / params.vesicles.endo_delay) * before.vesicles.endocytosing
    return {
        "calcium": after.calcium.free,
        "ready": vesicles.ready,
        "reserve": vesicles.reserve,
        "energy": after.energy.energy,
        "release": (vesicles.endocytosing - dwelling).clamp(min=0.0),  # eq. (1)
        "efficacy": (efficacy + params.attention.epsilon).log(),
    }
