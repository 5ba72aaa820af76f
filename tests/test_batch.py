"""Many sequences at once: each has the tokens that it has alone, whatever else happens."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import TINY, write_tokenizer

from llama2np import Edit, Llama
from llama2np.decoding.batch import Batch
from llama2np.formats import loading
from llama2np.formats.checkpoint import Header
from llama2np.model.state import State
from llama2np.text.numbers import numbers

LONG = "the cat sat on the mat and " * 3  # longer than what one pass reads beside others
PROMPTS = (
    {"prompt": "ABC", "seed": 3, "max_new_tokens": 30},
    {"prompt": LONG, "seed": 5, "temperature": 0.7, "top_k": 9, "max_new_tokens": 9},
    {"prompt": "A", "temperature": 0, "max_new_tokens": 25, "repetition_penalty": 1.3},
    {"prompt": LONG + "XYZ", "seed": 6, "min_p": 0.01, "frequency_penalty": 0.4},
    {"prompt": [1, 40, 50, 60], "temperature": 0, "logprobs": 2, "max_new_tokens": 12},
    {"prompt": LONG[:60], "seed": 8, "logit_bias": {70: 2.0}, "stop": ["e", "qq"]},
    {"prompt": "", "seed": 9, "max_new_tokens": 0},
    {"prompt": "Q", "seed": 10, "max_new_tokens": 1},
)


def check_alone(model, prompts, **options):
    """Each completion of the batch is what `generate` makes of its prompt."""
    done = sorted(model.generate_batch(prompts, **options), key=lambda each: each.index)
    assert len(done) == len(prompts)
    for found, asked in zip(done, prompts, strict=True):
        own = {name: value for name, value in asked.items() if name != "prompt"}
        alone = model.generate(asked["prompt"], **own)
        alone.read()
        assert (found.prompt, found.text) == (alone.prompt, alone.text)
        assert (found.tokens, found.stop_reason) == (alone.tokens, alone.stop_reason)
        assert found.logprobs == alone.logprobs and found.top_logprobs == alone.top_logprobs
    return done


@pytest.fixture(params=[0, 2], ids=["float32", "int8"])
def either(request, write, tmp_path):
    """A tiny random model of each kind."""
    path = write("m.bin", Header(request.param, TINY, True, 16))
    return Llama.load(path, write_tokenizer(tmp_path / "t.bin"))


@pytest.mark.parametrize("most", (1, 3, 32))
def test_each_has_the_tokens_that_it_has_alone(either, most):
    check_alone(either, PROMPTS, max_sequences=most)


def test_of_a_bundled_model():
    prompts = [
        {"prompt": text, "seed": i + 1, "max_new_tokens": 20}
        for i, text in enumerate(["Once upon a time", "Tom had a dog.", "The cat"] * 4)
    ]
    check_alone(Llama.load("stories-box-q8"), prompts, max_sequences=5)


@pytest.mark.compiled
@pytest.mark.parametrize("name", ("llama_mqa_fp32", "mixtral_swa", "phi3_longrope", "qwen2_dca"))
def test_of_a_folder(reference, name):
    """Experts and windows; and rotations that depend on the length, also past where they change."""
    folder = reference / "architectures" / name
    network = loading.transformer(folder)
    model = Llama(network, numbers(network.config.vocab_size, "numbers"))
    length = min(network.config.seq_len, 60)
    random = np.random.default_rng(0)
    prompts = [
        {
            "prompt": random.integers(0, network.config.vocab_size, size).tolist(),
            "seed": size,
            "max_new_tokens": 12,
        }
        for size in (3, length - 3, length // 2, 5)
    ]
    check_alone(model, prompts, max_sequences=3)


def test_a_prompt_that_begins_as_another_reuses_its_cache(model):
    first, *others = check_alone(
        model,
        [
            {"prompt": LONG, "seed": 1, "max_new_tokens": 4},
            {"prompt": LONG, "seed": 2, "max_new_tokens": 4},  # waits for the first to be read
            {"prompt": LONG[:40] + "ZZZ", "seed": 2, "max_new_tokens": 4},
            {"prompt": "ABC", "seed": 2, "max_new_tokens": 4},
        ],
    )
    same, begins, differs = (each.reused for each in others)
    assert (first.reused, differs) == (0, 0)
    assert same == len(first.prompt) - 1 and 40 <= begins < same


def test_finished_texts_are_reused(model):
    batch = Batch(model.transformer, model.tokenizer)
    one = batch.add(model.request(LONG, {"max_new_tokens": 3, "seed": 1}))
    drain(batch)
    two = batch.add(model.request(LONG + one.text, {"max_new_tokens": 3, "seed": 1}))
    drain(batch)
    assert two.reused >= len(one.prompt)


def drain(batch):
    news = []
    while len(batch):
        news += batch.step()
    return news


@pytest.mark.compiled
def test_memory_is_a_budget(write, tmp_path):
    """Sequences that do not fit wait, or are read again; the texts are the same."""
    config = replace(TINY, seq_len=1300)
    path = write("m.bin", Header(0, config, True))
    model = Llama.load(path, write_tokenizer(tmp_path / "t.bin"))
    random = np.random.default_rng(1)
    prompts = [random.integers(3, 300, size).tolist() for size in (500, 505, 495, 1000)]
    requests = [model.request(p, {"seed": 7, "max_new_tokens": 30}) for p in prompts]
    batch = Batch(model.transformer, model.tokenizer, max_positions=4 * 512)
    done = [batch.add(request) for request in requests]
    preempted, pages = False, 0
    while len(batch):
        before = {id(each) for each in batch._active}
        batch.step()
        pages = max(pages, batch.pages)
        left = {id(each) for each in batch._waiting}
        preempted = preempted or bool(before & left)
    assert batch.max_pages == 4 and pages <= 4 and preempted
    for prompt, found in zip(prompts, done, strict=True):
        alone = model.generate(prompt, seed=7, max_new_tokens=30)
        alone.read()
        assert found.tokens == alone.tokens


def test_a_context_each_is_enough_for_all(model):
    """Sequences that cannot grow do not keep others from beginning."""
    batch = Batch(model.transformer, model.tokenizer, max_sequences=5)
    for i in range(5):
        batch.add(model.request("AB" * (i + 1), {"temperature": 0, "max_new_tokens": 9}))
    batch.step()
    assert batch.waiting == 0 and batch.pages <= batch.max_pages == 5


def test_a_long_prompt_does_not_hold_up_the_others(model):
    batch = Batch(model.transformer, model.tokenizer, prompt_tokens=8)
    short = batch.add(model.request("AB", {"temperature": 0, "max_new_tokens": 60}))
    batch.step()
    late = batch.add(model.request(LONG, {"temperature": 0, "max_new_tokens": 2}))
    for _ in range(4):
        before = len(short.tokens)
        batch.step()
        assert short.done or len(short.tokens) == before + 1  # a token in every step
    assert late.state.pos == 4 * 8 and not late.tokens  # a piece of the prompt in every step


def test_it_joins_and_leaves_at_any_step(model):
    """In an order that a random generator chooses, with cancellations."""
    random = np.random.default_rng(4)
    batch = Batch(model.transformer, model.tokenizer, max_sequences=4)
    asked, cancelled, news = [], set(), {}
    while len(asked) < 25 or len(batch):
        if len(asked) < 25 and random.random() < 0.5:
            prompt = LONG[: random.integers(1, 70)]
            options = {"seed": len(asked) + 1, "max_new_tokens": int(random.integers(0, 15))}
            asked.append((batch.add(model.request(prompt, options)), prompt, options))
        going = [each for each, *_ in asked if not each.done]
        if going and random.random() < 0.1:
            victim = going[random.integers(len(going))]
            victim.cancel()
            cancelled.add(victim.index)
        for each, piece in batch.step():
            news[each.index] = news.get(each.index, "") + piece
    assert cancelled
    for found, prompt, options in asked:
        alone = model.generate(prompt, **options)
        alone.read()
        assert found.done and news[found.index] == found.text and found.state is None
        if found.index in cancelled:
            assert found.stop_reason == "cancelled"
            assert alone.tokens[: len(found.tokens)] == found.tokens
        else:
            assert (found.tokens, found.text) == (alone.tokens, alone.text)


def test_an_error_of_one_sequence_is_its_own(model):
    def broken(tokens, logits):
        raise KeyError("mine")

    batch = Batch(model.transformer, model.tokenizer)
    bad = batch.add(model.request("ABC", {"logits_processor": broken}))
    good = batch.add(model.request("ABC", {"temperature": 0, "max_new_tokens": 5}))
    drain(batch)
    assert isinstance(bad.error, KeyError) and bad.done and bad.stop_reason is None
    assert good.tokens == model.generate("ABC", temperature=0, max_new_tokens=5).tokens
    with pytest.raises(KeyError, match="mine"):
        list(model.generate_batch([{"prompt": "A", "logits_processor": broken}]))


def test_streaming(model):
    prompts = [{"prompt": "AB", "seed": 1, "max_new_tokens": 9}, {"prompt": LONG, "seed": 2}]
    texts = ["", ""]
    for each, piece in model.generate_batch(prompts, stream=True):
        texts[each.index] += piece
        assert each.text == texts[each.index]
    assert texts == [model.generate(**one).read() for one in prompts]


def test_prompts_may_be_endless(model):
    def endless():
        while True:
            yield "AB"

    news = model.generate_batch(endless(), max_new_tokens=2, max_sequences=3, seed=1)
    assert [next(news).text for _ in range(7)] == [
        model.generate("AB", max_new_tokens=2, seed=1).read()
    ] * 7


def test_mistakes(model):
    with pytest.raises(ValueError, match="prompts must be a list of prompts, not 'AB'"):
        model.generate_batch("AB")
    with pytest.raises(TypeError, match=r"generate_batch\(\) has no option 'max_tokens'"):
        model.generate_batch(["AB"], max_tokens=3)
    with pytest.raises(ValueError, match="network must be a Transformer, not of type Llama"):
        Batch(model, model.tokenizer)
    with pytest.raises(ValueError, match="tokenizer must be a Tokenizer, not 0"):
        Batch(model.transformer, 0)
    with pytest.raises(ValueError, match="temperature must be"):
        model.generate_batch(["AB"], temperature=-1)
    with pytest.raises(ValueError, match="prompt 1: token 300 is not in the vocabulary"):
        list(model.generate_batch(["A", [300]], max_new_tokens=1))
    with pytest.raises(ValueError, match="max_sequences must be 1 or more, not 0"):
        model.generate_batch(["A"], max_sequences=0)
    with pytest.raises(ValueError, match="max_new_tokens must be 0 or more, not -1"):
        model.generate_batch(["A"], max_new_tokens=-1)


def test_hooks_see_each_sequence(model):
    def ablate(mixed, place):
        mixed[:, 0] = 0

    edited = model.with_hooks(Edit("mixed", ablate, layers=0))
    check_alone(edited, PROMPTS[:3])


def test_a_fork_of_a_beginning(model):
    state = State(model.config)
    model.forward(list(range(5, 90)), state)
    twin = state.fork(40)
    assert twin.pos == 40 and twin.tokens.tolist() == list(range(5, 45))
    alone = State(model.config)
    model.forward(list(range(5, 45)), alone)
    assert (model.forward([7], twin) == model.forward([7], alone)).all()
    with pytest.raises(ValueError, match="pos must be 0 to 85, the tokens read, not 86"):
        state.fork(86)


def test_it_shows_itself(model):
    batch = Batch(model.transformer, model.tokenizer)
    one = batch.add(model.request("AB", {"max_new_tokens": 1, "seed": 1}))
    assert repr(batch) == "Batch(0 of 32 sequences, 1 in all)" and batch.waiting == 1
    drain(batch)
    assert "stop_reason='max_new_tokens'" in repr(one) and len(batch) == 0
    batch.clear()
    assert batch.pages == 0
