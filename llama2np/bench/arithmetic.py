"""What a token costs: the bytes that the machine must read, and the multiply-adds it must do.

All of it follows from the steps of the program.
"""

from __future__ import annotations

from llama2np.model.listing import bytes_of
from llama2np.model.program import Program, Step, multiply_adds


def bytes_to_generate(program: Program, depth: int, count: int) -> float:
    """Bytes read for one token of `count` that follow the first `depth`, on average.

    Each matrix and norm once, and the keys and values of all tokens so far. A model that fits into
    the CPU's caches is read faster than memory.
    """
    seen = depth + (count + 1) / 2
    cache = sum(2 * 4 * step.inputs["k"].width for step in _attentions(program))
    weights = sum(bytes_of(program, step) for step in program.steps if step.op != "embed")
    return weights + cache * seen


def operations_to_read(program: Program, depth: int, count: int) -> float:
    """Multiplications and additions for one token of a prompt of `count` after `depth` others.

    Two for each value of the blocks' matrices, and attention's, over half of the prompt on average.
    The logits, which only a prompt's last token needs, are left out, and so are norms, softmax and
    the like.
    """
    matrices = sum(multiply_adds(program, step) for step in program.steps if step.op != "logits")
    seen = depth + (count + 1) / 2
    attention = sum(2 * step.inputs["q"].width * seen for step in _attentions(program))
    return 2 * (matrices + attention)


def _attentions(program: Program) -> list[Step]:
    return [step for step in program.steps if step.op == "attention"]
