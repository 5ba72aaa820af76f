"""Prompts of files on local Dask workers, with workers and clients that are killed.

    python -m benchmarks.bulk                      10,000 prompts, 4 workers, 10 + 2 kills
    python -m benchmarks.bulk --prompts 500 --kills 3 --client-kills 1

Three runs over the same prompts: by one process with batches (`llama2np generate --output FILE`),
by the workers undisturbed, and by the workers while random ones of them, and their client, get a
`kill -9`. Each prompt must have one answer in each run, and the same one. Rates are per second, and
per second of processor time, which counts the workers' start, too. Needs `llama2np[dask]`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

NAMES = ("Tom", "Lily", "Max", "Mia", "Sam", "Anna", "Ben", "Zoe")
THINGS = ("a dog", "a red ball", "a big box", "a small boat", "an old hat", "a cake")
FILES = 4
_SET_CHILD_SUBREAPER = 36  # of prctl


def write_prompts(folder: Path, count: int) -> list[Path]:
    """Files of prompts, each with an id and a seed of its own."""
    choose = random.Random(1)
    paths = [folder / f"prompts-{i}.jsonl" for i in range(FILES)]
    each = [
        {"prompt": f"{choose.choice(NAMES)} had {choose.choice(THINGS)}.", "seed": i + 1, "id": i}
        for i in range(count)
    ]
    for i, path in enumerate(paths):
        part = each[i * count // FILES : (i + 1) * count // FILES]
        path.write_text("".join(json.dumps(one) + "\n" for one in part))
    return paths


def command(
    options: argparse.Namespace, paths: list[Path], output: Path, workers: int
) -> list[str]:
    """The command line that answers the prompts."""
    words = [sys.executable, "-m", "llama2np", "generate", options.model]
    for path in paths:
        words += ["--prompts", str(path)]
    words += ["--output", str(output), "--max-new-tokens", str(options.tokens)]
    return words + (["--workers", str(workers)] if workers else [])


def adopt() -> None:
    """On Linux, be the parent of processes whose parent has ended, so that their time counts."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1)


def timed(words: list[str]) -> tuple[float, float]:
    """Run a command; return its seconds, and those of processor time, its children's included."""
    adopt()
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True)
    with suppress(ChildProcessError):  # workers of a client that has ended, and who started them
        while True:
            os.wait()
    after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - start
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu


def workers_of(client: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The worker processes of a client."""
    try:
        children = psutil.Process(client.pid).children(recursive=True)
        return [each for each in children if _is_worker(each, client.pid)]
    except psutil.Error:
        return []


def _is_worker(process: psutil.Process, client: int) -> bool:
    """Whether this is a worker: a process of its own, or a fork of one that the client started."""
    words = " ".join(process.cmdline())
    return "spawn_main" in words or ("forkserver" in words and process.ppid() != client)


def answered(folder: Path) -> int:
    """The number of answers so far."""
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("answers/*.jsonl"))


def disturbed(options: argparse.Namespace, words: list[str], folder: Path) -> float:
    """Run a command to its end, through kills at random moments; return its seconds."""
    choose = random.Random(options.seed)
    kills = ["worker"] * options.kills + ["client"] * options.client_kills
    choose.shuffle(kills)
    # The moments are shares of the answers, so that the kills are spread over the whole run.
    moments = [
        options.prompts * (i + choose.random()) / (len(kills) + 1) for i in range(len(kills))
    ]
    start, client = time.perf_counter(), subprocess.Popen(words)
    while client.poll() is None:
        time.sleep(0.05)
        if not kills or answered(folder) < moments[0]:
            continue
        if kills[0] == "client":
            client.kill()
            client.wait()
        elif workers := workers_of(client):
            victim = choose.choice(workers)
            victim.kill()
            print(f"killed worker {victim.pid} after {answered(folder):,} answers", flush=True)
        else:
            continue  # all of them are being started
        if kills[0] == "client":
            print(f"killed client {client.pid} after {answered(folder):,} answers", flush=True)
            client = subprocess.Popen(words)
        del kills[0], moments[0]
    if client.returncode or kills:
        raise SystemExit(f"status {client.returncode}, {len(kills)} kills were not done")
    return time.perf_counter() - start


def check(folder: Path, expected: dict[int, dict]) -> None:
    """End unless each prompt has one answer, and the expected one."""
    found: dict[int, dict] = {}
    for path in sorted(folder.glob("answers/*.jsonl")):
        for line in path.read_text().splitlines():
            answer = json.loads(line)
            if answer["id"] in found:
                raise SystemExit(f"{path}: prompt {answer['id']} is answered twice")
            found[answer["id"]] = without_place(answer)
    if found != expected:
        wrong = [name for name in expected if found.get(name) != expected[name]]
        raise SystemExit(f"{folder}: {len(wrong)} prompts have no answer, or another one")


def without_place(answer: dict) -> dict:
    """An answer without the number of its line, and the name of its file."""
    return {name: value for name, value in answer.items() if name not in ("file", "line")}


def single(
    options: argparse.Namespace, paths: list[Path], folder: Path
) -> tuple[dict, float, float]:
    """All answers by one process with batches, by id, and its seconds."""
    whole = folder / "all.jsonl"
    whole.write_bytes(b"".join(path.read_bytes() for path in paths))
    seconds, cpu = timed(command(options, [whole], folder / "one.jsonl", 0))
    answers = map(json.loads, (folder / "one.jsonl").read_text().splitlines())
    return {answer["id"]: without_place(answer) for answer in answers}, seconds, cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="stories-box")
    add("--prompts", type=int, default=10_000, metavar="N")
    add("--tokens", type=int, default=40, metavar="N", help="for each prompt, at most")
    add("--workers", type=int, default=4, metavar="N")
    add("--kills", type=int, default=10, metavar="N", help="of random workers")
    add("--client-kills", type=int, default=2, metavar="N")
    add("--seed", type=int, default=1, metavar="N", help="of the moments and the victims")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_prompts(folder, options.prompts)
        expected, *one = single(options, paths, folder)
        tokens = sum(answer["completion_tokens"] for answer in expected.values())
        report("one process", options, tokens, *one)
        words = command(options, paths, folder / "many", options.workers)
        report(f"{options.workers} workers", options, tokens, *timed(words))
        check(folder / "many", expected)
        words = command(options, paths, folder / "killed", options.workers)
        seconds = disturbed(options, words, folder / "killed")
        check(folder / "killed", expected)
    kills = f"{options.kills} + {options.client_kills} kills"
    print(f"{options.workers} workers and {kills}: {seconds:.0f} s")
    print("all answers of the three runs are equal, and each is there once")


def report(what: str, options: argparse.Namespace, tokens: int, wall: float, cpu: float) -> None:
    """Print the rates of a run."""
    rates = f"{tokens / wall:,.0f} tokens/s, {tokens / cpu:,.0f} per second of processor time"
    print(f"{what}: {wall:.0f} s, {options.prompts / wall:,.0f} prompts/s, {rates}", flush=True)


if __name__ == "__main__":
    main()
