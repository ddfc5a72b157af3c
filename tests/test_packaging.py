"""The wheel holds everything that the installed package reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from helpers.paths import ROOT

SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "src", "conf")
DATA = ("*.yaml", "*.c", "*.css", "*.js")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the content of the wheel; its build changes nothing in the checkout."""
    pytest.importorskip("setuptools", minversion="77")
    checkout = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, checkout / name)
    code = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True, capture_output=True)
    (wheel,) = (checkout / "dist").glob("synaptune-*-py3-none-any.whl")
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def list_files(folder: Path, *patterns: str) -> set[str]:
    """The files below a folder that match a pattern, by relative name."""
    return {
        path.relative_to(folder).as_posix()
        for pattern in patterns
        for path in folder.rglob(pattern)
    }


def test_the_wheel_holds_every_module_data_file_and_choice(installed):
    assert list_files(installed / "synaptune" / "conf", "*.yaml") == list_files(
        ROOT / "conf", "*.yaml"
    )
    packed = list_files(installed, "*.py", *DATA)
    packed = {name for name in packed if not name.startswith("synaptune/conf/")}
    assert packed == list_files(ROOT / "src", "*.py", *DATA)
    assert list(installed.glob("synaptune-*.dist-info/**/LICENSE"))


def test_the_installed_package_composes_its_own_conf_in_an_empty_folder(installed, tmp_path):
    code = """
from synaptune.config.compose import compose_config
from synaptune.config.conf import CONF_DIR
composed = compose_config(["scale=smoke", "synapse/calcium=slow"], protocol="phase1")
print(CONF_DIR, composed.base.training.steps, composed.protocol.budget)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == str(installed / "synaptune" / "conf")
