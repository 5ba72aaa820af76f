"""Tokens per second while generating, side by side with llama2.c's programs and the memory's speed.

    python -m benchmarks.generation                             15M and 110M float32
    python -m benchmarks.generation 110M-q8 --peer-q path/to/runq
    python -m benchmarks.generation 15M 110M --peer path/to/run

Each program runs whole, with the same flags, one after the other in each round, and reports its own
rate; the peer is best built with `gcc -Ofast -fopenmp -march=native`. The share is that of the
memory's read speed, measured in the same rounds, which reading all weights and the KV cache takes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.memory import read_speed
from benchmarks.random_models import SHAPES, header_of, tokenizer_of, write_model
from llama2np.checkpoint import Header

_ROOT = Path(__file__).parents[1]


def bytes_per_token(header: Header, steps: int) -> int:
    """What one token makes the machine read: each matrix once, and half of the last KV cache."""
    tensors = dict(header.tensors())
    if not header.tied:
        del tensors["embedding"]  # one row of it, which does not count
    tensors.pop("rope_tables", None)
    weights = sum(header.size(name, shape) for name, shape in tensors.items())
    config = header.config
    return weights + 2 * 4 * config.n_layers * config.kv_dim * steps // 2


def rate(command: list[str], model: Path, steps: int) -> float:
    """Run a program on a model, greedily; return the tokens per second that it reports."""
    flags = ["-t", "0", "-s", "1", "-n", str(steps), "-z", str(tokenizer_of(model))]
    done = subprocess.run(
        [*command, str(model), *flags], capture_output=True, text=True, errors="replace"
    )
    found = re.search(r"achieved tok/s: ([0-9.]+)", done.stderr)
    if done.returncode or not found:
        sys.exit(f"{command[-1]} on {model.name}: status {done.returncode}: {done.stderr.strip()}")
    return float(found[1])


def measure(shape: str, peer: str | None, folder: Path, steps: int, rounds: int) -> str:
    """Return a line of the table."""
    model, header = write_model(shape, folder), header_of(shape)
    steps = min(steps, header.config.seq_len)
    ours = [sys.executable, str(_ROOT / ("runq.py" if header.version == 2 else "run.py"))]
    rate(ours, model, 8)  # compiles what is not compiled yet, and brings the file into memory
    own, other, memory = [], [], []
    for _ in range(rounds):
        own.append(rate(ours, model, steps))
        if peer:
            other.append(rate([peer], model, steps))
        memory.append(read_speed())
    ratios = [a / b for a, b in zip(own, other, strict=False)]
    used = bytes_per_token(header, steps) * median(own)
    return (
        f"| {shape} | {median(own):.1f} | "
        + (f"{median(other):.1f} | {median(ratios):.2f} " if peer else "– | – ")
        + f"({min(own):.1f}–{max(own):.1f}) | {used / 1e9:.1f} | {median(memory) / 1e9:.1f} | "
        + f"{used / median(memory):.0%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="*", default=["15M", "110M"], metavar="SHAPE")
    parser.add_argument("--peer", metavar="PROGRAM", help="llama2.c's run, for float32 shapes")
    parser.add_argument("--peer-q", metavar="PROGRAM", help="llama2.c's runq, for Q8_0 shapes")
    parser.add_argument("--steps", type=int, default=256, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="keep the checkpoints there")
    options = parser.parse_args()
    if unknown := set(options.shapes) - SHAPES.keys():
        sys.exit(f"no shape {', '.join(sorted(unknown))}: expected some of {', '.join(SHAPES)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        print("| shape | tok/s | peer | ratio (our range) | GB/s used | memory GB/s | share |")
        print("|---|---|---|---|---|---|---|")
        for shape in options.shapes:
            peer = options.peer_q if header_of(shape).version == 2 else options.peer
            print(measure(shape, peer, folder, options.steps, options.rounds), flush=True)


if __name__ == "__main__":
    main()
