"""A real PostgreSQL server of one's own, for tests and benchmarks."""

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

# PostgreSQL refuses to run as root: these users may run it instead, the first that there is.
UNPRIVILEGED = ("postgres", "nobody")


def find_postgres() -> Path | None:
    """The folder of its programs; Debian keeps them off the PATH."""
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
    """A server of its own folder and port; the programs run as `user` (null: as we do)."""

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
        # Without fsync a crash of the server still loses nothing, only one of the whole machine would.
        settings = f"-k {self.folder} -p {self.port} -c listen_addresses=127.0.0.1 -c shared_buffers=16MB -c fsync=off"
        self.run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", settings, "start")

    def stop(self, mode: str = "immediate") -> None:
        """`immediate` breaks off everything as a crash would: the next start recovers from the log."""
        self.run("pg_ctl", "-w", "-m", mode, "stop")

    def execute(self, statement: str) -> list:
        import psycopg

        with psycopg.connect(
            f"postgresql://synaptune@127.0.0.1:{self.port}/postgres", autocommit=True
        ) as connection:
            cursor = connection.execute(statement)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def make_url(self) -> str:
        """The URL of a new, empty schema: to its users a database, without the hundreds of files of one."""
        self.schemas += 1
        self.execute(f"CREATE SCHEMA tests{self.schemas}")
        return f"postgresql://synaptune@127.0.0.1:{self.port}/postgres?options=-csearch_path%3Dtests{self.schemas}"


@contextlib.contextmanager
def run_postgres() -> Iterator[Postgres]:
    """A running server; raises LookupError with the reason where there can be none."""
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
    # Not below pytest's own folder, which only its owner may enter; and short, for the path of a socket.
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
