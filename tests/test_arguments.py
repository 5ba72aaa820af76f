"""Arguments of a wrong type are named at the call; NumPy's numbers and None are welcome."""

import inspect
import json
import math
import threading
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY, write_tokenizer

import llama2np
from llama2np import (
    Chat,
    Config,
    DraftModel,
    Edit,
    Generation,
    Llama,
    PromptLookup,
    Sampler,
    State,
    Tokenizer,
    Trace,
    Transformer,
    arguments,
    beam_search,
    compare,
    evaluate,
    export,
    kernels,
)
from llama2np.analysis.lens import logit_lens
from llama2np.decoding.logits import keep_min_p, keep_top_k, penalize_frequency, top_tokens
from llama2np.formats.checkpoint import Header


@pytest.fixture(scope="module")
def model(tiny_files):
    """No test here changes it."""
    return Llama.load(*tiny_files)


NUMPY = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint32, np.uint64, np.array)


def generate(model, **options):
    return model.generate("AB", **{"max_new_tokens": 6, "seed": 3} | options).read()


# The checks themselves


@pytest.mark.parametrize("kind", NUMPY)
def test_whole_numbers(kind):
    found = arguments.whole("n", kind(5))
    assert found == 5 and type(found) is int
    assert arguments.whole("n", 2.0) == arguments.whole("n", np.float32(2)) == 2
    with pytest.raises(ValueError, match="^n must be 6 or more, not 5$"):
        arguments.whole("n", kind(5), 6)


@pytest.mark.parametrize(
    "value, told",
    [
        *((value, repr(value)) for value in (2.5, math.nan, math.inf, True, "3", b"3", None)),
        *((value, repr(value)) for value in ([3], (3,), {}, 1j, Fraction(1, 2))),
        (np.bool_(True), "True"),
        (np.float32(2.5), "2.5"),
        (np.array([1, 2]), "of type ndarray"),
        pytest.param(object(), "of type object", id="object"),
    ],
    ids=repr,
)
def test_what_is_no_whole_number(value, told):
    with pytest.raises(ValueError, match="^n must be a whole number, not ") as error:
        arguments.whole("n", value)
    assert told in str(error.value) or "Fraction" in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 120


def test_numbers():
    for value in (2, 2.5, np.float32(2.5), np.int8(2), np.array(2.5)):
        found = arguments.number("x", value)
        assert found == value and type(found) is float
    for value in (True, "2.5", None, [2.5], 1j, 10**400, np.bool_(False), np.array([2.5])):
        with pytest.raises(ValueError, match="^x must be a number, not "):
            arguments.number("x", value)


def test_an_error_costs_nothing_however_large_the_value():
    with pytest.raises(ValueError) as error:
        arguments.whole("n", "x" * 10**7)
    assert len(str(error.value)) < 120


def test_a_path_of_bytes_is_none():
    class Place:
        def __fspath__(self):
            return b"model.bin"

    for read in (Llama.load, Tokenizer.load, lambda path: State.load(path, TINY)):
        with pytest.raises(ValueError, match="^path must be a path, a str or a"):
            read(Place())


def test_a_path_is_no_name():
    with pytest.raises(FileNotFoundError, match="is the str 'stories-box', not a path"):
        Llama.load(Path("stories-box"))


def test_tokens_of_the_wrong_kind_are_told_in_one_short_line(model):
    for wrong in ("x" * 10**5, np.zeros((99, 9)), [0.5] * 9999):
        with pytest.raises(ValueError, match="tokens must be one or more integers") as error:
            model.forward(wrong, model.new_state())
        assert "\n" not in str(error.value) and len(str(error.value)) < 120


# NumPy's integers


@pytest.mark.parametrize("kind", NUMPY)
def test_a_seed_and_counts_of_numpy(model, kind):
    assert generate(model, seed=kind(3)) == generate(model)
    options = {"max_new_tokens": kind(6), "top_k": kind(4), "logit_bias": {261: np.float32(1)}}
    expected = {"max_new_tokens": 6, "top_k": 4, "logit_bias": {261: 1.0}}
    assert generate(model, **options) == generate(model, **expected)
    story = model.generate("A", logprobs=kind(2), max_new_tokens=2)
    assert story.read() is not None and len(story.top_logprobs[0]) == 2
    assert model.chat(positions=kind(20)).positions == 20


