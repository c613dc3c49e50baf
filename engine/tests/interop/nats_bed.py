"""What gateways in `nats` mode stand between: a real `nats-server` and workers that take their work
from it. Keys and functions stand in the gateways' own file."""

import os

import gateway as gateways
from beds import Parts
from gateway import FUNCTION, SECOND_FUNCTION, SECOND_VERSION, VERSION, Gateway
from nats_rig import PASSWORD, USER, NatsServer, users
from nvcf_bed import make_nkey

# Clients of two tenants.
A, B = "client-a", "client-b"


def function(id, version, more=""):
    return f"""
[[function]]
id = "{id}"
version = "{version}"
tenants = ["a", "b"]
{more}
"""


DEFAULT = function(FUNCTION, VERSION)
STREAMING = function(SECOND_FUNCTION, SECOND_VERSION, 'kind = "streaming"')


def configuration(nats, worker_port, functions=DEFAULT, more=""):
    """A gateway's file; `nats` is what stands in the table of that name."""
    io = os.environ.get("RINGWAY_TEST_IO", "auto")
    return f"""[listen]
client = "127.0.0.1:0"
worker = "127.0.0.1:{worker_port}"
admin = "127.0.0.1:0"

[cores]
count = {gateways.default_cores()}
io = "{io}"

[control]
mode = "nats"
advertise = "http://127.0.0.1:{worker_port}"

[nats]
{nats}

[[tenant]]
name = "a"
client_keys = ["{A}"]

[[tenant]]
name = "b"
client_keys = ["{B}"]
{functions}
{more}
"""


class NatsGateway(Gateway):
    """`ringway serve` with such a file."""

    def is_ready(self):
        return self.get("/ready")[0] == 200

    def change(self, old, new):
        """Another text in its file, which it reads again."""
        text = self.path.read_text()
        assert old in text
        self.path.write_text(text.replace(old, new))
        self.hangup()

    def hangup(self):
        import signal
        self.run.send_signal(signal.SIGHUP)


class Bed(Parts):
    """NATS is there at once, workers and gateways as they are asked for."""

    def __init__(self, directory, server=None, more=""):
        super().__init__(directory)
        self.seed, self.nkey = make_nkey()
        self.nats_server = self.add(server or NatsServer(directory, more=users(self.nkey) + more))
        (self.directory / "seed").write_text(self.seed)

    def login(self):
        return (f'urls = ["{self.nats_server.url(user=None)}"]\n'
                f'nkey_file = "{self.directory}/seed"')

    def gateway(self, nats=None, name=None, **options):
        name = name or f"gateway{len(self.started)}"
        path = self.directory / f"{name}.toml"

        def start(port):
            path.write_text(configuration(nats or self.login(), port, **options))
            return NatsGateway(["serve", "--config", str(path)], self.directory, name)

        started = self.on_free_port(start)
        started.path = path
        return started


__all__ = ["A", "B", "Bed", "DEFAULT", "PASSWORD", "STREAMING", "USER", "configuration",
           "function"]
