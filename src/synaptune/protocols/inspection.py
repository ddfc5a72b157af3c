"""What the baseline and the best of a study do inside: each trained once more, its synapses watched along a real text.

The study's note `portraits` is {"baseline": portrait, "best": portrait}, each of them

    unit, seed, values     the point, and the seed of its run (the validation's first)
    val_loss               of this run [nats/token]
    validated              of the validation's run of the same point and seed [nats/token]; null when there is none
    reproduced             whether the two are equal to the last bit; null when there is none
    curve                  [[step, validation loss [nats/token]], ...]
    life                   of the experts, null for a dense model:
                             steps          [step, ...]
                             utilisation    [[share of each expert, mean over the layers], ...], one row a step
                             events         [[step, "merge" or "split", layer], ...]
    dynamics               of the terminals, null for a model without dynamic release:
                             text           [token as text, ...], the beginning of the validation split
                             layer          whose terminals they are: the first, counted from 0
                             terminals      [{"key": position, **traces}, ...], traces being the mean over the heads
                             mean           traces, the mean over the heads and all terminals born by then

and traces are {"calcium": C [1], "ready": R [vesicle], "reserve": V [vesicle], "energy": A [1], "release": x [vesicle/token],
"efficacy": ln e [1]}, each a list with an entry for each token of the text, null before the terminal is born; the state is the one
after the token. The synapse moves at every token here (tick 1), so the traces are those of the per-token equations, whatever the
tick of the training. A portrait that could not be made is {"unit", "seed", "failed": reason}.

    x = Q' - (1 - 1 / endo_delay) Q                                                                             (1)

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
from synaptune.search.workers.base import InlineWorkers

if TYPE_CHECKING:
    from torch import Tensor

    from synaptune.model.gpt import GPT
    from synaptune.synapse.tensors import SynapseTensors
    from synaptune.synapse.terminal import TerminalState

INSPECTIONS = "portraits"
SIDES = ("baseline", "best")
SHOWN_KEYS = (0, 16, 48)  # terminals shown: the first, and two born later
TRACES = ("calcium", "ready", "reserve", "energy", "release", "efficacy")
TEXT_TOKENS = 128  # text of a portrait [token]; chosen: a figure's width
MAX_STEPS = 60  # most steps kept of a portrait's life and curve; chosen: a figure's width
INSPECTION_DIGITS = 4
# The run is the validation's, but watched by nobody; what is left out changes no number of it.
_QUIET_OVERRIDES = {
    "training.test": False,
    "training.resume": False,
    "objective.name": "val_loss",
    "pruner.name": "none",
}
_QUIET_OVERRIDES |= {"logger.wandb": "off", "logger.tensorboard": False, "logger.progress": "off"}


def store_inspections(protocol: Protocol, before: UnitPoint, after: UnitPoint) -> None:
    """Put the portraits of two points into the study, once; what goes wrong is said and stored, and spoils nothing."""
    seed, known = protocol.seeds[0], protocol.study.read_note(INSPECTIONS) or {}
    wanted = dict(zip(SIDES, (before, after), strict=True))
    missing = {
        side: unit for side, unit in wanted.items() if not _is_current(known.get(side), unit, seed)
    }
    if not missing:
        return
    print_message(
        f"portraits: {' and '.join(missing)} once more with seed {seed}, for what happens inside"
    )
    for side, unit in missing.items():
        try:
            known[side] = inspect_point(protocol, unit, seed, side=side)
        except (
            Exception
        ) as error:  # a portrait is an illustration: the verdict it would spoil is not
            reason = f"{type(error).__name__}: {error}"
            print_message(f"portraits: none of the {side} ({get_first_line(reason)})")
            known[side] = {"unit": list(unit), "seed": seed, "failed": reason}
        if known[side].get("reproduced") is False:
            print_message(
                f"portraits: the {side} gave {known[side]['val_loss']:.6f}, in the validation {known[side]['validated']:.6f}"
            )
    protocol.study.write_note(INSPECTIONS, known)


def _is_current(portrait: Any, unit: UnitPoint, seed: int) -> bool:
    return (
        portrait is not None
        and "failed" not in portrait
        and (tuple(portrait["unit"]), portrait["seed"]) == (tuple(unit), seed)
    )


def inspect_point(protocol: Protocol, unit: UnitPoint, seed: int, *, side: str) -> dict[str, Any]:
    """Train a point once more in the study's folder `portraits/<side>` and watch it; the schema is the module's.

    Raises as `build.run` does.
    """
    from synaptune.config.run import run

    values = protocol.space.to_values(unit)
    folder = protocol.study.location.folder / INSPECTIONS / side
    shutil.rmtree(folder, ignore_errors=True)
    with _limit_threads(protocol):
        outcome = run(
            _apply_changes(protocol.base, {**values, "seed": seed, **_QUIET_OVERRIDES}),
            folder,
            overrides=[],
            report=_ignore_report,
        )
    told = json.loads((folder / "result.json").read_text())
    validated = _find_validation_loss(protocol, values, seed)
    loss = outcome.metrics["val_loss"]
    return {
        "unit": list(unit),
        "seed": seed,
        "values": values,
        "val_loss": loss,
        "validated": validated,
        "reproduced": None if validated is None else validated == loss,
        "curve": [[step, _round_number(value)] for step, value in _thin_out(told["curve"])],
        "life": _summarise_life(told.get("life")),
        "dynamics": record_dynamics(folder / "checkpoint.pt"),
    }


def _ignore_report(step: int, loss: float) -> None:
    """No search listens to a portrait."""


def _apply_changes(base: DictConfig, changes: dict[str, Any]) -> DictConfig:
    cfg = base.copy()
    for key, value in changes.items():
        OmegaConf.update(cfg, key, value)
    return cfg


def _find_validation_loss(protocol: Protocol, values: dict[str, Any], seed: int) -> float | None:
    """The validation loss that the study holds of a point and seed."""
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
    """As many threads as the validation's runs had: sums in another order are other numbers."""
    import os

    import torch

    before = torch.get_num_threads()
    if not isinstance(protocol.pool, InlineWorkers) and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // protocol.pool.count))
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
    """At most POINTS of the rows, evenly, the first and the last among them."""
    if len(rows) <= MAX_STEPS:
        return list(rows)
    return [rows[round(index * (len(rows) - 1) / (MAX_STEPS - 1))] for index in range(MAX_STEPS)]


