"""Files of a study: result.json of its runs, and best.yaml for `python train.py tuned=...`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synaptune.core.errors import user_error
from synaptune.core.files import replace_file
from synaptune.core.yaml_text import dump_yaml
from synaptune.search.space.file import USER_SETTING_FAULT, is_user_setting
from synaptune.search.space.values import Value, find_resolver
from synaptune.search.trial import Trial
from synaptune.study.short_names import expand_short_names
from synaptune.training.config import RESULT_FILE

NOT_VALIDATED = "not validated on fresh seeds"  # note of a best.yaml
USE = "python train.py tuned=FILE"


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically."""
    with replace_file(path) as draft:
        draft.write_text(text)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_best(
    path: Path,
    study: str,
    best: Trial,
    fixed: Mapping[str, Value],
    note: str = NOT_VALIDATED,
    use: str = USE,
) -> None:
    """Write best.yaml; the arguments after the path are those of `format_best_yaml`."""
    write_text(path, format_best_yaml(study, best, fixed, note, use))


def describe_validation(count: int, mean: float, *, low: float, high: float) -> str:
    """Describe a validated improvement of test perplexity [%] in the note of a best.yaml."""
    interval = f"{mean:.1f} % ({low:.1f} to {high:.1f})"
    return f"validated on {count} fresh seeds: improvement of test perplexity {interval}"


def write_optimization_results(path: Path, best: Trial, fixed: Mapping[str, Value]) -> None:
    """Write the result file of Hydra's Nevergrad sweeper: the best parameters and their result."""
    content = {
        "name": "nevergrad",
        "best_evaluated_params": {**fixed, **best.values},
        "best_evaluated_result": best.objective,
    }
    write_text(path, dump_yaml(content))


def format_best_yaml(
    study: str, best: Trial, fixed: Mapping[str, Value], note: str = NOT_VALIDATED, use: str = USE
) -> str:
    """Return the text of a file for `python train.py tuned=FILE`.

    Args:
        study: name of the study.
        best: trial whose parameters the file holds.
        fixed: values that the search space fixed.
        note: what is known of the parameters, in one line.
        use: how to use the file, in one line.
    """
    objective = "" if best.objective is None else f", objective {best.objective:.6g}"
    name = " ".join(study.split())  # a line break would end the comment
    head = f"# study {name}, trial {best.number}{objective}; use: {use}\n"
    head += f"# {note}\n"
    return head + dump_yaml({"parameters": {**fixed, **best.values}})


def read_best(path: Path) -> dict[str, Value]:
    """Read the values of a best.yaml by name, or of a best_params.json (short_names.py).

    Raises:
        UserError: the file is missing, is no best.yaml, holds an interpolation that computes, or
            sets what only a command may set.
    """
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        if "parameters" in content:
            values = {str(name): value for name, value in content["parameters"].items()}
        elif path.suffix == ".json":
            found = content.get("best_params", content)
            values = expand_short_names(dict(found), f"tuned={path}")
        else:
            raise KeyError("parameters")
    except OSError as error:
        raise user_error(
            got=f"tuned={path}: {error.strerror}",
            expected="the best.yaml of a study",
            do="check the path",
        ) from error
    except (
        yaml.YAMLError,
        OmegaConfBaseException,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
    ) as error:
        raise user_error(
            got=f"tuned={path}, not a best.yaml",
            expected="`parameters: {name: value, ...}`, or a best_params.json by short names",
            do="give the best.yaml of a study",
        ) from error
    # The file may come from another person: it must not read the environment of this user.
    if resolver := find_resolver(values):
        raise user_error(
            got=f"tuned={path} with {resolver}",
            expected="values that are not computed",
            do="replace it by its value, or give the name on the command line",
        )
    if own := [name for name in values if is_user_setting(name)]:
        raise user_error(
            got=f"tuned={path} with {own[0]}, {USER_SETTING_FAULT}",
            expected="values of the model, its data and its training",
            do="remove it, or give it on the command line",
        )
    return values


def read_run_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Read metrics and facts from the result.json of a run folder.

    The result is empty if the task writes no such file. A pruned run has the fact `pruned_at`.
    """
    try:
        content = json.loads((folder / RESULT_FILE).read_text())
    except FileNotFoundError:
        return {}
    facts = {
        key: content[key]
        for key in ("data_fingerprint", "device", "pruned_at")
        if content.get(key) is not None
    }
    metrics = content.get("metrics", {})
    return {
        "metrics": metrics if isinstance(metrics, dict) else {},  # another application's file
        "facts": facts | {"run_fingerprint": content.get("config_fingerprint")},
    }
