"""What bulk runs cost besides the network: the files of prompts, Dask, and the files of answers.

    python -m benchmarks.bulk_overhead                       10 million prompts, 4,000 chunks

It scans a file of that many prompts, and lets workers in this process answer chunks of 256 prompts
with a text of 300 bytes each, which costs them nothing. All times are processor time, but those of
the files of answers, for which a disk is waited for. Needs `llama2np[dask]`, and 2 GB in /tmp.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from distributed import Client, LocalCluster

from llama2np.bulk import cluster
from llama2np.bulk.files import Ids, scan
from llama2np.bulk.folder import Folder
from llama2np.bulk.opened import Done

CHUNK = 256
PROMPT = "Tom had a red ball and a small boat, and one day he went to the river with his dog."
ANSWER = b'{"file": "p.jsonl", "line": 1234567, "id": 1234567, "text": "%s"}\n' % (b"x" * 240)


def answer(lines: list[tuple[int, bytes]]) -> Done:
    """The answers to a chunk, at no cost."""
    return Done(ANSWER * len(lines), [], len(lines))


def peak() -> float:
    """The most memory that this process has used, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_scan(path: Path, count: int) -> None:
    """Print what it costs to cut a file of prompts into chunks."""
    with open(path, "w") as file:
        file.writelines(json.dumps({"prompt": PROMPT, "id": i}) + "\n" for i in range(count))
    for ids, what in ((None, "a run that goes on"), (Ids(), "a new run, with all ids compared")):
        before, start = peak(), time.process_time()
        (found,) = scan([path], CHUNK, ids)
        if ids is not None:
            ids.repeated()
        seconds = time.process_time() - start
        print(
            f"{what}: {count:,} lines, {found.size / 1e9:.2f} GB, {len(found.chunks):,} chunks: "
            f"{seconds:.0f} s, {peak() - before:.0f} MB more memory (peak {peak():.0f} MB)",
            flush=True,
        )


def measure_chunks(path: Path, chunks: int, folder: Path) -> None:
    """Print what each chunk costs the client and the scheduler."""
    (found,) = scan([path], CHUNK)
    some = found.chunks[:chunks]
    with (
        LocalCluster(4, 1, processes=False, dashboard_address="127.0.0.1:0") as workers,
        Client(workers) as client,
    ):
        tasks = 0
        calls = ((chunk.name, (found.lines(chunk),)) for chunk in some)
        folder.mkdir()
        answers = Folder(folder)
        answers.begin({})
        answers.make()
        files, cpu, start = 0.0, time.process_time(), time.perf_counter()
        for name, done in cluster.completed(client, "overhead", answer, calls):
            tasks = max(tasks, len(workers.scheduler.tasks))
            began = time.perf_counter()
            answers.write(name, "p.jsonl", done)
            files += time.perf_counter() - began
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - start
    each = len(some)
    print(
        f"{each:,} chunks of {CHUNK}: {1e3 * cpu / each:.1f} ms of processor time for each, in all "
        f"of Dask's parts; {1e3 * files / each:.1f} ms for its file of answers; "
        f"{each / seconds:.0f} chunks/s; at most {tasks} tasks in the scheduler; "
        f"peak memory {peak():.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=10_000_000, metavar="N")
    parser.add_argument("--chunks", type=int, default=4_000, metavar="N")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "p.jsonl"
        measure_scan(path, options.prompts)
        measure_chunks(path, options.chunks, Path(name) / "answers")


if __name__ == "__main__":
    main()
