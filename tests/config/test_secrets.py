"""Passwords stay out of the files and logs of a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from helpers.paths import ROOT
from synaptune.config.run import make_record
from synaptune.core.secrets import mask_passwords
from synaptune.study.database.connection import redact_url

URL = "postgresql://tuner:s3cr3t@db.example/study"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (URL, "postgresql://tuner:***@db.example/study"),
        ("postgresql://tuner:p@ss:w@db/study", "postgresql://tuner:***@db/study"),
        ("mysql+pymysql://u:p%40@h:3306/d", "mysql+pymysql://u:***@h:3306/d"),
        ("postgresql://h/d?user=u&password=x&a=1", "postgresql://h/d?user=u&password=***&a=1"),
        ("postgresql://u:p/w@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:${oc.env:PW}@h/d", "postgresql://u:${oc.env:PW}@h/d"),
        ("sqlite:////home/u:v/study.db", "sqlite:////home/u:v/study.db"),
        ("https://host/path:a@b", "https://host/path:a@b"),
        ("a: b@c", "a: b@c"),
    ],
)
def test_the_password_of_a_url_is_masked(text, masked):
    assert mask_passwords(text) == masked
    assert mask_passwords({"a": [text]}) == {"a": [masked]}


def test_a_message_shows_no_password_in_the_query_of_a_url():
    shown = redact_url("postgresql://host/study?user=tuner&password=s3cr3t&sslkey=k3y")
    assert "s3cr3t" not in shown
    assert "k3y" not in shown


def test_a_record_keeps_references_to_the_environment(monkeypatch):
    monkeypatch.setenv("DATABASE_PASSWORD", "s3cr3t")
    cfg = OmegaConf.create(
        {
            "password": "${oc.env:DATABASE_PASSWORD}",
            "storage": "postgresql://tuner:${password}@db/study",
            "literal": URL,
            "copy": "${group}",
            "group": {"key": "${password}", "width": 3, "double": "${.width}"},
            "notify": {"urls": ["https://hook/s3cr3t"]},
        }
    )
    assert make_record(cfg) == {
        "password": "${oc.env:DATABASE_PASSWORD}",
        "storage": "postgresql://tuner:${password}@db/study",
        "literal": mask_passwords(URL),
        "copy": "${group}",
        "group.key": "${password}",
        "group.width": 3,
        "group.double": 3,
    }


def test_a_password_on_the_command_line_is_warned_of_and_its_files_are_private(tmp_path):
    words = [f"study.storage={URL}", f"hydra.run.dir={tmp_path}/run", "scale=smoke"]
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *words],
        capture_output=True,
        text=True,
        env={"WANDB_MODE": "offline", "PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "with its password in clear text" in done.stderr
    assert "s3cr3t" not in done.stdout + done.stderr
    holders = {path for path in (tmp_path / "run").rglob("*") if _contains(path, b"s3cr3t")}
    assert {path.parent.name for path in holders} == {".hydra"}  # Hydra's own record of the words
    assert all(path.stat().st_mode & 0o077 == 0 for path in holders)


def _contains(path: Path, text: bytes) -> bool:
    return path.is_file() and text in path.read_bytes()
