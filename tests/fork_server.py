"""A Python process that has imported the package and its kernels, and forks for each command.

It gets commands over a socket, each with its three standard streams and a pipe, to which it writes
the child's process number and, at its end, how it ended. See forks.py.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
import types
import warnings
from contextlib import suppress


def serve(control: socket.socket) -> dict | None:
    """Fork for each command; return it in the child. None: nobody sends commands any more."""
    awake, wakes = os.pipe()
    for end in (awake, wakes):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    signal.set_wakeup_fd(wakes)
    reports = {}
    while True:
        ready = select.select([control, awake], [], [])[0]
        if awake in ready:
            os.read(awake, 1000)
            report_ended(reports)
        if control not in ready:
            continue
        data, streams, _, _ = socket.recv_fds(control, 2**20, 4)
        if not data:
            return None
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            control.close()
            for descriptor in (awake, wakes, *reports.values(), streams[3]):
                os.close(descriptor)
            for number, stream in enumerate(streams[:3]):
                os.dup2(stream, number)
                os.close(stream)
            return json.loads(data)
        os.write(streams[3], b"%d\n" % pid)
        reports[pid] = streams[3]
        for stream in streams[:3]:
            os.close(stream)


def report_ended(reports: dict[int, int]) -> None:
    while reports:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            break
        os.write(reports[pid], b"%d\n" % os.waitstatus_to_exitcode(status))
        os.close(reports.pop(pid))


def become(command: dict) -> None:
    """Run a Python command as a new process would, with the modules that are already there."""
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["env"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        setattr(sys, name, reopened(getattr(sys, name), number))
    words = command["words"]
    while words[0] not in ("-c", "-m") and words[0].startswith("-"):
        if words.pop(0) == "-W":
            warnings.simplefilter(words.pop(0))
    kind, what = ("script", words[0]) if not words[0].startswith("-") else words[:2]
    sys.argv = words[kind != "script" :]
    sys.path[0] = os.path.dirname(os.path.abspath(what)) if kind == "script" else ""
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif kind == "script":
        runpy.run_path(what, run_name="__main__")
    else:
        sys.argv = ["-c", *words[2:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(what, "<string>", "exec"), vars(main))


def leave(status: int) -> None:
    """End the process as Python does, but without taking all objects apart: 9 ms instead of 53.

    If a stream cannot be written to, this returns, and Python says what it says then.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    with suppress(Exception):
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
        os._exit(status)


def reopened(stream, number: int):
    """A text stream for this descriptor, as Python makes it at its start."""
    how = {"encoding": stream.encoding, "errors": stream.errors, "closefd": False}
    made = open(number, "r" if number == 0 else "w", **how)
    made.reconfigure(line_buffering=number == 2 or made.isatty())
    return made


def prepare() -> None:
    """Import what commands need, and load the kernels that the bundled models call."""
    import llama2np.cli.run  # noqa: F401
    from llama2np import Llama, kernels

    threads = kernels.threads()
    kernels.set_threads(1)  # and no thread that a fork would lose
    for name in ("stories-box", "stories-box-q8"):
        Llama.load(name).generate("One day", max_new_tokens=3, seed=1).read()
    kernels.set_threads(threads)
    gc.collect()
    gc.freeze()  # no child has to look through all of this again


if __name__ == "__main__":
    prepare()
    command = serve(socket.socket(fileno=int(sys.argv[1])))
    if command:
        try:
            become(command)
            status = 0
        except SystemExit as ended:
            if not isinstance(ended.code, int | None):
                raise
            status = ended.code or 0
        leave(status)
        sys.exit(status)
