"""What the pages tell people to type: every fenced `sh` block of README.md and docs/ is run, section
by section, each section in a network and a folder of its own. Above a block may stand

    <!-- file: NAME -->      the block is the content of that file
    <!-- not run: WHY -->    nobody runs it here; at most five of all say so
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import ROOT, binary
from nats_rig import program
from workerprogram import binary as worker_binary

MOST_NOT_RUN = 5
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"(?:^<!-- (file|not run): (.+?) -->\n)?^```(\w*)\n(.*?)^```$", re.M | re.S)
# A shell would do something with a line that begins so.
COMMANDS = re.compile(r"^(ringway|ringway-worker|curl|cargo|bash|systemctl|apt|docker|target/\S+) ",
                      re.M)


class Section:
    """A heading of the second level and what follows it, up to the next one."""

    def __init__(self, page, text):
        self.name = f"{page.relative_to(ROOT)}: {text.splitlines()[0].strip('# ') or 'the top'}"
        blocks = [found.groups() for found in BLOCK.finditer(text)]
        self.files = {what: body for mark, what, _, body in blocks if mark == "file"}
        self.shell = [body for mark, _, kind, body in blocks if kind == "sh" and mark != "not run"]
        self.not_run = [what for mark, what, kind, _ in blocks if kind == "sh" and mark == "not run"]
        self.unnamed = [body for mark, _, kind, body in blocks
                        if not kind and not mark and COMMANDS.search(body)]


def sections():
    for page in PAGES:
        # A heading within a fence is a comment of a shell.
        text = "\n" + page.read_text()
        parts = re.split(r"\n(?=## )", text)
        yield from (Section(page, part) for part in parts if part.strip())


SECTIONS = list(sections())
RUN = [section for section in SECTIONS if section.shell]


def test_few_commands_are_not_run_and_each_says_why():
    skipped = [why for section in SECTIONS for why in section.not_run]
    assert len(skipped) <= MOST_NOT_RUN and all(len(why) > 10 for why in skipped), skipped


def test_commands_stand_in_blocks_that_are_run():
    """So that a command cannot hide in a block without a language."""
    hidden = [(section.name, body) for section in SECTIONS for body in section.unnamed]
    assert not hidden


@pytest.fixture
def folder(tmp_path):
    """Where a section is run: the repository's pages, and the programs as a build leaves them."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "bin").mkdir()
    release = tmp_path / "target/release"
    release.mkdir(parents=True)
    programs = {"ringway": binary(), "ringway-worker": worker_binary(), "nats-server": [program()],
                "python3": [sys.executable]}
    for name, command in programs.items():
        # Servers of the page may not be there yet.
        for place in (tmp_path / "bin", release):
            script = place / name
            script.write_text(f"#!/bin/sh\nexec {' '.join(command)} \"$@\"\n")
            script.chmod(0o755)
    curl = tmp_path / "bin/curl"
    curl.write_text('#!/bin/sh\nexec /usr/bin/curl --retry 30 --retry-delay 1 --retry-all-errors "$@"\n')
    curl.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("section", RUN, ids=lambda section: section.name)
def test_what_a_section_says_can_be_done(section, folder):
    for name, body in section.files.items():
        (folder / name).write_text(body)
    script = ["ip link set lo up", "trap 'kill $(jobs -p) 2>/dev/null' EXIT", "set -eu",
              *section.shell,
              # What was put into the background serves, or has served.
              "sleep 0.3", "for job in $(jobs -p); do kill -0 $job; done"]
    environment = {"PATH": f"{folder}/bin:{ROOT}/.tools/bin:{os.environ['PATH']}:/usr/sbin",
                   "HOME": str(folder), "TMPDIR": str(folder)}
    out = folder / "out.log"
    with open(out, "wb") as log:
        # Not through a pipe: what runs in the background would keep it open.
        done = subprocess.run(["unshare", "-rn", "bash", "-c", "\n".join(script)], cwd=folder,
                              env=environment, stdout=log, stderr=log, timeout=120)
    assert done.returncode == 0, out.read_text()[-4000:]


def test_the_pages_make_a_book(tmp_path):
    """Every page is in SUMMARY.md, and mdbook builds it without a word of warning."""
    docs = ROOT / "docs"
    listed = set(re.findall(r"\]\(([^)]+\.md)\)", (docs / "SUMMARY.md").read_text()))
    pages = {str(page.relative_to(docs)) for page in docs.rglob("*.md")} - {"SUMMARY.md"}
    assert listed == pages
    mdbook = Path(sys.executable).with_name("mdbook")
    built = subprocess.run([mdbook, "build", docs, "--dest-dir", tmp_path / "book"],
                           capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    assert "WARN" not in built.stderr and "ERROR" not in built.stderr, built.stderr
    for page in pages - {"README.md"}:
        assert (tmp_path / "book" / page).with_suffix(".html").is_file(), page
