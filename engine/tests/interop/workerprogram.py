"""`ringway-worker` as a process of its own, and a gateway that has one instead of the built-in
worker."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import gateway
import grpcserver


def binary():
    """RINGWAY_WORKER_BIN, else the program beside the gateway's."""
    named = os.environ.get("RINGWAY_WORKER_BIN")
    return named.split() if named else [str(Path(gateway.binary()[0]).with_name("ringway-worker"))]


class WorkerProgram:
    """One process; its log is read for what it does."""

    def __init__(self, gateways, target, directory, name="worker", key=gateway.WORKER_KEY,
                 function=gateway.FUNCTION, version=gateway.VERSION, slots=1, more=(), env=None):
        arguments = []
        for host, port in gateways:
            arguments += ["--gateway", f"http://{host}:{port}"]
        self.launch([*arguments, "--key", key, "--function", function, "--version", version,
                     "--target", target, "--slots", str(slots), "--log", "debug", *more],
                    directory, name, env)

    @classmethod
    def by_nats(cls, url, target, directory, name="worker", function=gateway.FUNCTION,
                version=gateway.VERSION, slots=1, more=(), env=None):
        """One that takes its work as NVIDIA's workers do."""
        self = cls.__new__(cls)
        self.launch(["--nats", url, "--function", function, "--version", version, "--target",
                     target, "--slots", str(slots), "--log", "debug", *more], directory, name, env)
        return self

    def launch(self, arguments, directory, name, env=None):
        self.log_path = Path(directory) / f"{name}.stderr"
        # The suite itself may run under nohup, which its programs would inherit.
        tether = ["env", "--default-signal=HUP"]
        tether += ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with open(self.log_path, "wb") as log:
            self.run = subprocess.Popen(tether + binary() + arguments, stderr=log,
                                        start_new_session=True, env=env)

    def log_text(self):
        return self.log_path.read_text(errors="replace")

    def says(self, text, times=1, timeout=60):
        """Waits until its log has `text` so many times."""
        deadline = time.monotonic() + timeout
        while self.log_text().count(text) < times:
            assert time.monotonic() < deadline, f"no {text!r} in\n{self.log_text()}"
            assert self.run.poll() is None or self.log_text().count(text) >= times, (
                f"it ended with {self.run.poll()}:\n{self.log_text()}")
            time.sleep(0.01)

    def signal(self, number=signal.SIGTERM):
        self.run.send_signal(number)

    def exit_code(self, timeout=60):
        try:
            return self.run.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.log_text()}") from None

    def kill(self):
        if self.run.poll() is None:
            self.run.kill()
        self.run.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


class WithWorker(gateway.Gateway):
    """What `ringway dev` is for the tests, with nothing built in: `serve`, a worker process (or
    none, if RINGWAY_TEST_WORKER is `dial`), and the server named by --target, else a grpcio
    server that echoes."""

    @classmethod
    def start(cls, directory, *more, name="dev"):
        more = list(more)
        server = None
        if "--target" in more:
            at = more.index("--target")
            target = more[at + 1]
            del more[at:at + 2]
        else:
            server = grpcserver.Server()
            target = f"127.0.0.1:{server.port}"
        assert not more, f"not for a gateway with a worker process: {more}"
        kind = os.environ["RINGWAY_TEST_WORKER"]
        assert kind in ("process", "dial"), f"RINGWAY_TEST_WORKER={kind}"
        running = cls.serve(directory, name, dial=target if kind == "dial" else None)
        running.server = server
        if kind == "dial":
            return running
        running.worker_program = WorkerProgram([running.worker], target, directory,
                                               f"{name}-worker", slots=512)
        return running

    def close_worker(self):
        program = getattr(self, "worker_program", None)
        if program:
            program.kill()
        server = getattr(self, "server", None)
        if server:
            server.grpc.stop(0)

    def stop(self):
        super().stop()
        self.close_worker()

    def kill(self):
        super().kill()
        self.close_worker()
