"""Requests to a WSGI application without a network, and small studies to serve."""

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
    """Send a request; environ holds further WSGI variables such as HTTP_COOKIE."""
    variables = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path.encode().decode("latin-1"),
        "QUERY_STRING": query,
        "HTTP_HOST": host,
        **environ,
    }
    setup_testing_defaults(variables)
    answer: list = []
    body = b"".join(app(variables, lambda status, headers, *_: answer.extend([status, headers])))
    status, headers = answer
    return Response(int(status.split()[0]), {name.lower(): value for name, value in headers}, body)


def bowl(p):
    """An objective with a single optimum; it fails above x = 9."""
    if p["x"] > 9.0:
        raise ValueError("too <b>far</b> & away")
    return (p["x"] - 3.0) ** 2 + p["n"]


SPACE = {"x": ("uniform", 0, 10), "n": ("int", 0, 8)}


def make_study(root: Path, name: str, trials: int, sampler: str = "random") -> TrialManager:
    """Run the search of a study below `root` and return its manager."""
    manager = TrialManager(
        name, trials, sampler=sampler, directory=root / name, progress=False, max_failure_rate=1.0
    )
    manager.optimize(bowl, SPACE)
    return manager
