"""Names in a pickle: which of them can be names of data.

A pickle is never executed here, so no name in it can do harm, and objects of unknown classes are
skipped. But a name such as os.system is a sign of an attack: a file that contains it is rejected.
The list has the names that attacks use, not all that they could use; a name that is missing in it
is not executed either.
"""

from __future__ import annotations

from dataclasses import dataclass

# Python's modules that start programs, run code, reach files and the network, or look up names.
_MODULES = frozenset(
    "asyncio atexit bdb cgi code codeop commands concurrent cProfile ctypes distutils doctest "
    "ftplib gc http idlelib imp importlib inspect marshal mmap multiprocessing nt ntpath "
    "operator os pdb pickle _pickle pkgutil platform popen2 posix posixpath profile pty pydoc "
    "resource runpy select shelve shutil signal site smtplib socket ssl subprocess sys "
    "tempfile _thread threading timeit trace types unittest urllib venv webbrowser xmlrpc "
    "zipimport".split()
)
# Names in these modules that are data.
_DATA = {("types", "SimpleNamespace"), ("types", "MappingProxyType"), ("types", "NoneType")}
# Names that execute, load or change something, in any module.
_RUN = frozenset(
    "eval exec execfile compile system popen Popen __import__ reload load loads _load_from_bytes "
    "open file input raw_input breakpoint globals locals vars setattr delattr exit quit".split()
)


@dataclass(frozen=True, slots=True)
class Name:
    """A name in a pickle; the object of that name is never looked up."""

    module: str
    name: str


def is_data(module: str, name: str) -> bool:
    """Whether this can be the name of a class of data, or of a function that makes an object."""
    root, last = module.partition(".")[0], name.rpartition(".")[2]
    return (module, name) in _DATA or (root not in _MODULES and last not in _RUN)
