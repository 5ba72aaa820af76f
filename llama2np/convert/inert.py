"""Names that a pickle may give: which of them can stand for data.

A pickle is never run here, so no name in it can do harm. But one of Python's own that is no data,
such as os.system, says that somebody tried: such a file is refused by that name. What other
packages and the trainer's own code call their classes is not known; their objects are left out.
"""

from __future__ import annotations

import builtins
import sys
from dataclasses import dataclass

# Of Python's own modules, those of which only data is pickled.
_MODULES = frozenset(
    "argparse array collections copyreg copy_reg datetime decimal enum fractions ipaddress "
    "itertools numbers pathlib random typing uuid zoneinfo _codecs".split()
)
_NAMES = {
    *(("functools", "partial"), ("types", "SimpleNamespace"), ("re", "_compile")),
    *(("time", "struct_time"), ("_io", "BytesIO"), ("_io", "StringIO")),
}
_BUILTIN = ("builtins", "__builtin__")  # Python 3's and Python 2's
_BUILTIN_NAMES = ("getattr", "long", "unicode", "xrange")  # getattr: the member of an enum
# What runs or loads something in whatever module it is.
_RUN = frozenset(
    "eval exec compile system popen Popen __import__ load loads _load_from_bytes".split()
)


@dataclass(frozen=True, slots=True)
class Name:
    """A name that a pickle refers to; never what it stands for."""

    module: str
    name: str


def is_data(module: str, name: str) -> bool:
    """Whether this can be the name of a class of data, or of what makes an object of one."""
    root, last = module.partition(".")[0], name.rpartition(".")[2]
    if last in _RUN:
        return False
    if root in _BUILTIN:
        return name in _BUILTIN_NAMES or isinstance(vars(builtins).get(name), type)
    return root in _MODULES or (module, name) in _NAMES or root not in sys.stdlib_module_names
