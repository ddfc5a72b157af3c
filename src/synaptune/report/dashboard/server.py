"""The HTTP server of the dashboard, which handles each request in a thread."""

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

IDLE_TIMEOUT = 60  # [s] after which an idle connection is closed


class _Handler(WSGIRequestHandler):
    timeout = IDLE_TIMEOUT

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: an address can contain the token, and live pages send many requests."""

    def address_string(self) -> str:
        """Return the numeric address; a lookup of its name can take seconds."""
        return str(self.client_address[0])


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def server_bind(self) -> None:
        # HTTPServer.server_bind looks up the full name of this machine over the network.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = (
            str(self.server_address[0]),
            int(self.server_address[1]),
        )
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that the browser closed; report other errors."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _ServerIPv6(_Server):
    address_family = socket.AF_INET6


def listen(host: str, port: int) -> WSGIServer:
    """Create a server that listens on a port.

    Args:
        host: name or address of this machine.
        port: the port; 0 selects a free port.

    Returns:
        The server, without an application.

    Raises:
        UserError: the address or port cannot be used.
    """
    if not 0 <= port <= 65535:
        raise user_error(
            got=f"--port {port}",
            expected="a number from 0 to 65535",
            do="correct it; 0 selects a free port",
        )
    try:
        return (_ServerIPv6 if _is_ipv6(host) else _Server)((host.strip("[]"), port), _Handler)
    except OSError as error:
        raise _explain_error(error, host, port) from error


def make_server_url(server: WSGIServer, host: str) -> str:
    """Return the URL that opens the dashboard in a browser.

    Args:
        server: the server.
        host: name or address that it listens on.
    """
    listens_everywhere = host.strip("[]") in ("0.0.0.0", "::")
    name = socket.gethostname() if listens_everywhere else host
    if ":" in name and not name.startswith("["):
        name = f"[{name}]"
    return f"http://{name}:{server.server_port}/"


def serve(
    server: WSGIServer, app: App, access: AccessControl, *, on_ready: Callable[[], None]
) -> None:
    """Serve requests until Ctrl-C, then close the server.

    Args:
        server: the server.
        app: the application.
        access: rules that decide which requests the application gets.
        on_ready: called before the first request.
    """
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
            do="give another number, or --port 0 for a free port",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return user_error(
            got=f"port {port}, which this user may not open",
            expected="a port above 1023",
            do="give --port 8080",
        )
    return user_error(
        got=f"--host {host}: {error.strerror or error}",
        expected="an address of this machine",
        do="give 127.0.0.1, or 0.0.0.0 with --token",
    )
