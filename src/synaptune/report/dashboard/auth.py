"""Who may look: the check that stands before every page, and the headers that go with every answer.

Without a token the server answers only names of this machine, so that no page of another site can reach it under a name of its own
(DNS rebinding). With a token everyone has to show it: once as ?token=..., which becomes a cookie, or as `Authorization: Bearer`.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import ipaddress
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from synaptune.core.errors import user_error

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
MIN_TOKEN_LENGTH = 12  # characters
_READ_METHODS = ("GET", "HEAD")
# Our own pages; a page that brings a policy of its own (optuna-dashboard's) keeps it.
_CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'"
)
_SECURITY_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)
_HOST_PATTERN = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/@\s]+)(?::\d{1,5})?")


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def choose_token(host: str, given: str | None) -> str | None:
    """The token to ask for: `given`, a fresh one for `auto`, none on this machine's own address without one. Raises UserError."""
    if given == "auto":
        return secrets.token_urlsafe(24)
    if given is None:
        if is_loopback(host):
            return None
        raise user_error(
            got=f"--host {host} without a token",
            expected="a token where other machines can reach the dashboard",
            do="give --token auto (it is printed), or --token TEXT; or leave --host at 127.0.0.1 and use an SSH tunnel",
        )
    if (
        len(given) < MIN_TOKEN_LENGTH
        or not given.isascii()
        or not given.isprintable()
        or " " in given
    ):
        raise user_error(
            got=f"a token of {len(given)} characters",
            expected=f"at least {MIN_TOKEN_LENGTH} ASCII characters without spaces",
            do="--token auto",
        )
    return given


@dataclass(frozen=True)
class AccessControl:
    """token: null where none is asked for; write: whether optuna-dashboard may change a study; cookie: its name."""

    token: str | None = None
    write: bool = False
    cookie: str = "synaptune"

    def protect(self, app: App) -> App:
        """The same application behind the check."""

        def protected_app(
            environ: dict[str, Any], start_response: Callable[..., Any]
        ) -> Iterable[bytes]:
            def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
                return start_response(status, _add_security_headers(headers), *rest)

            refused = self._refuse(environ)
            if refused is None:
                return app(environ, start)
            status, headers, body = refused
            start(
                status,
                [
                    ("Content-Type", "text/html; charset=utf-8"),
                    ("Cache-Control", "no-store"),
                    *headers,
                ],
            )
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body.encode()]

        return protected_app

    def _refuse(self, environ: dict[str, Any]) -> tuple[str, list[tuple[str, str]], str] | None:
        """Status, headers and page instead of the one asked for; null lets the request through."""
        if self.token is None and not is_loopback(_read_host(environ)):
            return (
                "421 Misdirected Request",
                [],
                _render_page(
                    "This dashboard answers only under names of its own machine, such as localhost."
                ),
            )
        if self.token is not None:
            query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
            shown = next((value for name, value in query if name == "token"), None)
            if shown is not None and self._is_equal(shown, self.token):
                return self._set_cookie(environ, [pair for pair in query if pair[0] != "token"])
            if not self._is_authenticated(environ):
                wrong = "" if shown is None else "That is not the token. "
                return (
                    "401 Unauthorized",
                    [("WWW-Authenticate", 'Bearer realm="synaptune"')],
                    _render_page(wrong + _TOKEN_PROMPT, form=True),
                )
        if environ["REQUEST_METHOD"] not in _READ_METHODS:
            if not self.write:
                return (
                    "403 Forbidden",
                    [],
                    _render_page(
                        "This dashboard only reads; start it with --write to change studies."
                    ),
                )
            if not _is_same_site(environ):
                return (
                    "403 Forbidden",
                    [],
                    _render_page("A change has to come from the dashboard's own pages."),
                )
        return None

    def _set_cookie(
        self, environ: dict[str, Any], query: list[tuple[str, str]]
    ) -> tuple[str, list[tuple[str, str]], str]:
        """Set the cookie, and go on to the page without the token in its address.

        By a page that moves on, not by a redirect: after a link from elsewhere a browser would not send a strict cookie to it.
        """
        path = "/" + quote(environ.get("PATH_INFO", "/").encode("latin-1").lstrip(b"/"))
        target = path + (f"?{urlencode(query)}" if query else "")
        cookie = f"{self.cookie}={self._cookie_value}; Path=/; HttpOnly; SameSite=Strict"
        move = f'<meta http-equiv="refresh" content="0; url={html.escape(target)}">'
        return (
            "200 OK",
            [("Set-Cookie", cookie)],
            _render_page(f'<a href="{html.escape(target)}">Go on</a>', head=move),
        )

    def _is_authenticated(self, environ: dict[str, Any]) -> bool:
        scheme, _, bearer = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_equal(bearer.strip(), self.token or ""):
            return True
        # Not http.cookies, which gives up the whole header at the first odd pair: another server of this host may have set that one.
        pairs = (pair.partition("=") for pair in environ.get("HTTP_COOKIE", "").split(";"))
        return any(
            name.strip() == self.cookie and self._is_equal(value.strip(), self._cookie_value)
            for name, _, value in pairs
        )

    @property
    def _cookie_value(self) -> str:
        """What the cookie holds: proof of the token, not the token."""
        return hashlib.sha256(f"synaptune dashboard {self.token}".encode()).hexdigest()

    @staticmethod
    def _is_equal(one: str, other: str) -> bool:
        return hmac.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode())


_TOKEN_PROMPT = (
    "This dashboard asks for its token, which stands in the terminal where it was started."
)


def _read_host(environ: dict[str, Any]) -> str:
    """The name the browser used, without port; empty for none or nonsense."""
    found = _HOST_PATTERN.fullmatch(environ.get("HTTP_HOST", ""))
    return found.group(1) if found else ""


def _is_same_site(environ: dict[str, Any]) -> bool:
    """Whether a change comes from a page of ours, or from no browser at all."""
    if environ.get("HTTP_SEC_FETCH_SITE", "same-origin") not in ("same-origin", "none"):
        return False
    origin, host = environ.get("HTTP_ORIGIN"), environ.get("HTTP_HOST", "")
    return origin is None or origin in (f"http://{host}", f"https://{host}")


def _add_security_headers(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers with ours."""
    policy = next(
        (value for name, value in headers if name.lower() == "content-security-policy"),
        _CONTENT_POLICY,
    )
    kept = [(name, value) for name, value in headers if name.lower() != "content-security-policy"]
    return [
        *kept,
        ("Content-Security-Policy", f"{policy.rstrip('; ')}; frame-ancestors 'none'"),
        *_SECURITY_HEADERS,
    ]


def _render_page(text: str, *, head: str = "", form: bool = False) -> str:
    asked = (
        '<form><input name="token" type="password" aria-label="token" autofocus> <button>Enter</button></form>'
        if form
        else ""
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">{head}'
        f"<title>synaptune</title><style>:root{{color-scheme:light dark}}body{{font:1rem/1.5 system-ui;margin:4rem auto;max-width:32rem;"
        f"padding:0 1rem}}</style></head><body><p>{text}</p>{asked}</body></html>"
    )
