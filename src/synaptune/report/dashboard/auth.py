"""Access control of the dashboard, and the security headers of every response.

Without a token, the server answers only requests whose Host header is a loopback name. This
prevents DNS rebinding, in which another site reaches the server under a name of its own. With a
token, every request must be authenticated: once by ?token=..., which sets a cookie, or by a header
`Authorization: Bearer TOKEN`.
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
READ_ONLY = "This dashboard is read-only. Start it with --write to change studies."
_READ_METHODS = ("GET", "HEAD")
# Content-Security-Policy of the pages of synaptune. A response that has its own policy, as those of
# optuna-dashboard do, keeps it.
_CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'self'"
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
    """Return whether a name or an address is a loopback address."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def choose_token(host: str, option: str | None) -> str | None:
    """Choose the token of the server.

    Args:
        host: address that the server listens on.
        option: value of --token: a token, "auto" for a random token, or None for no token.

    Returns:
        The token; None if the address is a loopback address and no token was given.

    Raises:
        UserError: the token is invalid, or there is none although other machines can connect.
    """
    if option == "auto":
        return secrets.token_urlsafe(24)
    if option is None:
        if is_loopback(host):
            return None
        raise user_error(
            got=f"--host {host} without a token",
            expected="a token where other machines can reach the dashboard",
            do="give --token auto (it is printed), or --token TEXT; or leave --host at 127.0.0.1 "
            "and use an SSH tunnel",
        )
    if (
        len(option) < MIN_TOKEN_LENGTH
        or not option.isascii()
        or not option.isprintable()
        or " " in option
    ):
        raise user_error(
            got=f"a token of {len(option)} characters",
            expected=f"at least {MIN_TOKEN_LENGTH} ASCII characters without spaces",
            do="give --token auto",
        )
    return option


@dataclass(frozen=True)
class AccessControl:
    """Rules that decide which requests the server answers.

    Attributes:
        token: the required token; None if no token is required.
        write: whether requests may change studies.
        cookie: name of the cookie that authenticates a browser.
    """

    token: str | None = None
    write: bool = False
    cookie: str = "synaptune"

    def protect(self, app: App) -> App:
        """Return an application that checks each request before `app` gets it."""

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
        """Return status, headers and body of a refusal; None if the request is allowed."""
        if self.token is None and not is_loopback(_read_host(environ)):
            return (
                "421 Misdirected Request",
                [],
                _render_page(
                    "This dashboard answers only requests for a loopback name such as localhost."
                ),
            )
        if self.token is not None:
            query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
            token = next((value for name, value in query if name == "token"), None)
            if token is not None and self._is_equal(token, self.token):
                return self._set_cookie(environ, [pair for pair in query if pair[0] != "token"])
            if not self._is_authenticated(environ):
                hint = "" if token is None else "The token is wrong. "
                return (
                    "401 Unauthorized",
                    [("WWW-Authenticate", 'Bearer realm="synaptune"')],
                    _render_page(hint + _TOKEN_PROMPT, form=True),
                )
        if environ["REQUEST_METHOD"] not in _READ_METHODS:
            if not self.write:
                return (
                    "403 Forbidden",
                    [],
                    _render_page(READ_ONLY),
                )
            if not _is_same_site(environ):
                return (
                    "403 Forbidden",
                    [],
                    _render_page("Only the pages of this dashboard may send changes."),
                )
        return None

    def _set_cookie(
        self, environ: dict[str, Any], query: list[tuple[str, str]]
    ) -> tuple[str, list[tuple[str, str]], str]:
        """Set the cookie and send the browser to the address without the token.

        The response is a page with a refresh, not a redirect: when the user has followed a link of
        another site, a browser does not send a SameSite=Strict cookie with a redirected request.
        """
        path = "/" + quote(environ.get("PATH_INFO", "/").encode("latin-1").lstrip(b"/"))
        target = path + (f"?{urlencode(query)}" if query else "")
        cookie = f"{self.cookie}={self._cookie_value}; Path=/; HttpOnly; SameSite=Strict"
        move = f'<meta http-equiv="refresh" content="0; url={html.escape(target)}">'
        return (
            "200 OK",
            [("Set-Cookie", cookie)],
            _render_page(f'<a href="{html.escape(target)}">Continue</a>', head=move),
        )

    def _is_authenticated(self, environ: dict[str, Any]) -> bool:
        scheme, _, bearer = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_equal(bearer.strip(), self.token or ""):
            return True
        # http.cookies discards the whole header if one pair is invalid, and another server of this
        # host may have set such a pair.
        pairs = (pair.partition("=") for pair in environ.get("HTTP_COOKIE", "").split(";"))
        return any(
            name.strip() == self.cookie and self._is_equal(value.strip(), self._cookie_value)
            for name, _, value in pairs
        )

    @property
    def _cookie_value(self) -> str:
        """Value of the cookie: a digest of the token, from which the token cannot be computed."""
        return hashlib.sha256(f"synaptune dashboard {self.token}".encode()).hexdigest()

    @staticmethod
    def _is_equal(one: str, other: str) -> bool:
        return hmac.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode())


_TOKEN_PROMPT = (
    "This dashboard requires a token. The terminal in which it was started shows the token."
)


def _read_host(environ: dict[str, Any]) -> str:
    """Return the host name of the Host header, without the port; empty if it is invalid."""
    match = _HOST_PATTERN.fullmatch(environ.get("HTTP_HOST", ""))
    return match.group(1) if match else ""


def _is_same_site(environ: dict[str, Any]) -> bool:
    """Return whether a request was sent by a page of this server, or by a program."""
    if environ.get("HTTP_SEC_FETCH_SITE", "same-origin") not in ("same-origin", "none"):
        return False
    origin, host = environ.get("HTTP_ORIGIN"), environ.get("HTTP_HOST", "")
    return origin is None or origin in (f"http://{host}", f"https://{host}")


def _add_security_headers(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the headers with the security headers added."""
    policy = next(
        (value for name, value in headers if name.lower() == "content-security-policy"),
        _CONTENT_POLICY,
    )
    others = [(name, value) for name, value in headers if name.lower() != "content-security-policy"]
    return [
        *others,
        ("Content-Security-Policy", f"{policy.rstrip('; ')}; frame-ancestors 'none'"),
        *_SECURITY_HEADERS,
    ]


def _render_page(text: str, *, head: str = "", form: bool = False) -> str:
    token_form = (
        '<form><input name="token" type="password" aria-label="token" autofocus> '
        "<button>Enter</button></form>"
        if form
        else ""
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">{head}'
        "<title>synaptune</title><style>:root{color-scheme:light dark}"
        "body{font:1rem/1.5 system-ui;margin:4rem auto;max-width:32rem;padding:0 1rem}"
        f"</style></head><body><p>{text}</p>{token_form}</body></html>"
    )
