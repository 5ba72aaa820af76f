"""The processes that share out a model: how they load it, and what they do for rank 0."""

from __future__ import annotations

import os
import socket
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from llama2np import __version__
from llama2np.arguments import path_like
from llama2np.formats import loading
from llama2np.formats.loading import Loaded
from llama2np.formats.sharing import share_of
from llama2np.llama import Llama
from llama2np.model.config import Config
from llama2np.model.networks import description
from llama2np.model.program import Program
from llama2np.model.rank_block import of_rank
from llama2np.model.shares import Share, shares
from llama2np.model.split_engine import Follower, SplitEngine
from llama2np.model.transformer import Transformer, make_engine
from llama2np.model.weights import Weights
from llama2np.mpi import launch
from llama2np.mpi.affinity import allowed, crowded, keep_to, part_of
from llama2np.mpi.peers import MpiPeers
from llama2np.output import printable

StrPath = str | os.PathLike[str]
_FOR_MPIRUN = 0.5  # seconds, to pass on a line before it ends all processes


@dataclass(frozen=True)
class _Asked:
    """What rank 0 asks all ranks to load."""

    path: StrPath
    engine: str
    adapter: StrPath | None
    threads: int | None
    activations: str

    def opened(self) -> Loaded:
        """The whole model, mapped."""
        loaded = loading.load(self.path)
        return loaded if self.adapter is None else loading.with_adapter(loaded, self.adapter)


@dataclass(frozen=True)
class _Facts:
    """What must be equal on all ranks. Rank 0 compares it with its own."""

    version: str
    config: Config
    checksum: int
    processor: object

    def differs(self, other: _Facts) -> str:
        """What is different, in words; "" if nothing is."""
        if self.version != other.version:
            return f"llama2np {other.version}, rank 0 has {self.version}"
        if (self.config, self.checksum) != (other.config, other.checksum):
            return "another model than on rank 0 has this path"
        # Rounding differs between kinds of processors. That changes little, except where a router
        # chooses: the ranks would compute different experts.
        if self.config.n_experts and self.processor != other.processor:
            return (
                "another kind of processor than rank 0: a mixture of experts needs the same on "
                "all, for example by NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES="
            )
        return ""


