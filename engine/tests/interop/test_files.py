"""Full is not dead: clients that use up what files they may leave the probe, the workers and the
servers theirs, and whoever is one too many is closed at once."""

import os
import re
import resource
import socket
import subprocess
import time
from pathlib import Path

import pytest

import grpcserver
from fakeworker import FakeWorker
from gateway import Gateway, binary, configuration, grpc_head, until
from rawh2 import HEADERS, Closed, settings
from test_dial import FUNCTION as DIALLED, VERSION as DIALLED_VERSION

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings() + settings(ack=True)


def with_files(files):
    """What stands before a program that may open so many files."""
    return ["sh", "-c", f'ulimit -n {files} && exec "$@"', "sh"]


def configured(path, cores, server=None):
    dialled = f"""
[[function]]
id = "{DIALLED}"
version = "{DIALLED_VERSION}"
tenants = ["dev"]
worker_keys = ["dialled-worker-key"]
dial = "127.0.0.1:{server}"
""" if server else ""
    path.write_text(configuration(cores=cores, more=dialled, session='park = "never"',
                                  io=os.environ.get("RINGWAY_TEST_IO", "auto")))
    return path


def closed(client):
    """Whether the gateway has closed it."""
    client.setblocking(False)
    try:
        while octets := client.recv(65536):
            assert octets
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def fill(gateway, attempts):
    """Clients that say hello and nothing more, until they are refused; those that were let in."""
    clients = []
    for _ in range(attempts):
        client = socket.create_connection(gateway.client, 30)
        clients.append(client)
        try:
            client.sendall(PREFACE)
        except OSError:
            pass  # it was closed at once
    until(lambda: any(map(closed, clients)), what="a client that is refused")
    time.sleep(0.3)
    kept = [client for client in clients if not closed(client)]
    for client in set(clients) - set(kept):
        client.close()
    return kept


def serves(gateway, peer, number):
    """The probe, a poll, a CONNECT and a dial, beside clients that fill their part."""
    for _ in range(3):
        assert gateway.get("/live", timeout=10)[0] == 200, gateway.log_tail()
    with FakeWorker(gateway) as worker:
        stream = peer.open(grpc_head(), end_stream=True)
        work, tunnel = worker.take()
        request = tunnel.wait(HEADERS)
        tunnel.headers(request.stream, [(":status", "200"), ("grpc-status", str(number))],
                       end_stream=True)
        assert peer.head(stream).grpc_status == str(number)
    stream = peer.open(grpc_head(function=DIALLED), end_stream=True)
    assert peer.head(stream).status == "200"


@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize("files", [64, 256])
def test_clients_alone_fill_their_part_only(tmp_path, files, cores):
    full(tmp_path, files, cores)


def full(tmp_path, files, cores):
    with grpcserver.Server() as server:
        path = configured(tmp_path / "files.toml", cores, server.port)
        with Gateway(["serve", "--config", str(path)], tmp_path,
                     launcher=with_files(files)) as gateway:
            peer = gateway.h2()
            kept = fill(gateway, files * 3 // 4)
            assert kept, "no client was let in"
            most = gateway.open_files()
            assert most < files, (most, files)
            serves(gateway, peer, 1)
            # Whoever keeps knocking gets in nobody's way either.
            knocking = fill(gateway, min(files, 200))
            serves(gateway, peer, 2)
            for client in kept + knocking:
                client.close()
            until(lambda: gateway.get("/live")[0] == 200, what="the probe's answer")
            # There is room again.
            def room():
                with socket.create_connection(gateway.client, 30) as client:
                    try:
                        client.sendall(PREFACE)
                        time.sleep(0.05)
                        return not closed(client)
                    except OSError:
                        return False
            until(room, what="room for a client")
            log = gateway.log_text()
            assert len(re.findall("the limit on open connections is reached", log)) <= 2 * cores, log
            assert "accepting pauses" not in log and "cannot accept" not in log, log
            assert len(log.splitlines()) < 20, log


@pytest.mark.parametrize("cores", [1, 2])
def test_whoever_knocks_at_the_worker_port_leaves_clients_and_dials_theirs(tmp_path, cores):
    """Each is refused and does not go: the gateway's socket stays for a while."""
    files = 128
    with grpcserver.Server() as server:
        path = configured(tmp_path / "files.toml", cores, server.port)
        with Gateway(["serve", "--config", str(path)], tmp_path,
                     launcher=with_files(files)) as gateway:
            knocking = []
            for _ in range(files * 2):
                peer = gateway.worker_socket()
                knocking.append(peer)
                try:
                    peer.sendall(b"this is no request\r\n\r\n")
                except OSError:
                    pass  # it was closed at once
            for _ in range(3):
                client = gateway.h2()
                stream = client.open(grpc_head(function=DIALLED), end_stream=True)
                # It is the server that does not know the method.
                assert client.head(stream).grpc_status == "12"
                client.close()
                assert gateway.get("/live", timeout=10)[0] == 200
            assert gateway.open_files() < files
            log = gateway.log_text()
            assert "accepting pauses" not in log and "cannot accept" not in log, log
            for peer in knocking:
                peer.close()


def test_the_demo_has_files_too(tmp_path):
    """Its ends of the tunnels are in the same process as the gateway's."""
    files = 128
    with Gateway.dev(tmp_path, "--cores", "1", launcher=with_files(files)) as gateway:
        calls = []
        for _ in range(files // 2):
            try:
                client = gateway.h2()
            except (OSError, Closed):
                break  # it was one too many
            calls.append((client, client.open(grpc_head(), end_stream=True)))
            time.sleep(0.02)
        # The later ones may find all of the workers' part in use, and wait for a tunnel.
        assert len(calls) >= 12
        for client, stream in calls[:12]:
            # It is the function that misses a message.
            assert client.head(stream).grpc_status == "13"
        assert gateway.open_files() < files
        assert gateway.get("/live", timeout=10)[0] == 200
        log = gateway.log_text()
        assert "accepting pauses" not in log and "cannot accept" not in log, log


@pytest.mark.skipif(not os.environ.get("RINGWAY_TEST_MANY_FILES"), reason="takes long: tools/soak.sh")
@pytest.mark.parametrize("cores", [1, 2])
def test_clients_fill_twenty_thousand_files(tmp_path, cores):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    full(tmp_path, 20_000, cores)


def test_doctor_check_and_start_name_the_same_numbers(tmp_path):
    path = configured(tmp_path / "files.toml", 2)
    limited = [*with_files(256), *binary()]
    run = lambda *words: subprocess.run([*limited, *words, "--config", str(path)],
                                        capture_output=True, text=True, timeout=60).stdout
    line = r"256 files may be open, \d+ are configured for: a core has \d+ client and \d+ worker connections"
    doctor, check = (re.search(line, run(word)) for word in ("doctor", "check"))
    with Gateway(["serve", "--config", str(path)], tmp_path,
                 launcher=with_files(256)) as gateway:
        start = re.search(line, gateway.log_text())
    assert doctor and check and start
    assert doctor.group() == check.group() == start.group()


def test_the_table_of_files_never_grows_while_cores_run(tmp_path):
    """Growing it stops a core until every CPU has been elsewhere."""
    files = 5000
    path = configured(tmp_path / "files.toml", 1)
    with Gateway(["serve", "--config", str(path)], tmp_path, launcher=with_files(files)) as gateway:
        status = Path(f"/proc/{gateway.pid}/status").read_text()
        assert int(re.search(r"FDSize:\s+(\d+)", status).group(1)) >= files
        assert gateway.open_files() < 100, "it costs no file"
