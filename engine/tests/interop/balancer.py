"""A balancer that knows nothing: HAProxy in TCP mode, which gives each connection to any server that
says it is ready."""

import contextlib
import shutil
import socket
import subprocess

from gateway import until

# How often a server is asked whether it is ready, in milliseconds.
ASKED_EVERY = 200
HEAD = f"""
global
    stats socket {{control}} mode 600 level admin
defaults
    mode tcp
    timeout connect 2s
    timeout client 1h
    timeout server 1h
    retries 0
    option httpchk GET /ready
    default-server check inter {ASKED_EVERY}ms fall 1 rise 1
"""


class Balancer:
    """`ways` says of each name its address and its servers, which are (host, port) or, if they are
    only for when no other one is there, (host, port, "backup"). Each is asked at its host's
    `admin` port. A connection that a server refuses fails: nobody tries another one."""

    def __init__(self, directory, ways, admin):
        self.control = f"{directory}/balancer.sock"
        self.names = {name: [f"s{number}" for number in range(len(servers))]
                      for name, (_, servers) in ways.items()}
        text = HEAD.format(control=self.control)
        for name, ((host, port), servers) in ways.items():
            text += f"\nlisten {name}\n    bind {host}:{port}\n    balance random(1)\n"
            for number, (host, port, *more) in enumerate(servers):
                text += (f"    server s{number} {host}:{port} port {admin} weight 100 "
                         f"{' '.join(more)}\n")
        path = f"{directory}/balancer.cfg"
        self.log_path = f"{directory}/balancer.log"
        with open(path, "w") as file:
            file.write(text)
        tether = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with open(self.log_path, "wb") as log:
            self.run = subprocess.Popen([*tether, "haproxy", "-db", "-f", path], stdout=log,
                                        stderr=log)
        until(self.answers, what="HAProxy")

    def answers(self):
        assert self.run.poll() is None, open(self.log_path).read()
        with contextlib.suppress(OSError):
            return "Name:" in self.ask("show info")
        return False

    def ask(self, command):
        with socket.socket(socket.AF_UNIX) as control:
            control.settimeout(30)
            control.connect(self.control)
            control.sendall(command.encode() + b"\n")
            answer = b""
            while octets := control.recv(65_536):
                answer += octets
        return answer.decode()

    def leads(self, name, *numbers):
        """From now on connections go to these servers; without a number, to any that is ready, and who
        that is is waited for by whoever knows."""
        for number, server in enumerate(self.names[name]):
            able = "enable" if not numbers or number in numbers else "disable"
            answer = self.ask(f"{able} server {name}/{server}")
            assert not answer.strip(), answer
        if numbers:
            self.knows(name, *numbers)

    def up(self, name):
        """The numbers of the servers that get connections."""
        rows = [row.split(",") for row in self.ask("show stat").splitlines()]
        return {int(row[1][1:]) for row in rows
                if len(row) > 17 and row[0] == name and row[1] in self.names[name]
                and row[17].startswith("UP")}

    def knows(self, name, *numbers):
        """Waits until exactly these servers get connections."""
        until(lambda: self.up(name) == set(numbers), what=f"{name} leads to {numbers}", every=0.05)

    def kill(self):
        if self.run.poll() is None:
            self.run.kill()
        self.run.wait()
