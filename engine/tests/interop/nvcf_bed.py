"""What a gateway in `nvcf` mode stands between: a real `nats-server`, `ringway-stand-in` in the
place of NVIDIA's API, `ringway-worker`s that take work by NATS, and gateways that are told all of
it by the reference's environment (contract 9)."""

import copy
import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import gateway as gateways
from beds import Parts
from gateway import Gateway, serve_each
from nats_rig import REGION, NatsServer, users

# What the gateways show to the API and to the limiter.
PROXY_TOKEN, LIMITER_TOKEN = "proxy-token", "limiter-token"
# Clients of two tenants, and what the stand-in plays where a test does not care.
A, B = "client-a", "client-b"
SCRIPT = {
    "api": {"from": {"bearers": [PROXY_TOKEN]}},
    "limiter": {"from": {"bearers": [LIMITER_TOKEN]}},
    "key": [{"token": A, "subject": "subject-a", "nca": "nca-a"},
            {"token": B, "subject": "subject-b", "nca": "nca-b"}],
    "function": [{"id": gateways.FUNCTION, "version": [{"id": gateways.VERSION}]}],
}


def program():
    """RINGWAY_STAND_IN_BIN, else the program beside the gateway's."""
    named = os.environ.get("RINGWAY_STAND_IN_BIN")
    beside = Path(gateways.binary()[0]).with_name("ringway-stand-in")
    return named.split() if named else [str(beside)]


