"""Where numba keeps the code of a kernel, under a name that the next process finds again.

numba names the code of a closure by pickling what it closes over. Of another kernel, or of an
intrinsic, the pickle holds a number drawn at random in each process: such code would be written
anew each time and never found. Here the name says what is closed over instead. The text of all
kernels is in the folder's name already (jit.py).
"""

import hashlib
from contextlib import suppress

from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.runtime import rtsys
from numba.core.sigutils import normalize_signature

from llama2np.kernels.runtime import compiler
from llama2np.kernels.runtime.link import callees


class Cache(FunctionCache):
    """A FunctionCache for functions that close over kernels, intrinsics and plain values.

    Each has files of its own. numba names them by the line of the source, so closures made on one
    line would share an index, and processes that compile two of them at once mix them up.
    """

    def __init__(self, function):
        super().__init__(function)
        name = hashlib.sha256(repr(identity(function)).encode()).hexdigest()[:16]
        base, stamp = self._impl.filename_base, self._impl.locator.get_source_stamp()
        self._cache_file = IndexDataCacheFile(self._cache_path, f"{base}-{name}", stamp)

    def save_overload(self, sig, data):
        with suppress(OSError):  # a disk that is full by now costs time, not the answer
            super().save_overload(sig, data)
        compiler.found(self._py_func)

    def load_overload(self, sig, target_context):
        for call in callees(self._py_func):
            call.resolve()
        # FunctionCache's would get ready to compile first, which takes longer than all the rest.
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            found = self._load_overload(sig, target_context)
        if found is not None and found.signature.args == normalize_signature(sig)[0]:
            compiler.found(self._py_func)
            return found
        compiler.missing()
        return None

    def _index_key(self, sig, codegen):
        return sig, codegen.magic_tuple(), repr(identity(self._py_func))


def identity(value):
    """What tells two values that a kernel may close over apart, the same in each process.

    A kernel or an intrinsic is the function it was made of; a function is its name and what it
    closes over. Anything else is its text: where that holds an address, the code is not found
    again, which costs time and no more.
    """
    value = getattr(value, "py_func", None) or getattr(value, "_defn", None) or value
    if isinstance(value, tuple):
        return tuple(identity(part) for part in value)
    if not hasattr(value, "__code__"):
        return str(value)
    cells = tuple(identity(cell.cell_contents) for cell in value.__closure__ or ())
    return value.__module__, value.__qualname__, value.__code__.co_firstlineno, cells
