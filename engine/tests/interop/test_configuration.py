"""Configuration, the command line and the reasons for not starting (design 4.2, 4.5)."""

import json
import os
import re
import socket
import subprocess

import pytest

from gateway import FUNCTION, VERSION, Gateway, binary, configuration, grpc_head


def ringway(*arguments, timeout=60, **variables):
    """Exit code and output. `variables` are added to the environment of these tests."""
    done = subprocess.run([*binary(), *map(str, arguments)], capture_output=True, text=True,
                          timeout=timeout, env=os.environ | variables)
    return done.returncode, done.stdout + done.stderr


def check(tmp_path, text, name="ringway.toml"):
    path = tmp_path / name
    path.write_text(text)
    return ringway("check", "--config", path)


def line_of(text, part):
    return next(n for n, line in enumerate(text.splitlines(), 1) if part in line)


def test_good_configuration(tmp_path):
    code, said = check(tmp_path, configuration(session='wait = "30s"\nidle = "30s"'))
    assert code == 0, said


def test_the_sample_of_the_documentation(tmp_path):
    """Without the keys whose features come later."""
    code, said = check(tmp_path, """
[listen]
client = "0.0.0.0:10081"
worker = "0.0.0.0:10086"
admin  = "127.0.0.1:10083"

[cores]
count = 1
pin = true
busy_poll = "0us"

[control]
mode = "local"
advertise = "http://127.0.0.1:10086"

[[tenant]]
name = "dev"
client_keys = ["dev-key"]

[[function]]
id = "11111111-1111-4111-8111-111111111111"
version = "22222222-2222-4222-8222-222222222222"
tenants = ["dev"]
worker_keys = ["dev-worker-key"]
kind = "default"

[session]
wait = "30s"
idle = "30s"
scope = "tenant"
honour_id = "always"

[drain]
delay = "0s"
max = "60s"
""")
    assert code == 0, said


def test_every_mistake_at_once_with_line_and_fix(tmp_path):
    text = f"""[listen]
client = "127.0.0.1:99999"
worker = "nowhere"
admin = 7
telnet = "127.0.0.1:23"

[cores]
count = -1
busy_poll = "soon"

[control]
mode = "remote"
advertise = "not a url"

[[tenant]]
name = "dev"
client_keys = "dev-key"

[[tenant]]
name = "dev"
client_keys = ["dev-key"]

[[function]]
id = "not-a-uuid"
version = "{VERSION}"
tenants = ["nobody"]
worker_keys = []
kind = "sometimes"

[session]
wait = "30 parsecs"
idle = "-1s"
scope = "galaxy"

[drain]
max = "for ever"

[surprise]
key = 1
"""
    code, said = check(tmp_path, text)
    assert code == 78, (code, said)
    wrong = ["99999", "nowhere", "admin = 7", "telnet", "count = -1", "soon", "remote",
             "not a url", 'client_keys = "dev-key"', "not-a-uuid", '"nobody"', "sometimes",
             "30 parsecs", "-1s", "galaxy", "for ever", "[surprise]"]
    named = {int(n) for n in re.findall(r"(?:ringway\.toml:|line )(\d+)", said)}
    missing = [part for part in wrong if line_of(text, part) not in named]
    assert not missing, f"not reported: {missing}\n{said}"
    assert "ringway.toml" in said, said


@pytest.mark.parametrize("text, part", [
    ("[listen\nclient = 1\n", "1"),
    (configuration(cores=1).replace('count = 1', 'count = 1\ncount = 2'), "count"),
    ("", ""),
])
def test_broken_files(tmp_path, text, part):
    code, said = check(tmp_path, text)
    assert code == 78 and part in said and said.strip(), (code, said)


def test_missing_file(tmp_path):
    code, said = ringway("check", "--config", tmp_path / "nowhere.toml")
    assert code == 78 and "nowhere.toml" in said, (code, said)


@pytest.mark.parametrize("table, key", [("[limits]", "failed_connects = 1")])
def test_features_that_come_later(tmp_path, table, key):
    text = configuration(more=table)
    at = text.index(table) + len(table)
    code, said = check(tmp_path, text[:at] + "\n" + key + text[at:])
    assert code == 78 and "not supported yet" in said and key.split()[0] in said, (code, said)