@pytest.mark.parametrize("kind", (np.int32, np.uint8, np.int64, np.array))
def test_other_numbers_of_numpy(model, kind, tmp_path, write):
    state, plain = model.new_state(), model.new_state()
    tokens = [kind(token) for token in (1, 65, 66)]
    assert np.array_equal(model.forward(tokens, state), model.forward([1, 65, 66], plain))
    state.truncate(kind(2))
    state.pos = kind(1)
    state.reserve(kind(70))
    assert model.generate(tokens, max_new_tokens=0).prompt == [1, 65, 66]
    assert model.tokenizer.decode(tokens[1:]) == model.tokenizer.decode([65, 66])
    assert len(model.transformer.greedy(kind(5), state, kind(3))[0]) == 3
    trace = Trace("q", layers=[kind(0), kind(2)], positions=kind(1))
    model.with_hooks(trace, Edit("v", lambda v, place: None, layers=kind(1))).forward(tokens, plain)
    assert beam_search(model, tokens, beams=kind(2), max_new_tokens=kind(3))
    draft = DraftModel(model, ahead=kind(2))
    assert generate(model, draft=draft) == generate(model, draft=PromptLookup(kind(2), kind(3)))
    assert evaluate(model, "ABC", context=kind(10), stride=kind(5)).tokens == 4
    sampler = Sampler(seed=kind(1))
    sampler.skip(kind(2))
    export(write("a.bin", Header(1, TINY, True)), tmp_path / "b.bin", kind(1), seq_len=kind(50))
    if kind is not np.uint8:  # which ends at 255
        tokenizer = Tokenizer.load(write_tokenizer(tmp_path / "t.bin"), kind(300))
        assert tokenizer.vocab_size == 300
    most = kernels.threads()
    kernels.set_threads(kind(1))
    kernels.set_threads(most)


@pytest.mark.parametrize("kind", (np.int32, np.int64, np.uint16, np.array))
def test_a_config_of_numpy(model, kind, tmp_path):
    numbers = {
        n: kind(v) if isinstance(v, int) else np.float64(v) if isinstance(v, float) else v
        for n, v in asdict(TINY).items()
    }
    config = Config(**numbers)
    assert config == TINY and hash(config) == hash(TINY) and config.head_dim == 8
    again = json.loads(json.dumps(asdict(config)))
    assert again == asdict(TINY) | {"windows": []}
    kinds = {type(value) for value in asdict(config).values()}
    assert kinds == {int, float, str, tuple, type(None)}
    state = State(config)
    model.forward([1, 2], state)
    state.save(tmp_path / "s.npz")
    assert State.load(tmp_path / "s.npz", TINY).pos == 2
    assert (
        Header(kind(2), config, True, kind(16)).to_bytes() == Header(2, TINY, True, 16).to_bytes()
    )


# None


SAMPLING = [name for name in llama2np.decoding.sampler.SamplingOptions.__annotations__]


@pytest.mark.parametrize("name", [*SAMPLING, "stop", "logprobs", "draft", "state"])
def test_none_is_not_given(model, name):
    options = {"temperature": 0} if name == "seed" else {}
    expected = model.generate("AB", max_new_tokens=6, **{"seed": 3} | options).read()
    assert (
        model.generate("AB", max_new_tokens=6, **{"seed": 3} | options | {name: None}).read()
        == expected
    )


def test_none_in_every_other_place(model, tmp_path, write):
    tokens = model.tokenizer.encode("AB")
    assert model.tokenizer.encode("AB", None, None) == tokens
    assert model.tokenizer.encode("AB", bos=None, eos=None) == tokens
    assert model.generate(None, max_new_tokens=None).prompt == model.tokenizer.encode("")
    assert model.chat(None, positions=None, temperature=None).positions == TINY.seq_len
    chat = Chat(model.transformer, model.tokenizer, Sampler(), None, None)
    assert chat.positions == TINY.seq_len
    assert beam_search(model, tokens, beams=None, max_new_tokens=3, length_penalty=None) == (
        beam_search(model, tokens, max_new_tokens=3)
    )
    assert beam_search(model, tokens, max_new_tokens=None)[0].score(None) < 0
    assert generate(model, draft=DraftModel(model, None)) == generate(model)
    assert generate(model, draft=PromptLookup(None, ahead=None)) == generate(model)
    none = {"context": None, "stride": None, "progress": None}
    assert evaluate(model, "ABC", **none) == evaluate(model, "ABC")
    assert compare(model, model, "ABC", **none) == compare(model, model, "ABC")
    assert replace(TINY, rope_theta=None, norm_eps=None) == TINY
    logits = np.arange(5, dtype=np.float32)
    assert Sampler(0).sample(logits, None, None) == 4
    assert np.array_equal(penalize_frequency(logits, [1], None, None), logits)
    assert np.array_equal(keep_min_p(logits, 0.1, None), keep_min_p(logits, 0.1))
    assert model.forward(tokens, model.new_state(), None).shape == (TINY.vocab_size,)
    Trace(layers=None, positions=None)
    path = write("a.bin", Header(0, TINY, True))
    export(path, tmp_path / "b.bin", None, dtype=None, seq_len=None, progress=None)
    assert (tmp_path / "b.bin").stat().st_size == path.stat().st_size
    story = Generation(
        *(model.transformer, model.tokenizer, tokens, Sampler(0)),
        **{"state": model.new_state(), "max_new_tokens": 2, "stop": None, "logprobs": None},
        draft=None,
    )
    assert story.read() == generate(model, temperature=0, max_new_tokens=2)


