"""Compile all kernels in advance, by running tiny models through the code paths of real ones.

This is for container images and CI, where the first user should not wait. The machine code serves
any model: it depends on the types of arrays, not on their sizes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from llama2np import kernels
from llama2np.bench.machine import Memory
from llama2np.decoding.generation import continue_tokens
from llama2np.decoding.sampler import Sampler
from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header, Tensor
from llama2np.kernels.engine import kernels_of
from llama2np.kernels.runtime import compiler
from llama2np.kernels.runtime.link import LINKED
from llama2np.model.config import Config
from llama2np.model.transformer import State, Transformer

_SHAPE = Config(
    dim=128, hidden_dim=192, n_layers=1, n_heads=4, n_kv_heads=2, vocab_size=256, seq_len=512
)
# float32, and int8 with both usual group sizes.
_HEADERS = (Header(0, _SHAPE, True), Header(2, _SHAPE, True, 32), Header(2, _SHAPE, False, 64))
# One token; a small batch, whose matrices several threads multiply (3 * 192 * 128 is enough) while
# one thread computes attention; a block with wide tiles and a rest with narrow ones, with threads
# for everything.
_PROMPTS = (1, 3, 1 + 256 + 90)


@dataclass(frozen=True, slots=True)
class Report:
    """The result of `warm_up`."""

    compiled: int  # number of kernels; a kernel counts for each combination of argument types
    kept: int  # number of kernels in the folder now
    folder: Path  # of the machine code
    seconds: float


def warm_up() -> Report:
    """Compile all kernels that are not compiled yet. Raises OSError if they cannot be stored."""
    if kernels.CACHE_FOLDER is None:
        raise OSError("no folder for compiled code can be written: name one in NUMBA_CACHE_DIR")
    start, folder = time.perf_counter(), Path(kernels.CACHE_FOLDER)
    before = _kept(folder)
    with TemporaryDirectory(ignore_cleanup_errors=True) as models:
        _compile([_network(Path(models), header) for header in _HEADERS])
    Memory(2**16)  # it compiles the kernel of `llama2np bench`
    kept = _kept(folder)
    return Report(kept - before, kept, folder, time.perf_counter() - start)


def _compile(networks: list[Transformer]) -> None:
    """Compile what these networks need. Afterwards nothing has their files open."""
    needed = dict.fromkeys(
        kernel
        for network in networks
        for count in _PROMPTS
        for kernel in kernels_of(network.program, count, 1, State(network.config).chunk)
    )
    compiler.prepare(needed)
    for kernel in compiler.missing(needed):  # with one processor, there is no second process
        kernel.compile(LINKED[kernel])
    for network in networks:  # this compiles the kernels that are not in `needed`
        _use(network)


def _kept(folder: Path) -> int:
    """The number of stored kernels: numba writes a file for each."""
    return sum(1 for _ in folder.rglob("*.nbc"))


def _network(folder: Path, header: Header) -> Transformer:
    path = folder / f"{header.version}-{header.group_size}.bin"
    checkpoint.save(path, header, _zeros(header))
    return Transformer(*checkpoint.load(path))


def _use(network: Transformer) -> None:
    """Read prompts and continue them, greedily and with sampling."""
    for sampler in (Sampler(0), Sampler(1.0, seed=1)):
        for count in _PROMPTS:
            end = count + 2
            for _ in continue_tokens(network, State(network.config), [1] * count, sampler, end):
                pass


def _zeros(header: Header) -> dict[str, Tensor]:
    """Tensors of zeros for `checkpoint.save`: machine code does not depend on the values."""
    tensors: dict[str, Tensor] = {}
    for name, shape in header.tensors():
        values = np.zeros(shape, np.int8 if header.quantized(name) else np.float32)
        if header.quantized(name):
            scales = np.zeros((*shape[:-1], shape[-1] // header.group_size), np.float32)
            tensors[name] = values, scales
        else:
            tensors[name] = values
    return tensors
