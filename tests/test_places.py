"""The arena: values that are needed at the same time never share memory."""

from types import SimpleNamespace

import pytest
from conftest import TINY
from hypothesis import given
from hypothesis import strategies as st

from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header
from llama2np.kernels.entries import Entry, places
from llama2np.kernels.lower import lower
from llama2np.model.architectures import llama
from llama2np.model.program import Program, Step, Value


def check(entries, outside=()):
    """Go through the entries; each value lives from the entry that makes it to its last reader.

    outside: steps that no entry computes, and before which entry their outputs are put there.
    """
    found, size = places(entries, outside)
    uses = [
        [v for f in e.fields.values() for v in (f if isinstance(f, list) else [f])] for e in entries
    ]
    uses = [[v for v in some if isinstance(v, Value)] for some in uses]
    last = {value: i for i, some in enumerate(uses) for value in some}
    made = {}
    for i, entry in enumerate(entries):
        for value in entry.outputs:
            made.setdefault(value, i)
    put = set()
    for i, step in outside:
        made |= dict.fromkeys(step.outputs, i)
        put.update(step.outputs)
        for value in (*step.inputs.values(), *step.outputs):
            last[value] = max(last.get(value, i), i)
    inputs = [
        [v for v in some if v not in e.outputs] for e, some in zip(entries, uses, strict=True)
    ]
    for value in made:
        assert found[value] % 16 == 0 or value.name == "logits"
        if value.name != "logits":
            assert 0 <= found[value] <= size - value.width
    values = [value for value in made if value.name != "logits"]
    for a in values:
        for b in values:
            if a is b or not overlap(found, a, b) or made[a] > made[b]:
                continue
            # They share memory, so b is made after the last use of a, or by it, in place.
            i, outputs = made[b], entries[made[b]].outputs
            assert made[a] < i and i >= last[a]
            if b in put:
                assert i > last[a]
                continue
            if i == last[a]:
                assert entries[i].in_place and (found[a], a.width) == (found[b], b.width)
                # An op still reads its other inputs when it has written some of an output.
                own = [v for k, v in enumerate(inputs[i]) if outputs[k : k + 1] == (b,)]
                assert own == [a] and inputs[i].count(a) == 1
    return found, size


def overlap(found, a, b):
    return found[a] < found[b] + b.width and found[b] < found[a] + a.width


WIDTHS = st.sampled_from((1, 15, 16, 17, 48, 80))


@st.composite
def programs(draw):
    """Entries that read values made before them, and make up to four; some may do so in place."""
    entries, values = [], []
    for _ in range(draw(st.integers(1, 15))):
        inputs = draw(st.lists(st.sampled_from(values), max_size=3)) if values else []
        widths = [v.width for v in inputs] or [48]
        outputs = tuple(
            Value("", draw(st.one_of(st.sampled_from(widths), WIDTHS)))
            for _ in range(draw(st.integers(0, 4)))
        )
        fields = {"x": inputs, "out": list(outputs), "n": 5}
        entries.append(Entry(SimpleNamespace(), fields, outputs, in_place=draw(st.booleans())))
        values += outputs
    return entries


@given(programs())
def test_no_two_values_that_are_needed_overlap(entries):
    check(entries)


@given(programs(), st.data())
def test_values_that_are_put_there_overlap_with_none(entries, data):
    """Some values are read from outside before an entry, and others put there, for later ones."""
    at = data.draw(st.integers(0, len(entries) - 1))
    before = [value for entry in entries[:at] for value in entry.outputs]
    read = data.draw(st.lists(st.sampled_from(before), max_size=2)) if before else []
    made = tuple(Value("", data.draw(WIDTHS)) for _ in range(data.draw(st.integers(1, 2))))
    for value in made:
        for entry in data.draw(st.lists(st.sampled_from(entries[at:]), max_size=2)):
            entry.fields["x"].append(value)
    inputs = {str(i): value for i, value in enumerate(read)}
    check(entries, [(at, Step("gather", inputs, {}, made, None, {}))])


@pytest.mark.parametrize("version, group", ((1, 0), (2, 16)))
@pytest.mark.parametrize("count, wanted", ((1, 1), (5, 1), (8, 8), (40, 2), (40, 40)))
def test_the_places_of_a_network_do_not_overlap(write, version, group, count, wanted):
    config, weights = checkpoint.load(write("x.bin", Header(version, TINY, True, group)))
    program = Program(config, weights, llama)
    _, size = check(lower(program, count, wanted, 128).entries)
    deeper = len(program.steps) * max(config.hidden_dim, config.dim)
    assert size < 12 * config.hidden_dim < deeper  # places are used again, block after block