# What is refused, with its name, before anything is done


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prompt": b"AB"}, "prompt must be a str or a list of tokens.*, not b'AB'"),
        ({"prompt": 5}, "prompt must be a str or a list of tokens.*, not 5"),
        ({"prompt": ["A"]}, "prompt must be a str or a list of tokens"),
        ({"prompt": [1, 2.5]}, "prompt must be a str or a list of tokens"),
        ({"prompt": [[1], [2, 3]]}, "prompt must be a str or a list of tokens"),
        ({"prompt": [True]}, "prompt must be"),
        ({"prompt": {1: 2}}, "prompt must be"),
        ({"prompt": [1, 300]}, "token 300 is not in the vocabulary of 0 to 299"),
        ({"prompt": [-1, 3]}, "token -1 is not in the vocabulary of 0 to 299"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be a whole number, not 2.5"),
        ({"max_new_tokens": "9"}, "max_new_tokens must be a whole number, not '9'"),
        ({"max_new_tokens": True}, "max_new_tokens must be a whole number, not True"),
        ({"max_new_tokens": -1}, "max_new_tokens must be 0 or more, not -1"),
        ({"stop": b"x"}, "stop must be a str or a list of them, not b'x'"),
        ({"stop": [b"x"]}, r"stop must be a str or a list of them, not \[b'x'\]"),
        ({"stop": 5}, "stop must be a str or a list of them, not 5"),
        ({"stop": np.array(5)}, "stop must be a str or a list of them, not 5"),
        ({"stop": ["a", None]}, "stop must be a str or a list of them"),
        ({"logprobs": 1.5}, "logprobs must be a whole number, not 1.5"),
        ({"state": 5}, "state must be a State, not 5"),
        ({"draft": 4}, "draft must be a function of the tokens, not int"),
        ({"seed": "x"}, "seed must be a whole number, not 'x'"),
        ({"seed": 1.5}, "seed must be a whole number, not 1.5"),
        ({"seed": False}, "seed must be a whole number, not False"),
        ({"temperature": "hot"}, "temperature must be a number, not 'hot'"),
        ({"temperature": math.nan}, "temperature must be 0, or 1e-30 to 1e30, not nan"),
        ({"temperature": math.inf}, "temperature must be 0, or 1e-30 to 1e30, not inf"),
        ({"temperature": -0.5}, "temperature must be 0, or 1e-30 to 1e30, not -0.5"),
        ({"temperature": True}, "temperature must be a number, not True"),
        ({"temperature": [1.0]}, r"temperature must be a number, not \[1.0\]"),
        ({"top_p": "0.9"}, "top_p must be a number, not '0.9'"),
        ({"top_p": True}, "top_p must be a number, not True"),
        ({"top_k": "40"}, "top_k must be a whole number, not '40'"),
        ({"top_k": True}, "top_k must be a whole number, not True"),
        ({"min_p": b"0"}, "min_p must be a number, not b'0'"),
        ({"repetition_penalty": "1"}, "repetition_penalty must be a number, not '1'"),
        ({"presence_penalty": ()}, r"presence_penalty must be a number, not \(\)"),
        ({"frequency_penalty": {}}, "frequency_penalty must be a number, not {}"),
        ({"logit_bias": [(1, 2)]}, r"logit_bias must be a dict of tokens .*, not \[\(1, 2\)\]"),
        ({"logit_bias": {True: 1}}, "logit_bias: tokens must be integers of 0 or more, not True"),
        ({"logit_bias": {1: "a"}}, "logit_bias of token 1 must be a number, not 'a'"),
        ({"logit_bias": {1: math.nan}}, "logit_bias of token 1 must be a number or -inf, not nan"),
        ({"logit_bias": {300: 1}}, "logit_bias has token 300, the vocabulary ends at 299"),
        ({"logits_processor": 5}, "logits_processor must be a function of the tokens.*, not 5"),
    ],
    ids=str,
)
def test_generate_says_at_the_call_what_is_wrong(model, options, message):
    with pytest.raises(ValueError, match=message) as error:
        model.generate(**{"prompt": "AB"} | options)
    assert "\n" not in str(error.value)
    common = options.keys() & {*SAMPLING}
    if common:
        with pytest.raises(ValueError, match=message):
            model.chat(**options)


