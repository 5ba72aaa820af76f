"""Names that a pickle may give: which of them can stand for data.

A pickle is never run here, so no name in it can do harm, and an object of any class is passed over.
But a name such as os.system says that somebody tried: such a file is refused by that name. The list
is of what attacks are made of, not of all that could be; what is missing in it is not run either.
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
# What is data in them.
_DATA = {("types", "SimpleNamespace"), ("types", "MappingProxyType"), ("types", "NoneType")}
# What runs, loads or changes something, in whatever module it is.
_RUN = frozenset(
    "eval exec execfile compile system popen Popen __import__ reload load loads _load_from_bytes "
    "open file input raw_input breakpoint globals locals vars setattr delattr exit quit".split()
)


@dataclass(frozen=True, slots=True)
class Name:
    """A name that a pickle refers to; never what it stands for."""

    module: str
    name: str


def is_data(module: str, name: str) -> bool:
    """Whether this can be the name of a class of data, or of what makes an object of one."""
    root, last = module.partition(".")[0], name.rpartition(".")[2]
    return (module, name) in _DATA or (root not in _MODULES and last not in _RUN)
