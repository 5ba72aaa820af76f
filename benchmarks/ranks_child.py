"""One of the processes of benchmarks.ranks: it generates when it is asked, in bursts.

    python -m benchmarks.ranks_child MODEL THREADS                (or as several ranks under mpirun)

It reads lines from the standard input: the number of tokens of a burst, or "end". It prints lines
that begin with "RESULT", and JSON: {"ready": true} when it has loaded the model, then the tokens,
the seconds and the logits of each burst, and at the end the memory of each rank.
"""

import json
import sys
import threading
import time
from pathlib import Path

from benchmarks.random_models import tokenizer_of
from llama2np import Llama, kernels, mpi

PROMPT = [1, *range(300, 364)]
FILLED = 512  # positions that are read at last, so that all of the KV cache's first chunk is used


def memory() -> int:
    """The bytes of this process, those that several processes map divided among them (Pss).

    Libraries do not count: what a process has of them depends on other programs on the machine.
    """
    found, library = 0, False
    with open("/proc/self/smaps") as file:
        for line in file:  # not as one text, which would count, too
            if line[0] in "0123456789abcdef":  # a mapping begins
                library = ".so" in line
            elif line.startswith("Pss:") and not library:
                found += int(line.split()[1]) * 1024
    return found


class Most(threading.Thread):
    """Looks at the memory from time to time; `bytes` is the most since it began, less that then."""

    EVERY = 0.2  # seconds

    def __init__(self):
        super().__init__(daemon=True)
        self.bytes, self._before = 0, memory()
        self.start()

    def run(self):
        while True:
            self.bytes = max(self.bytes, memory() - self._before)
            time.sleep(self.EVERY)


def say(**found) -> None:
    """Print a line of JSON."""
    print("RESULT " + json.dumps(found) + "\n", end="", flush=True)


def burst(model: Llama, count: int) -> None:
    """Read the prompt, and generate `count` tokens after it; say the seconds of each."""
    network, state = model.transformer, model.new_state()
    start = time.perf_counter()
    logits = network.forward(PROMPT, state)
    moments, tokens = [time.perf_counter() - start], [int(logits.argmax())]
    for _ in range(count):
        start = time.perf_counter()
        tokens.append(int(network.forward(tokens[-1:], state).argmax()))
        moments.append(time.perf_counter() - start)
    say(tokens=tokens, seconds=moments, logits=[float(x) for x in logits[:50]])


def fill(model: Llama) -> None:
    """Read a text as long as a chunk of the KV cache, in pieces of the prompt's length."""
    state = model.new_state()
    for start in range(0, min(FILLED, model.config.seq_len) - len(PROMPT), len(PROMPT)):
        model.transformer.forward([start % 256 + 300] * len(PROMPT), state)


def serve(model: Llama) -> None:
    """Answer the lines of the standard input."""
    burst(model, 2)  # what is loaded at the first token
    say(ready=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        burst(model, int(line))
    fill(model)
    time.sleep(3 * Most.EVERY)  # so that all ranks have seen their memory


def main() -> None:
    """Be a process alone, or a rank."""
    path, threads = Path(sys.argv[1]), int(sys.argv[2])
    Llama.load("stories-box").generate([1, *range(10, 100)], max_new_tokens=2).read()
    Llama.load("stories-box-q8").generate([1, *range(10, 100)], max_new_tokens=2).read()
    words = tokenizer_of(path)
    words = words if words.exists() else None
    if mpi.launched():
        from llama2np.mpi.ranks import mpi4py

        mpi4py()  # the memory of MPI itself does not count
        most = Most()
        with mpi.load(path, words, threads=threads) as model:
            if model is not None:
                serve(model)
    else:
        kernels.set_threads(threads)
        most = Most()
        serve(Llama.load(path, words))
    say(rank=mpi.rank(), memory=most.bytes)


if __name__ == "__main__":
    main()
