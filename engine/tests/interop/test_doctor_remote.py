"""`ringway doctor` on what is elsewhere: real NATS servers, the stand-in for NVIDIA's API, and where
workers dial back to; and that it fails where `serve` would not start."""

import json
import os
import socket
import ssl
import subprocess

import pytest

import grpcserver
from behind import Authority
from gateway import binary, free_port, serve_each, until
from nats_bed import Bed, configuration
from nats_rig import Cluster, NatsServer, users
from nvcf_bed import SCRIPT, make_nkey
from nvcf_bed import Bed as NvcfBed


def run(*arguments, **variables):
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run([*binary(), *arguments], capture_output=True, text=True, timeout=90,
                          env=environment)


class Report:
    """The report: (status, text) of each check by its name, and the exit code."""

    def __init__(self, *arguments, **variables):
        done = run("doctor", "--json", *arguments, **variables)
        assert not done.stderr, done.stderr
        self.code, self.checks = done.returncode, json.loads(done.stdout)
        for check in self.checks:
            assert (check["fix"] is None) == (check["status"] == "OK"), check
            assert "\n" not in check["seen"], check

    def of(self, name):
        return [check for check in self.checks if check["check"] == name]

    def says(self, name, status, *words):
        """Some check of that name has this status, and its words."""
        found = [check for check in self.of(name) if check["status"] == status
                 and all(word in f"{check['seen']}; {check['fix']}" for word in words)]
        assert found, (name, status, words, self.of(name))

    def worst(self, *names):
        """The statuses of the checks with these names that are not OK."""
        return [check for check in self.checks
                if check["check"] in names and check["status"] != "OK"]


@pytest.fixture
def bed(tmp_path):
    with Bed(tmp_path) as made:
        yield made


def written(bed, nats=None, worker_port=None, **options):
    path = bed.directory / "doctor.toml"
    path.write_text(configuration(nats or bed.login(), worker_port or free_port(), **options))
    return "--config", str(path)



# --- NATS ---------------------------------------------------------------------------------------

def test_a_server_before_the_first_gateway(bed):
    report = Report(*written(bed))
    assert report.code == 0, report.checks
    report.says("nats", "OK", "nats-server", "without TLS")
    report.says("nats_account", "OK", "octets of memory")
    report.says("nats_registrations", "OK", "not there yet")
    report.says("nats_placement", "WARN", "1 replica(s)", "cluster")
    report.says("nats_bucket", "OK", "not there yet")
    report.says("callback", "OK", "a token of ours comes here")
    assert len(report.of("nats_permission")) >= 17 and not report.worst("nats_permission")
    names = bed.client().js("STREAM.NAMES")["streams"]
    assert not names, f"it leaves nothing behind: {names}"


def test_beside_a_gateway_with_a_worker(bed):
    server = grpcserver.Server(name="one")
    gateway, nats = bed.ready_gateway(), bed.client()
    config = ("--config", str(gateway.path))
    stream = "rq_ncp_22222222-2222-4222-8222-222222222222"
    until(lambda: nats.state("KV_ringway_nodes_ncp"), what="the bucket")
    until(lambda: nats.state(stream), what="the stream")
    Report(*config).says("nats_workers", "WARN", "no worker asks", "ringway-worker --nats")
    bed.worker(f"127.0.0.1:{server.port}", slots=4)
    until(lambda: nats.js(f"CONSUMER.INFO.{stream}.{stream}_workers").get("num_waiting"),
          what="pulls")
    report = Report(*config)
    report.says("nats_workers", "OK", "pulls wait for work")
    report.says("nats_bucket", "OK", "1 record(s)")
    report.says("nats_requests", "WARN", "1 replica(s)")
    report.says("callback", "OK", "leads to a gateway", "did not mint")
    assert not report.worst("nats", "nats_account", "nats_permission")
    assert nats.messages(stream) == 0, "nothing was queued"
    # It would not start beside this one.
    report.says("port_worker", "FAIL", "taken by ringway")
    assert report.code == 1 and run("serve", *config).returncode == 71
    server.grpc.stop(0)


