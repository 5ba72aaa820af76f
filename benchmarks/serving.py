"""The server beside llama.cpp's: many clients at once, and the same shape without HTTP.

    python -m benchmarks.serving --models FOLDER --llamacpp PYTHON

writes the tables of README.md. FOLDER gets 110M-q8.bin and the same weights as 110M.Q8_0.gguf, if
they are not there. PYTHON has llama-cpp-python with its extra [server]. SmolLM2 is there if it was
pulled (llama2np pull smollm2), or with --smollm2 FILE.

Clients are those of the package `openai`, in threads of this process: each asks for one text after
the other and reads it as a stream. Both servers run all the time, and take turns, round by round.
`python -m llama_cpp.server` answers one request at a time; the others wait. A table's throughput is
the median of the rounds, its ratio the median of the rounds' ratios; the time to the first token is
over the requests of all rounds.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from urllib.request import urlopen

import openai

from benchmarks import batched
from benchmarks.random_models import tokenizer_of, write_model
from llama2np import export
from llama2np.store.names import find

REQUESTS = {1: 3, 8: 2, 32: 1}  # of each client, by the number of clients


@dataclass
class Found:
    """What a server did with some number of clients: tokens per second, and times in seconds."""

    rates: list[float] = field(default_factory=list)
    firsts: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Pair:
    """A model as our server gets it, and as llama.cpp's does."""

    name: str
    ours: Path
    theirs: Path


