"""Rows of the benchmark with the static gateway beside the dynamic one, in turns: CPU per unit of work.

    try_musl.py DYNAMIC STATIC [--rounds 7] [--seconds 2] [--shapes A,B,...]

Both are folders with programs; DYNAMIC has `ringway-bench` too. Ends with 1 if, for any row, the
static build's median is more than LIMIT times the dynamic one's."""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT = 1.05
# Small calls, large ones, streams, and what allocates: connections and sessions.
SHAPES = ["unary-100-256x1", "unary-100-16x16", "unary-64k-8x4", "server-stream-1k-4x4",
          "new-connection-16"]
PEERS = Path(__file__).resolve().parents[2] / "bench/peers"


def main():
    read = argparse.ArgumentParser()
    read.add_argument("dynamic", type=Path)
    read.add_argument("static", type=Path)
    read.add_argument("--rounds", type=int, default=7)
    read.add_argument("--seconds", type=float, default=2)
    read.add_argument("--shapes", default=",".join(SHAPES))
    asked = read.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        peers = Path(folder) / "peers"
        peers.mkdir()
        shutil.copy(PEERS / "programs.toml", peers)
        for name, program in ("ringway", asked.dynamic), ("ringway-static", asked.static):
            shutil.copytree(PEERS / "ringway", peers / name)
            start = peers / name / "peer.toml"
            path = (program / "ringway").resolve()
            start.write_text(start.read_text().replace('"{ringway}"', f'"{path}"'))
        figures = Path(folder) / "figures.json"
        subprocess.run([asked.dynamic / "ringway-bench", "compare", "--no-install", "--rounds",
                        str(asked.rounds), "--seconds", str(asked.seconds), "--shapes", asked.shapes,
                        "--peers", "ringway,ringway-static", "--peers-dir", peers, "--ringway",
                        asked.dynamic / "ringway", "--json", figures, "--out", Path(folder) / "out"],
                       check=True)
        runs = json.loads(figures.read_text())["runs"]
    slower = 0
    print(f"{'row':24} {'dynamic':>24} {'static':>24} {'ratio':>6}   CPU, us a unit: median (range)")
    for shape in asked.shapes.split(","):
        costs = {peer: [cost(run) for run in runs if is_of(run, shape, peer)]
                 for peer in ("ringway", "ringway-static")}
        medians = {peer: statistics.median(of) for peer, of in costs.items()}
        ratio = medians["ringway-static"] / medians["ringway"]
        shown = [f"{medians[peer]:.2f} ({min(of):.2f}-{max(of):.2f})" for peer, of in costs.items()]
        print(f"{shape:24} {shown[0]:>24} {shown[1]:>24} {ratio:6.3f}")
        slower += ratio > LIMIT
    print(f"{slower} of the rows above {LIMIT}")
    return slower > 0


def is_of(run, shape, peer):
    """Whether it is one of these runs, and counts."""
    counts = run["fault"] is None and run["outcome"] and run["outcome"]["calls"] > 0
    return (run["shape"], run["peer"]) == (shape, peer) and counts


def cost(run):
    """CPU time of the gateway for a call, in microseconds."""
    return run["outcome"]["cpu_ns"]["proxy"] / 1_000 / run["outcome"]["calls"]


if __name__ == "__main__":
    sys.exit(main())