class Ranks:
    """All processes of a communicator, for the block of a `with` statement.

    The ranks other than 0 compute what rank 0 asks, and enter the block when rank 0 leaves its own.
    """

    def __init__(self, comm: Any = None):
        """Raises ValueError if mpi4py is missing, or does not find the other processes."""
        self._mpi = mpi4py()
        comm = self._mpi.COMM_WORLD if comm is None else comm
        rank = f"rank {comm.Get_rank()} on {_host()}"
        self._peers, self._comm = MpiPeers(comm, f"{rank} (process {os.getpid()})"), comm
        self.rank, self.size = self._peers.rank, self._peers.size
        self._free_processors: Callable[[], None] = lambda: None
        _end_all_on_errors(self._peers)
        if self.size > 1 and self._mpi.Query_thread() == self._mpi.THREAD_MULTIPLE:
            self._peers.watch()

    def __enter__(self) -> Ranks:
        if self.rank:
            try:
                self._follow()
            except BaseException as error:  # also SystemExit: rank 0 would wait for this one
                self._die(error)
            self._free_processors()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and self._peers.broken:
            self._die(error)
        if not self.rank:
            self._peers.end()
            self._free_processors()

    def load(
        self,
        path: StrPath,
        tokenizer: StrPath | None = None,
        engine: str = "compiled",
        adapter: StrPath | None = None,
        threads: int | None = None,
        activations: str | None = None,
    ) -> Llama:
        """Let all ranks load a model. On rank 0 only, once. Raises as `mpi.load` does."""
        rounding = loading.activations_for(path_like("path", path), activations)
        asked = _Asked(path, engine, adapter, threads, rounding)
        loaded = asked.opened()
        words = loaded.tokenizer(tokenizer)
        parts = _parts(asked, loaded, self.size)
        self._peers.tell_object(asked)
        self._peers.broken = True  # until all have answered
        self._peers.prepare = self._threads(asked)

        def make(program: Program) -> SplitEngine:
            return SplitEngine(program, make_engine(engine, program, rounding), self._peers, parts)

        share = parts[0]
        describe = of_rank(description(share.config), share)
        network = Transformer(share.config, share_of(loaded.weights, share), describe, engine=make)
        self._agree(_facts(loaded, engine))
        model = Llama(network, words)
        model.suggested_sampling = loaded.suggested_sampling
        return model

    def _agree(self, own: _Facts) -> None:
        """Raise ValueError for the first other rank that could not load the same."""
        answers = self._peers.collect((_host(), "", own))
        self._peers.broken = False
        for rank, (host, error, facts) in enumerate(answers):
            if error or (error := own.differs(facts)):
                raise ValueError(f"rank {rank} on {host}: {error}")

    def _follow(self) -> None:
        """Load what rank 0 asks, and compute until it ends."""
        while (asked := self._peers.hear_object()) is not None:
            follower, facts, error = None, None, ""
            self._threads(asked)()
            try:
                follower, facts = self._follower(asked)
            except (ValueError, OSError, MemoryError) as found:
                error = _line(found)
            self._peers.collect((_host(), error, facts))
            if follower is not None:
                follower.follow()
                break
        self._peers.ended()

    def _follower(self, asked: _Asked) -> tuple[Follower, _Facts]:
        loaded = asked.opened()
        parts = _parts(asked, loaded, self.size)
        share = parts[self.rank]
        weights = share_of(loaded.weights, share).own()
        program = Program(share.config, weights, of_rank(description(share.config), share))
        inner = make_engine(asked.engine, program, asked.activations)
        return Follower(program, inner, self._peers, parts), _facts(loaded, asked.engine)

    def _threads(self, asked: _Asked) -> Callable[[], None]:
        """A function that sets the number of threads: by default an equal share of processors.

        Before that, the ranks meet (`meet_in_memory`), and the calling thread, with those that it
        starts later, is limited to its processors. All ranks must call this at the same time.
        """
        node = self._comm.Split_type(self._mpi.COMM_TYPE_SHARED, self.rank)
        everyone = node.allgather(allowed())
        if asked.engine != "compiled":
            return lambda: None
        from llama2np import kernels

        self._peers.meet_in_memory(self._mpi, crowded(everyone))
        own, part = everyone[node.Get_rank()], part_of(everyone, node.Get_rank())
        sharing = sum(not set(own).isdisjoint(others) for others in everyone)
        count = asked.threads or min(kernels.max_threads(), max(len(own) // sharing, 1))
        if count <= len(part) < len(own):
            self._free_processors = keep_to(part)
        return partial(kernels.set_threads, count)

    def _die(self, error: BaseException) -> None:
        """End all processes, since this one cannot go on."""
        text = _line(error)
        if not isinstance(error, ValueError | OSError):  # others say little without their name
            text = f"{type(error).__name__}: {text}"
        print(f"llama2np: rank {self.rank} on {_host()}: {text}", file=sys.stderr, flush=True)
        time.sleep(_FOR_MPIRUN)
        self._peers.abort()


def mpi4py() -> Any:
    """The module MPI of mpi4py, which starts MPI. Raises ValueError."""
    # A rank that waits lets other programs run. Open MPI's default is that it does not: if others
    # need the processors, a rank then waits for milliseconds at each exchange, not microseconds.
    os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    # UCX prints an error where it finds no network that it can use.
    os.environ.setdefault("OMPI_MCA_osc", "^ucx")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # it is missing, or finds no MPI
        raise ValueError(
            f"MPI needs mpi4py and a library of MPI ({_line(error)}): "
            f"{sys.executable} -m pip install 'llama2np[mpi]'"
        ) from None
    if MPI.COMM_WORLD.Get_size() == 1 < launch.size():
        library = MPI.Get_library_version().partition("\n")[0].partition(",")[0]
        raise ValueError(
            f"{launch.size()} processes were started, but mpi4py does not see the others: start "
            f"them with the mpirun of its MPI ({library}), or set {launch.SWITCH}=0"
        )
    return MPI


def _end_all_on_errors(peers: MpiPeers) -> None:
    """Let an exception that nobody catches end all ranks: the others might wait for this one."""
    before = sys.excepthook

    def tell_and_abort(*error: Any) -> None:
        before(*error)
        peers.abort()

    sys.excepthook = tell_and_abort


def _parts(asked: _Asked, loaded: Loaded, size: int) -> list[Share]:
    try:
        return shares(loaded.config, size)
    except ValueError as error:
        raise ValueError(f"{asked.path}: {error}") from None


def _facts(loaded: Loaded, engine: str) -> _Facts:
    processor: object = None
    if engine == "compiled":
        from llama2np import kernels

        processor = kernels.target()
    return _Facts(__version__, loaded.config, _checksum(loaded.weights), processor)


def _checksum(weights: Weights) -> int:
    """Of the norms and biases, and of the shapes and number formats of all tensors."""
    found = 0
    for name, tensor in weights.items():
        data = f"{name} {tensor!r} {getattr(tensor, 'kind', '')}".encode()
        if isinstance(tensor, np.ndarray):
            data = tensor.tobytes()
        found = zlib.crc32(data, found)
    return found


def _host() -> str:
    return socket.gethostname()


def _line(error: BaseException) -> str:
    return printable(" ".join(str(error).split()) or type(error).__name__)
