"""Datasets of the hub: local files, and an unreachable network."""

import json
import os
import subprocess
import sys
import time

import pytest

from synaptune.core.errors import UserError
from synaptune.data.config import DataConfig
from synaptune.data.corpus import load_corpus
from synaptune.data.hub import _join, load_hub_splits

datasets = pytest.importorskip("datasets", reason="the optional extra `hub` is not installed")
ROWS = [f"Row {number} says: naïve café, {number * 31 % 97}." for number in range(300)]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("SYNAPTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


def write_rows(folder, kind: str) -> str:
    table = datasets.Dataset.from_dict({"text": ROWS, "id": list(range(len(ROWS)))})
    path = folder / f"rows.{kind}"
    if kind == "json":
        path.write_text("\n".join(json.dumps({"text": row}) for row in ROWS))
    elif kind == "text":
        path.write_text("\n".join(ROWS))
    else:
        {"csv": table.to_csv, "parquet": table.to_parquet}[kind](str(path))
    return str(path)


@pytest.mark.parametrize("kind", ["json", "csv", "parquet", "text"])
def test_local_files_of_every_builder_give_the_same_text(tmp_path, kind):
    config = DataConfig(source="hub", name=kind, path=write_rows(tmp_path, kind))
    corpus = load_corpus(config, 64)
    tokens = [
        token for split in (corpus.train, corpus.val, corpus.test) for token in split.tolist()
    ]
    assert corpus.decode(tokens) == "\0".join(ROWS)
    assert load_corpus(config, 64).fingerprint == corpus.fingerprint


def test_a_saved_dataset_gives_its_own_splits_when_they_are_named(tmp_path):
    parts = {"train": ROWS[:200], "validation": ROWS[200:250], "test": ROWS[250:]}
    saved = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": rows}) for name, rows in parts.items()}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    splits = load_hub_splits(
        DataConfig(
            source="hub", name=str(tmp_path / "saved"), val_split="validation", test_split="test"
        )
    )
    assert [part[0].content.decode().split("\0") for part in splits] == list(parts.values())


def test_streaming_reads_no_more_than_the_cap(tmp_path):
    config = DataConfig(
        source="hub", name="json", path=write_rows(tmp_path, "json"), streaming=True, max_bytes=1000
    )
    size = sum(len(document.content) for part in load_hub_splits(config) for document in part)
    assert 996 <= size <= 1000


def test_a_cap_is_reported_for_the_split_that_it_cuts(tmp_path, caplog):
    parts = {"train": ROWS[:200], "validation": ROWS[200:203], "test": ROWS[203:206]}
    saved = datasets.DatasetDict(
        {name: datasets.Dataset.from_dict({"text": rows}) for name, rows in parts.items()}
    )
    saved.save_to_disk(str(tmp_path / "saved"))
    config = DataConfig(
        source="hub",
        name=str(tmp_path / "saved"),
        val_split="validation",
        test_split="test",
        max_bytes=4000,
    )
    load_corpus(config, 64)
    assert [record.getMessage().split(";")[0].rpartition(" ")[2] for record in caplog.records] == [
        "[train]"
    ]


@pytest.mark.parametrize(("cap", "more"), [(8, False), (7, False), (6, True), (3, True)])
def test_a_text_of_exactly_the_cap_is_not_reported_as_cut(cap, more):
    joined, cut = _join([{"text": "one"}, {"text": "two"}], "text", cap)
    assert (joined, cut) == (b"one\0two"[:cap], more)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_that_cannot_be_read_gives_a_user_error(tmp_path, streaming):
    path = tmp_path / "bad.json"
    path.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(UserError, match="dataset json"):
        load_hub_splits(DataConfig(source="hub", name="json", path=str(path), streaming=streaming))


def test_missing_and_empty_rows_are_skipped(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("\n".join(json.dumps({"text": row}) for row in ["one", None, "", "two"]))
    parts = load_hub_splits(DataConfig(source="hub", name="json", path=str(path)))
    assert b"".join(part[0].content for part in parts) == b"one\0two"


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"column": "body"}, r"(?s)data\.column=body.*a column of json: text"),
        ({"path": "nowhere.json"}, r"data\.path=nowhere\.json"),
        ({"split": "validation"}, r"\[validation\]"),
        ({"name": "csv", "column": "id"}, r"(?s)data\.column=id.*a column of text"),
    ],
)
def test_a_split_or_column_that_a_dataset_lacks_is_refused_by_name(tmp_path, changes, fault):
    path = write_rows(tmp_path, changes.get("name", "json"))
    with pytest.raises(UserError, match=fault):
        load_hub_splits(DataConfig(**{"source": "hub", "name": "json", "path": path} | changes))


def load_in_process(environment: dict[str, str], block: str = "") -> tuple[str, float]:
    code = f"""
{block}
from synaptune.data.config import DataConfig
from synaptune.data.corpus import load_corpus
from synaptune.core.errors import UserError
try:
    load_corpus(DataConfig(source="hub", name="nobody/nothing"), 64)
except UserError as error:
    print(error)
"""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("HF_") and not name.lower().endswith("_proxy")
    }
    started = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, time.monotonic() - started


def test_an_unreachable_hub_gives_a_user_error_without_long_retries(tmp_path):
    output, seconds = load_in_process(
        {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    )
    assert "nobody/nothing" in output
    assert "offline" in output
    assert seconds < 40  # imports included; the library alone would retry for minutes


def test_the_offline_switch_of_the_hub_is_respected(tmp_path):
    output, _ = load_in_process({"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")})
    assert "offline" in output


def test_a_missing_library_is_named_with_the_command_that_installs_it(tmp_path):
    output, _ = load_in_process(
        {"HF_HOME": str(tmp_path)}, block="import sys; sys.modules['datasets'] = None"
    )
    assert "pip install 'synaptune[hub]'" in output
