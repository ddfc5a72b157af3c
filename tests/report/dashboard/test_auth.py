"""Access control of the dashboard, with requests of a browser, a stranger and a malicious page."""

import re

import pytest

from helpers.webclient import request
from synaptune.core.errors import UserError
from synaptune.report.dashboard.auth import AccessControl, choose_token, is_loopback

TOKEN = "a-token-of-some-length"


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/html")])
    return [b"secret"]


OPEN, LOCKED = AccessControl().protect(app), AccessControl(TOKEN).protect(app)


@pytest.mark.parametrize(
    "host", ["localhost:8080", "127.0.0.1", "127.0.0.1:9", "[::1]:8080", "LOCALHOST"]
)
def test_without_a_token_names_of_this_machine_are_answered(host):
    assert request(OPEN, host=host).body == b"secret"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "a b",
        "localhost@evil.example",
    ],
)
def test_without_a_token_any_other_name_is_refused(host):
    """A page whose name resolves to 127.0.0.1 after it has loaded sends its own name."""
    reply = request(OPEN, host=host)
    assert reply.status == 421
    assert b"secret" not in reply.body


def test_with_a_token_nothing_is_shown_without_it():
    reply = request(LOCKED)
    assert reply.status == 401
    assert b"secret" not in reply.body
    assert reply.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("wrong", ["", "a-token-of-some-lengtH", "é", TOKEN + "x", "%00"])
def test_a_wrong_token_is_refused(wrong):
    assert request(LOCKED, query=f"token={wrong}").status == 401
    assert request(LOCKED, HTTP_AUTHORIZATION=f"Bearer {wrong}").status == 401
    assert request(LOCKED, HTTP_COOKIE=f"synaptune={wrong}").status == 401


def test_a_token_in_the_address_becomes_a_cookie_and_leaves_the_address():
    reply = request(LOCKED, "/synaptune/study/ä b", query=f"sort=x&token={TOKEN}")
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert TOKEN not in reply.text
    assert b"secret" not in reply.body
    assert 'content="0; url=/synaptune/study/%C3%A4%20b?sort=x"' in reply.text
    assert request(LOCKED, HTTP_COOKIE=cookie.split(";")[0]).body == b"secret"


def test_the_page_after_a_token_stays_on_this_site():
    reply = request(LOCKED, "//evil.example/x", query=f"token={TOKEN}")
    assert re.search(r'url=/[^/"]', reply.text)


def test_a_program_shows_the_token_as_a_bearer():
    assert (
        request(LOCKED, HTTP_AUTHORIZATION=f"Bearer {TOKEN}", host="any.example").body == b"secret"
    )


def test_a_cookie_of_another_token_is_refused():
    other = request(
        AccessControl("another-token-of-mine").protect(app), query="token=another-token-of-mine"
    ).headers["set-cookie"]
    assert request(LOCKED, HTTP_COOKIE=other.split(";")[0]).status == 401


@pytest.mark.parametrize(
    "other",
    ['g_state={"i_l":0}', "a b=c", "prefs=[1,2]", "alone", "=", 'k=va"l', "synaptune=wrong"],
)
def test_an_invalid_cookie_of_another_server_on_the_host_does_not_block_access(other):
    mine = request(LOCKED, query=f"token={TOKEN}").headers["set-cookie"].split(";")[0]
    for sent in (f"{other}; {mine}", f"{mine}; {other}"):
        assert request(LOCKED, HTTP_COOKIE=sent).body == b"secret"
    assert request(LOCKED, HTTP_COOKIE=other).status == 401


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_changed_without_write(method):
    assert request(OPEN, method=method).status == 403
    assert request(AccessControl(write=True).protect(app), method=method).status == 200


def test_a_change_from_another_site_is_refused():
    writing = AccessControl(write=True).protect(app)
    assert request(writing, method="POST", HTTP_ORIGIN="http://evil.example").status == 403
    for odd in ("null", "http://[", "", "http://localhost:8080/", "ftp://localhost:8080"):
        assert request(writing, method="POST", HTTP_ORIGIN=odd).status == 403
    assert request(writing, method="POST", HTTP_SEC_FETCH_SITE="cross-site").status == 403
    assert (
        request(
            writing,
            method="POST",
            HTTP_ORIGIN="http://localhost:8080",
            HTTP_SEC_FETCH_SITE="same-origin",
        ).status
        == 200
    )


def test_every_response_has_the_security_headers():
    for reply in (request(OPEN), request(LOCKED), request(OPEN, host="evil.example")):
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        policy = reply.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy


def test_a_page_with_a_policy_of_its_own_keeps_it():
    def other(environ, start_response):
        start_response(
            "200 OK",
            [("content-security-policy", "default-src 'self';script-src 'self' 'unsafe-eval'")],
        )
        return [b""]

    policy = request(AccessControl().protect(other)).headers["content-security-policy"]
    assert policy == "default-src 'self';script-src 'self' 'unsafe-eval'; frame-ancestors 'none'"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "node7", ""])
def test_other_machines_need_a_token(host):
    with pytest.raises(UserError, match="without a token"):
        choose_token(host, None)
    assert choose_token(host, TOKEN) == TOKEN


def test_an_automatic_token_is_long_and_different_each_time():
    one, other = choose_token("0.0.0.0", "auto"), choose_token("0.0.0.0", "auto")
    assert one is not None
    assert len(one) >= 32
    assert one != other


@pytest.mark.parametrize("weak", ["short", "", "with a space in it", "tökentökentöken"])
def test_a_token_that_is_too_weak_or_invalid_in_an_address_is_refused(weak):
    with pytest.raises(UserError, match="characters"):
        choose_token("127.0.0.1", weak)


def test_this_machine_needs_no_token():
    assert [choose_token(host, None) for host in ("127.0.0.1", "localhost", "::1")] == [
        None,
        None,
        None,
    ]
    assert not any(is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "example.org", ""))
