"""Many sequences at once: a pass reads a token of each text, and pieces of new prompts.

This is continuous batching (Yu et al. 2022, "Orca"): a sequence joins and leaves at any step. Each
has the tokens that it has alone, to the bit, since the network computes every row alike.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from llama2np.arguments import having, whole
from llama2np.decoding.completion import Completion
from llama2np.decoding.options import Request
from llama2np.decoding.prefixes import Prefixes, pages
from llama2np.model import rope
from llama2np.model.networks import check_predicts_tokens
from llama2np.model.state import State
from llama2np.model.transformer import BLOCK, Transformer
from llama2np.text.tokenizer import Tokenizer

_READERS = 4  # prompts that are read at the same time: a long one delays short ones little
_MEMORY = 2**32  # bytes of KV cache, if not said otherwise


class Batch:
    """The sequences that one network reads together. Only one thread may call its methods.

    max_sequences: how many are read at once; the others wait, in the order of their arrival.
    max_positions: the memory for their KV caches in positions, rounded to whole chunks, at least
    one context; by default max_sequences contexts, and at most 4 GiB. A sequence that does not fit
    any more waits, and is read again later. prompt_tokens: the tokens of prompts in a pass that
    also continues texts; more of them let the texts wait longer. Raises ValueError.
    """

    def __init__(
        self,
        network: Transformer,
        tokenizer: Tokenizer,
        *,
        max_sequences: int = 32,
        max_positions: int | None = None,
        prompt_tokens: int = 64,
    ):
        having("network", network, "a Transformer", "forward_rows", "config")
        having("tokenizer", tokenizer, "a Tokenizer", "extended")
        self.network, c = network, network.config
        check_predicts_tokens(c)
        self.max_sequences = whole("max_sequences", max_sequences, 1)
        self._tokenizer = tokenizer.extended(c.vocab_size)
        self._prompt_tokens = whole("prompt_tokens", prompt_tokens, 1)
        self._chunk = State(c).chunk
        context = -(-c.seq_len // self._chunk)
        bytes_of_page = 8 * c.n_layers * c.kv_dim * self._chunk
        self.max_pages = min(self.max_sequences * context, max(_MEMORY // bytes_of_page, context))
        if max_positions is not None:
            self.max_pages = max(whole("max_positions", max_positions, 1) // self._chunk, context)
        # Such networks must read a prompt in one call; reading a text again gives other logits.
        self._by_length = rope.depends_on_length(c)
        self._prefixes = Prefixes(0 if self._by_length else self.max_sequences)
        self._waiting: deque[Completion] = deque()
        self._active: list[Completion] = []
        self._count = 0

    def __len__(self) -> int:
        """The number of sequences that are not done."""
        return len(self._waiting) + len(self._active)

    def __repr__(self) -> str:
        return f"Batch({len(self._active)} of {self.max_sequences} sequences, {len(self)} in all)"

    @property
    def waiting(self) -> int:
        """The number of sequences that have not begun, or wait for memory."""
        return len(self._waiting)

    @property
    def pages(self) -> int:
        """The chunks of KV cache in use, also those that are kept for prompts to come."""
        return pages([*(each.state for each in self._active), *self._prefixes.kept])

    def add(self, request: Request) -> Completion:
        """Let a sequence wait for the next steps. Raises ValueError for an impossible prompt."""
        size, c = len(request.prompt), self.network.config
        if not 1 <= size <= c.seq_len:
            raise ValueError(f"the prompt has {size:,} tokens, the context holds {c.seq_len:,}")
        new = Completion(self.network, self._tokenizer, request, self._count)
        self._count += 1
        self._waiting.append(new)
        return new

    def clear(self) -> None:
        """Forget all sequences, and the KV caches that are kept."""
        self._waiting.clear()
        self._active.clear()
        self._prefixes.kept.clear()

    def step(self) -> list[tuple[Completion, str]]:
        """Compute one pass; return the text that was added to each sequence.

        A sequence that is done occurs here once more, with the rest of its text, which may be "".
        """
        news = self._end_early()
        self._admit()
        pieces = self._fitting(self._pieces())
        if not pieces:
            return news
        logits = self._read(pieces)
        for (each, _), row in zip(pieces, logits, strict=True):
            if each.unread:
                continue
            try:
                news.append((each, each.choose(row)))
            except Exception as error:  # of this sequence: a function of the caller, for example
                each.error = error
                news.append((each, ""))
            if each.done:
                self._leave(each)
        return news

    def _end_early(self) -> list[tuple[Completion, str]]:
        """End the sequences that are cancelled, and those that must generate nothing."""
        ended = []
        for each in [*self._active, *self._waiting]:
            if each.cancelled or not each.limit:
                ended.append((each, each.finish("cancelled" if each.cancelled else None)))
                if each in self._active:
                    self._leave(each)
                else:
                    self._waiting.remove(each)
        return ended

    def _leave(self, each: Completion) -> None:
        """Remove a sequence that is done; keep its KV cache for prompts with the same beginning."""
        self._active.remove(each)
        if each.state is not None and each.error is None:
            self._prefixes.keep(each.state)
        each.state = None

    def _admit(self) -> None:
        """Let waiting sequences begin, as long as there is memory for one more page of each."""
        while self._waiting and len(self._active) < self.max_sequences:
            new = self._waiting[0]
            if self._by_length:
                needed = sum(map(self._pages_at_the_end, [new, *self._active]))
            else:
                grow = sum(self._pages_at_the_end(each) > _held(each) for each in self._active)
                needed = pages(each.state for each in self._active) + grow + 1
            if self._active and needed > self.max_pages:
                return
            self._active.append(self._waiting.popleft())

    def _pages_at_the_end(self, each: Completion) -> int:
        return -(-(len(each.prompt) + each.limit - 1) // self._chunk)

    def _pieces(self) -> list[tuple[Completion, list[int]]]:
        """The tokens that each sequence reads next: its last one, or a piece of its prompt."""
        pieces = [(each, each.unread) for each in self._active if not each.reading]
        left = self._prompt_tokens if pieces else BLOCK
        readers: list[Completion] = []
        for each in self._active:
            if len(readers) < (1 if self._by_length else _READERS):
                if each.reading and self._begun(each):
                    readers.append(each)
        # In equal shares; what a short prompt does not need is for the others.
        for i, each in enumerate(sorted(readers, key=lambda each: len(each.unread))):
            share = max(left // (len(readers) - i), 1)
            piece = each.unread if each.whole else each.unread[:share]
            pieces.append((each, piece))
            left -= len(piece)
        return pieces

    def _begun(self, each: Completion) -> bool:
        """Give a sequence its State; False if it waits for another one that reads its prompt."""
        if each.state is not None:
            return True
        if self._by_length:
            each.begin(State(self.network.config))
            each.whole = True
            return True
        tokens = [*each.prompt, *each.tokens]
        best, read, wait = self._prefixes.find(tokens, self._active)
        if wait:
            return False
        each.reused = read
        each.begin(State(self.network.config) if best is None else best.fork(read))
        return True

    def _fitting(
        self, pieces: list[tuple[Completion, list[int]]]
    ) -> list[tuple[Completion, list[int]]]:
        """Give up memory until the pieces fit: kept KV caches first, then the newest sequences."""
        while pieces and self.pages + sum(map(self._more_pages, pieces)) > self.max_pages:
            if self._prefixes.drop():
                continue
            last = self._active[-1]
            if len(self._active) == 1:
                break  # a single sequence always fits
            self._active.pop()
            last.forget()
            self._waiting.appendleft(last)
            pieces = [piece for piece in pieces if piece[0] is not last]
        return pieces

    def _more_pages(self, piece: tuple[Completion, list[int]]) -> int:
        state = piece[0].state
        assert state is not None
        return max(-(-(state.pos + len(piece[1])) // self._chunk) - len(state.addresses), 0)

    def _read(self, pieces: list[tuple[Completion, list[int]]]) -> np.ndarray:
        """Read the pieces; return the logits after each."""
        states = [each.state for each, _ in pieces if each.state is not None]
        for each, piece in pieces:
            each.unread = each.unread[len(piece) :]
        rows, logits = [], np.empty((len(pieces), self.network.config.n_outputs), np.float32)
        for i, ((each, piece), state) in enumerate(zip(pieces, states, strict=True)):
            if each.whole:  # its rotation depends on where the call ends
                logits[i], each.whole = self.network.forward(piece, state), False
            else:
                rows.append(i)
        if rows:
            logits[rows] = self.network.forward_rows(
                [pieces[i][1] for i in rows], [states[i] for i in rows]
            )
        return logits


def _held(each: Completion) -> int:
    """The chunks of KV cache of a sequence."""
    return 0 if each.state is None else len(each.state.addresses)


def complete(
    batch: Batch, requests: Iterable[Request], raising: bool = True
) -> Iterator[tuple[Completion, str]]:
    """Add requests to a batch while it has room; yield what its steps return, until all are done.

    raising: raise the error of a sequence here.
    """
    source, more = iter(requests), True
    while more or len(batch):
        while more and len(batch) < batch.max_sequences:
            new = next(source, None)
            if new is None:
                more = False
            else:
                batch.add(new)
        for each, piece in batch.step():
            if raising and each.error is not None:
                raise each.error
            yield each, piece
