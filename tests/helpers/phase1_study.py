"""A small phase-1 study with a search of two points and their validation.

Its training runs take a fraction of a second.
"""

from __future__ import annotations

from pathlib import Path

from synaptune.config.compose import compose_config
from synaptune.protocols.phase1 import build_space
from synaptune.protocols.session import open_protocol
from synaptune.protocols.stages import run_points, run_validation

NAMES = ("synapse.calcium.tau_c", "synapse.attention.barrier_strength")
TUNED = {"synapse.calcium.tau_c": 0.9, "synapse.attention.barrier_strength": 8.0}
QUICK = ["scale=smoke", "training.steps=6", "model.width=16", "logger=csv", "workers.count=1"]
WORDS = [
    "axon",
    "bouton",
    "calcium",
    "dendrite",
    "energy",
    "fusion",
    "glia",
    "hebb",
    "ion",
    "kinase",
]
SEEDS = (1000, 1001)


def make_study(
    folder: Path, *overrides: str, validate: bool = True, tuned: dict[str, float] | None = None
) -> None:
    """Make a phase-1 study in a folder.

    Its search has two points, the defaults and `tuned`. Both are validated.

    Args:
        folder: folder of the study.
        overrides: further overrides of conf/train.yaml.
        validate: run the validation.
        tuned: values of the second point; None means TUNED.
    """
    text = folder.parent / "words.txt"
    text.write_text(" ".join(WORDS[number * number % 97 % len(WORDS)] for number in range(8000)))
    all_overrides = [
        *QUICK,
        "data=text",
        f"data.path={text}",
        f"study.dir={folder}",
        f"search_space.parameters=[{','.join(NAMES)}]",
        *overrides,
    ]
    composed = compose_config(all_overrides, study=folder.name)
    space = build_space(composed)
    best = space.to_unit(tuned or TUNED)
    settings = {"protocol": "phase1"}
    with open_protocol(
        composed.base,
        composed.location,
        space,
        optimizer="cma",
        budget=4,
        seeds=SEEDS,
        settings=settings,
    ) as protocol:
        run_points(
            protocol,
            protocol.make_ledger("search", seeds=1),
            [(unit, protocol.seed) for unit in (space.get_start(), best)],
            label="run",
        )
        if validate:
            run_validation(protocol, space.get_start(), best)
