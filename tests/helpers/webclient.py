"""Requests to a WSGI application without a network, and small real studies to look at."""

from pathlib import Path
from typing import NamedTuple
from wsgiref.util import setup_testing_defaults

from synaptune import TrialManager


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def request(app, path="/", *, query="", method="GET", host="localhost:8080", **environ) -> Response:
    """One request; environ: further WSGI variables, e.g. HTTP_COOKIE."""
    asked = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path.encode().decode("latin-1"),
        "QUERY_STRING": query,
        "HTTP_HOST": host,
        **environ,
    }
    setup_testing_defaults(asked)
    given: list = []
    body = b"".join(app(asked, lambda status, headers, *_: given.extend([status, headers])))
    status, headers = given
    return Response(int(status.split()[0]), {name.lower(): value for name, value in headers}, body)


def bowl(p):
    """An objective with a best point, and points that fail."""
    if p["x"] > 9.0:
        raise ValueError("too <b>far</b> & away")
    return (p["x"] - 3.0) ** 2 + p["n"]


SPACE = {"x": ("uniform", 0, 10), "n": ("int", 0, 8)}


def make_study(root: Path, name: str, trials: int, sampler: str = "random") -> TrialManager:
    """A study below root, searched; its trials are known."""
    manager = TrialManager(
        name, trials, sampler=sampler, directory=root / name, progress=False, max_failure_rate=1.0
    )
    manager.optimize(bowl, SPACE)
    return manager