@pytest.mark.parametrize("listener, said_of", [
    ('tls = { cert = "a", key = "b" }', ("listen.client.tls.cert", "listen.client.tls.key",
                                         "cannot be read")),
    ("proxy_protocol = true", ("listen.client.proxy_protocol needs listen.client.trusted",))])
def test_listener_options_that_cannot_work(tmp_path, listener, said_of):
    text = configuration().replace('client = "127.0.0.1:0"',
                                   f'client = {{ address = "127.0.0.1:0", {listener} }}')
    code, said = check(tmp_path, text)
    assert code == 78 and all(part in said for part in said_of), (code, said)


def test_serve_refuses_what_check_refuses(tmp_path):
    path = tmp_path / "ringway.toml"
    path.write_text(configuration(more="[surprise]\nkey = 1"))
    code, said = ringway("serve", "--config", path)
    assert code == 78 and "surprise" in said, (code, said)


def test_yaml_by_extension(tmp_path):
    code, said = check(tmp_path, f"""
listen: {{ client: "127.0.0.1:0", worker: "127.0.0.1:10086", admin: "127.0.0.1:0" }}
cores: {{ count: 1 }}
control: {{ mode: local, advertise: "http://127.0.0.1:10086" }}
tenant:
  - {{ name: dev, client_keys: [dev-key] }}
function:
  - id: {FUNCTION}
    version: {VERSION}
    tenants: [dev]
    worker_keys: [dev-worker-key]
    kind: default
""", "ringway.yaml")
    assert code == 0 or (code == 78 and "not supported yet" in said), (code, said)


@pytest.mark.parametrize("listener", ["client", "worker", "admin"])
def test_busy_port(tmp_path, listener):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = dict(client=0, worker=0, admin=0) | {listener: port}
        code, said = ringway("dev", *(part for name, number in ports.items()
                                      for part in (f"--{name}", f"127.0.0.1:{number}")))
        assert code == 71 and str(port) in said, (code, said)


def test_port_of_another_ringway(own_gateway):
    """SO_REUSEPORT must not hide it."""
    host, port = own_gateway.client
    code, said = ringway("dev", "--client", f"{host}:{port}", "--worker", "127.0.0.1:0",
                         "--admin", "127.0.0.1:0")
    assert code == 71 and str(port) in said, (code, said)


@pytest.mark.parametrize("arguments", [["fly"], ["serve", "--nonsense"], ["dev", "--cores"],
                                       ["dev", "--client", "nowhere"]])
def test_usage(arguments):
    code, said = ringway(*arguments)
    assert code == 2 and said.strip(), (code, said)


def test_dev_prints_a_call_to_paste(own_gateway):
    text = "\n".join(own_gateway.stdout_lines)
    assert own_gateway.stdout_lines[0].startswith("ready client=127.0.0.1:")
    assert "grpcurl" in text and "dev-key" in text and str(own_gateway.client[1]) in text, text


def test_serve_with_the_file_of_these_tests(serve):
    running = serve()
    with running.h2() as client:
        head = client.head(client.open(grpc_head(key=None), end_stream=True))
        assert head.grpc_status == "16"
    assert isinstance(running, Gateway)


# --- the environment (design 3.21, contract 9) ------------------------------------------------

# What NVIDIA's chart sets, as far as it is looked at.
CHART = {
    "NVCF_FQDN_GRPC": "http://api.nvcf.svc:9090", "NATS_FQDN": "nats://nats.svc:4222",
    "SELF_WORKER_FQDN": "http://grpc.nvcf.svc:10086", "POD_IP": "10.0.0.7",
    "SECRETS_PATH": "/vault/secrets/secrets.json", "AWS_REGION": "ncp",
    "JETSTREAM_PLACEMENT_TAG": "dc:ncp", "ENABLE_HTTP1_CONNECT": "true",
    "ENABLE_HTTP3_CONNECT": "false", "RATE_LIMIT_ENABLED": "true",
    "RATE_LIMIT_ADDR": "http://limiter.nvcf.svc:8080", "GEO_DISABLED": "true", "TRACING": "none",
}


def test_nothing_to_serve(tmp_path):
    for arguments in [(), ("serve",), ("check",)]:
        code, said = ringway(*arguments, HOME=str(tmp_path))
        assert code == 78 and len(said.splitlines()) == 1, (code, said)
        assert "--config" in said and "NVCF_FQDN_GRPC" in said, said


