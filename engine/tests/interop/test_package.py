"""What is installed beside the programs: units, the sample configuration, the image's rules.
`tools/package.sh try` installs and runs all of it, which takes minutes."""

import configparser
import re
import shutil
import socket
import subprocess

import pytest

from gateway import ROOT, binary, configuration

UNITS = ROOT / "tools/package/systemd"
SERVICES = ["ringway.service", "ringway-worker@.service"]
# systemd's own scale is 0 to 10 in tenths; from 5 on it does not say OK any more.
EXPOSURE = 2.0


class Unit(configparser.RawConfigParser):
    """A unit file: settings may stand several times."""

    optionxform = staticmethod(str)

    def __init__(self, name):
        super().__init__(strict=False, delimiters="=", comment_prefixes=("#",), interpolation=None)
        self.read(UNITS / name)


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_says_that_the_unit_is_ok(name):
    assert shutil.which("systemd-analyze"), "install the Debian package systemd"
    run = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager",
                          str(UNITS / name)], capture_output=True, text=True, timeout=60)
    said = re.search(r"Overall exposure level for \S+: ([0-9.]+) (\w+)", run.stdout + run.stderr)
    assert said and said.group(2) == "OK" and float(said.group(1)) <= EXPOSURE, run.stdout[-2000:]


@pytest.mark.parametrize("name", SERVICES)
def test_the_sandbox_lets_io_uring_through(name):
    rules = re.findall(r"^SystemCallFilter=(.*)$", (UNITS / name).read_text(), re.M)
    allowed, forbidden = rules[0].split(), rules[1].removeprefix("~").split()
    named = {group: set(subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager", group],
                                       capture_output=True, text=True, timeout=60).stdout.split())
             for group in ["@aio", *allowed, *forbidden]}
    assert "@aio" in named["@system-service"] and allowed == ["@system-service"]
    rings = {"io_uring_setup", "io_uring_enter", "io_uring_register"}
    assert rings <= named["@aio"]
    assert not any(rings & named[group] for group in forbidden)


def test_only_what_may_pass_is_tried_again(tmp_path):
    """A wrong argument or configuration stays wrong; a port may be given back."""
    stays = Unit("ringway.service")["Service"]["RestartPreventExitStatus"].split()
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(configuration(session='nonsense = "1s"'))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        busy = tmp_path / "busy.toml"
        busy.write_text(configuration().replace('client = "127.0.0.1:0"',
                                                f'client = "127.0.0.1:{port}"'))
        codes = [subprocess.run([*binary(), *arguments], capture_output=True, timeout=60).returncode
                 for arguments in (["serve", "--nonsense"], ["serve", "--config", wrong],
                                   ["serve", "--config", busy])]
    assert codes == [2, 78, 71]
    assert stays == ["2", "78"]


def test_the_sample_configuration_lacks_nothing_but_a_function(tmp_path):
    sample = (ROOT / "tools/package/deb/ringway.toml").read_text()

    def check(text):
        path = tmp_path / "ringway.toml"
        path.write_text(text)
        run = subprocess.run([*binary(), "check", "--config", path], capture_output=True, text=True,
                             timeout=60)
        return run.returncode, run.stdout
    code, said = check(sample)
    assert code == 78 and len(said.splitlines()) == 1 and "[[function]]" in said, said
    # With the example that it has in its comments.
    example = sample[sample.index("# [[tenant]]"):]
    code, said = check(sample + re.sub(r"^# ?", "", example, flags=re.M))
    assert code == 0 and "no problem found; mode local" in said, said


def test_the_socket_unit_has_the_ports_of_the_configuration():
    sample = (ROOT / "tools/package/deb/ringway.toml").read_text()
    streams = re.findall(r"^ListenStream=(.*)$", (UNITS / "ringway.socket").read_text(), re.M)
    assert streams == [re.search(rf'^{name} = "(.*)"', sample, re.M).group(1)
                       for name in ("client", "worker")]