LATER = {
    "chat positions": (lambda m: m.chat(positions=2.5), "positions must be a whole number"),
    "chat system": (lambda m: m.chat(b"x"), "system must be text, a str, not b'x'"),
    "chat send": (lambda m: m.chat().send(b"x"), "text must be text, a str, not b'x'"),
    "chat send None": (lambda m: m.chat().send(None), "text must be text, a str, not None"),
    "encode": (lambda m: m.tokenizer.encode(b"x"), "text must be text, a str, not b'x'"),
    "decode": (lambda m: m.tokenizer.decode("ab"), "tokens must be a list of tokens.*, not 'ab'"),
    "decode one": (lambda m: m.tokenizer.decode(5), "tokens must be a list of tokens.*, not 5"),
    "decode floats": (lambda m: m.tokenizer.decode([1.5]), "tokens must be a list of tokens"),
    "forward text": (lambda m: m.forward("AB", m.new_state()), "tokens must be one or more int"),
    "forward none": (lambda m: m.forward(None, m.new_state()), "tokens must be one or more int"),
    "forward floats": (lambda m: m.forward([1.5], m.new_state()), "tokens must be one or more int"),
    "forward state": (lambda m: m.forward([1], None), "state must be a State, not None"),
    "greedy count": (
        lambda m: m.transformer.greedy(1, m.new_state(), 1.5),
        "count must be a whole number, not 1.5",
    ),
    "greedy token": (lambda m: m.transformer.greedy("a", m.new_state(), 1), "token must be a who"),
    "truncate": (lambda m: m.new_state().truncate("0"), "pos must be a whole number, not '0'"),
    "reserve": (lambda m: m.new_state().reserve(1.5), "count must be a whole number, not 1.5"),
    "save": (
        lambda m: m.new_state().save(5),
        "path must be a path, a str or a pathlib.Path, not 5",
    ),
    "load state": (lambda m: State.load(None, TINY), "path must be a path.*, not None"),
    "state": (lambda m: State(None), "config must be a Config, not None"),
    "load": (lambda m: Llama.load(None), "path must be a path, a str or a pathlib.Path, not None"),
    "load bytes": (lambda m: Llama.load(b"x.bin"), "path must be a path.*, not b'x.bin'"),
    "load tokenizer": (lambda m: Llama.load("stories-box", 5), "tokenizer must be a path.*, not 5"),
    "tokenizer": (lambda m: Tokenizer.load(5), "path must be a path.*, not 5"),
    "hooks": (lambda m: m.with_hooks("q"), "a hook must be a Trace, an Edit or what .*, not 'q'"),
    "trace layers": (lambda m: Trace(layers="2"), "layers must be a whole number, not '2'"),
    "trace half a layer": (lambda m: Trace(layers=1.5), "layers must be a whole number, not 1.5"),
    "trace positions": (lambda m: Trace(positions=[True]), "positions must be a whole number, not"),
    "edit": (lambda m: Edit("q", 5), "change must be a function of an array and its place, not 5"),
    "edit layers": (lambda m: Edit("q", print, [None]), "layers must be a whole number, not None"),
    "beams": (lambda m: beam_search(m, [1], beams=2.5), "beams must be a whole number, not 2.5"),
    "beam prompt": (lambda m: beam_search(m, "AB"), "prompt must be a list of tokens.*, not 'AB'"),
    "beam token": (lambda m: beam_search(m, [300]), "token 300 is not in the vocabulary"),
    "beam penalty": (
        lambda m: beam_search(m, [1], length_penalty="1"),
        "length_penalty must be a number, not '1'",
    ),
    "beam penalty nan": (
        lambda m: beam_search(m, [1], length_penalty=math.nan),
        "length_penalty must be a finite number, not nan",
    ),
    "beam model": (
        lambda m: beam_search("x", [1]),
        "model must be a Llama or a Transformer, not 'x'",
    ),
    "draft of what": (
        lambda m: DraftModel(None),
        "model must be a Llama or a Transformer, not None",
    ),
    "evaluate what": (
        lambda m: evaluate(m.transformer, "A"),
        "model must be a Llama, not of type Tr",
    ),
    "compare with": (lambda m: compare(m, "x", "A"), "against must be a Llama, not 'x'"),
    "lens of": (lambda m: next(logit_lens(5, [1])), "model must be a Llama, not 5"),
    "draft model": (lambda m: DraftModel(m, "4"), "ahead must be a whole number, not '4'"),
    "lookup": (lambda m: PromptLookup(1.5), "ngram must be a whole number, not 1.5"),
    "evaluate": (lambda m: evaluate(m, b"AB"), "text must be a str or an iterable of them, not b'"),
    "evaluate pieces": (
        lambda m: evaluate(m, [b"A"]),
        "a piece of the text must be a str, not b'A",
    ),
    "evaluate context": (lambda m: evaluate(m, "A", context=1.5), "context must be a whole number"),
    "evaluate stride": (lambda m: evaluate(m, "A", stride="1"), "stride must be a whole number"),
    "evaluate progress": (
        lambda m: evaluate(m, "A", progress=5),
        "progress must be a function of a number of bytes, not 5",
    ),
    "export version": (
        lambda m: export("x", "y", "1"),
        "version must be -1, 0, 1, 2 or 'gguf', not '1'",
    ),
    "export bool": (lambda m: export("x", "y", True), "version must be a whole number, not True"),
    "export dtype": (
        lambda m: export("x", "y", -1, dtype=np.float32),
        "dtype must be float32 or float16 or bfloat16, not of type type",
    ),
    "export path": (lambda m: export("x", None), "path must be a path.*, not None"),
    "export checkpoint": (lambda m: export(5, "x"), "checkpoint must be a path.*, not 5"),
    "export seq_len": (
        lambda m: export("stories-box", "x", seq_len=1.5),
        "seq_len must be a whole number, not 1.5",
    ),
    "threads": (lambda m: kernels.set_threads(1.5), "threads must be a whole number, not 1.5"),
    "threads bool": (lambda m: kernels.set_threads(True), "threads must be a whole number, not T"),
    "config": (lambda m: replace(TINY, dim=48.5), "dim must be a whole number, not 48.5"),
    "config bool": (lambda m: replace(TINY, n_heads=True), "n_heads must be a whole number, not T"),
    "config text": (
        lambda m: replace(TINY, rope_theta="1"),
        "rope_theta must be a number, not '1'",
    ),
    "config none": (lambda m: replace(TINY, dim=None), "dim must be a whole number, not None"),
    "transformer": (lambda m: Transformer({}, None), "config must be of type Config, not {}"),
    "transformer weights": (
        lambda m: Transformer(TINY, 5),
        "weights must be of type Weights, not 5",
    ),
    "skip": (lambda m: Sampler().skip(1.5), "count must be a whole number, not 1.5"),
    "sample": (lambda m: Sampler().sample([1.0]), r"logits must be an array .*, not \[1.0\]"),
    "sample 2d": (lambda m: Sampler().sample(np.zeros((2, 2))), "logits must be an array"),
    "top k of logits": (
        lambda m: keep_top_k(np.zeros(3), 1.5),
        "k must be a whole number, not 1.5",
    ),
    "top_tokens": (lambda m: top_tokens(np.zeros(3), "1"), "count must be a whole number, not '1'"),
}


