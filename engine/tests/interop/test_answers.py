"""Answers in the gateway's own name: errors before a tunnel exists, CORS, health
(contract 3.1-3.5, 8.4)."""

import json
import uuid
from urllib.parse import unquote

import pytest

from fakeworker import Line
from gateway import (FUNCTION, OTHER_KEY, PRIVATE_FUNCTION, SECOND_VERSION, TWO_VERSIONS, VERSION,
                     Gateway, ask, grpc_head, plain_head)

NOBODY = "99999999-9999-4999-8999-999999999999"


# --- contract 3.3 in both styles ------------------------------------------------------------

NO_KEY = "no authorization was passed in the metadata"
NOT_BEARER = NO_KEY + ": the field is there, but does not read `Bearer KEY`"
NO_FUNCTION = "no function-id was passed in the metadata"
OPENING = "failed to open stateful work request: "
UNKNOWN = OPENING + "unknown function or version"
SOME_ID = "12345678-1234-4234-8234-123456789abc"

# Who asks for what, code, status, and the whole text.
CASES = {
    "E1 no authorization": (dict(key=None), 16, 401, NO_KEY),
    "E1 empty": (dict(key=None, extra=[("authorization", "")]), 16, 401, NO_KEY),
    "E1 not Bearer": (dict(key=None, extra=[("authorization", "Basic dev-key")]), 16, 401,
                      NOT_BEARER),
    "E1 the key alone": (dict(key=None, extra=[("authorization", "dev-key")]), 16, 401,
                         NOT_BEARER),
    "E1 bearer in lower case": (dict(key=None, extra=[("authorization", "bearer dev-key")]),
                                16, 401, NOT_BEARER),
    "E2 no function id": (dict(function=None), 3, 400, NO_FUNCTION),
    "E2 empty function id": (dict(function=""), 3, 400, NO_FUNCTION),
    "E3 unknown key": (dict(key="nobody's-key"), 16, 401,
                       OPENING + "the credential is not known"),
    "E3 unknown function": (dict(function=NOBODY), 5, 404, UNKNOWN),
    "E3 unknown version": (dict(version=NOBODY), 5, 404, UNKNOWN),
    "E3 function of nobody's form": (dict(function="no-uuid"), 5, 404, UNKNOWN),
    "E3 key not for this function": (dict(key=OTHER_KEY, function=PRIVATE_FUNCTION), 7, 403,
                                     OPENING + "the credential may not call this function"),
    "E7 unknown session": (dict(reqid=SOME_ID), 5, 404,
                           OPENING + "no existing session found for request id " + SOME_ID),
}


@pytest.fixture(scope="module")
def closed_gateway(tmp_path_factory):
    """A gateway without workers: nothing gets through, everything is answered by it."""
    with Gateway.serve(tmp_path_factory.mktemp("answers"), session='wait = "500ms"') as running:
        yield running


@pytest.mark.parametrize("name", CASES)
def test_cl9_error_in_grpc_style(closed_gateway, name):
    who, code, _, text = CASES[name]
    head, body = ask(closed_gateway, grpc_head(**who))
    # CL-9: one HEADERS with END_STREAM, all of it in the initial headers.
    assert head.end_stream and body == b"", str(head)
    assert head.status == "200" and head.get("content-type") == "application/grpc", str(head)
    assert head.grpc_status == str(code), str(head)
    assert unquote(head.get("grpc-message")) == text, str(head)
    assert not head.values("nvcf-reqid"), str(head)  # CL-7
    assert_cookie(head, name)


@pytest.mark.parametrize("name", CASES)
def test_cl10_cl11_error_in_plain_style(closed_gateway, name):
    who, _, status, text = CASES[name]
    head, body = ask(closed_gateway, plain_head(**who))
    assert head.status == str(status), (str(head), body)
    assert head.get("content-type") == "text/plain; charset=utf-8", str(head)
    assert body.decode() == text, body
    assert not head.values("grpc-status") and not head.values("nvcf-reqid"), str(head)
    assert_cookie(head, name)


def assert_cookie(head, name):
    cookies = head.values("set-cookie")
    wanted = ["nvcf-request-id=; Max-Age=0"] if name.startswith("E7") else []
    assert cookies == wanted, str(head)


