"""What the tests of TLS and of the PROXY protocol share: a certificate authority, a gateway with
listeners of their own, and a worker that bridges every tunnel to a local server."""

import socket
import ssl
import subprocess
import threading
from pathlib import Path

import rawh2
from fakeworker import FakeWorker, Line, Work, connect_head
from gateway import Gateway, configuration, free_port


class Authority:
    """Issues certificates for localhost with the `openssl` program."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.cert, self.key = self.folder / "ca.pem", self.folder / "ca.key"
        self.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                     "-nodes", "-keyout", self.key, "-out", self.cert, "-days", "30",
                     "-subj", "/CN=test authority")

    def openssl(self, *arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    def issue(self, name, days=30):
        """Paths of a new certificate and its key."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request = self.folder / f"{name}.csr"
        names = self.folder / "names"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        self.openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                     "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        self.openssl("x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self.key,
                     "-CAcreateserial", "-out", cert, "-days", days, "-extfile", names)
        return cert, key

    def context(self, *protocols, version=None):
        """A client that trusts this authority."""
        context = ssl.create_default_context(cafile=str(self.cert))
        if protocols:
            context.set_alpn_protocols(list(protocols))
        if version:
            context.minimum_version = context.maximum_version = version
        return context


def tls(cert, key):
    return f'tls = {{ cert = "{cert}", key = "{key}" }}'


def proxied(*trusted):
    networks = ", ".join(f'"{network}"' for network in trusted)
    return f"proxy_protocol = true, trusted = [{networks}]"


def serve_with(folder, client="", worker="", name="serve", change=lambda text: text, **settings):
    """`ringway serve` with something added to its listeners; (gateway, its configuration)."""
    for attempt in range(5):
        port = free_port()
        text = configuration(worker_port=port, **settings)
        for listener, address, more in (("client", "127.0.0.1:0", client),
                                        ("worker", f"127.0.0.1:{port}", worker)):
            if more:
                text = text.replace(f'{listener} = "{address}"',
                                    f'{listener} = {{ address = "{address}", {more} }}')
        path = Path(folder) / f"{name}-{attempt}.toml"
        path.write_text(change(text))
        try:
            return Gateway(["serve", "--config", str(path)], folder, name), path
        except AssertionError as error:
            if "exit code 71" not in str(error) or attempt == 4:
                raise


def raw_client(gateway, context, **options):
    """A raw HTTP/2 client over TLS."""
    plain = gateway.client_socket()
    return rawh2.Peer(context.wrap_socket(plain, server_hostname="localhost"), client=True,
                      **options)


class SecureWorker(FakeWorker):
    """A worker that speaks TLS to the gateway."""

    def __init__(self, gateway, context, **options):
        super().__init__(gateway, **options)
        self.context = context

    def secure(self, line):
        line.sock = self.context.wrap_socket(line.sock, server_hostname="localhost")
        return line

    def ask(self, **poll):
        if self.line is None:
            self.line = self.secure(Line(self.gateway.worker))
        self.line.send(self.poll_octets(**poll))

    def dial(self, work, head=None, behind=b""):
        line = self.secure(Line((work.uri.hostname, work.uri.port)))
        line.send((head or connect_head(work.token, work.request_id, work.uri.path)) + behind)
        return line


class Bridge:
    """Serves every session by connecting its tunnel to a local port."""

    def __init__(self, gateway, port, worker=None):
        self.worker = worker or FakeWorker(gateway)
        self.port = port
        self.lines = []
        self.ended = False
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while not self.ended:
            try:
                work = self.worker.poll(timeout=40)
            except (rawh2.Closed, rawh2.Silence, OSError):
                return
            if isinstance(work, Work):
                threading.Thread(target=self.serve, args=(work,), daemon=True).start()

    def serve(self, work):
        line = self.worker.dial(work)
        if line.answer(body=False).status != 200:
            return line.close()
        local = socket.create_connection(("127.0.0.1", self.port))
        self.lines += [line.sock, local]
        local.sendall(line.inbox)
        for sock in (line.sock, local):
            sock.settimeout(None)
        threading.Thread(target=pour, args=(local, line.sock), daemon=True).start()
        pour(line.sock, local)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ended = True
        self.worker.close()
        for sock in self.lines:
            sock.close()


def pour(source, sink):
    try:
        while octets := source.recv(65_536):
            sink.sendall(octets)
        sink.shutdown(socket.SHUT_WR)
    except (OSError, ValueError):
        for sock in (source, sink):
            sock.close()
