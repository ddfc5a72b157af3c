"""A real PostgreSQL server, started once for all tests that ask for it; they are skipped where it is not installed."""

from collections.abc import Iterator

import pytest
from servers import Postgres, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (pip install 'synaptune[postgres]')")
    try:
        server = running_postgres()
        running = server.__enter__()
    except LookupError as reason:
        pytest.skip(str(reason))
    try:
        yield running
    finally:
        server.__exit__(None, None, None)


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """A place without tables on a real server."""
    return postgres.new_url()
