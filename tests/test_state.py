"""States that are saved, forked, truncated and shared: each continues with the same tokens."""

import gc
import json
import os
import pickle
import weakref
import zipfile
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY, random_tensors

from llama2np import Config, State, Transformer
from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header, save

READ = [5, 17, 42, 299, 0, 7] * 12  # 72 tokens: more than one block of the cache
HEADERS = {"float32": Header(1, TINY, False), "int8": Header(2, TINY, True, 16)}


@pytest.fixture(scope="module")
def transformers(tmp_path_factory):
    """A random network of each number format; no test here changes them."""
    folder = tmp_path_factory.mktemp("models")
    for name, header in HEADERS.items():
        save(folder / name, header, random_tensors(header))
    return {name: Transformer(*checkpoint.load(folder / name)) for name in HEADERS}


@pytest.fixture(params=HEADERS)
def transformer(request, transformers):
    return transformers[request.param]


@pytest.fixture
def saved(transformers, tmp_path):
    """A file with a state: its form does not depend on the number format of the weights."""
    read(transformers["float32"]).save(tmp_path / "s.npz")
    return tmp_path / "s.npz"


def continued(transformer, state, count=20):
    """The tokens with which a sequence continues greedily, and their logits."""
    token, said, rows = 9, [], []
    for _ in range(count):
        rows.append(transformer.forward([token], state))
        token = int(rows[-1].argmax())
        said.append(token)
    return said, np.stack(rows)


def same(a, b):
    return a[0] == b[0] and np.array_equal(a[1], b[1])


def read(transformer, tokens=READ):
    state = State(transformer.config)
    transformer.forward(tokens, state)
    return state


def test_it_knows_its_tokens(transformer):
    state = read(transformer)
    transformer.forward([1, 2], state)
    assert state.tokens.tolist() == [*READ, 1, 2] and state.pos == 74


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 72])
def test_a_saved_state_goes_on_where_it_was(transformer, tmp_path, count):
    state = read(transformer, READ[:count]) if count else State(TINY)
    state.save(tmp_path / "state.npz")
    loaded = State.load(tmp_path / "state.npz", TINY)
    assert loaded.tokens.tolist() == READ[:count]
    assert same(continued(transformer, loaded), continued(transformer, state))


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 72])
def test_forks_go_their_own_ways(transformer, count):
    state = read(transformer, READ[:count]) if count else State(TINY)
    twin, third = state.fork(), state.fork()
    transformer.forward([250] * 15, third)  # what one reads, the others do not see
    expected = continued(transformer, state)
    assert same(continued(transformer, twin), expected)
    assert third.pos == count + 15 and twin.pos == state.pos == count + 20
    assert twin.tokens.tolist() == state.tokens.tolist()


@pytest.mark.parametrize("pos", [0, 1, 63, 64, 65, 72])
def test_a_truncated_state_has_forgotten_the_rest(transformer, pos):
    state = read(transformer)
    state.truncate(pos)
    assert state.tokens.tolist() == READ[:pos]
    assert state.fork().tokens.tolist() == READ[:pos]
    if pos:
        fresh = State(TINY)
        transformer.forward(READ, fresh)
        fresh = fresh.fork()
        fresh.truncate(pos)
        assert same(continued(transformer, state), continued(transformer, fresh))


def test_truncating_takes_back_what_was_read_since(transformer):
    state, other = read(transformer), read(transformer)
    transformer.forward([1, 2, 3, 4], state)
    state.truncate(len(READ))
    assert same(continued(transformer, state), continued(transformer, other))


@pytest.mark.parametrize("pos", [-1, 73])
def test_truncating_beyond_what_was_read_is_refused(transformer, pos):
    with pytest.raises(ValueError, match=f"pos must be 0 to 72, the tokens read, not {pos}"):
        read(transformer).truncate(pos)


@pytest.mark.parametrize(
    "tokens, kept",
    [
        ([*READ, 1, 2], 72),  # all of it
        (READ, 71),  # the last token is read again, for its logits
        (READ[:10], 9),
        ([*READ[:10], 99, *READ[11:]], 10),
        ([99, 98], 0),
        ([], 0),
    ],
)
def test_reuse_keeps_the_common_beginning(transformer, tokens, kept):
    state = read(transformer)
    assert state.reuse(tokens) == tokens[kept:]
    assert state.pos == kept


