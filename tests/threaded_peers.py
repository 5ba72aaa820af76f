"""Ranks as threads of one process: how they exchange arrays, without MPI."""

import threading
from contextlib import contextmanager
from queue import SimpleQueue

import numpy as np

from llama2np.formats.sharing import share_of
from llama2np.model.networks import description
from llama2np.model.rank_block import of_rank
from llama2np.model.shares import shares
from llama2np.model.split_engine import Follower, SplitEngine
from llama2np.model.transformer import Transformer, make_engine


class ThreadedPeers:
    """The peers of one rank. `board` is shared by all ranks."""

    def __init__(self, rank, board):
        self.rank, self.size, self._board = rank, board.size, board
        self._lock = threading.Lock()

    def sum(self, array):
        arrays = self._board.exchanged(self.rank, array)
        total = arrays[0]
        for other in arrays[1:]:
            total = total + other
        array[:] = total
        self._board.sums += self.rank == 0

    def gather(self, part, whole, parts):
        arrays = self._board.exchanged(self.rank, part)
        assert [each.shape[1] for each in arrays] == parts
        if whole is not None:
            whole[:] = np.concatenate(arrays, axis=1)

    def gather_all(self, part, whole, parts):
        self.gather(part, whole, parts)
        self._board.gathers += self.rank == 0

    def tell(self, numbers):
        for queue in self._board.queues[1:]:
            queue.put(numbers)

    def hear(self):
        return self._board.queues[self.rank].get()

    @contextmanager
    def turn(self):
        with self._lock:
            yield


class Board:
    def __init__(self, size):
        self.size, self.sums, self.gathers = size, 0, 0
        self.queues = [SimpleQueue() for _ in range(size)]
        self._barrier, self._arrays = threading.Barrier(size, timeout=60), [None] * size

    def exchanged(self, rank, array):
        self._arrays[rank] = array.copy()
        self._barrier.wait()
        arrays = list(self._arrays)
        self._barrier.wait()
        return arrays

    def abort(self):
        self._barrier.abort()


@contextmanager
def shared_out(config, weights, size, engine="numpy", describe=None):
    """Rank 0's Transformer, while other threads follow it; `board` has what they exchanged."""
    board, parts = Board(size), shares(config, size)
    networks, followers, errors = {}, [], []

    def make(rank):
        peers = ThreadedPeers(rank, board)
        kind = Follower if rank else SplitEngine

        def made(program):
            return kind(program, make_engine(engine, program), peers, parts)

        share = parts[rank]
        described = of_rank(describe or description(share.config), share)
        own = share_of(weights, share)
        networks[rank] = Transformer(share.config, own, described, engine=made)
        return networks[rank]

    def follow(rank):
        try:
            networks[rank]._engine.follow()
        except Exception as error:
            errors.append(error)
            board.abort()

    for rank in range(size):
        make(rank)
    for rank in range(1, size):
        followers.append(threading.Thread(target=follow, args=(rank,), daemon=True))
        followers[-1].start()
    network = networks[0]
    network.board, network.parts, network.ranks = board, parts, networks
    try:
        yield network
    finally:
        for queue in board.queues[1:]:
            queue.put(None)
        for each in followers:
            each.join(60)
    assert not errors, errors
