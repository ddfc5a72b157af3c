"""A search space as a file of its own, `search_space=FILE.yaml`: ranges and fixed values beside names.

    name: refined
    parameters: [synapse.calcium.*]                                 # as declared beside their equations
    ranges:
      training.learning_rate: {low: 8.0e-08, high: 4.0e-07, log: true}
      synapse.vesicles.tau_rrp: {low: 20, high: 60}                 # log and integer as declared
      data.recall_fraction: {choices: [0.0, 0.5], weights: [65, 35]}
    fixed:
      training.batch_size: 8

A search begins, and a protocol's baseline is, at the configured values; one outside its range is moved to the nearest end.

Hydra takes only names of its groups for `search_space=...`, so the file is said in words it knows: a run and a study then hold
all of the file, and what is written in them does not change when the file does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from synaptune.core.errors import UserError, find_nearest, user_error
from synaptune.core.text import get_first_line
from synaptune.search.space.space import Dimension, Value

ENDINGS = (".yaml", ".yml")
SPACE_KEYS = ("name", "parameters", "ranges", "fixed")
_RANGE_TYPES = {"low": "number", "high": "number", "log": "truth", "integer": "truth"}
_CHOICE_TYPES = {"choices": "values", "weights": "numbers"}
_NAME_PATTERN = re.compile(r"[A-Za-z_][\w.\-]*")
_OVERRIDE_PREFIX = "search_space="


@dataclass(frozen=True)
class SpaceFile:
    """name: names the study too; parameters: names or wildcards with declared ranges; ranges: entries by name; fixed: values by name."""

    name: str
    parameters: tuple[str, ...] = ()
    ranges: dict[str, dict[str, Any]] = field(default_factory=dict)
    fixed: dict[str, Value] = field(default_factory=dict)

    def to_overrides(self, given: Sequence[str]) -> list[str]:
        """The file as overrides of a configuration; the fixed values are left out whose names are given."""
        about = {"search_space.name": self.name, "search_space.parameters": list(self.parameters)}
        held = {name: value for name, value in self.fixed.items() if name not in given}
        about |= {
            "++search_space.ranges": self.ranges,
            "++search_space.fixed": held,
        }  # Hydra takes new keys of a mapping only with ++
        return [
            "search_space=base",
            *(f"{key}={format_literal(value)}" for key, value in (about | held).items()),
        ]


def get_space_file(override: str) -> Path | None:
    """The file that a word of the command line names as the search space; null when it names none."""
    value = override.removeprefix(_OVERRIDE_PREFIX).strip("'\"")
    return (
        Path(value)
        if override.startswith(_OVERRIDE_PREFIX) and value.lower().endswith(ENDINGS)
        else None
    )


def read_space_file(path: Path) -> SpaceFile:
    """A search-space file; raises UserError for a missing file and, all at once, for whatever is wrong in it."""
    from omegaconf import OmegaConf

    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:
        raise user_error(
            got=f"search_space={path}: {error.strerror}",
            expected="a search-space file, or a name of conf/search_space",
            do="check the path",
        ) from error
    except Exception as error:  # the YAML reader's errors
        reason = get_first_line(error)
        raise user_error(
            got=f"search_space={path}: {reason}", expected="YAML", do="correct the file"
        ) from error
    found = _find_faults(content)
    if found:
        raise UserError(
            f"got search_space={path} with {len(found)} faults\n  "
            + "\n  ".join(found)
            + f"\n  expected: {', '.join(SPACE_KEYS)}; of a range low, high, log, integer, or choices and weights"
            + "\n  to do: correct the file"
        )
    parameters, ranges, fixed = (content.get(key) for key in SPACE_KEYS[1:])
    return SpaceFile(
        content.get("name") or path.stem, tuple(parameters or ()), ranges or {}, fixed or {}
    )


def format_space_file(file: SpaceFile, head: Sequence[str] = ()) -> str:
    """The text of a search-space file; head: lines of its leading comment."""
    import yaml

    content: dict[str, Any] = {"name": file.name}
    content |= {"parameters": list(file.parameters)} if file.parameters else {}
    content |= {"ranges": file.ranges} if file.ranges else {}
    content |= {"fixed": file.fixed} if file.fixed else {}
    text = yaml.safe_dump(
        content, sort_keys=False, default_flow_style=None, allow_unicode=True, width=130
    )
    return "".join(f"# {line}\n" for line in head) + text


def parse_range_entry(name: str, entry: Any, declared: Dimension | None, start: Any) -> Dimension:
    """The dimension an entry of `ranges` stands for; raises UserError.

    declared: the parameter's own, which says what the entry leaves out; start: its configured value.
    """
    if fault := _find_entry_fault(entry):
        raise user_error(
            got=f"search_space.ranges {name}: {fault}",
            expected="low and high, or choices",
            do="correct the entry",
        )
    if "choices" in entry:
        choices = tuple(entry["choices"])
        weights = tuple(float(weight) for weight in entry.get("weights") or ())
        return Dimension(
            name,
            "categorical",
            choices=choices,
            start=start if start in choices else None,
            weights=weights,
        )
    missing = [key for key in ("low", "high") if key not in entry]
    if declared is None and missing:
        raise user_error(
            got=f"search_space.ranges {name} without {' and '.join(missing)}",
            expected="low and high",
            do="add them",
        )
    number = isinstance(start, int | float) and not isinstance(start, bool)
    if not number:
        raise user_error(
            got=f"search_space.ranges {name}: a range, where the value is {start!r}",
            expected="choices",
            do="list its choices",
        )
    low, high = (entry[key] if key in entry else getattr(declared, key) for key in ("low", "high"))
    log = entry.get("log", declared is not None and declared.scale == "log")
    integer = entry.get(
        "integer", declared.integer if declared is not None else isinstance(start, int)
    )
    return Dimension(name, "log" if log else "lin", low, high, integer=integer, start=start)


def find_unknown_names(file: SpaceFile, known: Sequence[str]) -> list[str]:
    """The names in ranges and fixed that a configuration lacks, each with near ones."""
    return [
        f"{name} (closest: {find_nearest(name, known)})"
        for name in (*file.ranges, *file.fixed)
        if name not in known
    ]


def format_literal(value: Any) -> str:
    """A value in Hydra's override grammar."""
    if isinstance(value, Mapping):
        return (
            "{" + ", ".join(f"{key}: {format_literal(entry)}" for key, entry in value.items()) + "}"
        )
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(format_literal, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return "null" if value is None else repr(value)


def _find_faults(content: Any) -> list[str]:
    if not isinstance(content, Mapping):
        return ["no mapping of keys to values"]
    found = [
        f"{key}: no such key (closest: {find_nearest(str(key), SPACE_KEYS)})"
        for key in content
        if key not in (*SPACE_KEYS, "defaults")
    ]
    name, parameters = content.get("name"), content.get("parameters") or []
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"[\w.\- ]+", name)):
        found.append(f"name: {name!r} is no name of letters, digits, - and _")
    if not (isinstance(parameters, list) and all(isinstance(entry, str) for entry in parameters)):
        found.append(f"parameters: {parameters!r} is no list of names")
    ranges, fixed = (content.get(key) or {} for key in ("ranges", "fixed"))
    for key, entries in (("ranges", ranges), ("fixed", fixed)):
        if not isinstance(entries, Mapping):
            return [*found, f"{key}: {entries!r} is no mapping of names"]
        found += [
            f"{key}: {name!r} is no name"
            for name in entries
            if not (isinstance(name, str) and _NAME_PATTERN.fullmatch(name))
        ]
    found += [
        f"{name}: {fault}" for name, entry in ranges.items() if (fault := _find_entry_fault(entry))
    ]
    found += [
        f"{name}: fixed at {value!r}, which is no plain value"
        for name, value in fixed.items()
        if not _is_plain(value)
    ]
    found += [f"{name}: both in ranges and fixed" for name in ranges if name in fixed]
    if not found and not ranges and not parameters:
        found.append("nothing to search: neither parameters nor ranges")
    return found


def _find_entry_fault(entry: Any) -> str | None:
    """What is wrong with the shape of an entry of `ranges`; null when nothing is."""
    if not isinstance(entry, Mapping):
        return f"{entry!r} is no range"
    kinds = _CHOICE_TYPES if "choices" in entry else _RANGE_TYPES
    for key, value in entry.items():
        if key not in kinds:
            return f"{key} beside {' and '.join(other for other in entry if other != key) or 'nothing'}"
        if not _has_type(kinds[key], value):
            return f"{key}: {value!r}"
    return None if entry else "an empty range"


def _has_type(kind: str, value: Any) -> bool:
    if kind == "truth":
        return isinstance(value, bool)
    if kind == "number":
        return _is_number(value)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return kind == "numbers" and not value and not isinstance(value, bool | int | float | str)
    return all(_is_number(entry) if kind == "numbers" else _is_plain(entry) for entry in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and "${" not in value)