def _round_number(number: float) -> float:
    return float(f"{number:.{INSPECTION_DIGITS}g}")


def record_dynamics(checkpoint: Path) -> dict[str, Any] | None:
    """The terminals of a trained model's first layer along the beginning of its validation text; null when it has none at work."""
    from synaptune.data.batches import make_eval_batches
    from synaptune.data.corpus import load_corpus
    from synaptune.training.checkpoint import load_model

    model, config, data = load_model(checkpoint)
    if model.release_off or config.release != "dynamic":
        return None
    corpus = load_corpus(data, config.context)
    tokens = make_eval_batches(corpus, data, "val", size=1, context=config.context, limit=1)[
        0
    ].tokens[0, :TEXT_TOKENS]
    traces = record_traces(model, tokens)
    shown = [key for key in SHOWN_KEYS if key < len(tokens)]
    return {
        "text": [corpus.decode([token]) for token in tokens.tolist()],
        "layer": 0,
        "terminals": [
            {"key": key} | {name: _to_list(trace[:, key]) for name, trace in traces.items()}
            for key in shown
        ],
        "mean": {name: _to_list(trace.nanmean(-1)) for name, trace in traces.items()},
    }


def _to_list(trace: Tensor) -> list[float | None]:
    return [None if value != value else _round_number(value) for value in trace.tolist()]


def record_traces(model: GPT, tokens: Tensor) -> dict[str, Tensor]:
    """Traces (token, key) of the first layer's terminals, mean over the heads, along a text (token,); NaN before birth."""
    import torch

    from synaptune.model.attention import rms_norm
    from synaptune.synapse.terminal import init_terminals, map_state, terminal_step

    block, params = model.blocks[0], model.synapse
    assert block.presynapse is not None
    with torch.no_grad():
        q, k, _ = block.attention.project(
            rms_norm(rms_norm(model.embedding(tokens[None]))),
            model.make_shared_inputs(len(tokens)).rope,
        )
        drive = block.presynapse.compute_drive(q, k)[0]
        state = init_terminals(drive.new_zeros(drive.shape[0], len(tokens)), params)
        rows = {name: drive.new_full((len(tokens), len(tokens)), torch.nan) for name in TRACES}
        for at in range(len(tokens)):
            part = map_state(state, lambda value, born=at + 1: value[:, :born])
            moved, e = terminal_step(part, drive[:, at, : at + 1], params, 1)
            for name, value in _read_traces(part, moved, e, params).items():
                rows[name][at, : at + 1] = value.mean(0)
            state = map_state(
                state, lambda old, new, born=at + 1: torch.cat([new, old[:, born:]], -1), moved
            )
    return rows


def _read_traces(
    before: TerminalState, after: TerminalState, efficacy: Tensor, params: SynapseTensors
) -> dict[str, Tensor]:
    """The traces of one token, each (head, key)."""
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
