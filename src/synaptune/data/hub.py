"""Text of a Hugging Face dataset, or of local files, read by the optional `datasets` library."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from synaptune.core.errors import user_error
from synaptune.core.network import is_reachable
from synaptune.core.text import get_first_line
from synaptune.data.config import DataConfig
from synaptune.data.text import TRAIN_SHARE, VAL_SHARE, Document, Splits, split_documents

# Names of data.name that read the local files of data.path.
_BUILDERS = {"arrow", "csv", "json", "parquet", "text"}
_HUB_TIMEOUT = 5.0  # s; longer than a slow handshake, shorter than the retries of the library
_log = logging.getLogger(__name__)
SEPARATOR = b"\0"  # between the rows of a dataset and between documents; removed from their text


def load_hub_splits(config: DataConfig) -> Splits:
    """Read the training, validation and test text of a dataset.

    With val_split and test_split the dataset's own splits are used. Otherwise one split is cut into
    contiguous parts: neighbouring rows are often parts of one article, so single rows are never
    assigned to different splits.

    Raises:
        UserError: the library is missing, the hub does not answer, the dataset, split or column
            does not exist, or it has no text.
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
    """Read the text column of one split, up to `max_bytes`, with a zero byte between rows."""
    # The rows are read inside the block too: a stream raises the error of a row when it reads it.
    with _use_datasets(config, split) as datasets:
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
            got=f"column {config.column} of {config.name} [{split}] without text",
            expected="rows of text",
            do="choose another data.column or data.split",
        )
    return Document(split, content)


def _join(rows: Iterable[dict[str, Any]], column: str, max_bytes: int) -> tuple[bytes, bool]:
    """Join the rows into at most `max_bytes` bytes of complete characters, without empty rows.

    Returns:
        The text in UTF-8, and whether the limit cut it.
    """
    parts: list[bytes] = []
    room, cut = max_bytes, False
    for row in rows:
        if room <= 0:
            cut = True
            break
        text = row[column] if row[column] is not None else ""  # a missing value is an empty row
        if not isinstance(text, str):
            raise user_error(
                got=f"data.column={column}, a column of {type(text).__name__}",
                expected="a column of text",
                do="choose another data.column",
            )
        if part := text.replace("\0", "").encode():
            parts.append(part)
            room -= len(part) + len(SEPARATOR)
    content = SEPARATOR.join(parts)
    return content[:max_bytes].decode(errors="ignore").encode(), cut or len(content) > max_bytes


@contextlib.contextmanager
def _use_datasets(config: DataConfig, split: str) -> Iterator[Any]:
    """Import the `datasets` library; raise its errors inside the block as UserErrors."""
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
        offline = " (offline: no request to the hub)" if datasets.config.HF_HUB_OFFLINE else ""
        reason = get_first_line(error)
        raise user_error(
            got=f"dataset {config.name} [{split}]{offline}: {reason}",
            expected="a dataset on the hub or in the cache, a folder of save_to_disk, "
            "or json, csv, parquet, text with data.path",
            do="check data.name, data.subset, data.split and the network, or use data=text",
        ) from error


def _load_rows(datasets: Any, config: DataConfig, split: str) -> Any:
    """Load the rows of one split."""
    name = str(config.name)
    if (Path(name) / "state.json").exists() or (Path(name) / "dataset_dict.json").exists():
        dataset = datasets.load_from_disk(name)
        return dataset[split] if isinstance(dataset, datasets.DatasetDict) else dataset
    if name in _BUILDERS:
        return datasets.load_dataset(
            name, data_files=_list_files(config), split=split, streaming=config.streaming
        )
    if not Path(name).is_dir():
        _go_offline_if_unreachable(datasets)
    return datasets.load_dataset(name, config.subset, split=split, streaming=config.streaming)


def _list_files(config: DataConfig) -> list[str]:
    """Return the local files of a builder; raise UserError when data.path names none."""
    path = Path(config.path or "")
    files = sorted(path.iterdir()) if config.path and path.is_dir() else [path]
    files = [str(file) for file in files if file.is_file()]
    if not files:
        raise user_error(
            got=f"data.name={config.name} with data.path={config.path}",
            expected=f"a {config.name} file or a folder of them",
            do="correct data.path",
        )
    return files


def _go_offline_if_unreachable(datasets: Any) -> None:
    """Use only the cache when the hub does not answer; the library would retry for minutes."""
    import huggingface_hub.constants as hub

    if datasets.config.HF_HUB_OFFLINE or is_reachable(hub.ENDPOINT, _HUB_TIMEOUT):
        return
    datasets.config.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"  # for worker processes of the library