@contextmanager
def running(command: list[str], port: int) -> Iterator[str]:
    """A server in a process; yields its URL when it answers."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)
    reader.start()  # a full pipe would stop it
    url = f"http://127.0.0.1:{port}/v1"
    try:
        for _ in range(1200):
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)}: {b''.join(said).decode()}")
            try:
                urlopen(f"{url}/models", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise SystemExit(f"{' '.join(command)}: it does not answer")
        yield url
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(client: openai.OpenAI, model: str, prompt: str, tokens: int) -> tuple[float, int]:
    """Stream a text; return the seconds until its first piece, and the number of pieces."""
    start, first, count = time.perf_counter(), 0.0, 0
    options = {"max_tokens": tokens, "temperature": 0, "stream": True}
    for part in client.completions.create(model=model, prompt=prompt, **options):
        if part.choices and part.choices[0].text:
            first, count = first or time.perf_counter() - start, count + 1
    return first, count


def together(url: str, clients: int, seed: int, options: argparse.Namespace) -> Found:
    """Let `clients` threads ask at the same time; their pieces of text per second."""
    ready, answers = threading.Barrier(clients + 1), []
    model = openai.OpenAI(base_url=url, api_key="none").models.list().data[0].id

    def work(i: int) -> None:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600) as client:
            ready.wait()
            for j in range(REQUESTS.get(clients, 1)):
                # Different from the first word on: nobody reuses another one's KV cache.
                prompt = f"{(seed * 97 + i) * 5 + j} years ago w7 w8 w9, there was"
                answers.append(ask(client, model, prompt, options.tokens))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    if len(answers) != clients * REQUESTS.get(clients, 1):
        raise SystemExit(f"{url}: an answer failed")
    return Found([sum(count for _, count in answers) / seconds], [first for first, _ in answers])


def measure(pair: Pair, options: argparse.Namespace) -> dict[tuple[str, int], Found]:
    """Rounds of both servers by turns, for each number of clients."""
    threads, found = str(options.threads), dict[tuple[str, int], Found]()
    with ExitStack() as stack:
        port, urls = free_port(), {}
        command = [sys.executable, "-m", "llama2np", "serve", str(pair.ours), "--port", str(port)]
        command += ["--threads", threads]
        if tokenizer_of(pair.ours).exists():
            command += ["-z", str(tokenizer_of(pair.ours))]
        urls["llama2np"] = stack.enter_context(running(command, port))
        if options.llamacpp:
            port = free_port()
            command = [options.llamacpp, "-m", "llama_cpp.server", "--model", str(pair.theirs)]
            command += ["--port", str(port), "--n_ctx", "1024", "--n_threads", threads]
            # Without this it breaks off an answer when the next request comes.
            command += ["--n_threads_batch", threads, "--interrupt_requests", "false"]
            urls["llama.cpp"] = stack.enter_context(running(command, port))
        for url in urls.values():
            together(url, 2, 1000, options)  # loads the file and the kernels
        for i in range(options.rounds):
            for clients in options.clients:
                for name, url in urls.items():
                    here, new = found.setdefault((name, clients), Found()), None
                    new = together(url, clients, i * 100 + clients, options)
                    here.rates += new.rates
                    here.firsts += new.firsts
    return found


def table(pair: Pair, found: dict[tuple[str, int], Found], options: argparse.Namespace) -> None:
    """Print a line for each number of clients."""

    def shown(times: list[float]) -> str:
        """The median and the 95th of a hundred."""
        ordered = sorted(times)
        return f"{ordered[len(ordered) // 2]:.2f} / {ordered[int(0.95 * (len(ordered) - 1))]:.2f}"

    alone = found["llama2np", options.clients[0]].rates
    for clients in options.clients:
        ours, theirs = found["llama2np", clients], found.get(("llama.cpp", clients), Found())
        growth = median(x / y for x, y in zip(ours.rates, alone, strict=True))
        cells = [pair.name, str(clients), f"{median(ours.rates):.0f}", f"{growth:.2f}"]
        if theirs.rates:
            ratio = median(x / y for x, y in zip(ours.rates, theirs.rates, strict=True))
            cells += [f"{median(theirs.rates):.0f}", f"{ratio:.2f}"]
            cells += [shown(ours.firsts), shown(theirs.firsts)]
        else:
            cells += ["–", "–", shown(ours.firsts), "–"]
        print(f"| {' | '.join(cells)} |", flush=True)


def pairs(options: argparse.Namespace) -> list[Pair]:
    """The models, which are written if they are not there."""
    folder, found = options.models, []
    if "110M" in options.only:
        ours = write_model("110M-q8", folder)
        theirs = folder / "110M.Q8_0.gguf"
        if not theirs.exists():
            with TemporaryDirectory() as beside:  # where export finds the tokenizer
                model = Path(beside) / "model.bin"
                model.symlink_to(ours.absolute())
                model.with_name("tokenizer.bin").symlink_to(tokenizer_of(ours).absolute())
                export(model, theirs, version="gguf", type="Q8_0")
        found.append(Pair("110M Q8_0", ours, theirs))
    if "smollm2" in options.only:
        pulled = find("smollm2")
        path = options.smollm2 or (pulled and pulled.path)
        if path is None:
            raise SystemExit("smollm2 is not here: llama2np pull smollm2, or --smollm2 FILE")
        found.append(Pair("SmolLM2 Q4_1", Path(path), Path(path)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--models", type=Path, required=True, metavar="FOLDER")
    add("--llamacpp", metavar="PYTHON", help="a Python with llama-cpp-python[server]")
    add("--smollm2", metavar="FILE", help="SmolLM2's GGUF file (default: the pulled one)")
    add("--only", nargs="+", default=["110M", "smollm2"], choices=["110M", "smollm2"])
    add("--clients", type=int, nargs="+", default=[1, 8, 32], metavar="N")
    add("--tokens", type=int, default=64, metavar="N", help="of each text (default 64)")
    add("--rounds", type=int, default=5, metavar="N")
    add("--threads", type=int, default=2, metavar="N", help="of each server (default 2)")
    add("--no-http", action="store_true", help="only the tables without HTTP")
    add("--cpu", action="store_true", help="without HTTP: processor time; for --threads 1")
    options = parser.parse_args()
    models = pairs(options)
    if not options.no_http:
        print(
            f"{options.tokens} tokens a text; tokens per second of all clients together; seconds "
            "to the first token, half of the requests / 95 % of them\n"
        )
        columns = ["model", "clients", "llama2np", "/ 1 client", "llama_cpp.server", "ratio"]
        columns += ["first token", "theirs"]
        print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
        for pair in models:
            table(pair, measure(pair, options), options)
        print()
    batched.tables([(p.name, p.ours, p.theirs) for p in models], options)


if __name__ == "__main__":
    main()
