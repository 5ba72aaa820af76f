"""One State, Chat or Generation has one caller at a time: misuse is an error, never a crash.

What might end a process runs in one of its own, with a limit of time.
"""

import copy
import pickle
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path

import forks
import numpy as np
import pytest
from conftest import TINY, pairs

from llama2np import Edit, State, Transformer
from llama2np.formats import checkpoint
from llama2np.formats.checkpoint import Header
from llama2np.model.hooks import POINTS
from llama2np.model.weights import Weights

ROOT = Path(__file__).parents[1]
LIMIT = 60  # seconds for a wait that never ends, on a busy machine
TOKENS = [5, 17, 42, 299, 0, 7]


@contextmanager
def in_another_thread(work, entered, leave):
    """Run `work`, which sets `entered` and waits for `leave`, while the block runs."""
    failed = []

    def guarded():
        try:
            work()
        except BaseException as error:
            failed.append(error)
            entered.set()

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        assert entered.wait(LIMIT) and not failed
        yield
    finally:
        leave.set()
        thread.join(LIMIT)
    assert not failed and not thread.is_alive()


@pytest.fixture
def gate():
    """Two events, and a function that sets the first and waits for the second."""
    entered, leave = threading.Event(), threading.Event()

    def wait(*_):
        entered.set()
        assert leave.wait(LIMIT)

    return entered, leave, wait


CALLS = {
    "forward": lambda model, state, path: model.forward([1], state),
    "greedy": lambda model, state, path: model.transformer.greedy(1, state, 2),
    "generate": lambda model, state, path: model.generate("A", state=state),
    "truncate": lambda model, state, path: state.truncate(0),
    "reuse": lambda model, state, path: state.reuse([1, 2]),
    "reserve": lambda model, state, path: state.reserve(90),
    "fork": lambda model, state, path: state.fork(),
    "save": lambda model, state, path: state.save(path),
    "pos": lambda model, state, path: setattr(state, "pos", 0),
}


def test_a_state_that_is_being_read_is_nobody_else_s(model, gate, tmp_path):
    entered, leave, wait = gate
    state, looking = model.new_state(), model.with_hooks(Edit("mlp", wait, layers=1))
    with in_another_thread(lambda: looking.forward(TOKENS, state), entered, leave):
        for name, call in CALLS.items():
            with pytest.raises(ValueError, match="use a separate State for each thread"):
                call(model, state, tmp_path / "s.npz")
                pytest.fail(f"{name} went through")
        assert state.pos == 0 and state.keys.shape[2] == 0  # looking is free
    assert state.pos == len(TOKENS) and not list(tmp_path.glob("*.npz*"))
    plain = model.new_state()
    model.forward(TOKENS, plain)
    assert np.array_equal(model.forward([9], state), model.forward([9], plain))


@pytest.mark.parametrize("case", pairs(tuple(CALLS), ("embedding", "k", "logits")), ids="-".join)
def test_a_hook_that_comes_back_to_the_state_is_an_error(model, tmp_path, case):
    name, point = case
    state, calls = model.new_state(), CALLS[name]
    model.forward(TOKENS, state)

    def come_back(array, place):
        calls(looking, state, tmp_path / "s.npz")

    looking = model.with_hooks(Edit(point, come_back))
    with pytest.raises(ValueError, match=r"\(a hook\?\): use a separate State"):
        looking.forward([1, 2], state)
    assert state.pos == len(TOKENS) and state.tokens.tolist() == TOKENS
    plain = model.new_state()  # and the error let it go
    model.forward(TOKENS, plain)
    assert np.array_equal(model.forward([1, 2], state), model.forward([1, 2], plain))


def test_a_hook_may_use_a_state_of_its_own(model):
    found = []

    def look_elsewhere(array, place):
        found.append(model.forward(TOKENS, model.new_state()))

    expected = model.forward(TOKENS, model.new_state())
    logits = model.with_hooks(Edit("q", look_elsewhere, layers=0)).forward(
        TOKENS, model.new_state()
    )
    assert np.array_equal(logits, expected) and np.array_equal(found[0], expected)


def test_what_is_interrupted_lets_the_state_go(model):
    def interrupt(array, place):
        raise KeyboardInterrupt

    state = model.new_state()
    with pytest.raises(KeyboardInterrupt):
        model.with_hooks(Edit("v", interrupt)).forward(TOKENS, state)
    expected = model.forward(TOKENS, model.new_state())
    assert np.array_equal(model.forward(TOKENS, state), expected)