def test_a_state_is_a_plain_npz(transformer, tmp_path):
    """README-stable: anybody can read it with NumPy, position after position."""
    state = read(transformer)
    state.save(tmp_path / "state.npz")
    with np.load(tmp_path / "state.npz") as arrays:
        assert sorted(arrays) == ["config", "keys", "tokens", "values"]
        assert json.loads(str(arrays["config"]))["dim"] == 48
        assert arrays["keys"].shape == arrays["values"].shape == (3, 2, 72, 8)
        assert np.array_equal(arrays["keys"], state.keys)
        assert np.array_equal(arrays["values"], state.values)


def test_another_model_s_state_is_refused_by_the_difference(saved):
    other = replace(TINY, n_layers=2, rope_theta=500000.0)
    message = "s.npz: saved for another model: n_layers is 3, expected 2, rope_theta is 10000.0"
    with pytest.raises(ValueError, match=message):
        State.load(saved, other)


def damaged(path, **arrays):
    """Write the file again with these arrays in place of its own; None leaves one out."""
    with np.load(path) as found:
        arrays = {**found, **arrays}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"keys": None}, "it has no keys"),
        ({"keys": np.zeros((3, 2, 71, 8), np.float32)}, r"keys are float32 \(3, 2, 71, 8\), exp"),
        ({"values": np.zeros((3, 2, 72, 8))}, "values are float64"),
        ({"tokens": np.zeros(97, np.int64)}, r"tokens are int64 \(97,\), expected"),
        ({"tokens": np.zeros((72, 1), np.int64)}, "tokens are int64"),
        ({"tokens": np.full(72, 300)}, "not in the vocabulary of 0 to 299"),
        ({"tokens": np.full(72, -1)}, "not in the vocabulary of 0 to 299"),
        ({"config": np.array("{}")}, "saved for another model: dim is None, expected 48"),
        ({"config": np.array("nonsense")}, "not a saved state"),
        ({"config": np.array("[1]")}, "its config is unreadable"),
        ({"config": np.full((), 2**31, np.uint32).view("U1")}, "not a saved state"),  # no character
        ({"tokens": np.array([{}], object)}, "not a saved state"),  # a pickle, which is not run
    ],
)
def test_damaged_states_are_one_line(saved, arrays, message):
    damaged(saved, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        State.load(saved, TINY)
    assert "s.npz: " in str(error.value) and "\n" not in str(error.value)


class Evil:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_the_file_is_not_run(saved, tmp_path):
    damaged(saved, tokens=np.array([Evil(tmp_path / "made")], object))
    with pytest.raises(ValueError, match="s.npz: not a saved state"):
        State.load(saved, TINY)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"nonsense", b"\x93NUMPY\1\0"])
def test_other_files_are_refused(data, tmp_path):
    (tmp_path / "s.npz").write_bytes(data)
    with pytest.raises(ValueError, match="s.npz: not a saved state"):
        State.load(tmp_path / "s.npz", TINY)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="one.npy: not a saved state"):
        State.load(tmp_path / "one.npy", TINY)
    with pytest.raises(FileNotFoundError):
        State.load(tmp_path / "missing.npz", TINY)


@pytest.mark.parametrize("at", range(0, 100, 7))
def test_a_truncated_or_changed_file_is_refused_or_has_the_same_tokens(saved, at):
    data = saved.read_bytes()
    place = len(data) * at // 100
    for broken in (data[:place], data[:place] + b"\xff" + data[place + 1 :]):
        saved.write_bytes(broken)
        try:
            assert State.load(saved, TINY).tokens.tolist() == READ
        except ValueError as error:
            assert "s.npz: " in str(error)


def test_nothing_is_left_of_a_state_that_cannot_be_written(transformer, tmp_path):
    with pytest.raises(OSError):
        read(transformer).save(tmp_path / "no" / "folder.npz")
    assert not list(tmp_path.glob("no*"))


def test_the_arrays_are_not_compressed(saved):
    """Quick to write and to read."""
    with zipfile.ZipFile(saved) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


@pytest.fixture
def small_chunks(monkeypatch):
    """The sequences of these tests have several chunks."""
    monkeypatch.setattr("llama2np.model.state._CHUNK", 64)


def test_the_size_of_a_chunk():
    """512 positions, or less where the context is shorter or the network so wide."""
    long = replace(TINY, seq_len=10_000)
    wide = Config(4096, 11008, 32, 32, 32, 300, 10_000)  # 1 MiB for each position
    huge = replace(wide, n_layers=320)
    for config, positions in ((long, 512), (TINY, 128), (replace(TINY, seq_len=64), 64)):
        assert State(config).chunk == positions
    for config, positions in ((wide, 64), (huge, 64), (replace(wide, n_layers=8), 256)):
        assert State(config).chunk == positions
    state = State(long)
    assert state.capacity == 0 and state.keys.shape == (3, 2, 0, 8)
    for count, capacity in ((0, 0), (1, 512), (512, 512), (513, 1024)):
        state.reserve(count)
        assert state.capacity == capacity and state.pos == 0


