"""numba's disk cache of a kernel, with file names that are the same in every process.

numba derives the name for a closure from a pickle of its free variables. The pickle of another
kernel, or of an intrinsic, contains a random number, which differs in each process: such code would
be written each time and never found. Here the name is derived from what the free variables are. The
source text of all kernels is already part of the folder's name (cache_folder.py).

numba also writes an index beside the code, so two processes may leave one that does not match, and
it unpickles any file that it finds. Here each compiled kernel is one file, with a checksum.
"""

import hashlib
import pickle
import re
from contextlib import suppress
from functools import lru_cache

import llvmlite.binding as llvm
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.runtime._nrt_python import c_helpers
from numba.core.serialize import dumps
from numba.core.sigutils import normalize_signature

from llama2np.kernels.runtime import sealed
from llama2np.kernels.runtime.link import callees


class Cache(NullCache):
    """The cache of one function, whose free variables may be kernels, intrinsics and values."""

    def __init__(self, function, folder, by_address=False):
        self._function, self._folder, self._by_address = function, folder, by_address
        self.addresses = {}  # {types: address} of the code that was loaded

    @property
    def cache_path(self):
        return str(self._folder)

    def save_overload(self, sig, data):
        if not data.library.has_dynamic_globals and all(part.can_cache for part in data.lifted):
            path, key = self._file(sig, data.codegen)
            with suppress(OSError):  # a full disk only costs time
                sealed.write(path, key, self._dumped(data))

    def _dumped(self, data):
        if self._by_address:
            return dumps((data.fndesc.llvm_func_name, data.library._get_compiled_object()))
        *parts, _environments = data._reduce()  # which only Python objects need: see inlined.py
        return dumps((*parts, ()))

    def load_overload(self, sig, target_context):
        if self._by_address:
            return None  # see `address`
        for call in callees(self._function):
            call.resolve()
        # numba's own method prepares for compilation first, which takes longer than all the rest.
        _register_runtime()
        path, key = self._file(sig, target_context.codegen())
        data = sealed.read(path, key)
        if data is not None:
            with suppress(Exception):  # after any error of the pickle, it is compiled
                found = CompileResult._rebuild(target_context, *pickle.loads(data))
                if found.signature.args == normalize_signature(sig)[0]:
                    return found
            sealed.remove(path)
        return None

    def address(self, sig):
        """Load a kernel that is called by address; return this address, or None without a file.

        All that numba needs to call a kernel from Python is left out: that takes most of the time.
        """
        if sig in self.addresses:
            return self.addresses[sig]
        for call in callees(self._function):
            call.resolve()
        codegen = cpu_target.target_context.codegen()
        path, key = self._file(sig, codegen)
        data = sealed.read(path, key)
        if data is not None:
            with suppress(Exception):  # after any error of the pickle, it is compiled
                name, code = pickle.loads(data)
                self.addresses[sig] = _load(codegen._engine, name, code)
                return self.addresses[sig]
            sealed.remove(path)
        return None

    def has(self, sig):
        """Whether there is a file for these types; it may be damaged."""
        return self._file(sig, cpu_target.target_context.codegen())[0].exists()

    def _file(self, sig, codegen):
        """The path of the code for these types and this CPU, and the key of its checksum."""
        types = tuple(map(str, normalize_signature(sig)[0]))
        everything = types, codegen.magic_tuple(), identity(self._function)
        key = hashlib.sha256(repr(everything).encode()).digest()
        name = f"{self._function.__module__.rpartition('.')[2]}.{self._function.__qualname__}"
        name = re.sub(r"[^\w.]", "", name)[:80]  # without the <> of <locals>
        return self._folder / f"{name}-{key.hex()[:32]}.nbc", key


def _load(engine, name, code):
    """Give machine code to LLVM's engine; return the address of the function of this name."""
    _register_runtime()
    engine._ee.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine.get_function_address(name)


@lru_cache
def _register_runtime():
    """Tell LLVM the addresses of numba's runtime functions, to which all machine code refers.

    numba's own function also compiles some functions, which only kernels that allocate need.
    """
    for name, address in c_helpers.items():
        llvm.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


def closure_hash(function):
    """A suffix for the name of a closure, so that no two kernels have the same name.

    numba's symbol for a kernel is its name and a number that it counts in each process. So two
    closures of one function, compiled by two processes, may get the same symbol; and a kernel that
    calls both, loaded from the cache, would call one of them twice.
    """
    return hashlib.sha256(repr(identity(function)).encode()).hexdigest()[:8]


def identity(value):
    """A text that identifies a free variable of a kernel, the same in each process.

    For a kernel or an intrinsic this is the identity of its Python function; for a function, its
    name and the identities of its free variables; for anything else, its text. If that text has an
    address in it, the code is not found again, which only costs time.
    """
    value = getattr(value, "py_func", None) or getattr(value, "_defn", None) or value
    if isinstance(value, tuple):
        return tuple(identity(part) for part in value)
    if not hasattr(value, "__code__"):
        return str(value)
    cells = tuple(identity(cell.cell_contents) for cell in value.__closure__ or ())
    return value.__module__, value.__qualname__, value.__code__.co_firstlineno, cells