@pytest.mark.parametrize("name", LATER)
def test_everything_public_says_at_the_call_what_is_wrong(model, name):
    call, message = LATER[name]
    before = kernels.threads()
    with pytest.raises(ValueError, match=message) as error:
        call(model)
    assert "\n" not in str(error.value) and kernels.threads() == before


def test_a_sampler_keeps_what_was_checked():
    """A dictionary that changes later would bring in what nobody looked at."""
    bias = {1: 2.0}
    sampler = Sampler(0, logit_bias=bias)
    bias["x"] = None
    assert sampler.sample(np.zeros(4, np.float32)) == 1


def test_the_decorator_leaves_names_errors_and_signatures_alone(model):
    assert "max_new_tokens" in str(inspect.signature(Llama.generate))
    assert Llama.generate.__name__ == "generate"
    with pytest.raises(TypeError, match="unexpected keyword argument 'prompts'"):
        evaluate(model, "A", prompts=None)
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        beam_search(model)
    with pytest.raises(TypeError, match="takes .* positional arguments"):
        PromptLookup(1, 2, 3)


def test_threads_are_those_of_the_caller(model):
    """Nothing in the checks is shared: many threads may call at once."""
    found = []
    threads = [threading.Thread(target=lambda: found.append(generate(model))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [generate(model)] * 3
