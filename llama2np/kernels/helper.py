"""A second process that compiles at the same time: the first run of all is sooner at its answer.

The kernels that write text are compiled apart (calls.py). This process takes them in the order in
which it comes to them; the helper begins with the last. What one has done, the other finds in the
cache: neither waits for the other, and if the helper fails, nothing is missing.
"""

import atexit
import subprocess
import sys
from contextlib import suppress

import numba

from llama2np.kernels.calls import APART, callees, never_run

_CODE = """\
import sys
sys.path[:] = {path!r}
from llama2np.kernels import helper
helper.compile_all({place})
"""


class _Helper:
    def __init__(self):
        self.kernel = None  # the one that is expected
        self.process = None

    def start(self):
        """Something has to be compiled, so what is expected has, too."""
        frozen = getattr(sys, "frozen", False)  # then sys.executable is the program, not Python
        if not self.kernel or self.process or frozen or numba.config.NUMBA_NUM_THREADS < 2:
            return
        code = _CODE.format(path=sys.path, place=list(APART).index(self.kernel))
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        with suppress(OSError):
            self.process = subprocess.Popen([sys.executable, "-c", code], **streams)
            atexit.register(self.stop)

    def stop(self):
        """What it still compiles, this process has."""
        self.kernel = None
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None
            atexit.unregister(self.stop)


_helper = _Helper()


def expect(kernel):
    """Soon this one of `kernels` is called: it is in APART. Nothing happens if all is compiled."""
    if not numba.config.DISABLE_JIT:
        _helper.kernel = kernel.__wrapped__


def missing():
    """A kernel is not in the cache."""
    _helper.start()


def there(function):
    """A kernel was loaded, or compiled."""
    if _helper.kernel and _helper.kernel.py_func is function:
        _helper.stop()


def compile_all(place):
    """What the helper does: the kernel at a place in APART, then what it calls, the last first."""
    never_run()
    for kernel in reversed(list(_in_order(list(APART)[place]))):
        kernel.compile(APART[kernel])


def _in_order(kernel):
    """The kernels that this one calls, each behind those that it calls, and then itself."""
    for call in callees(kernel.py_func):
        yield from _in_order(call.kernel)
    yield kernel
