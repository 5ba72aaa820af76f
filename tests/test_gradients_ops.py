"""The backward of each op alone: numerical differences in float64, by its inputs and weights."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from networks import slopes, weights_of

from llama2np.learning.batch import Batch
from llama2np.learning.loss import cross_entropy
from llama2np.learning.ops import OPS
from llama2np.learning.passes import Pass
from llama2np.model import numpy_engine
from llama2np.model.block import OUTSIDE
from llama2np.model.config import Config, DualChunk
from llama2np.model.program import Program

CONFIG = dict(
    dim=12, hidden_dim=8, n_layers=1, n_heads=4, n_kv_heads=2, head_dim=6, vocab_size=17,
    seq_len=80, norm_eps=1e-3, rope_halves=1,
)  # fmt: skip
BY_RANKS = {"experts_hidden", "experts_out"}  # parts of experts: training has no ranks


class Case(NamedTuple):
    """A program of inputs and few steps: its description, its tensors' shapes, Config's fields."""

    describe: object
    shapes: dict = {}
    fields: dict = {}


def embed(of):
    return lambda b, c: b.embed("table", of=of)


def norm(op, width=12):
    return lambda b, c: getattr(b, op)(b.input("x", width), "norm")


def linear(b, c):
    y, z = b.linear(b.input("x", 12), "first", "second")
    b.add(y, z)


def rope(b, c):
    q, k = b.rope(b.input("q", 24), b.input("k", 24))
    for more in q if isinstance(q, tuple) else (q,):
        k = b.add(k, more)


def attention(method="attention", queries=1):
    def describe(b, c):
        q = tuple(b.input(f"q{i}", c.q_dim) for i in range(queries))
        k, v = b.input("k", c.kv_dim), b.input("v", c.kv_dim)
        b.layer = 0
        getattr(b, method)(q if queries > 1 else q[0], k, v)

    return describe


def gated(op):
    return lambda b, c: getattr(b, op)(b.input("gate", 5), b.input("up", 5))


def of_x(op, *numbers):
    return lambda b, c: getattr(b, op)(b.input("x", 5), *numbers)


def add_twice(b, c):
    x = b.input("x", 5)
    b.add(b.add(x, b.input("y", 5)), x)


def logits(b, c):
    b.logits(b.input("x", 12), "head")


EXPERTS = {"router": (4, 12)} | {
    f"experts.{e}.{name}": shape
    for e in range(4)
    for name, shape in (("w_gate", (8, 12)), ("w_up", (8, 12)), ("w_down", (12, 8)))
}
ROUTED = {"n_experts": 4, "n_experts_used": 2}
CASES = {
    "embed tokens": Case(embed("tokens"), {"table": (17, 5)}),
    "embed positions": Case(embed("positions"), {"table": (80, 5)}),
    "embed types": Case(embed("types"), {"table": (2, 5)}),
    "rmsnorm": Case(norm("rmsnorm"), {"norm": (12,)}),
    "rmsnorm of heads": Case(norm("rmsnorm", 24), {"norm": (6,)}),
    "layernorm": Case(norm("layernorm"), {"norm": (12,), "norm.bias": (12,)}),
    "layernorm without bias": Case(norm("layernorm"), {"norm": (12,)}),
    "linear": Case(linear, {"first": (5, 12), "second": (5, 12), "second.bias": (5,)}),
    "rope": Case(rope),
    "rope of pairs": Case(rope, {}, {"rope_halves": 0, "rotary_dim": 4}),
    "rope of chunks": Case(rope, {}, {"dual_chunk": DualChunk(12, 4, 24, "both")}),
    "attention": Case(attention()),
    "attention of one head": Case(attention(), {}, {"n_heads": 1, "n_kv_heads": 1}),
    "attention in a window": Case(attention(), {}, {"windows": (5,)}),
    "attention with a softcap": Case(attention(), {}, {"attention_softcap": 0.7}),
    "attention with a scale": Case(attention(), {}, {"attention_scale": 0.9}),
    "attention in chunks": Case(
        attention(queries=3), {}, {"dual_chunk": DualChunk(12, 4, 24, "both")}
    ),
    "attention both ways": Case(attention("attention_both_ways")),
    "experts": Case(lambda b, c: b.experts(b.input("x", 12)), EXPERTS, ROUTED),
    "experts by probabilities": Case(
        lambda b, c: b.experts(b.input("x", 12)), EXPERTS, ROUTED | {"expert_probabilities": 1}
    ),
    "swiglu": Case(gated("swiglu")),
    "geglu": Case(gated("geglu")),
    "geglu exact": Case(gated("geglu"), {}, {"gelu_exact": 1}),
    "gelu": Case(of_x("gelu")),
    "gelu exact": Case(of_x("gelu"), {}, {"gelu_exact": 1}),
    "tanh": Case(of_x("tanh")),
    "scale": Case(of_x("scale", 1.7)),
    "add": Case(add_twice),
    "logits": Case(logits, {"head": (17, 12)}),
    "logits with bias and softcap": Case(
        logits, {"head": (17, 12), "head.bias": (17,)}, {"logit_softcap": 0.9}
    ),
}


def program_of(case, tensors=None):
    zeros = {name: np.zeros(shape) for name, shape in case.shapes.items()}
    return Program(
        Config(**CONFIG | case.fields), weights_of(zeros if tensors is None else tensors),
        case.describe,
    )  # fmt: skip


def test_every_op_has_a_case():
    """An op that a description can record, and none of the cases has, fails here."""
    found = {step.op for case in CASES.values() for step in program_of(case).steps}
    assert found - {*OUTSIDE} == numpy_engine.OPS.keys() - BY_RANKS == OPS.keys() | {"logits"}


@pytest.mark.parametrize("name", CASES)
def test_numerical_differences_of_an_op(name):
    case, random = CASES[name], np.random.default_rng(len(name))
    tensors = {n: random.normal(size=shape) for n, shape in case.shapes.items()}
    program = program_of(case, tensors)
    long = 70 if "attention" in name else 9  # attention takes 64 positions at a time
    batch = Batch.next_tokens(random.integers(0, 17, (3, long + 1)), np.array([long + 1, 2, 7]))
    batch = replace(batch, types=random.integers(0, 2, batch.shape))
    sources = {s.outputs[0].name: s.outputs[0] for s in program.steps if s.op == "input"}
    inputs = {n: random.normal(size=(3 * long, v.width)) for n, v in sources.items()}
    weights = random.normal(size=(3 * long, program.output.width))

    def forward(arrays, **options):
        """A pass over the program, its loss, and the derivative of that by the last value."""
        run = Pass(program, {n: arrays[n] for n in tensors}, batch, **options)
        for n in inputs:
            run.put(n, arrays[n])
        last = run.forward()
        if not program.has_logits:
            return run, float((last * weights).sum()), weights
        loss = cross_entropy(run, last, 1.0)
        return run, loss.total, loss.by_hidden

    run, _, by_last = forward(inputs | tensors)
    gradients = dict(run.backward(by_last))
    gradients |= {n: run.gradient_of(value) for n, value in sources.items()}
    assert gradients.keys() == inputs.keys() | tensors.keys()
    for found, expected, size in slopes(
        lambda arrays: forward(arrays, keep=False)[1], inputs | tensors, gradients
    ).values():
        assert size > 0 and abs(found - expected) < 1e-6 * size
