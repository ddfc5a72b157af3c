"""Text from a Hugging Face dataset, through the optional `datasets` library; also its builders on local files."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from synaptune.core.errors import user_error
from synaptune.core.text import get_first_line
from synaptune.data.config import DataConfig
from synaptune.data.text import TRAIN_SHARE, VAL_SHARE, Document, Splits, split_documents

_BUILDERS = {
    "arrow",
    "csv",
    "json",
    "parquet",
    "text",
}  # names that read the local files of data.path
_HUB_TIMEOUT = (
    5.0  # s; longer than a slow handshake, shorter than the library's own series of retries
)
_log = logging.getLogger(__name__)
SEPARATOR = b"\0"  # between the rows of a dataset and between documents; text holds none


def load_hub_splits(config: DataConfig) -> Splits:
    """Train, val and test text of a dataset: its own splits where named, else contiguous parts of one.

    Neighbouring rows are often parts of one article, so rows are never dealt out one by one.
    Raises UserError: library missing, hub out of reach, no such dataset, split or column, no text.
    """
    if config.val_split is None or config.test_split is None:
        return split_documents([_load_document(config, config.split, config.max_bytes)])
    shares = (
        (config.split, TRAIN_SHARE),
        (config.val_split, VAL_SHARE),
        (config.test_split, 1 - TRAIN_SHARE - VAL_SHARE),
    )
    return Splits(
        *(
            [_load_document(config, split, max(1, round(config.max_bytes * share)))]
            for split, share in shares
        )
    )


def _load_document(config: DataConfig, split: str, max_bytes: int) -> Document:
    """The text column of one split, up to `max_bytes`, rows separated by a zero byte."""
    with _use_datasets(
        config, split
    ) as datasets:  # reading too: a stream finds what is wrong with a row when it comes to it
        rows = _load_rows(datasets, config, split)
        columns = list(rows.column_names or []) or list(next(iter(rows), {}))
        if config.column not in columns:
            raise user_error(
                got=f"data.column={config.column}",
                expected=f"a column of {config.name}: {', '.join(columns) or 'none, it is empty'}",
                do="choose one with data.column=NAME",
            )
        content, cut = _join(rows.select_columns([config.column]), config.column, max_bytes)
    if cut:
        _log.warning(
            "read the first %d bytes of %s [%s]; raise data.max_bytes to read more",
            len(content),
            config.name,
            split,
        )
    if not content:
        raise user_error(
            got=f"no text in column {config.column} of {config.name} [{split}]",
            expected="rows of text",
            do="choose another data.column or data.split",
        )
    return Document(split, content)


def _join(rows: Iterable[dict[str, Any]], column: str, max_bytes: int) -> tuple[bytes, bool]:
    """Rows of text as one byte string of at most `max_bytes`, whole characters, empty rows left out; and whether there was more."""
    parts: list[bytes] = []
    room, more = max_bytes, False
    for row in rows:
        if room <= 0:
            more = True
            break
        text = row[column] if row[column] is not None else ""  # a missing value is an empty row
        if not isinstance(text, str):
            raise user_error(
                got=f"data.column={column}, which holds {type(text).__name__}",
                expected="a column of text",
                do="choose another data.column",
            )
        if part := text.replace("\0", "").encode():
            parts.append(part)
            room -= len(part) + len(SEPARATOR)
    whole = SEPARATOR.join(parts)
    return whole[:max_bytes].decode(errors="ignore").encode(), more or len(whole) > max_bytes


@contextlib.contextmanager
def _use_datasets(config: DataConfig, split: str) -> Iterator[Any]:
    """The `datasets` library. Raises UserError with the library's own reason when it cannot give the rows."""
    try:
        import datasets
        import datasets.config
        import datasets.exceptions
    except ImportError as error:
        raise user_error(
            got="data=hub without the `datasets` library",
            expected="the optional extra `hub`",
            do="pip install 'synaptune[hub]'",
        ) from error
    datasets.disable_progress_bars()
    try:
        yield datasets
    except (OSError, ValueError, KeyError, datasets.exceptions.DatasetsError) as error:
        offline = " (offline: the hub was not asked)" if datasets.config.HF_HUB_OFFLINE else ""
        reason = get_first_line(error)
        raise user_error(
            got=f"dataset {config.name} [{split}]{offline}: {reason}",
            expected="a dataset that the hub has or the cache holds, a folder of save_to_disk, or json, csv, parquet, text with data.path",
            do="check data.name, data.subset, data.split and the network, or use data=text",
        ) from error


def _load_rows(datasets: Any, config: DataConfig, split: str) -> Any:
    """The rows of one split."""
    name = str(config.name)
    if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
        saved = datasets.load_from_disk(name)
        return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
    if name in _BUILDERS:
        return datasets.load_dataset(
            name, data_files=_list_files(config), split=split, streaming=config.streaming
        )
    if not Path(name).is_dir():
        _go_offline_if_unreachable(datasets)
    return datasets.load_dataset(name, config.subset, split=split, streaming=config.streaming)


def _list_files(config: DataConfig) -> list[str]:
    """The local files of a builder. Raises UserError when data.path names none."""
    path = Path(config.path or "")
    files = (
        sorted(str(file) for file in path.iterdir() if file.is_file())
        if config.path and path.is_dir()
        else [str(path)]
    )
    if not config.path or not files or not Path(files[0]).is_file():
        raise user_error(
            got=f"data.name={config.name} with data.path={config.path}",
            expected=f"a {config.name} file or a folder of them",
            do="correct data.path",
        )
    return files


def _go_offline_if_unreachable(datasets: Any) -> None:
    """Use only what is cached when the hub does not answer at once: the library would retry for minutes."""
    import huggingface_hub.constants as hub

    if datasets.config.HF_HUB_OFFLINE or _is_reachable(hub.ENDPOINT):
        return
    datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"  # for worker processes of the library


def _is_reachable(address: str) -> bool:
    """Whether a server answers within `_PATIENCE`; in a thread, because a name lookup knows no time limit."""
    reached = threading.Event()

    def ask() -> None:
        try:
            urlopen(address, timeout=_HUB_TIMEOUT).close()
        except HTTPError:
            pass  # it answered, if only to refuse
        except (OSError, ValueError):
            return
        reached.set()

    worker = threading.Thread(target=ask, daemon=True)
    worker.start()
    worker.join(_HUB_TIMEOUT)
    return reached.is_set()
