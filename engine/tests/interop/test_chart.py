"""NVIDIA's chart with our values: environment, ports and probes are what a gateway takes and has."""

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from gateway import ROOT, Gateway, binary, free_port

CHART = Path(__file__).parent / "chart"
PACKAGE = ROOT / "tools/package"
VALUES = PACKAGE / "chart/values.yaml"
HELM = ROOT / ".tools/bin/helm"
AUDIENCE = "grpcproxy.vault.audience=openbao"


def helm(*arguments):
    return subprocess.run([HELM, "template", "grpc-proxy", CHART, *arguments],
                          capture_output=True, text=True, timeout=60)


def rendered(*arguments):
    """{kind: object} of what the chart makes."""
    run = helm("--set", AUDIENCE, *arguments)
    assert run.returncode == 0, run.stderr
    return {made["kind"]: made for made in yaml.safe_load_all(run.stdout) if made}


def container(made):
    return made["Deployment"]["spec"]["template"]["spec"]["containers"][0]


def environment(made):
    """What the container is given; the pod's address is whatever the cluster says."""
    given = {entry["name"]: entry.get("value") for entry in container(made)["env"]}
    assert given.pop("POD_IP", "") is None
    return {**given, "POD_IP": "10.0.0.7"}


@pytest.fixture(scope="module")
def theirs():
    return rendered()


@pytest.fixture(scope="module")
def ours():
    return rendered("-f", str(VALUES))


def test_the_audience_is_still_demanded():
    run = helm("-f", str(VALUES))
    assert run.returncode != 0 and "vault.audience" in run.stderr, run


def test_what_the_chart_gives_stays(theirs, ours):
    before, after = environment(theirs), environment(ours)
    assert before.items() <= after.items()
    assert all(name.startswith("RINGWAY__") for name in after.keys() - before.keys()), after
    assert container(theirs)["ports"] == container(ours)["ports"]
    assert theirs["Service"] == ours["Service"]
    for made in theirs, ours:
        volumes = made["Deployment"]["spec"]["template"]["spec"]["volumes"]
        source = volumes[0]["projected"]["sources"][0]["serviceAccountToken"]
        assert source["audience"] == "openbao"


def test_the_image_is_ours_and_as_strict_as_it_can_be(ours):
    made = container(ours)
    assert made["image"].startswith("registry.example.com/ringway/ringway:")
    version = (ROOT / "Cargo.toml").read_text().split('version = "', 1)[1].split('"', 1)[0]
    assert made["image"].endswith(f":{version}"), "the values name another version than this one"
    rules = made["securityContext"]
    assert rules["runAsUser"] == 1000 and rules["runAsNonRoot"] and rules["readOnlyRootFilesystem"]
    assert rules["capabilities"]["drop"] == ["ALL"] and not rules["allowPrivilegeEscalation"]
    assert rules["seccompProfile"] == {"type": "Localhost", "localhostProfile": "ringway.json"}
    limits, requests = made["resources"]["limits"], made["resources"]["requests"]
    assert limits == requests and limits["cpu"].endswith("000m"), "not whole CPUs"


def test_the_seccomp_profile_lets_io_uring_through():
    profile = json.loads((PACKAGE / "seccomp.json").read_text())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    named = [name for rule in profile["syscalls"] for name in rule["names"]]
    assert {"io_uring_setup", "io_uring_enter", "io_uring_register"} <= set(named)
    assert len(named) == len(set(named)), "a call is named twice"
    # What a container must not have of the kernel.
    assert not {"bpf", "ptrace", "mount", "unshare", "setns", "kexec_load", "init_module",
                "perf_event_open", "userfaultfd", "keyctl", "pivot_root", "reboot"} & set(named)


def test_the_gateway_takes_that_environment_and_answers_those_probes(ours, tmp_path):
    given = environment(ours)
    # As in the container: nothing of the tests' own environment.
    check = subprocess.run([*binary(), "check"], env=given, capture_output=True, text=True,
                           timeout=60)
    assert check.returncode == 0 and "no problem found; mode nvcf" in check.stdout, check.stdout
    ports = {entry["name"]: entry["containerPort"] for entry in container(ours)["ports"]}
    free = {name: free_port() for name in ports}
    listen = {"RINGWAY__LISTEN__CLIENT": f"127.0.0.1:{free['client']}",
              "RINGWAY__LISTEN__WORKER": f"127.0.0.1:{free['worker-tcp']}",
              "RINGWAY__LISTEN__ADMIN": f"127.0.0.1:{free['metrics']}"}
    # No NATS and no API are there: it is alive, and not ready.
    nowhere = {"NATS_FQDN": f"nats://127.0.0.1:{free_port()}",
               "NVCF_FQDN_GRPC": f"http://127.0.0.1:{free_port()}",
               "RINGWAY__CORES__COUNT": "1", "PATH": os.environ["PATH"]}
    with Gateway([], tmp_path, env={**given, **listen, **nowhere}) as gateway:
        expected = {"livenessProbe": 200, "startupProbe": 200, "readinessProbe": 503}
        for kind, status in expected.items():
            probe = container(ours)[kind]["httpGet"]
            port = ("127.0.0.1", free[probe["port"]])
            assert gateway.get(probe["path"], port=port)[0] == status, kind


def test_a_gateway_without_settings_has_the_ports_of_the_chart(ours):
    """What `check` does not say its settings' table does: the defaults of this mode."""
    ports = {entry["name"]: entry["containerPort"] for entry in container(ours)["ports"]}
    manual = (ROOT / "docs/reference/settings.md").read_text()
    for setting, port in ("client", ports["client"]), ("worker", ports["worker-tcp"]), \
            ("admin", ports["metrics"]):
        row = next(line for line in manual.splitlines()
                   if line.startswith(f"| `{setting}` | address and port"))
        assert f"`0.0.0.0:{port}`" in row, row


def test_the_service_monitor_finds_the_metrics_of_the_chart(ours):
    monitor = yaml.safe_load((PACKAGE / "chart/servicemonitor.yaml").read_text())
    assert monitor["kind"] == "ServiceMonitor"
    labels = monitor["spec"]["selector"]["matchLabels"]
    assert labels.items() <= ours["Service"]["metadata"]["labels"].items()
    endpoint, = monitor["spec"]["endpoints"]
    assert endpoint["path"] == "/metrics"
    assert endpoint["port"] in [port["name"] for port in ours["Service"]["spec"]["ports"]]