def test_a_server_that_is_away(bed):
    bed.nats_server.kill()
    report = Report(*written(bed))
    report.says("nats", "FAIL", "refused", "start nats-server")
    assert report.code == 1 and not report.of("nats_account")


def test_one_of_two_servers_is_away(bed):
    nowhere = f"nats://127.0.0.1:{free_port()}"
    both = bed.login().replace("urls = [", f'urls = ["{nowhere}", ')
    report = Report(*written(bed, both))
    report.says("nats", "WARN", "refused")
    report.says("nats", "OK", "nats-server")
    assert report.code == 0


def test_a_login_that_is_not_known(bed):
    (bed.directory / "other").write_text(make_nkey()[0])
    login = bed.login().replace("/seed", "/other")
    report = Report(*written(bed, login))
    report.says("nats", "FAIL", "authorization violation", "nats.nkey_file")
    assert report.code == 1


@pytest.mark.parametrize("denied, status, words", [
    ('publish: { deny: "rq.>" }', "FAIL", ["rq.ncp.", "no session begins"]),
    ('publish: { deny: "stateful_session.reconnect.>" }', "FAIL", ["another tunnel"]),
    ('publish: { deny: "$JS.API.STREAM.PURGE.>" }', "WARN", ["STREAM.PURGE", "stays queued"]),
    ('publish: { deny: "$KV.>" }', "WARN", ["$KV.ringway_nodes_ncp"])])
def test_a_right_that_is_missing(tmp_path, denied, status, words):
    seed, public = make_nkey()
    server = NatsServer(tmp_path, more=f"authorization {{ users: [ {{ nkey: {public}, "
                                       f"permissions: {{ {denied} }} }} ] }}")
    with Bed(tmp_path, server) as bed:
        (tmp_path / "seed").write_text(seed)
        report = Report(*written(bed))
        report.says("nats_permission", status, *words)
        assert report.code == (1 if status == "FAIL" else 0)


def test_an_account_without_jetstream(tmp_path):
    seed, public = make_nkey()
    server = NatsServer(tmp_path, more=f"accounts {{ gateways {{ users: [ {{ nkey: {public} }} ] }} }}")
    with Bed(tmp_path, server) as bed:
        (tmp_path / "seed").write_text(seed)
        report = Report(*written(bed))
        report.says("nats_account", "FAIL", "JetStream")
        assert report.code == 1


def test_three_servers_and_their_tags(tmp_path):
    seed, public = make_nkey()
    with Bed(tmp_path, Cluster(tmp_path, users(public))) as bed:
        (tmp_path / "seed").write_text(seed)
        urls = ", ".join(f'"{server.url(user=None)}"' for server in bed.nats_server.servers)
        login = f'urls = [{urls}]\nnkey_file = "{tmp_path}/seed"\nplacement = "dc:'
        report = Report(*written(bed, f'{login}moon"'))
        report.says("nats_placement", "FAIL", "dc:moon", "server_tags")
        there = [check for check in report.of("nats") if "nats-server" in check["seen"]]
        assert report.code == 1 and len(there) == 3
        report = Report(*written(bed, f'{login}ncp"'))
        report.says("nats_placement", "OK", "3 replica(s)", "dc:ncp")
        assert report.code == 0


# --- where workers dial back to -----------------------------------------------------------------

def test_an_address_of_somebody_else(bed):
    with socket.create_server(("127.0.0.1", 0)) as other:
        elsewhere = f"http://127.0.0.1:{other.getsockname()[1]}"
        config = written(bed, worker_port=free_port())
        report = Report(*config, RINGWAY__CONTROL__ADVERTISE=elsewhere)
    report.says("callback", "FAIL", elsewhere, "control.advertise")
    assert report.code == 1


# --- NVIDIA's API -------------------------------------------------------------------------------

@pytest.fixture
def nvcf(tmp_path):
    with NvcfBed(tmp_path, SCRIPT) as made:
        made.secrets.chmod(0o600)
        yield made


def asked(nvcf, **changes):
    variables = {k: v for k, v in {**nvcf.environment(free_port()), **changes}.items()
                 if v is not None}
    return Report(**variables)


