"""A temporary PostgreSQL server for tests and benchmarks."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# PostgreSQL refuses to run as root. The first of these users that exists runs it instead.
UNPRIVILEGED = ("postgres", "nobody")


def find_postgres() -> Path | None:
    """Find the folder of PostgreSQL's programs, which Debian does not add to the PATH."""
    on_path = shutil.which("initdb")
    folders = [
        *([Path(on_path).resolve().parent] if on_path else []),
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
    ]
    return next(
        (
            folder
            for folder in folders
            if all((folder / name).exists() for name in ("initdb", "pg_ctl", "postgres"))
        ),
        None,
    )


@dataclass
class Postgres:
    """A server with its own folder and port.

    Attributes:
        programs: folder of PostgreSQL's programs.
        folder: folder of the data and the log.
        port: TCP port on the loopback interface.
        user: user that runs the programs; None means the current one.
        schemas: number of schemas created so far.
    """

    programs: Path
    folder: Path
    port: int
    user: str | None
    schemas: int = 0

    def run(self, program: str, *words: str) -> None:
        account = (
            {}
            if self.user is None
            else {"user": self.user, "group": pwd.getpwnam(self.user).pw_gid, "extra_groups": []}
        )
        done = subprocess.run(
            [str(self.programs / program), "-D", str(self.folder / "data"), *words],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            stdout=subprocess.DEVNULL,  # a pipe would stay open as long as the server lives
            stderr=subprocess.DEVNULL,
            timeout=900,
            check=False,
            **account,
        )
        log = self.folder / "log"
        assert done.returncode == 0, (
            f"{program} {words}: {log.read_text() if log.exists() else done.returncode}"
        )

    def start(self) -> None:
        # Without fsync only a crash of the machine loses data, not a crash of the server.
        settings = (
            f"-k {self.folder} -p {self.port} -c listen_addresses=127.0.0.1 "
            "-c shared_buffers=16MB -c fsync=off"
        )
        self.run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", settings, "start")

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server; `immediate` acts like a crash that the next start recovers from."""
        self.run("pg_ctl", "-w", "-m", mode, "stop")

    def execute(self, statement: str) -> list:
        import psycopg

        with psycopg.connect(
            f"postgresql://synaptune@127.0.0.1:{self.port}/postgres", autocommit=True
        ) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def make_url(self) -> str:
        """Create an empty schema and return its URL.

        A schema serves as a database of its own and needs no hundreds of files.
        """
        self.schemas += 1
        self.execute(f"CREATE SCHEMA tests{self.schemas}")
        return (
            f"postgresql://synaptune@127.0.0.1:{self.port}/postgres"
            f"?options=-csearch_path%3Dtests{self.schemas}"
        )


@contextlib.contextmanager
def run_postgres() -> Iterator[Postgres]:
    """Run a server.

    Raises:
        LookupError: a server cannot run here; the message says why.
    """
    programs = find_postgres()
    if programs is None:
        raise LookupError("PostgreSQL is not installed (Debian: apt install postgresql)")
    user = None
    if os.geteuid() == 0:
        accounts = {entry.pw_name for entry in pwd.getpwall()}
        user = next((name for name in UNPRIVILEGED if name in accounts), None)
        if user is None:
            raise LookupError(
                "PostgreSQL refuses to run as root, and there is no other user to run it as"
            )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Pytest's own folder is closed to other users, and the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        if user is not None:
            shutil.chown(folder, user)
        server = Postgres(programs, folder, port, user)
        server.run(
            "initdb", "-A", "trust", "-U", "synaptune", "-E", "UTF8", "--locale=C", "--no-sync"
        )
        server.start()
        try:
            yield server
        finally:
            server.stop()