def test_growth_copies_nothing(small_chunks, transformer):
    """What was a chunk of the cache before is the same object afterwards."""
    state, seen = State(TINY), []
    for count in (1, 63, 1, 30):
        transformer.forward([5] * count, state)
        assert all(a is b for a, b in zip(seen, state._chunks, strict=False))
        seen = list(state._chunks)
    assert len(seen) == 2 and state.addresses.tolist() == [c.ctypes.data for c in seen]
    assert state.keys.shape == state.values.shape == (3, 2, 95, 8)
    for i in range(3):
        np.testing.assert_array_equal(state.layer(i, 70)[0], state.keys[i, :, :70])
        np.testing.assert_array_equal(state.layer(i, 70)[1], state.values[i, :, :70])


def test_forks_share_chunks_that_are_full(small_chunks, transformer):
    state = read(transformer)  # a full chunk, and 8 positions of the next
    twin = state.fork()
    third = twin.fork()
    assert state._chunks[0] is twin._chunks[0] is third._chunks[0]
    assert len({id(each._chunks[1]) for each in (state, twin, third)}) == 3
    for each in (state, twin, third):
        transformer.forward([1, 2], each)
    assert state._chunks[0] is twin._chunks[0] is third._chunks[0]


@pytest.mark.compiled
@pytest.mark.parametrize("pos", [0, 1, 40, 63, 64])
def test_a_fork_never_sees_what_others_write(small_chunks, transformer, pos):
    """Also if one of them is truncated in a shared chunk, and reads other tokens."""
    state = read(transformer)
    twin = state.fork()
    third, kept = twin.fork(), [state.keys, state.values]
    twin.truncate(pos)
    transformer.forward([250] * 12, twin)  # writes into the chunk that all three had
    for each in (state, third):
        np.testing.assert_array_equal(each.keys, kept[0])
        np.testing.assert_array_equal(each.values, kept[1])
        assert each.tokens.tolist() == READ
    fresh = State(TINY)
    transformer.forward([*READ[:pos], *[250] * 12], fresh)
    expected = continued(transformer, fresh)
    assert same(continued(transformer, twin), expected)
    assert state._chunks[0] is third._chunks[0]
    assert (twin._chunks[0] is state._chunks[0]) == (pos == 64)  # only then it wrote to another
    assert same(continued(transformer, state), continued(transformer, third))
    state.truncate(pos)
    transformer.forward([250] * 12, state)
    np.testing.assert_array_equal(third.keys[:, :, :72], kept[0])
    assert same(continued(transformer, state), expected)


@pytest.mark.compiled
def test_a_saved_state_of_several_chunks(small_chunks, transformer, tmp_path):
    state = read(transformer)
    state.save(tmp_path / "state.npz")
    loaded = State.load(tmp_path / "state.npz", TINY)
    assert len(loaded._chunks) == 2
    np.testing.assert_array_equal(loaded.keys, state.keys)
    np.testing.assert_array_equal(loaded.values, state.values)
    assert same(continued(transformer, loaded), continued(transformer, state))


@pytest.mark.compiled
@pytest.mark.parametrize("copied", (deepcopy, lambda x: pickle.loads(pickle.dumps(x))))
def test_a_copy_of_a_state_has_memory_of_its_own(small_chunks, transformer, copied):
    state = read(transformer)
    fork = state.fork()
    twin = copied(state)
    assert twin.addresses.tolist() == [chunk.ctypes.data for chunk in twin._chunks]
    expected = continued(transformer, fork)
    transformer.forward([250], state)
    assert same(continued(transformer, twin), expected)


def test_random_tensors_differ_by_seed():
    """A condition of the tests above: the results of the network depend on what it has read."""
    a, b = (random_tensors(HEADERS["float32"], seed)["embedding"] for seed in (0, 1))
    assert not np.array_equal(a, b)


def test_a_dropped_state_is_freed_at_once(transformer):
    """Its memory does not wait for Python's search for cycles."""
    state = State(transformer.config)
    transformer.forward([1], state)  # for a single token, the engine keeps its memory in the State
    dropped = weakref.ref(state)
    gc.disable()
    try:
        del state
        assert dropped() is None
    finally:
        gc.enable()