@pytest.mark.parametrize("style", [grpc_head, plain_head])
def test_e12_no_worker_within_the_wait(closed_gateway, style):
    head, body = ask(closed_gateway, style())
    text = "failed to establish link to worker"
    if style is grpc_head:
        assert (head.status, head.grpc_status) == ("200", "4"), str(head)
        assert text in head.get("grpc-message").replace("%20", " ") and head.end_stream, str(head)
    else:
        assert head.status == "504" and text in body.decode(), (str(head), body)
    assert not head.values("nvcf-reqid") and not head.values("set-cookie"), str(head)


def test_e12_reaches_every_waiter_of_the_attempt(closed_gateway):
    with closed_gateway.h2() as peer:
        issued = closed_gateway.metric("worker_token_issued_total")
        streams = [peer.open(grpc_head(), end_stream=True) for _ in range(20)]
        for stream in streams:
            assert peer.head(stream).grpc_status == "4"
        # CL-16: one connection and key, one token, however many wait.
        assert closed_gateway.metric("worker_token_issued_total") == issued + 1


def test_e7_names_the_id(closed_gateway):
    reqid = str(uuid.uuid4())
    head, body = ask(closed_gateway, plain_head(reqid=reqid))
    assert head.status == "404" and f"for request id {reqid}" in body.decode(), body


@pytest.mark.parametrize("media_type, style", [
    ("application/grpc", "grpc"), ("Application/GRPC", "grpc"),
    ("application/grpc; charset=utf-8", "grpc"), ("application/grpc+proto", "plain"),
    ("application/grpc-web", "plain"), ("application/json", "plain"), ("", "plain")])
def test_cl8_style_follows_the_media_type(closed_gateway, media_type, style):
    head, body = ask(closed_gateway, plain_head(key=None, extra=[("content-type", media_type)]))
    if style == "grpc":
        assert (head.status, head.grpc_status) == ("200", "16"), str(head)
    else:
        assert head.status == "401" and b"no authorization" in body, (str(head), body)


# --- 3.2: where ids and tokens may come from ------------------------------------------------

REQID = "a8098c1a-f86e-41da-bd1a-00112444be1e"


REQUEST_IDS = {
    "canonical": ([("nvcf-reqid", REQID)], REQID),
    "upper case": ([("nvcf-reqid", REQID.upper())], REQID),
    "urn": ([("nvcf-reqid", f"urn:uuid:{REQID}")], REQID),
    "URN in upper case": ([("nvcf-reqid", f"URN:UUID:{REQID}")], REQID),
    "braces": ([("nvcf-reqid", f"{{{REQID}}}")], REQID),
    "any two characters around": ([("nvcf-reqid", f"x{REQID}y")], REQID),
    "32 digits": ([("nvcf-reqid", REQID.replace("-", ""))], REQID),
    "cookie": ([("cookie", f"nvcf-request-id={REQID}")], REQID),
    "cookie among others": ([("cookie", f"a=b; nvcf-request-id={REQID}; c=d")], REQID),
    "cookie in crumbs": ([("cookie", "a=b"), ("cookie", f"nvcf-request-id={REQID}"),
                          ("cookie", "c=d")], REQID),
    "header before cookie": ([("nvcf-reqid", REQID), ("cookie", "nvcf-request-id=" + NOBODY)],
                             REQID),
    "empty header, then cookie": ([("nvcf-reqid", ""), ("cookie", f"nvcf-request-id={REQID}")],
                                  REQID),
    "first of two headers": ([("nvcf-reqid", REQID), ("nvcf-reqid", NOBODY)], REQID),
    "protocol pair": ([("sec-websocket-protocol", f"chat, nvcf-reqid.{REQID}")], REQID),
    "pair before cookie": ([("sec-websocket-protocol", f"nvcf-reqid.{REQID}"),
                            ("cookie", "nvcf-request-id=" + NOBODY)], REQID),
    "invalid": ([("nvcf-reqid", "not-a-uuid")], None),
    "invalid header, valid cookie": ([("nvcf-reqid", "not-a-uuid"),
                                      ("cookie", f"nvcf-request-id={REQID}")], None),
    "invalid cookie": ([("cookie", "nvcf-request-id=zzz")], None),
    "wrong hyphens": ([("nvcf-reqid", REQID.replace("-", "_"))], None),
    "too short": ([("nvcf-reqid", REQID[:-1])], None),
}


