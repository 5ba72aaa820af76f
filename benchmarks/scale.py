"""What a network over many machines needs, on paper: the tables of docs/scale.md.

    python -m benchmarks.scale                      (--read GB/S --bytes N --stop US --context N)

A token takes the sum of its parts, because nothing overlaps: each machine reads its share of the
weights and of the KV cache, and the machines exchange float32 values. With quantized weights there
are four all-gathers in each block: of the inputs of wo and w_down, and of their outputs. With
floats all add up `dim` values twice in each block, in one or two exchanges. Each exchange waits for
log2(n) messages, one after the other.
"""

import argparse
import math
from dataclasses import dataclass

from benchmarks.memory import Model, config_of, decoder, parameters

MODELS = (
    Model("Llama-2-7B", "llama", decoder(4096, 11008, 32, 32, 32, 32000, 4096)),
    Model("Llama-2-13B", "llama", decoder(5120, 13824, 40, 40, 40, 32000, 4096)),
    Model("Llama-3.1-70B", "llama", decoder(8192, 28672, 80, 64, 8, 128256, 131072)),
    Model("Llama-3.1-405B", "llama", decoder(16384, 53248, 126, 128, 8, 128256, 131072)),
)
MACHINES = 1, 2, 4, 8, 16, 32, 64
# Gbit/s: (bytes per second, seconds of a small message between two processes). 1 and 10: TCP;
# 100: InfiniBand or RoCE.
NETWORKS = {1: (1.25e8, 50e-6), 10: (1.25e9, 25e-6), 100: (1.25e10, 2e-6)}


@dataclass(frozen=True)
class Machine:
    """read: bytes per second from memory; bytes: of a weight; stop: seconds of a piece's start."""

    read: float
    bytes: float
    stop: float
    context: int

    @property
    def quantized(self) -> bool:
        """Whether the weights are not floats, whose products are shared out in another way."""
        return self.bytes < 2


def shares(model: Model, n: int, machine: Machine) -> tuple[float, float]:
    """Bytes of weights, and of KV cache, that one of n machines reads for a token."""
    c = config_of(model)
    weights = parameters(model)[2] * machine.bytes
    heads = max(c.n_kv_heads / n, 1)  # a key/value head is repeated, not cut
    return weights / n, 8 * c.n_layers * heads * c.head_dim * machine.context


def exchange(model: Model, n: int, network: int, machine: Machine) -> tuple[float, float]:
    """Seconds that a token waits for messages, and for bytes."""
    c, (rate, message) = config_of(model), NETWORKS[network]
    if n == 1:
        return 0.0, 0.0
    rounds = math.ceil(math.log2(n)) * message
    if machine.quantized:
        sent, exchanges = (n - 1) / n * 4 * (c.q_dim + c.hidden_dim + 2 * c.dim), 4
    elif n == 2 or n * c.dim < 2**15:  # one exchange, of all terms: see mpi/peers.py
        sent, exchanges = 2 * (n - 1) * 4 * c.dim, 2
    else:  # two, of a part of the terms and of the sums
        sent, exchanges = 4 * (n - 1) / n * 4 * c.dim, 4
    logits = 4 * c.vocab_size * (n - 1) / n
    return (exchanges * c.n_layers + 2) * rounds, (c.n_layers * sent + logits) / rate


def seconds(model: Model, n: int, network: int, machine: Machine) -> float:
    """Of a token."""
    weights, cache = shares(model, n, machine)
    pieces = (4 if machine.quantized else 2) * config_of(model).n_layers + 2
    stops = pieces * machine.stop if n > 1 else 0.0
    return (weights + cache) / machine.read + sum(exchange(model, n, network, machine)) + stops


def table(model: Model, machine: Machine) -> list[str]:
    """A table of a model: a row for each number of machines."""
    lines = [
        f"| {model.name}: machines | GB each | reading | "
        + " | ".join(f"{g} Gbit/s: waiting + bytes | tokens/s" for g in NETWORKS)
        + " |",
        "|" + "---|" * (3 + 2 * len(NETWORKS)),
    ]
    for n in MACHINES:
        if n > config_of(model).n_heads:
            continue
        weights, cache = shares(model, n, machine)
        cells = [str(n), f"{(weights + cache) / 1e9:,.1f}"]
        cells.append(_time((weights + cache) / machine.read))
        for network in NETWORKS:
            waits = " + ".join(_time(part) for part in exchange(model, n, network, machine))
            cells += ["-" if n == 1 else waits, f"{1 / seconds(model, n, network, machine):,.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def best(model: Model, network: int, machine: Machine) -> tuple[int, int]:
    """The fastest number of machines, and the last one that gains a quarter by doubling."""
    usable = [n for n in MACHINES if n <= config_of(model).n_heads]
    rates = {n: 1 / seconds(model, n, network, machine) for n in usable}
    pays = 1
    while 2 * pays in rates and rates[2 * pays] > 1.25 * rates[pays]:
        pays *= 2
    return max(rates, key=rates.__getitem__), pays


def _time(value: float) -> str:
    return f"{value * 1e3:,.1f} ms" if value >= 1e-3 else f"{value * 1e6:,.0f} us"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--read", type=float, default=50, help="GB/s that a machine reads (default 50)")
    add("--bytes", type=float, default=1.0625, help="of a weight (default: Q8_0, 1.0625)")
    add("--stop", type=float, default=10, help="microseconds of a stop in a rank (default 10)")
    add("--context", type=int, default=2048, help="positions in the KV cache (default 2048)")
    o = parser.parse_args()
    machine = Machine(o.read * 1e9, o.bytes, o.stop * 1e-6, o.context)
    for model in MODELS:
        print("\n".join(table(model, machine)) + "\n")
    print("| | " + " | ".join(f"{g} Gbit/s: fastest, last that pays" for g in NETWORKS) + " |")
    print("|" + "---|" * (1 + len(NETWORKS)))
    for model in MODELS:
        cells = [" , ".join(map(str, best(model, g, machine))) for g in NETWORKS]
        print("| " + " | ".join([model.name, *cells]) + " |")


if __name__ == "__main__":
    main()
