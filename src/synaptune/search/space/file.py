"""Search-space files, `search_space=FILE.yaml`: parameter names, ranges and fixed values.

    name: refined
    parameters: [synapse.calcium.*]                                 # with their declared ranges
    ranges:
      training.learning_rate: {low: 8.0e-08, high: 4.0e-07, log: true}
      synapse.vesicles.tau_rrp: {low: 20, high: 60}                 # log and integer as declared
      data.recall_fraction: {choices: [0.0, 0.5], weights: [65, 35]}
      policy.generations: {choices: [16, 24, 32], given: training.batch, cases: {4: [24, 32]}}
    fixed:
      training.batch_size: 8

A search starts at the configured values, and the baseline of a protocol uses them. A value outside
its range is moved to the nearest end of the range.

Hydra accepts only names of its config groups for `search_space=...`. The file is therefore
translated to overrides. A run and a study then store the whole content of the file, and a later
change of the file does not affect them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from synaptune.core.errors import UserError, suggest, user_error
from synaptune.core.text import get_first_line
from synaptune.core.yaml_text import dump_yaml
from synaptune.search.space.override_text import format_value
from synaptune.search.space.space import Dimension, make_choices
from synaptune.search.space.values import Value

ENDINGS = (".yaml", ".yml")
SPACE_KEYS = ("name", "parameters", "ranges", "fixed")
# Groups of the user and the machine: programs to start, addresses to send to, files to write. A
# file or a study may come from another person, and sets none of them.
USER_GROUPS = ("hydra", "logger", "name", "notify", "study", "tuned", "workers")
USER_SETTING_FAULT = "a setting of the command, which no file sets"
_RANGE_TYPES = {
    **{"low": "number", "high": "number", "log": "truth", "integer": "truth"},
    "step": "number",
}
_CHOICE_TYPES = {"choices": "values", "weights": "numbers", "given": "name", "cases": "cases"}
_NAME_PATTERN = re.compile(r"[A-Za-z_][\w.\-]*")
# Keys of a mapping that the override grammar of Hydra reads as a text.
_KEY_PATTERN = re.compile(r"(?!(?:true|false|null|nan|inf)$)[A-Za-z_][\w.\- ]*", re.IGNORECASE)
_OVERRIDE_PREFIX = "search_space="


@dataclass(frozen=True)
class SpaceFile:
    """Content of a search-space file.

    Attributes:
        name: name of the space, which is part of the default study name.
        parameters: names or wildcards of parameters that are searched in their declared ranges.
        ranges: entries of ranges by name.
        fixed: fixed values by name.
    """

    name: str
    parameters: tuple[str, ...] = ()
    ranges: dict[str, dict[str, Any]] = field(default_factory=dict)
    fixed: dict[str, Value] = field(default_factory=dict)

    def to_overrides(self, given: Sequence[str]) -> list[str]:
        """Return the file as configuration overrides.

        Args:
            given: names that other overrides set; the fixed values of these names are left out.
        """
        fixed = {name: value for name, value in self.fixed.items() if name not in given}
        # Hydra accepts new keys of a mapping only with ++.
        overrides = {
            "search_space.name": self.name,
            "search_space.parameters": list(self.parameters),
            "++search_space.ranges": self.ranges,
            "++search_space.fixed": fixed,
            **fixed,
        }
        return [
            "search_space=base",
            *(f"{key}={format_value(value)}" for key, value in overrides.items()),
        ]


def is_name(text: str) -> bool:
    """Return whether a text can be the name of a parameter in a space file."""
    return _NAME_PATTERN.fullmatch(text) is not None


def is_user_setting(name: str) -> bool:
    """Return whether a name of the configuration belongs to one of USER_GROUPS."""
    return re.split(r"[./@]", name.lstrip("+~"), maxsplit=1)[0] in USER_GROUPS


def get_space_file(override: str) -> Path | None:
    """Return the search-space file that an override names, or None if it names no file."""
    value = override.removeprefix(_OVERRIDE_PREFIX).strip("'\"")
    return (
        Path(value)
        if override.startswith(_OVERRIDE_PREFIX) and value.lower().endswith(ENDINGS)
        else None
    )


def read_space_file(path: Path) -> SpaceFile:
    """Read a search-space file.

    Raises:
        UserError: the file is missing, or has faults; the message lists all of them.
    """
    from omegaconf import OmegaConf

    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:
        raise user_error(
            got=f"search_space={path}: {error.strerror}",
            expected="a search-space file, or a name of conf/search_space",
            do="check the path",
        ) from error
    except Exception as error:  # the YAML reader raises errors of several libraries
        reason = get_first_line(error)
        raise user_error(
            got=f"search_space={path}: {reason}", expected="YAML", do="correct the file"
        ) from error
    faults = _find_faults(content)
    if faults:
        raise UserError(
            f"got search_space={path} with {len(faults)} faults\n  "
            + "\n  ".join(faults)
            + f"\n  expected: the keys {', '.join(SPACE_KEYS)}; "
            + "in a range low, high, log, integer, step, or choices and weights"
            + "\n  to do: correct the file"
        )
    parameters, ranges, fixed = (content.get(key) for key in SPACE_KEYS[1:])
    return SpaceFile(
        content.get("name") or path.stem, tuple(parameters or ()), ranges or {}, fixed or {}
    )


def format_space_file(file: SpaceFile, head: Sequence[str] = ()) -> str:
    """Return the text of a search-space file.

    Args:
        file: content of the file.
        head: lines of the leading comment.
    """
    content: dict[str, Any] = {"name": file.name}
    content |= {"parameters": list(file.parameters)} if file.parameters else {}
    content |= {"ranges": file.ranges} if file.ranges else {}
    content |= {"fixed": file.fixed} if file.fixed else {}
    text = dump_yaml(content, default_flow_style=None, width=130)
    return "".join(f"# {line}\n" for line in head) + text


def parse_range_entry(name: str, entry: Any, declared: Dimension | None, start: Any) -> Dimension:
    """Convert an entry of `ranges` to a dimension.

    Args:
        name: name of the parameter.
        entry: the entry.
        declared: declared dimension of the parameter, which supplies what the entry omits; None if
            the parameter declares no range.
        start: configured value of the parameter.

    Raises:
        UserError: the entry is invalid.
    """
    if fault := _find_entry_fault(entry):
        raise user_error(
            got=f"search_space.ranges {name}: {fault}",
            expected="low and high, or choices",
            do="correct the entry",
        )
    if "choices" in entry:
        dimension = make_choices(name, entry["choices"], start, entry.get("weights") or ())
        if ("given" in entry) != ("cases" in entry):
            raise user_error(
                got=f"search_space.ranges {name} with one of given and cases",
                expected="both: the parameter on which the choices depend, and the choices by its"
                " value",
                do="add the other",
            )
        cases = tuple((key, tuple(allowed)) for key, allowed in entry.get("cases", {}).items())
        return replace(dimension, given=entry.get("given"), cases=cases)
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
            got=f"search_space.ranges {name}: a range of numbers for the value {start!r}",
            expected="choices",
            do="list its choices",
        )
    low, high = (entry[key] if key in entry else getattr(declared, key) for key in ("low", "high"))
    scale = "log" if entry.get("log", False) else "lin"
    if declared is not None and declared.scale != "categorical" and "log" not in entry:
        scale = declared.scale
    integer = entry.get(
        "integer", declared.integer if declared is not None else isinstance(start, int)
    )
    step = entry.get("step", 1)
    return Dimension(name, scale, low, high, integer=integer, start=start, step=step)


def find_unknown_names(file: SpaceFile, known: Sequence[str]) -> list[str]:
    """Return the names in ranges and fixed values that are not known, each with similar names."""
    return [
        f"{name}{suggest(name, known)}" for name in (*file.ranges, *file.fixed) if name not in known
    ]


def _find_faults(content: Any) -> list[str]:
    if not isinstance(content, Mapping):
        return ["not a mapping of keys to values"]
    faults = [
        f"{key}: no such key{suggest(str(key), SPACE_KEYS)}"
        for key in content
        if key not in (*SPACE_KEYS, "defaults")
    ]
    name, parameters = content.get("name"), content.get("parameters") or []
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"[\w.\- ]+", name)):
        faults.append(f"name: {name!r} is not a name of letters, digits, - and _")
    if not (
        isinstance(parameters, list)
        and all(isinstance(entry, str) and "${" not in entry for entry in parameters)
    ):
        faults.append(f"parameters: {parameters!r} is not a list of names")
    ranges, fixed = (content.get(key) or {} for key in ("ranges", "fixed"))
    for key, entries in (("ranges", ranges), ("fixed", fixed)):
        if not isinstance(entries, Mapping):
            return [*faults, f"{key}: {entries!r} is not a mapping of names"]
        faults += [
            f"{key}: {name!r} is not a name"
            for name in entries
            if not (isinstance(name, str) and is_name(name))
        ]
    faults += [
        f"{name}: {fault}" for name, entry in ranges.items() if (fault := _find_entry_fault(entry))
    ]
    faults += [
        f"{name}: fixed at {value!r}, which is not a plain value"
        for name, value in fixed.items()
        if not _is_plain(value)
    ]
    faults += [f"{name}: both in ranges and in fixed" for name in ranges if name in fixed]
    faults += [
        f"{name}: {USER_SETTING_FAULT}" for name in (*ranges, *fixed) if is_user_setting(name)
    ]
    if not faults and not ranges and not parameters:
        faults.append("nothing to search: neither parameters nor ranges")
    return faults


def _find_entry_fault(entry: Any) -> str | None:
    """Return the fault in the structure of an entry of `ranges`, or None."""
    if not isinstance(entry, Mapping):
        return f"{entry!r} is not a range"
    kinds = _CHOICE_TYPES if "choices" in entry else _RANGE_TYPES
    for key, value in entry.items():
        if key not in kinds:
            others = " and ".join(other for other in entry if other != key)
            return f"unexpected key {key} with {others}" if others else f"unexpected key {key}"
        if not _has_type(kinds[key], value):
            return f"{key}: {value!r}"
    return None if entry else "an empty range"


def _has_type(kind: str, value: Any) -> bool:
    if kind == "truth":
        return isinstance(value, bool)
    if kind == "number":
        return _is_number(value)
    if kind == "name":
        return isinstance(value, str) and is_name(value)
    if kind == "cases":
        return isinstance(value, Mapping) and all(
            isinstance(allowed, list | tuple) and _is_plain(allowed) for allowed in value.values()
        )
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return kind == "numbers" and not value and not isinstance(value, bool | int | float | str)
    return all(_is_number(entry) if kind == "numbers" else _is_plain(entry) for entry in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(
            isinstance(key, int) or (isinstance(key, str) and bool(_KEY_PATTERN.fullmatch(key)))
            for key in value
        ) and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, str):
        return "${" not in value
    return value is None or isinstance(value, bool | int | float)
