"""What all tests share: one thread a worker, Ctrl-C, and a real PostgreSQL server for those that
ask for it, started once, if it is installed.
"""

import os
import signal
from collections.abc import Iterator

import pytest

from helpers.servers import Postgres, run_postgres

# Two workers on two cores: more threads than that only wait for each other. Read before torch is.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs deaf to Ctrl-C, and what they start is deaf too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server."""
    pytest.importorskip(
        "psycopg", reason="psycopg is not installed (pip install 'synaptune[postgres]')"
    )
    try:
        server = run_postgres()
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
    return postgres.make_url()