def reshaped(array):
    """Try whatever changes an array itself, and not its values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of newer NumPys
        for attribute, value in (("shape", (array.size,)), ("dtype", np.float64), ("strides", 0)):
            try:
                setattr(array, attribute, value)
            except (ValueError, TypeError, AttributeError):
                pass
    for shape in ((1,), (10**6,)):
        with pytest.raises(ValueError):
            array.resize(shape)
    array.flags.writeable = False


@pytest.mark.parametrize("point", POINTS)
def test_a_hook_cannot_change_the_shape_of_what_it_is_shown(model, point):
    def change(array, place):
        reshaped(array)
        place.positions[:] = 10**9
        for mine in (state.keys, state.values, state.tokens):
            reshaped(mine)

    seen = []
    state, plain = model.new_state(), model.new_state()
    watched = model.with_hooks(
        Edit(point, change), Edit(point, lambda a, place: seen.append(place.positions.tolist()))
    )
    for tokens in (TOKENS, [1], [2, 3]):
        expected = model.forward(tokens, plain)
        np.testing.assert_allclose(watched.forward(tokens, state), expected, atol=1e-5)
    assert max(map(max, seen)) < 9
    assert np.array_equal(state.values[:, :, :9], plain.values[:, :, :9])


def test_what_the_kernels_rely_on_is_not_to_be_exchanged(model):
    state = model.new_state()
    model.forward(TOKENS, state)
    for owner, names in (
        (model.transformer, ("config", "weights")),
        (state, ("config", "keys", "values", "tokens")),
    ):
        for name in names:
            with pytest.raises(AttributeError):
                setattr(owner, name, getattr(owner, name))


@pytest.mark.parametrize("version, group", [(1, 0), (2, 16)])
@pytest.mark.parametrize("tokens", [[5], TOKENS * 5], ids=("one token", "a prompt"))
def test_weights_that_change_their_shape_later_are_read_as_they_were(write, tokens, version, group):
    config, weights = checkpoint.load(write("x.bin", Header(version, TINY, False, group)))
    tensors = dict(weights)
    weights = Weights(tensors)
    transformer = Transformer(config, weights)
    expected = transformer.forward(tokens, State(config))
    tensors.clear()
    assert isinstance(weights.layers, tuple) and len(weights.layers) == 3
    for tensor in weights.values():
        for array in (tensor,) if isinstance(tensor, np.ndarray) else tensor.arrays:
            reshaped(array)
    assert np.array_equal(transformer.forward(tokens, State(config)), expected)


def test_a_position_is_a_whole_number_within_the_context(model):
    state = model.new_state()
    model.forward(TOKENS, state)
    state.pos = np.int32(2)
    assert type(state.pos) is int and model.forward([1], state).shape == (TINY.vocab_size,)
    for pos in (-1, TINY.seq_len, 10**30):
        state.pos = pos
        with pytest.raises(ValueError, match="do not fit into the context of 96"):
            model.forward([1], state)
    with pytest.raises(ValueError, match="pos must be a whole number, not 2.5"):
        state.pos = 2.5
    fresh = model.new_state()
    fresh.pos = 90  # of a cache that has room for none
    assert np.isfinite(model.forward([1], fresh)).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_a_state_has_an_owner_of_its_own(model, gate, copied):
    entered, leave, wait = gate
    state = model.new_state()
    model.forward(TOKENS, state)
    looking = model.with_hooks(Edit("mlp", wait, layers=0))
    with in_another_thread(lambda: looking.forward([9], state), entered, leave):
        twin = copied(state)
        logits = model.forward([9], twin)
    state.truncate(len(TOKENS))
    assert np.array_equal(model.forward([9], state), logits)


def test_a_chat_answers_one_caller_at_a_time(model, gate):
    entered, leave, wait = gate
    chat = model.chat(temperature=0, logits_processor=lambda tokens, x: wait() or x, positions=60)
    first = chat.send("A")
    with in_another_thread(lambda: next(first), entered, leave):
        for call in (lambda: chat.send("B"), lambda: next(first), first.close):
            with pytest.raises(ValueError, match="begin a Chat for each thread with model.chat"):
                call()
    next(first)  # free again, and as it was
    second = chat.send("B")
    with pytest.raises(ValueError, match=r"ended with the next send\(\)"):
        next(first)
    assert isinstance(next(second), str)


def test_a_generation_is_read_in_one_place(model, gate):
    entered, leave, wait = gate
    options = dict(temperature=0, max_new_tokens=5)
    story = model.generate("A", logits_processor=lambda tokens, x: wait() or x, **options)
    with in_another_thread(lambda: next(story), entered, leave):
        for call in (lambda: next(story), story.read):
            with pytest.raises(ValueError, match="begin one for each thread with generate"):
                call()
    assert story.text + story.read() == story.text == model.generate("A", **options).read()


# Crashes of old, in processes of their own.

START = """
import faulthandler, sys, threading
faulthandler.enable()
import numpy as np
from llama2np import Edit, Llama
sys.setswitchinterval(1e-5)
model = Llama.load("stories-box")
random, refused, done = np.random.default_rng(0), [], []

def at_once(*works, repeat=60):
    def run(work):
        for _ in range(repeat):
            try:
                work()
                done.append(1)
            except ValueError as error:
                refused.append(str(error))
    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""
END = """
def told(model):
    return model.generate("Once", temperature=0, max_new_tokens=9).read()
assert told(model) == told(Llama.load("stories-box"))
words = "another thread", "another text", "do not fit", "ended with", "is full"
assert all(any(word in text for word in words) for text in refused), set(refused)
assert done
print("fine")
"""
STATE = """
state = model.new_state()
def read():
    model.forward(random.integers(0, 500, random.integers(1, 90)), state)
def write():
    model.generate("Once", state=state, max_new_tokens=20, seed=1).read()
def cut():
    state.truncate(0)
def copy():
    state.fork()
    state.pos = int(random.integers(0, 200))
at_once(read, read, write, cut, copy)
"""
CHAT = """
chat = model.chat(temperature=0.9, seed=1)
def talk():
    if chat.full:
        raise ValueError("the context is full")
    for _ in zip(chat.send("Once upon a time"), range(9)):
        pass
at_once(talk, talk, talk, repeat=20)
"""
SAMPLER = """
from llama2np import Sampler
sampler = Sampler(0.8, 0.9, 1)
small, large = (np.zeros(n, np.float32) for n in (10, 50_000))
at_once(lambda: sampler.sample(small), lambda: sampler.sample(large), repeat=100)
"""


@pytest.mark.compiled
@pytest.mark.parametrize("code", [STATE, CHAT, SAMPLER], ids=("state", "chat", "sampler"))
def test_threads_that_share_what_they_should_not_survive(code):
    done = forks.run(["-c", START + code + END], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "fine"), done.stderr
