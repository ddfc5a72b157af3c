"""Every reader and writer of a database uses the same drivers."""

import re

import pytest

from helpers.paths import ROOT
from synaptune.study.database.connection import create_engine


@pytest.mark.parametrize(
    ("scheme", "driver"),
    [("mysql", "pymysql"), ("mariadb", "pymysql"), ("postgresql", "psycopg")],
)
def test_a_url_without_a_driver_gets_one(scheme, driver):
    pytest.importorskip(driver)
    assert create_engine(f"{scheme}://user@host/name").dialect.driver == driver


def test_only_one_module_opens_databases():
    pattern = re.compile(r"sqlalchemy\.create_engine\(|RDBStorage\(")
    files = [
        path.name
        for path in (ROOT / "src").rglob("*.py")
        if pattern.search(path.read_text(encoding="utf-8"))
    ]
    assert files == ["connection.py"]
