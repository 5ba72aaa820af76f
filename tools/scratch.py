"""What a function writes into a file, as bytes; the file is gone afterwards."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory


def written(write: Callable[[Path], object], name: str = "x.bin") -> bytes:
    """The content of the file that `write(path)` writes, at a path of that name."""
    with TemporaryDirectory(prefix="llama2np-scratch-") as folder:
        path = Path(folder) / name
        write(path)
        return path.read_bytes()