@pytest.mark.parametrize("name", REQUEST_IDS)
def test_cl2_cl3_request_id_sources(closed_gateway, name):
    """An id that is read ends in E7 naming it; none at all asks for a new session (E12)."""
    fields, seen = REQUEST_IDS[name]
    head, body = ask(closed_gateway, plain_head(extra=fields))
    if seen:
        assert head.status == "404" and f"for request id {seen}" in body.decode(), (
            str(head), body)
    else:
        assert head.status == "504", (str(head), body)


PAIRS = {
    "all from pairs": ((None, None),
                       [f"authorization.dev-key, function-id.{FUNCTION}"], "504"),
    "Bearer in the pair": ((None, None),
                           [f"authorization.Bearer dev-key,function-id.{FUNCTION}"], "504"),
    "names in any case": ((None, None),
                          [f"Authorization.dev-key, FUNCTION-ID.{FUNCTION}"], "504"),
    "over two header lines": ((None, None),
                              ["authorization.dev-key", f"function-id.{FUNCTION}"], "504"),
    "bare token with any protocol header": (("dev-key", FUNCTION), ["chat"], "504"),
    "header before pair": (("Bearer dev-key", FUNCTION), ["authorization.nobody"], "504"),
    "first of two pairs": ((None, FUNCTION), ["authorization.dev-key, authorization.x"], "504"),
    "two leading spaces": ((None, FUNCTION), ["chat,  authorization.dev-key"], "401"),
    "no dot": ((None, FUNCTION), ["authorization"], "401"),
    "version in a pair": (("Bearer dev-key", FUNCTION),
                          [f"function-version-id.{NOBODY}"], "404"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_cl1_websocket_protocol_pairs(closed_gateway, name):
    """CL-1; a request that passes ends in E12, for there is no worker."""
    (authorization, function), protocols, status = PAIRS[name]
    extra = [("sec-websocket-protocol", line) for line in protocols]
    if authorization:
        extra.append(("authorization", authorization))
    head, body = ask(closed_gateway, plain_head(key=None, function=function, extra=extra))
    assert head.status == status, (str(head), body)


def test_empty_version_is_no_version(closed_gateway):
    head, _ = ask(closed_gateway, plain_head(version=""))
    assert head.status == "504", str(head)


def test_both_versions_of_a_function_are_known(closed_gateway):
    for version in (VERSION, SECOND_VERSION, None):
        head, _ = ask(closed_gateway, plain_head(function=TWO_VERSIONS, version=version))
        assert head.status == "504", str(head)


# --- CORS (3.5) -----------------------------------------------------------------------------

def vary(head):
    return {part.strip().lower() for value in head.values("vary") for part in value.split(",")}


ORIGIN = "https://page.test"
PREFLIGHT_VARY = {"origin", "access-control-request-method", "access-control-request-headers"}


def preflight(gateway, method="OPTIONS", path="/any/path", **asked):
    fields = [(":method", method), (":scheme", "http"), (":path", path),
              (":authority", "echo.test")]
    names = {"origin": "origin", "asked": "access-control-request-method",
             "listed": "access-control-request-headers"}
    return ask(gateway, fields + [(names[key], value) for key, value in asked.items()])


@pytest.mark.parametrize("path", ["/any/path", "/health", "/info", "/"])
def test_cl12_preflight(closed_gateway, path):
    head, body = preflight(closed_gateway, path=path, origin=ORIGIN, asked="post",
                           listed="authorization, function-id")
    assert (head.status, body) == ("200", b""), (str(head), body)
    assert vary(head) >= PREFLIGHT_VARY, str(head)
    assert head.get("access-control-allow-origin") == ORIGIN
    assert head.get("access-control-allow-methods") == "POST"
    assert head.get("access-control-allow-headers").lower().replace(" ", "") == (
        "authorization,function-id")
    assert head.get("access-control-allow-credentials") == "true"
    assert head.get("access-control-max-age") == "3600"


@pytest.mark.parametrize("asked", [dict(asked="POST"), dict(asked="PROPFIND", origin=ORIGIN)])
def test_cl12_preflight_that_allows_nothing(closed_gateway, asked):
    head, body = preflight(closed_gateway, **asked)
    assert (head.status, body) == ("200", b""), (str(head), body)
    assert vary(head) >= PREFLIGHT_VARY, str(head)
    assert not [name for name, _ in head.fields if name.startswith("access-control-")], str(head)


def test_cl12_preflight_without_asked_headers(closed_gateway):
    head, _ = preflight(closed_gateway, origin=ORIGIN, asked="GET")
    assert head.get("access-control-allow-methods") == "GET"
    assert not head.values("access-control-allow-headers"), str(head)


@pytest.mark.parametrize("asked", [
    dict(origin=ORIGIN), dict(origin=ORIGIN, asked=""),
    dict(method="options", origin=ORIGIN, asked="POST")])
def test_cl13_other_options_are_invocations(closed_gateway, asked):
    head, body = preflight(closed_gateway, **asked)
    assert head.status == "401" and b"no authorization" in body, (str(head), body)


def test_cl14_errors_carry_cors(closed_gateway):
    for head_of in (plain_head, grpc_head):
        head, _ = ask(closed_gateway, head_of(key=None, extra=[("origin", ORIGIN)]))
        assert "origin" in vary(head), str(head)
        assert head.get("access-control-allow-origin") == ORIGIN, str(head)
        assert head.get("access-control-allow-credentials") == "true", str(head)
        head, _ = ask(closed_gateway, head_of(key=None))
        assert "origin" in vary(head), str(head)
        assert not head.values("access-control-allow-origin"), str(head)
    odd, _ = ask(closed_gateway, plain_head(method="PROPFIND", key=None, extra=[("origin", ORIGIN)]))
    assert not odd.values("access-control-allow-origin"), str(odd)


# --- /health and /info on the client port (LN-4, OB-4) --------------------------------------

def bare(path, method="GET", extra=()):
    return [(":method", method), (":scheme", "http"), (":path", path),
            (":authority", "echo.test"), *extra]


def test_ob4_health_over_http2(gateway):
    head, body = ask(gateway, bare("/health"))
    health = json.loads(body)
    assert head.status == "200" and health["status"] == "OK", (str(head), body)
    assert health["timestamp"] and "failures" not in health, health
    assert health["component"]["name"] == "grpc proxy" and health["component"]["version"], health


def test_ln4_info_over_http2(gateway):
    head, body = ask(gateway, bare("/info"))
    info = json.loads(body)
    assert head.status == "200" and head.get("content-type") == "application/json", str(head)
    assert all(info[key] for key in ("service", "version", "commit")), info
    head, body = ask(gateway, bare("/info", "POST"))
    assert (head.status, head.get("allow"), body) == ("405", "GET", b""), (str(head), body)


def test_health_with_a_function_id_is_an_invocation(closed_gateway):
    for path in ("/health", "/info"):
        head, body = ask(closed_gateway, bare(path, extra=[("function-id", FUNCTION)]))
        assert head.status == "401" and b"no authorization" in body, (str(head), body)


@pytest.mark.parametrize("path, wanted", [("/health", b"OK"), ("/info", b"version")])
def test_http1_health_and_info(gateway, path, wanted):
    status, fields, body = gateway.get(path, port=gateway.client)
    assert status == 200 and wanted in body, (status, body)
    assert json.loads(body)


@pytest.mark.parametrize("octets", [
    b"GET /health HTTP/1.1\r\nHost: a\r\nHost : b\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
    b"GET /health HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET  /health HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS ClientHello \r\n\r\n",
    b"\0" * 64 + b"\r\n\r\n",
], ids=["space-before-colon", "folded", "two-framings", "two-spaces", "tls", "nul"])
def test_http1_nonsense_is_refused(gateway, octets):
    with Line(gateway.client) as line:
        line.send(octets)
        said = line.ends()
        assert said == b"" or said.startswith(b"HTTP/1.1 400 "), said
