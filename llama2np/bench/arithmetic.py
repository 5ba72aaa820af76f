"""The cost of a token: the bytes that must be read from memory, and the arithmetic operations.

Both are computed from the steps of the program.
"""

from __future__ import annotations

from llama2np.model.listing import bytes_of
from llama2np.model.program import Program, Step, multiply_adds


def bytes_to_generate(program: Program, depth: int, count: int) -> float:
    """The mean number of bytes read for one of `count` tokens after the first `depth`.

    Each matrix and norm once, and the keys and values of all tokens so far. A model that fits into
    the CPU's caches is read faster than memory.
    """
    seen = depth + (count + 1) / 2
    cache = sum(
        2 * 4 * step.inputs["k"].width * min(seen, step.numbers["window"] or seen)
        for step in _attentions(program)
    )
    weights = sum(bytes_of(program, step) for step in program.steps if step.op != "embed")
    return weights + cache


def operations_to_read(program: Program, depth: int, count: int) -> float:
    """The mean number of operations for one of `count` tokens of a prompt, after `depth` others.

    A multiplication and an addition count for each value of the blocks' matrices, and for
    attention, whose mean length is `depth` and half of the prompt. The logits, which only the last
    token of a prompt needs, do not count, nor do norms, softmax and elementwise steps.
    """
    matrices = sum(multiply_adds(program, step) for step in program.steps if step.op != "logits")
    seen = depth + (count + 1) / 2
    attention = sum(
        2 * step.inputs["q"].width * min(seen, step.numbers["window"] or seen)
        for step in _attentions(program)
    )
    return 2 * (matrices + attention)


def _attentions(program: Program) -> list[Step]:
    return [step for step in program.steps if step.op == "attention"]