def stand_in(*arguments):
    """One of its commands that end; what it prints."""
    done = subprocess.run([*program(), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (arguments, done.stderr)
    return done.stdout


def make_nkey(kind="user"):
    """(seed, public key)"""
    return stand_in("make-nkey", kind).split()


def make_streams(url, version, *more, region=REGION, replicas=1):
    stand_in("make-streams", "--nats", url, "--region", region, "--version", version,
             "--replicas", str(replicas), *more)


def toml(value):
    """A value as TOML writes it in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


class StandIn:
    """`ringway-stand-in serve`. Started again it has its ports again."""

    def __init__(self, directory, script=None, name="stand-in"):
        self.path = Path(directory) / f"{name}.toml"
        self.log_path = Path(directory) / f"{name}.stderr"
        self.script = copy.deepcopy(script or {})
        self.start()

    def text(self):
        return "".join(f"{key} = {toml(value)}\n" for key, value in self.script.items())

    def start(self):
        self.path.write_text(self.text())
        tether = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with open(self.log_path, "ab") as log:
            self.run = subprocess.Popen([*tether, *program(), "serve", str(self.path)], text=True,
                                        stdout=subprocess.PIPE, stderr=log, start_new_session=True)
        line = self.run.stdout.readline()
        assert line.startswith("ready "), f"{line!r}: {self.log_path.read_text()}"
        self.script["listen"] = dict(word.split("=") for word in line.split()[1:])

    def at(self, part):
        return self.script["listen"][part]

    def url(self, part):
        return f"http://{self.at(part)}"

    def ask(self, method, path, body=None):
        request = urllib.request.Request(self.url("admin") + path, method=method,
                                         data=body and body.encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read().decode()

    def play(self, **changes):
        """Another script from the next call on: each named part is replaced."""
        self.script.update(copy.deepcopy(changes))
        self.ask("PUT", "/script", self.text())

    def refuses(self, text):
        """Its error about a script that has a mistake."""
        try:
            self.ask("PUT", "/script", text)
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        raise AssertionError("it was taken")

    def counts(self, part=None):
        counts = json.loads(self.ask("GET", "/counts"))
        return counts.get(part, {"calls": 0, "by": {}, "recent": []}) if part else counts

    def seen(self, part, field, value):
        """How often calls of a part had that value of that field."""
        return self.counts(part)["by"].get(field, {}).get(value, 0)

    def reset(self):
        self.ask("POST", "/reset")

    def kill(self):
        if self.run.poll() is None:
            self.run.kill()
        self.run.wait()
        self.run.stdout.close()


class NvcfGateway(Gateway):
    """`ringway` without an argument, in the environment of the reference."""

    def __init__(self, environment, directory, name="nvcf", launcher=()):
        # Nothing of whoever runs the tests: it may have a NATS of its own.
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        super().__init__([], directory, name, launcher, env={**kept, **environment})

    def addresses(self):
        """The variables that say where it listens: another gateway with them can replace it."""
        listens = {"CLIENT": self.client, "WORKER": self.worker, "ADMIN": self.admin}
        return {"SELF_WORKER_FQDN": f"http://127.0.0.1:{self.worker[1]}",
                **{f"RINGWAY__LISTEN__{name}": f"{host}:{port}"
                   for name, (host, port) in listens.items()}}

    def health(self):
        """(status, content) of the client port's /health (contract 8.4)."""
        status, _, body = self.get("/health", port=self.client)
        return status, json.loads(body)

    def is_ready(self):
        return self.get("/ready")[0] == 200


class Bed(Parts):
    """All of it: NATS and the stand-in are there at once, streams, workers and gateways as they are
    asked for. Each part can be killed, and NATS and the stand-in started again where they were."""

    def __init__(self, directory, script=SCRIPT, nats=NatsServer):
        super().__init__(directory)
        self.seed, self.nkey = make_nkey()
        self.nats_server = self.add(nats(directory, more=users(self.nkey)))
        self.stand_in = self.add(StandIn(directory, script))
        # A folder of its own, as every deployment has: the gateway wakes for all that happens in it.
        (self.directory / "secrets").mkdir(exist_ok=True)
        self.secrets = self.directory / "secrets" / "secrets.json"
        self.tell_secrets()

    def tell_secrets(self, **changes):
        """What the secrets file says (contract 5.2)."""
        secrets = {"nvcfApiToken": PROXY_TOKEN, "ratelimiterToken": LIMITER_TOKEN,
                   "natsPrivateNKey": self.seed, "id": "no-id", "secret": "no-secret", **changes}
        self.secrets.write_text(json.dumps({k: v for k, v in secrets.items() if v is not None}))

    def make_streams(self, version, *more, **options):
        make_streams(self.nats_server.url(), version, *more, **options)

    def environment(self, worker_port):
        """The environment of a gateway of this bed (contract 9), on ports of its own."""
        zero = "127.0.0.1:0"
        environment = {
            "NVCF_FQDN_GRPC": self.stand_in.url("api"),
            "NATS_FQDN": self.nats_server.url(user=None),
            "SECRETS_PATH": str(self.secrets),
            "SELF_WORKER_FQDN": f"http://127.0.0.1:{worker_port}",
            "ENABLE_HTTP1_CONNECT": "true", "GEO_DISABLED": "true", "TRACING": "none",
            "RATE_LIMIT_ENABLED": "true", "RATE_LIMIT_ADDR": self.stand_in.url("limiter"),
            "JETSTREAM_PLACEMENT_TAG": "dc:ncp",
            "RINGWAY__LISTEN__CLIENT": zero, "RINGWAY__LISTEN__ADMIN": zero,
            "RINGWAY__LISTEN__WORKER": f"127.0.0.1:{worker_port}",
            "RINGWAY__CORES__COUNT": str(gateways.default_cores()),
        }
        if os.environ.get("RINGWAY_TEST_IO"):
            environment["RINGWAY__CORES__IO"] = os.environ["RINGWAY_TEST_IO"]
        return environment

    def gateway(self, name=None, launcher=(), **changes):
        """One more; `changes` are laid over its environment, None takes a variable away."""
        name = name or f"nvcf{len(self.started)}"

        def start(port):
            environment = {**self.environment(port), **changes}
            environment = {k: v for k, v in environment.items() if v is not None}
            return NvcfGateway(environment, self.directory, name, launcher)

        return self.on_free_port(start)


class Callback:
    """A proxy's worker listener, played: CONNECTs arrive, and the test answers them."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.listener.getsockname()[1]}/v1/proxy"
        self.dialled = []

    def next(self, timeout=30):
        self.listener.settimeout(timeout)
        self.dialled.append(Dialled(self.listener.accept()[0]))
        return self.dialled[-1]

    def close(self):
        self.listener.close()
        for dialled in self.dialled:
            dialled.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Dialled:
    """One CONNECT."""

    def __init__(self, sock):
        self.sock = sock
        self.sock.settimeout(30)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            octet = self.sock.recv(1)
            assert octet, f"it ended: {head!r}"
            head += octet
        self.line, *fields = head.decode().rstrip().split("\r\n")
        self.fields = {name.lower(): value for name, value in
                       (field.split(": ", 1) for field in fields)}

    def refuse(self, status=403):
        text = "HTTP CONNECT request is missing valid auth\n"
        self.sock.sendall(f"HTTP/1.1 {status} Refused\r\nContent-Length: {len(text)}\r\n\r\n{text}"
                          .encode())

    def accept(self):
        self.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        return self

    def says(self, octets):
        """What the server behind the worker answers to that; as much of it as was said."""
        self.sock.sendall(octets)
        answer = b""
        while len(answer) < len(octets):
            more = self.sock.recv(65_536)
            assert more, f"it ended after {answer!r}"
            answer += more
        return answer

    def close(self):
        self.sock.close()


class Parrot:
    """A server that says what it hears."""

    def __init__(self):
        self.listener = serve_each(self.repeat)
        self.target = f"127.0.0.1:{self.listener.getsockname()[1]}"

    def repeat(self, sock):
        with sock:
            try:
                while octets := sock.recv(65_536):
                    sock.sendall(octets)
            except OSError:
                pass

    def close(self):
        # A closed listener would not wake who waits at it.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
