"""Read damaged files for some time: `make fuzz SECONDS=60`.

    python -m tools.fuzz SECONDS [--kind KIND] [--seed N] [--findings FOLDER]
    python -m tools.fuzz --replay FOLDER --kind KIND      one case again, with a traceback

Each batch runs in a separate process, so that a crash is detected. A finding is a case that raises
anything but our own errors, takes more than a second of processor time, or more memory than a bound
computed from the size of its files. It is kept in a folder, with a description in FINDING.txt.
"""

from __future__ import annotations

import argparse
import faulthandler
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import tracemalloc
import warnings
from contextlib import suppress
from pathlib import Path
from random import Random

from tools.hostile import KINDS, OURS, damaged, exercise, valid, write_case

_BATCH = 400  # cases for a process
_SECONDS = 1.0  # processor time of one case
# Real time, since waiting, for example for a FIFO, takes no processor time. It is counted in ticks:
# while the process is stopped, or the computer sleeps, there are none.
_WAIT = 60  # seconds for a case
_MEMORY = (2**23, 100)  # bytes: a constant, and the limit for each byte of the files
_ADDRESS_SPACE = 2**34  # the limit for a library that allocates too much
_STUCK = 300  # seconds for a batch without an end, for example in C code
_TICK = 1.0  # second


class _Slow(BaseException):
    """A case takes too long."""


def memory_bound(size: int) -> int:
    """The maximum memory in bytes for reading and using files of `size` bytes."""
    return _MEMORY[0] + _MEMORY[1] * size


def problem(kind: str, folder: Path, size: int) -> str:
    """Exercise the case in a folder; return a description of the finding, "" if there is none."""

    ticks = iter(range(_WAIT))

    def slow(number, _frame):
        if number == signal.SIGPROF or next(ticks, None) is None:
            raise _Slow

    before = {number: signal.signal(number, slow) for number in (signal.SIGPROF, signal.SIGALRM)}
    tracemalloc.start()
    signal.setitimer(signal.ITIMER_PROF, 4 * _SECONDS)  # memory tracing makes it slower
    signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
    try:
        exercise(kind, folder)
    except OURS as error:
        if not str(error).isprintable():
            return f"an error that is not one clean line: {error!r}"
    except _Slow:
        return f"slow:\n{traceback.format_exc()}"
    except (Exception, AssertionError):
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
    if peak > memory_bound(size):
        return f"memory: {peak:,} bytes for files of {size:,}"
    return ""


def _batch(kind: str, seed: int, folder: Path, findings: Path) -> None:
    """In a child process: read a batch. The case is in `folder`, where a crash leaves it."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, hard))
    faulthandler.dump_traceback_later(_STUCK - 5)
    warnings.simplefilter("error")
    for i, case in enumerate(valid(kind)):  # so that imports and compilation count for no case
        (folder / str(i)).mkdir()
        write_case(case, folder / str(i))
        exercise(kind, folder / str(i))
    for i in range(_BATCH):
        random, case_folder = Random(f"{kind} {seed} {i}"), folder / "case"
        shutil.rmtree(case_folder, ignore_errors=True)
        case_folder.mkdir()
        size = write_case(damaged(kind, random), case_folder)
        if found := problem(kind, case_folder, size):
            _keep(case_folder, findings / f"{kind}-{seed}-{i}", found)


def _keep(case: Path, place: Path, found: str) -> None:
    with suppress(shutil.Error):  # a FIFO cannot be copied
        shutil.copytree(case, place, symlinks=True, dirs_exist_ok=True)
    (place / "FINDING.txt").write_text(found, errors="backslashreplace")
    print(f"{place}: {found.strip().splitlines()[-1]}", flush=True)


def _run_batch(kind: str, seed: int, findings: Path) -> None:
    """Read a batch in a child process. Raises SystemExit if it ends before the first case."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--batch", folder, "--kind", kind, "--seed", str(seed)]
        command = [sys.executable, "-X", "faulthandler", "-m", "tools.fuzz", "0", *arguments]
        command += ["--findings", str(findings)]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace")
        said = None
        for _ in range(_STUCK):
            with suppress(subprocess.TimeoutExpired):
                said = child.communicate(timeout=_TICK)[1]
                break
        if said is None:
            child.kill()
            said = f"stuck for {_STUCK} s\n{child.communicate()[1]}"
        if child.returncode:
            case, place = Path(folder) / "case", findings / f"{kind}-{seed}-crash"
            if case.is_dir():
                _keep(case, place, f"{said}\nthe process ended with status {child.returncode}")
            else:
                raise SystemExit(f"{kind} {seed}, before the first case: {said}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seconds", type=float, nargs="?", default=60)
    parser.add_argument("--kind", choices=KINDS, help="default: all in turn")
    parser.add_argument("--seed", type=int, help="of the first batch (default: the time)")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), metavar="FOLDER")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="the folder of a finding")
    parser.add_argument("--batch", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch:
        _batch(options.kind, options.seed, options.batch, options.findings)
        return
    if options.replay:
        exercise(options.kind, options.replay)
        return
    seed = int(time.time()) if options.seed is None else options.seed
    kinds = [options.kind] if options.kind else list(KINDS)
    cases = dict.fromkeys(KINDS, 0)
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        kind = kinds[seed % len(kinds)]
        _run_batch(kind, seed, options.findings)
        cases[kind] += _BATCH
        seed += 1
    found = len(list(options.findings.glob("*/FINDING.txt")))
    print(", ".join(f"{kind} {count:,}" for kind, count in cases.items() if count))
    print(f"{sum(cases.values()):,} cases, {found} findings in {options.findings}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
