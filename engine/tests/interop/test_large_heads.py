"""Heads and trailers as large as they may be, and larger, with clients and servers of others."""

import subprocess

import grpc
import pytest

import grpcserver
from echo import EchoMessage, Stub
from gateway import Gateway, credentials
from rawh2 import CONTINUATION, END_HEADERS, END_STREAM, HEADERS, frame
from test_programs import HEADERS_OF_A_CALL, url

WHO = tuple(credentials())
# By themselves gRPC's C programs take 8 KiB of metadata.
LARGE = [("grpc.max_metadata_size", 1 << 20), ("grpc.absolute_max_metadata_size", 1 << 20)]
PASS = {
    "250 fields": [(f"x-echo-{n}", str(n)) for n in range(250)],
    "1000 fields": [(f"x-echo-{n}", str(n)) for n in range(1_000)],
    "70 kB": [(f"x-echo-{n}", "v" * 7_000) for n in range(10)],
    "200 kB": [("x-echo-large", "v" * 200_000)],
}
FAIL = {
    "1100 fields": [(f"x-{n}", str(n)) for n in range(1_100)],
    "300 kB": [("x-large", "v" * 300_000)],
}


@pytest.fixture(scope="module")
def bridged(tmp_path_factory):
    """`ringway dev --target` with a grpcio server behind it."""
    with (grpcserver.Server(options=LARGE) as server,
          Gateway.dev(tmp_path_factory.mktemp("large"), "--target",
                      f"127.0.0.1:{server.port}") as running):
        yield running


@pytest.fixture
def echo(bridged):
    host, port = bridged.client
    options = [*LARGE, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(f"{host}:{port}", options=options) as channel:
        yield Stub(channel)


def test_metadata_passes_both_ways(echo):
    for name, fields in PASS.items():
        answer, call = echo.Unary.with_call(
            EchoMessage(payload=b"x"), metadata=(*WHO, *fields), timeout=60)
        assert answer.payload == b"x", name
        back = [field for field in call.initial_metadata() if field[0].startswith("x-echo-")]
        assert back == fields, name


def test_trailers_pass(echo):
    _, call = echo.Unary.with_call(
        EchoMessage(payload=b"x"), metadata=(*WHO, ("x-do", "large_trailers")), timeout=60)
    assert dict(call.trailing_metadata())["x-large"] == "t" * 60_000


def test_what_is_larger_costs_its_call_alone(bridged, echo):
    running = echo.BidiStream(iter(lambda: EchoMessage(payload=b"x"), None), metadata=WHO)
    assert next(running).payload == b"x"
    for name, fields in FAIL.items():
        with pytest.raises(grpc.RpcError) as failed:
            echo.Unary(EchoMessage(payload=b"x"), metadata=(*WHO, *fields), timeout=60)
        assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, name
        assert next(running).payload == b"x", f"{name}: another call of the connection"
    running.cancel()
    told = [line["message"] for line in bridged.log_lines()]
    assert told and "closing connection for a protocol fault" not in told


@pytest.mark.parametrize("http", ["--http2-prior-knowledge", "--http1.1"])
def test_curl_is_told(gateway, tmp_path, http):
    """431. Over HTTP/2 curl sends no more than 64 KiB: many fields, not large ones."""
    large = tmp_path / "large"
    many = "".join(f"x-{n}: y\n" for n in range(1_100))
    large.write_text(f"x-large: {'v' * 270_000}\n" if http == "--http1.1" else many)
    done = subprocess.run(
        ["curl", "-sS", http, *HEADERS_OF_A_CALL, "-o", "/dev/null", "-w", "%{http_code}",
         "-H", f"@{large}", url(gateway, "/echo")], capture_output=True, text=True, timeout=60)
    assert done.stdout == "431", done


def test_a_connection_that_rests_keeps_nothing_of_a_large_head(own_gateway):
    value = b"\x00\x01x\x7f" + bytes([240_000 - 127 & 127 | 128, 240_000 - 127 >> 7 & 127 | 128,
                                      240_000 - 127 >> 14]) + b"v" * 240_000

    def rest():
        """As many heads of 240 000 octets, each on a connection that stays."""
        peers = [own_gateway.h2() for _ in range(60)]
        for peer in peers:
            block = peer.block_of([(":method", "GET"), (":scheme", "http"), (":path", "/health"),
                                   (":authority", "g")]) + value
            parts = [block[at:at + 16_384] for at in range(0, len(block), 16_384)]
            peer.send(*(frame(CONTINUATION if n else HEADERS,
                              (0 if n else END_STREAM)
                              | (END_HEADERS if n == len(parts) - 1 else 0), 1, part)
                        for n, part in enumerate(parts)))
            assert peer.head(1).status == "200"
            peer.body(1)
        return peers

    first = rest()
    before = own_gateway.rss()
    second = rest()
    grown = own_gateway.rss() - before
    assert grown < 60 * 48 * 1024, f"{grown} bytes for {len(second)} more of {len(first)}"
