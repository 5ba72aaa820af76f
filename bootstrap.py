"""Lets the scripts beside this file run from a bare shell: with the Python of .venv, if need be."""

import atexit
import gc
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path


def use_venv():
    """Return if this Python can import what the package needs; else start over in .venv's.

    Without a .venv it says what to do in one line, and exits with status 1. Until a command takes
    over, Ctrl-C ends the program at once, without a traceback. At its end, Python does not look for
    garbage among all objects, which would take a tenth of a second.
    """
    atexit.register(gc.freeze)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.version_info >= (3, 10) and all(map(find_spec, ("numpy", "numba", "sentencepiece"))):
        return
    here = Path(__file__).resolve().parent
    folder = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
    python = here.joinpath(".venv", *folder)
    script = Path(sys.argv[0])  # perhaps a link, of another name than the file beside this one
    if not python.exists() or Path(sys.prefix).resolve() == here / ".venv":
        told = f"{script.name}: numpy and numba are not installed"
        sys.exit(f"{told}: run `make setup` in {here} first")
    arguments = [str(python), str(script.resolve()), *sys.argv[1:]]
    if os.name == "nt":  # where execv returns to the shell before the program ends
        import subprocess

        sys.exit(subprocess.call(arguments))
    os.execv(python, arguments)