def test_all_is_well(nvcf):
    report = asked(nvcf, JETSTREAM_PLACEMENT_TAG=None)
    report.says("secrets_file", "OK")
    report.says("api", "OK", "SERVING")
    report.says("api_credential", "OK", "taken")
    report.says("limiter", "OK", "answers")
    assert not report.worst("nats", "nats_account", "nats_permission")


def test_a_credential_that_is_not_taken(nvcf):
    nvcf.tell_secrets(nvcfApiToken="another")
    report = asked(nvcf)
    report.says("api", "OK")
    report.says("api_credential", "FAIL", "nvcfApiToken")
    assert report.code == 1


def test_the_api_is_away_and_the_limiter_too(nvcf):
    nvcf.stand_in.kill()
    report = asked(nvcf)
    report.says("api", "FAIL", "NVCF_FQDN_GRPC")
    report.says("limiter", "WARN", "RATE_LIMIT_ADDR")
    assert report.code == 1


@pytest.mark.parametrize("content, words", [
    (None, ["there is none"]), ("{", ["no whole JSON object"]),
    ("{}", ["no credential for the API"])])
def test_a_secrets_file_of_no_use(nvcf, content, words):
    nvcf.secrets.unlink()
    if content is not None:
        nvcf.secrets.write_text(content)
    report = asked(nvcf)
    report.says("secrets_file", "FAIL", *words)
    assert report.code == 1


def test_a_secrets_file_that_all_may_read(nvcf):
    nvcf.secrets.chmod(0o644)
    asked(nvcf).says("secrets_file", "WARN", "chmod o-r")


def test_what_stops_serve_is_a_failure(nvcf):
    nvcf.tell_secrets(natsPrivateNKey="SUNOSEED")
    report = asked(nvcf)
    report.says("nats", "FAIL", "natsPrivateNKey")
    assert report.code == 1
    assert run("serve", **nvcf.environment(free_port())).returncode == 78


# --- an API behind TLS --------------------------------------------------------------------------

class TlsFront:
    """Takes TLS for a server that has none."""

    def __init__(self, authority, target):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*authority.issue("api"))
        context.set_alpn_protocols(["h2"])
        host, port = target.rsplit(":", 1)
        self.context, self.target = context, (host, int(port))
        self.listener = serve_each(self.join)
        self.url = f"https://localhost:{self.listener.getsockname()[1]}"

    def join(self, raw):
        try:
            near = self.context.wrap_socket(raw, server_side=True)
        except (ssl.SSLError, OSError):
            return
        far = socket.create_connection(self.target)
        # One thread at a time may use a TLS socket: this one, by turns.
        near.settimeout(0.01)
        far.settimeout(0.01)
        while True:
            for source, sink in ((near, far), (far, near)):
                try:
                    octets = source.recv(65_536)
                except TimeoutError:
                    continue
                except OSError:
                    return
                if not octets:
                    near.close()
                    far.close()
                    return
                sink.sendall(octets)

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def test_an_api_with_a_certificate_of_a_private_authority(nvcf, tmp_path):
    authority = Authority(tmp_path)
    front = TlsFront(authority, nvcf.stand_in.at("api"))
    own = {"NVCF_FQDN_GRPC": front.url, "RINGWAY__NVCF__CA_FILE": str(authority.cert),
           "RATE_LIMIT_ENABLED": "false"}
    gateway = nvcf.ready_gateway(**own)
    assert gateway.health()[0] == 200
    report = asked(nvcf, **own)
    report.says("api", "OK", "https://localhost", "SERVING")
    report.says("api_credential", "OK", "taken")
    other = {**own, "RINGWAY__NVCF__CA_FILE": str(Authority(front_folder(tmp_path)).cert)}
    report = asked(nvcf, **other)
    report.says("api", "FAIL", "nvcf.ca_file")
    stranger = nvcf.gateway(**other)
    until(lambda: "NVIDIA's API fails its health check" in stranger.log_text(), what="a line")
    assert not stranger.is_ready()
    front.close()


def front_folder(tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    return folder
