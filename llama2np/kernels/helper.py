"""A second process that compiles at the same time: the first run of all is sooner at its answer.

The kernels that write text are compiled apart (calls.py). This process takes them in the order in
which it comes to them; the helper begins with the last. What one has done, the other finds in the
cache: neither waits for the other, and if the helper fails, nothing is missing.
"""

import atexit
import os
import subprocess
import sys
from contextlib import suppress

import numba

from llama2np.kernels.calls import APART, callees, never_run

_CODE = """\
import sys
sys.path[:] = {path!r}
from llama2np.kernels import helper
helper.compile_all({places})
"""


class _Helper:
    def __init__(self):
        self.expected = []  # kernels, in the order in which they will be called
        self.process = None

    def start(self):
        """Something has to be compiled, so what is expected has, too."""
        if not self.expected or self.process or numba.config.NUMBA_NUM_THREADS < 2:
            return
        if "python" not in os.path.basename(sys.executable or "").lower():
            return  # a program that has Python in it: it would be started again
        known = list(APART)
        places = [known.index(kernel) for kernel in self.expected]
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        code = _CODE.format(path=sys.path, places=places)
        command = [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", code]
        with suppress(Exception):  # whatever keeps it from starting, it is not needed
            self.process = subprocess.Popen(command, **streams)
            atexit.register(self.stop)

    def stop(self):
        """What it still compiles, this process has."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None
            atexit.unregister(self.stop)


_helper = _Helper()


def expect(kernel):
    """Soon this kernel of APART, perhaps guarded, is called. Nothing happens if all is compiled."""
    if not numba.config.DISABLE_JIT:
        kernel = kernel if kernel in APART else kernel.__wrapped__
        if not kernel.signatures and kernel not in _helper.expected:
            _helper.expected.append(kernel)


def missing():
    """A kernel is not in the cache."""
    _helper.start()


def found(function):
    """A kernel was loaded, or compiled."""
    left = [kernel for kernel in _helper.expected if kernel.py_func is not function]
    if _helper.expected and not left:
        _helper.stop()
    _helper.expected = left


def compile_all(places):
    """What the helper does: kernels at these places in APART, then what they call, last first."""
    never_run()
    expected = [list(APART)[place] for place in places]
    called = [call for kernel in expected for call in _called_by(kernel)]
    for kernel in (*expected, *reversed(called)):
        kernel.compile(APART[kernel])


def _called_by(kernel):
    """The kernels that this one calls, each behind those that it calls."""
    for call in callees(kernel.py_func):
        yield from _called_by(call.kernel)
        yield call.kernel
