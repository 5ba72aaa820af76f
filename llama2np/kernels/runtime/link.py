"""Linking: kernels that other kernels call by address. numba would inline and compile each copy.

Inlined into three kernels that are inlined into a fourth, a kernel is compiled seven times. That
would take most of the time of the first run. A call by address costs as much as a call in C.
"""

import inspect
from functools import cache

import llvmlite.binding as llvm
import numba
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LINKED = {}  # {kernel: types of its arguments} of all separately compiled kernels
_NOWHERE = 1  # an address for code that is compiled, but not run


class _Process:
    runs = True  # whether it runs the code that it compiles


def never_run():
    """Declare that this process only compiles, so that linked kernels may be missing."""
    _Process.runs = False


def address_of(kernel, kinds):
    """Compile or load `kernel` for arguments of these types; return the address of its code."""
    load = getattr(kernel._cache, "address", None)  # numba's own cache has none
    if load and kinds not in kernel.overloads and (address := load(kinds)):
        return address
    kernel.compile(kinds)
    compiled = kernel.overloads[kinds]
    return compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)


def linked(kernel, *kinds, returns=types.void):
    """A stub for other kernels that calls the separately compiled `kernel` by address.

    kinds: the types of its arguments, such as float32[:, ::1] for a contiguous matrix.
    """
    if numba.config.DISABLE_JIT:
        return kernel
    LINKED[kernel] = kinds
    function, own = kernel.py_func, inspect.signature(kernel.py_func)
    # The symbol in the caller's machine code, also in the cache.
    symbol = f"{function.__module__}.{function.__qualname__}{kinds}"

    def resolve():
        """Compile or load the kernel and register its address with LLVM, before a caller runs."""
        llvm.add_symbol(symbol, address_of(kernel, kinds) if _Process.runs else _NOWHERE)

    def generate(context, builder, _signature, arguments):
        convention = context.call_conv
        kind = convention.get_function_type(returns, kinds)
        there = cgutils.get_or_insert_function(builder.module, kind, symbol)
        status, found = convention.call_function(builder, there, returns, kinds, arguments)
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return context.get_dummy_value() if returns is types.void else found

    def call(_context, *_arguments):
        resolve()
        return returns(*kinds), generate

    # numba reads the names of the arguments from this signature.
    first = inspect.Parameter("_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    call.__signature__ = own.replace(parameters=[first, *own.parameters.values()])
    call = intrinsic(call)
    call.resolve, call.kernel = resolve, kernel
    return call


@cache
def callees(function):
    """The stubs that this function calls, directly or in kernels that are inlined into it: a tuple.

    They must be global or free variables of it: a call of module.stub is not found.
    """
    names, found = inspect.getclosurevars(function), []
    for value in (*names.nonlocals.values(), *names.globals.values()):
        if hasattr(value, "resolve"):
            found.append(value)
        elif hasattr(value, "py_func"):
            found += callees(value.py_func)
    return tuple(found)
