"""The common part of all beds: the programs they have started, and clients of their NATS. All of it ends with
the bed."""

from pathlib import Path

from gateway import free_port, until
from nats_rig import Nats
from workerprogram import WorkerProgram


class Parts:
    """`nats_server` is the bed's own to start."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.started, self.clients = [], []

    def add(self, part):
        self.started.append(part)
        return part

    def client(self, **options):
        """A client of NATS."""
        self.clients.append(Nats(self.nats_server.url(), **options))
        return self.clients[-1]

    def on_free_port(self, start):
        """What `start` makes of a worker's port. That is picked beforehand, so it can be lost to
        somebody else."""
        for attempt in range(5):
            try:
                return self.add(start(free_port()))
            except AssertionError as error:
                if "exit code 71" not in str(error) or attempt == 4:
                    raise

    def ready_gateway(self, *arguments, **options):
        running = self.gateway(*arguments, **options)
        until(running.is_ready, what=f"ready: {running.log_tail()}")
        return running

    def worker(self, target, name=None, **options):
        """One more, for work by NATS."""
        name = name or f"worker{len(self.started)}"
        return self.add(WorkerProgram.by_nats(self.nats_server.url(), target, self.directory, name,
                                              **options))

    def close(self):
        for client in self.clients:
            client.close()
        # What was started last ends first: so nobody's end is about the loss of what it needs.
        for part in reversed(self.started):
            part.kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
