"""Files of prompts and a folder of answers, for generate, embed, perplexity and classify."""

from __future__ import annotations

import argparse
import glob
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llama2np.bulk.folder import Folder
from llama2np.bulk.opened import describe
from llama2np.bulk.run import CHUNK, Run, in_this_process
from llama2np.bulk.tasks import Job
from llama2np.cli import current, engine
from llama2np.cli.flags import flag_value, number
from llama2np.output import printable
from llama2np.store.names import located

_SHOWN = 20  # bad lines that are printed; all are in the folder
_EVERY = 60  # seconds between two lines of progress, where there is no terminal


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags for workers."""
    add = parser.add_argument
    add(
        "--workers",
        type=number(int, 1, 4096),
        metavar="N",
        help="share the prompts among N processes on this machine; they share its processors "
        "(extra `dask`)",
    )
    add(
        "--dask",
        type=flag_value,
        metavar="ADDRESS",
        help="share the prompts among the workers of a running Dask scheduler, such as "
        "tcp://host:8786, or a scheduler file; the model's path is that on the workers; "
        "--threads is of each chunk (default 1)",
    )
    add(
        "--chunk",
        type=number(int, 1, None),
        metavar="N",
        help=f"lines that a worker takes at a time (default {CHUNK}, or less for a few prompts; "
        "a run that goes on keeps its number)",
    )


def add_prompts(parser: argparse.ArgumentParser, required: bool = False) -> None:
    """Add the flags for files of prompts and a folder of answers."""
    parser.add_argument(
        "--prompts",
        type=flag_value,
        action="append",
        required=required,
        metavar="FILES",
        help="JSON lines: a text, or an object with text or prompt, and perhaps an id; a file, or "
        "a pattern in quotes, such as 'parts/*.jsonl'; may be repeated",
    )
    parser.add_argument(
        "--output",
        type=flag_value,
        required=required,
        metavar="FOLDER",
        help="the folder for the answers; if it has some of an interrupted run, the run goes on",
    )
    add_flags(parser)


def shared(options: argparse.Namespace) -> bool:
    """Whether the prompts are shared among workers."""
    if options.workers and options.dask:
        raise ValueError("--workers starts workers, --dask uses those that run: expected one")
    return bool(options.workers or options.dask)


def asked(options: argparse.Namespace, other: object, flag: str, useless: str) -> bool:
    """Whether a command was given files of prompts, and not `flag`, the other thing it can take.

    useless: a flag that was given, and has no meaning for prompts. Raises ValueError.
    """
    shared(options)
    if bool(options.prompts) == bool(other):
        raise ValueError(f"expected {flag}, or --prompts and --output (--help shows the flags)")
    if other is not None and (options.output or options.chunk or shared(options)):
        raise ValueError(f"--output, --chunk, --workers and --dask are for --prompts, not {flag}")
    if options.prompts and not options.output:
        raise ValueError("--prompts needs --output, the folder for the answers")
    if options.prompts and useless:
        raise ValueError(f"{useless} is for {flag}, not for --prompts")
    return bool(options.prompts)


def run(options: argparse.Namespace, prog: str, task: str, of_task: Mapping[str, Any]) -> None:
    """Answer the prompts of files into a folder; of_task: the options of the task.

    Raises ValueError, and OSError.
    """
    if current.ranks is not None:
        raise ValueError(
            "a folder of answers is made by one process, or by --workers or --dask: start this "
            "command without mpirun (generate can write into one file with mpirun)"
        )
    if not shared(options):
        engine.set_up(options, lambda note: print(note, file=sys.stderr, flush=True))
    job = _job(options, task, of_task)
    folder = Folder(Path(options.output))
    paths = expanded(options.prompts)

    def tell(text: str) -> None:
        print(printable(f"{prog}: {text}"), file=sys.stderr, flush=True)

    with folder.locked():
        work = Run(job, paths, folder, options.chunk, options.workers or 1)
        _tell_repeated(work, tell)
        if work.complete and not options.dask:  # its workers may be gone, with the model
            work.check(describe(work.job))
        lost = 0 if work.complete else _answer(work, options, prog)
    told = f"{work.answered - work.bad:,} of {work.total:,} prompts have answers in {folder.path}"
    if work.bad or lost:
        where = f"; {folder.errors} says why {work.bad:,} lines have none" if work.bad else ""
        again = f"; {lost} chunks were given up: run it again to try them again" if lost else ""
        raise ValueError(f"{told}{where}{again}")
    tell(told)


def _job(options: argparse.Namespace, task: str, of_task: Mapping[str, Any]) -> Job:
    model, tokenizer = options.model, options.tokenizer
    if options.dask:  # the workers' current folder may be another one
        model = model if located(model) != model or not os.path.exists(model) else _absolute(model)
        tokenizer = _absolute(tokenizer) if tokenizer else tokenizer
    return Job(
        task,
        model,
        tokenizer,
        options.engine or "compiled",
        {name: value for name, value in of_task.items() if value is not None},
        threads=options.threads,
        max_sequences=getattr(options, "max_sequences", 32),
        max_positions=getattr(options, "max_positions", None),
    )


def _absolute(path: str) -> str:
    return os.path.abspath(path) if os.path.exists(path) else path


def expanded(patterns: list[str]) -> list[Path]:
    """The files that names and patterns mean. Raises ValueError for a pattern without a file."""
    paths: list[Path] = []
    for pattern in patterns:
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not found and glob.has_magic(pattern):
            raise ValueError(f"{pattern}: there is no such file")
        paths += map(Path, found or [pattern])
    return paths


def _tell_repeated(work: Run, tell: Callable[[str], None]) -> None:
    for i, (later, first) in enumerate(work.repeated):
        if i == _SHOWN:
            tell(f"{len(work.repeated) - i:,} more lines have an id of another line")
            return
        tell(f"{work.where(*later)}: has the id of {work.where(*first)}; both are answered")


def _answer(work: Run, options: argparse.Namespace, prog: str) -> int:
    """Answer what is not answered; return the number of chunks that were given up."""
    lost, shown = 0, 0
    with progress(work.total, work.answered, prog) as bar, _results(work, options, bar) as results:
        for name, result in results:
            if isinstance(result, Exception):
                from llama2np.bulk.mapping import killing

                bar.write(str(work.lost(name, killing(result))))
                lost += 1
                continue
            for bad in work.write(name, result):
                shown += 1
                if shown <= _SHOWN:
                    bar.write(bad)
                elif shown == _SHOWN + 1:
                    bar.write(f"more bad lines are in {work.folder.errors}")
            bar.update(work.answered - bar.n)
    return lost


@contextmanager
def _results(
    work: Run, options: argparse.Namespace, bar: Any
) -> Iterator[Iterator[tuple[str, Any]]]:
    """The results of the chunks, from workers or from this process."""
    if not shared(options):
        work.begin(describe(work.job))
        yield in_this_process(work.job, work.calls())
        return
    try:
        from dask.system import CPU_COUNT

        from llama2np.bulk import cluster
        from llama2np.bulk.worker import answer_lines_there
    except ImportError as error:
        raise ValueError(
            f"--workers and --dask need Dask ({error}): "
            f"{sys.executable} -m pip install 'llama2np[dask]'"
        ) from None
    job = work.job
    if options.workers:
        threads = options.threads or max(CPU_COUNT // options.workers, 1)
        connect = cluster.local(options.workers)
    else:
        threads, connect = options.threads or 1, cluster.remote(options.dask)
    job = replace(job, threads=threads)
    with connect as client:
        _tell_dashboard(client, options, bar)
        if not client.nthreads():
            bar.write(f"{options.dask}: waiting for a worker ...")
        work.begin(cluster.prepare(client, job))
        calls = ((name, (job, *call)) for name, call in work.calls())
        results = cluster.completed(client, f"llama2np-{job.task}", answer_lines_there, calls)
        try:
            yield results
        finally:
            results.close()  # type: ignore[attr-defined]


def _tell_dashboard(client: Any, options: argparse.Namespace, bar: Any) -> None:
    if options.workers and find_spec("bokeh") is None:
        bar.write(f"no dashboard: Dask needs bokeh for it ({sys.executable} -m pip install bokeh)")
    elif client.dashboard_link:
        bar.write(f"dashboard: {client.dashboard_link}")


class _Lines:
    """Progress as a line each minute, for logs. It has tqdm's methods that are used here."""

    def __init__(self, total: int, initial: int, prog: str):
        self.total, self.n, self._first, self._prog = total, initial, initial, prog
        self._start = self._told = time.monotonic()

    def update(self, count: int) -> None:
        self.n += count
        now = time.monotonic()
        if now - self._told >= _EVERY and self.n > self._first:
            self._told = now
            rate = (self.n - self._first) / (now - self._start)
            left = (self.total - self.n) / rate
            self.write(f"{self.n:,} of {self.total:,} prompts, {rate:.3g}/s, {left:.0f} s left")

    def write(self, text: str) -> None:
        print(printable(f"{self._prog}: {text}"), file=sys.stderr, flush=True)


@contextmanager
def progress(total: int, initial: int, prog: str) -> Iterator[Any]:
    """A progress bar with rate and time left on a terminal, elsewhere a line each minute."""
    if not sys.stderr.isatty():
        yield _Lines(total, initial, prog)
        return
    from tqdm import tqdm

    with tqdm(total=total, initial=initial, unit=" prompts", file=sys.stderr) as bar:
        bar.write = lambda text: tqdm.write(printable(f"{prog}: {text}"), file=sys.stderr)
        yield bar
