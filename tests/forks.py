"""Python processes that take no second to start: forks of one that has imported all (Linux)."""

import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import warming

ROOT = Path(__file__).parents[1]
HERE = sys.platform == "linux" and os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"


class Server:
    """The process that forks, from the first command to the end of the tests."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def send(self, command: dict, streams: list[int]) -> None:
        if self.process is None:
            warming.wait()  # it loads the kernels
            self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self.process = subprocess.Popen(
                [sys.executable, ROOT / "tests" / "fork_server.py", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            theirs.close()
        socket.send_fds(self.control, [json.dumps(command).encode()], streams)

    def stop(self) -> None:
        if self.process is not None:
            self.control.close()
            self.process.wait()
            self.process = None


SERVER = Server()


class Popen(subprocess.Popen):
    """As subprocess.Popen([sys.executable, ...]), but a fork of the server.

    So the settings that Python, NumPy and numba read at their import are those of the tests, and
    the modules are there already. For anything about these, start a process of its own.
    """

    def _execute_child(self, args, _executable, preexec_fn, _close, pass_fds, cwd, env, *more):
        words = [os.fspath(word) for word in args]
        assert words[0] == sys.executable and not preexec_fn and not pass_fds
        environment = {
            os.fsdecode(name): os.fsdecode(word) for name, word in (env or os.environ).items()
        }
        command = {
            "words": [os.fsdecode(word) for word in words[1:]],
            "cwd": os.fspath(cwd or os.getcwd()),
            "env": environment,
        }
        pipes = more[3:9]  # the ends for the child and for us of standard input, output, error
        streams = [
            own if end == -1 else end for own, end in enumerate((pipes[0], pipes[3], pipes[5]))
        ]
        self._report, report = os.pipe()
        SERVER.send(command, [*streams, report])
        os.close(report)
        self.pid = int(self._line())
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _line(self) -> str:
        """The next line of the report, without reading further."""
        text = b""
        while not text.endswith(b"\n"):
            byte = os.read(self._report, 1)
            if not byte:
                raise ChildProcessError("the fork server has ended")
            text += byte
        return text.decode()

    def _internal_poll(self, *_args, **_options):
        if self.returncode is None and select.select([self._report], [], [], 0)[0]:
            self.returncode = int(self._line())
            os.close(self._report)
        return self.returncode

    def _wait(self, timeout):
        end = None if timeout is None else time.monotonic() + timeout
        while self._internal_poll() is None:
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(self.args, timeout)
            select.select([self._report], [], [], left)
        return self.returncode


if not HERE:
    Popen = subprocess.Popen  # noqa: F811


def run(words, check=False, timeout=300, capture_output=False, **options):
    """As subprocess.run([sys.executable, *words])."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen([sys.executable, *words], **options) as child:
        try:
            out, err = child.communicate(timeout=timeout)
        except BaseException:
            child.kill()
            raise
    done = subprocess.CompletedProcess(child.args, child.returncode, out, err)
    if check:
        done.check_returncode()
    return done
