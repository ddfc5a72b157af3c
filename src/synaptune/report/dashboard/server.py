"""The server: a thread for each request, on this machine's own address unless told otherwise."""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
from collections.abc import Callable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from synaptune.core.errors import user_error
from synaptune.report.dashboard.auth import AccessControl, App

IDLE_TIMEOUT = 60  # s that a connection may say nothing


class _Handler(WSGIRequestHandler):
    timeout = IDLE_TIMEOUT

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: an address may hold the token, and a page that refreshes itself would fill the terminal."""

    def address_string(self) -> str:
        """The number of the address: asking for its name may take seconds."""
        return str(self.client_address[0])


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def server_bind(self) -> None:
        # Not the parent's, which asks the network for this machine's full name.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = (
            str(self.server_address[0]),
            int(self.server_address[1]),
        )
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away in the middle is no error of ours."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _ServerIPv6(_Server):
    address_family = socket.AF_INET6


def listen(host: str, port: int) -> WSGIServer:
    """A server that has its port but no application yet; port 0 takes any free one. Raises UserError."""
    if not 0 <= port <= 65535:
        raise user_error(
            got=f"--port {port}",
            expected="a number from 0 to 65535",
            do="correct it; 0 takes any free port",
        )
    try:
        return (_ServerIPv6 if _is_ipv6(host) else _Server)((host.strip("[]"), port), _Handler)
    except OSError as error:
        raise _explain_error(error, host, port) from error


def server_url(server: WSGIServer, host: str) -> str:
    """Where a browser finds it."""
    shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(
        host.strip("[]"), host
    )
    return f"http://{f'[{shown}]' if ':' in shown and not shown.startswith('[') else shown}:{server.server_port}/"


def serve(
    server: WSGIServer, app: App, access: AccessControl, *, on_ready: Callable[[], None]
) -> None:
    """Answer until Ctrl-C; ready: called when the first request may come."""
    server.set_app(access.protect(app))
    try:
        on_ready()
        server.serve_forever(poll_interval=0.2)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    finally:
        server.server_close()


def _is_ipv6(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).version == 6
    except ValueError:
        return False


def _explain_error(error: OSError, host: str, port: int) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return user_error(
            got=f"port {port}, which another program uses",
            expected="a free port",
            do="give --port 0 for any, or another number",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return user_error(
            got=f"port {port}, which needs more rights",
            expected="a port above 1023",
            do="give --port 8080",
        )
    return user_error(
        got=f"--host {host}: {error.strerror or error}",
        expected="an address of this machine",
        do="give 127.0.0.1, or 0.0.0.0 with --token",
    )
