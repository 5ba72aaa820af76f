"""Kernels that other kernels call. numba would copy them in, and optimise every copy anew.

A kernel that stands in three others, and they in one more, is compiled seven times over: most of
what the first run ever would wait for. A call by address costs as much as any call in C.
"""

import inspect

import llvmlite.binding as llvm
import numba
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

APART = {}  # kernel: the types of its arguments, of all that are compiled apart from others
_NOWHERE = 1  # an address that stands for code which is never run


class _Process:
    runs = True  # what it compiles


def never_run():
    """This process only compiles: code may call what is not there."""
    _Process.runs = False


def called(kernel, *kinds, returns=types.void):
    """What stands for `kernel` in others, if it is to be called there.

    kinds: the types of its arguments, float32[:, ::1] for a contiguous matrix that can be written.
    """
    if numba.config.DISABLE_JIT:
        return kernel
    APART[kernel] = kinds
    function, own = kernel.py_func, inspect.signature(kernel.py_func)
    # The symbol that the caller's code has for it. It stays in that code when numba keeps it.
    symbol = f"{function.__module__}.{function.__qualname__}{kinds}"

    def ready():
        """Compile or load the kernel, and tell LLVM where it is, before code that calls it runs."""
        if not _Process.runs:
            llvm.add_symbol(symbol, _NOWHERE)
            return
        kernel.compile(kinds)
        compiled = kernel.overloads[kinds]
        name = compiled.fndesc.llvm_func_name
        llvm.add_symbol(symbol, compiled.library.get_pointer_to_function(name))

    def generate(context, builder, _signature, arguments):
        convention = context.call_conv
        kind = convention.get_function_type(returns, kinds)
        there = cgutils.get_or_insert_function(builder.module, kind, symbol)
        status, found = convention.call_function(builder, there, returns, kinds, arguments)
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return context.get_dummy_value() if returns is types.void else found

    def call(_context, *_arguments):
        ready()
        return returns(*kinds), generate

    # numba reads the names of the arguments off here.
    first = inspect.Parameter("_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    call.__signature__ = own.replace(parameters=[first, *own.parameters.values()])
    call = intrinsic(call)
    call.ready, call.kernel = ready, kernel
    return call


def callees(function):
    """What `called` made, of all that this function, or a kernel that it takes in, calls so."""
    names = inspect.getclosurevars(function)
    for value in (*names.nonlocals.values(), *names.globals.values()):
        if hasattr(value, "ready"):
            yield value
        elif hasattr(value, "py_func"):
            yield from callees(value.py_func)
