"""Some `ringway-worker` processes, each before a server of its own that answers with a name: so a
client sees whose session it is on."""

import logging
import threading

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve

import grpcserver
from workerprogram import WorkerProgram


class Speaker:
    """A WebSocket server that says its name first and then before everything it echoes. It ends
    when it is asked to."""

    def __init__(self, name):
        self.name, self.visits = name, 0
        logging.getLogger("websockets").setLevel(logging.CRITICAL)
        self.server = serve(self.talk, "127.0.0.1", 0, max_size=None, compression=None,
                            select_subprotocol=lambda _, offered: offered[-1] if offered else None)
        self.port = self.server.socket.getsockname()[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def talk(self, socket):
        self.visits += 1
        try:
            socket.send(self.name)
            for message in socket:
                if message == "end this":
                    return
                socket.send(f"{self.name}: {message}")
        except ConnectionClosed:
            pass

    def close(self):
        self.server.shutdown()


class Answerer:
    """A grpcio server whose answers carry `x-worker`."""

    def __init__(self, name):
        self.name = name
        self.server = grpcserver.Server(name=name)
        self.port = self.server.port

    def close(self):
        self.server.grpc.stop(0)


class Crew:
    """`kind` is Speaker or Answerer."""

    def __init__(self, gateway, kind, directory, count=3, slots=4, address=None):
        self.servers = [kind(f"worker-{n}") for n in range(count)]
        self.programs = [WorkerProgram([address or gateway.worker], f"127.0.0.1:{server.port}",
                                       directory, f"crew-{server.name}", slots=slots)
                         for server in self.servers]

    def said(self, text):
        """How often the workers' logs say so, all together."""
        return sum(program.log_text().count(text) for program in self.programs)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for program in self.programs:
            program.kill()
        for server in self.servers:
            server.close()
        for program in self.programs:
            assert "panicked" not in program.log_text(), program.log_text()
