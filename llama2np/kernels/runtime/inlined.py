"""Kernels that exist only as parts of the kernels that call them.

numba optimizes every kernel and makes machine code of it. Then it does so once more in each kernel
that calls it. For a kernel that only other kernels call, the first time is of no use, and takes a
third of the time of the first run. Here it stays LLVM's intermediate code until it is part of its
caller.
"""

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class InlinedCompiler(Compiler):
    """numba's compiler, for `njit(pipeline_class=...)`. The result cannot be called from Python."""

    def define_pipelines(self):
        state = self.state
        name = state.func_id.func_qualname
        state.library = _IntermediateCode(state.targetctx.codegen(), name)
        return super().define_pipelines()


class _IntermediateCode(JITCodeLibrary):
    """The code of a kernel: simplified, but not optimized as a whole, and no machine code."""

    @property
    def codegen(self):
        return _WithoutEnvironments(self._codegen)

    def _optimize_final_module(self):
        pass

    def _finalize_final_module(self):
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


class _WithoutEnvironments:
    """numba's code generator. Environments are for code with Python objects: kernels have none."""

    def __init__(self, codegen):
        self._codegen = codegen

    def __getattr__(self, name):
        return getattr(self._codegen, name)

    def set_env(self, _name, _environment):
        """Do nothing: the engine does not know this code, so it has no address for it."""