def test_the_environment_of_the_chart(tmp_path):
    code, said = ringway("check", **CHART, HOME=str(tmp_path))
    assert code == 0 and "mode nvcf" in said and ".nvkit" not in said, (code, said)
    (tmp_path / ".nvkit").mkdir()
    (tmp_path / ".nvkit/config.yaml").write_text("geo-disabled: true\n")
    code, said = ringway("check", **CHART, HOME=str(tmp_path))
    assert code == 0 and "warning" in said and ".nvkit/config.yaml" in said, (code, said)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        # It ends before it serves.
        client = f"127.0.0.1:{taken.getsockname()[1]}"
        code, said = ringway(**CHART, HOME=str(tmp_path), RINGWAY__LISTEN__CLIENT=client)
    assert code == 71, said
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    starting = next(line for line in lines if line["msg"] == "starting")
    assert starting["mode"] == "nvcf" and "NVCF_FQDN_GRPC" in starting["why"], starting
    assert any(line["level"] == "warn" and ".nvkit" in line["msg"] for line in lines), said


@pytest.mark.parametrize("changes, name, part", [
    ({"GEO_DISABLED": ""}, "GEO_DISABLED", "GEO_DISABLED=true"),
    ({"GEO_DISABLED": "false"}, "GEO_DISABLED", "GEO_DISABLED=true"),
    ({"ENABLE_HTTP1_CONNECT": ""}, "ENABLE_HTTP1_CONNECT", "ENABLE_HTTP1_CONNECT=true"),
    ({"ENABLE_HTTP3_CONNECT": "1"}, "ENABLE_HTTP3_CONNECT", "ENABLE_HTTP3_CONNECT=false"),
    ({"LOCAL_TEST": "true"}, "LOCAL_TEST", "ringway dev"),
    ({"SELF_WORKER_FQDN": "", "POD_IP": ""}, "SELF_WORKER_FQDN", "POD_IP"),
    ({"SELF_WORKER_FQDN": "grpc.nvcf.svc"}, "SELF_WORKER_FQDN", "URL"),
    ({"SELF_WORKER_FQDN": "http://grpc.nvcf.svc:0"}, "SELF_WORKER_FQDN", "URL"),
    ({"SELF_WORKER_FQDN": "http://grpc.nvcf.svc/#here"}, "SELF_WORKER_FQDN", "fragment"),
    ({"NVCF_FQDN_GRPC": "api.nvcf.svc:9090"}, "NVCF_FQDN_GRPC", "URL"),
    ({"NATS_FQDN": "amqp://nats.svc"}, "NATS_FQDN", "nats://"),
    ({"NATS_FQDN": " , "}, "NATS_FQDN", "no server"),
    ({"NATS_PRIVATE_NKEY": "SUNKNOWN"}, "NATS_PRIVATE_NKEY", "SU"),
    ({"RATE_LIMIT_ADDR": ""}, "RATE_LIMIT_ENABLED", "RATE_LIMIT_ADDR"),
    ({"RINGWAY__DRAIN__MAXX": "1s"}, "RINGWAY__DRAIN__MAXX", "RINGWAY__DRAIN__MAX?"),
    ({"RINGWAY__TENANT__NAME": "me"}, "RINGWAY__TENANT__NAME", "[[tenant]]"),
    ({"RINGWAY__DRAIN__MAX": "soon"}, "RINGWAY__DRAIN__MAX", "0s to 24h"),
])
def test_an_environment_that_cannot_work(tmp_path, changes, name, part):
    for arguments in [(), ("check",)]:
        code, said = ringway(*arguments, **CHART | changes, HOME=str(tmp_path))
        assert code == 78 and len(said.splitlines()) == 1, (code, said)
        assert said.startswith(f"{name}: ") and part in said and "SUNKNOWN" not in said, said


def test_the_environment_stands_over_the_file(tmp_path):
    text = configuration(session='wait = "soon"')
    path = tmp_path / "ringway.toml"
    path.write_text(text)
    code, said = ringway("check", "--config", path)
    assert code == 78 and f"ringway.toml:{line_of(text, 'soon')}:" in said, (code, said)
    code, said = ringway("check", "--config", path, RINGWAY__SESSION__WAIT="60s",
                         RINGWAY_PORT="tcp://10.0.0.1:80", NVCF_FQDN_GRPC="http://elsewhere")
    assert code == 0 and "mode local" in said, (code, said)
