"""What a Generation knows about its text, States that are shared, and speculative decoding."""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import wraps

import numpy as np
import pytest
from conftest import TINY, examples, letters, scripted, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from llama2np import DraftModel, Llama, PromptLookup, box, kernels
from llama2np.decoding.logits import log_softmax
from llama2np.formats.checkpoint import Header
from llama2np.text.tokenizer import BOS, EOS


@pytest.mark.parametrize(
    "script, options, reason, text",
    [
        ([*letters("AB"), EOS], {}, "end", "AB"),
        ([*letters("AB"), BOS], {}, "end", "AB"),
        (letters("ABCD"), {"stop": "C"}, "stop", "AB"),
        (letters("ABCD"), {"max_new_tokens": 3}, "max_new_tokens", "ABC"),
        ([*letters("AB"), EOS], {"max_new_tokens": 3}, "end", "AB"),
        (letters("A"), {"max_new_tokens": 0}, "max_new_tokens", ""),
        ([letters("A")[0]] * 200, {}, "context", "A" * (TINY.seq_len - 2)),
        ([letters("A")[0]] * 200, {"max_new_tokens": 500}, "context", "A" * (TINY.seq_len - 2)),
        ([*letters("A"), 3 + 0xC3, EOS], {"stop": "\N{REPLACEMENT CHARACTER}"}, "stop", "A"),
    ],
)
def test_why_it_stopped(model, monkeypatch, script, options, reason, text):
    scripted(model, monkeypatch, script)
    story = model.generate("X", temperature=0, **options)
    assert story.stop_reason is None
    assert story.read() == story.text == text
    assert story.stop_reason == reason
    assert story.read() == "" and story.stop_reason == reason


def test_its_tokens_are_all_that_were_chosen(model, monkeypatch):
    scripted(model, monkeypatch, [*letters("ABCD"), EOS])
    story = model.generate("X", temperature=0, stop="BC")
    assert story.read() == "A"
    assert story.prompt == model.tokenizer.encode("X")
    assert story.tokens == letters("ABC")
    assert repr(story) == "Generation(text='A', tokens=3, stop_reason='stop')"


def test_it_knows_what_has_happened_so_far(model, monkeypatch):
    scripted(model, monkeypatch, [*letters("ABCD"), EOS])
    story = model.generate("X", temperature=0)
    assert (repr(story), story.seconds) == (
        "Generation(text='', tokens=0, stop_reason=None)",
        [],
    )
    assert [next(story), next(story)] == ["A", "B"]
    assert (story.text, story.tokens, story.stop_reason) == ("AB", letters("AB"), None)
    assert len(story.seconds) == 2 and story.tokens_per_second > 0
    assert story.read() == "CD" and story.text == "ABCD"
    assert len(story.seconds) == len(story.tokens) == 5


def test_tokens_and_text_without_reading_it_first(model, monkeypatch):
    """`model.generate(...).tokens` is what one expects; the pieces can still be read."""
    scripted(model, monkeypatch, [*letters("ABCD"), EOS])
    assert model.generate("X", temperature=0).tokens == [*letters("ABCD"), EOS]
    scripted(model, monkeypatch, [*letters("ABCD"), EOS])
    story = model.generate("X", temperature=0)
    assert story.text == "ABCD" and story.stop_reason == "end"
    assert list(story) == list("ABCD") and story.read() == ""


def test_the_rate_of_one_token_is_not_known(model):
    story = model.generate("X", max_new_tokens=1)
    story.read()
    assert math.isnan(story.tokens_per_second) and len(story.seconds) == 1


def test_log_probabilities_are_the_model_s_own(model):
    """Whatever sampling makes of them."""
    story = model.generate(
        "AB", max_new_tokens=12, logprobs=3, seed=5, temperature=2.0, logit_bias={7: 2.5}, top_k=9
    )
    story.read()
    read = [*story.prompt, *story.tokens[:-1]]
    rows = model.forward(read, model.new_state(), all_logits=True)[len(story.prompt) - 1 :]
    expected = log_softmax(rows)
    own = expected[np.arange(len(rows)), story.tokens]
    assert story.logprobs == pytest.approx(own.tolist(), abs=1e-4)
    for top, row in zip(story.top_logprobs, expected, strict=True):
        assert list(top) == np.argsort(-row)[:3].tolist()
        assert list(top.values()) == pytest.approx(np.sort(row)[::-1][:3], abs=1e-4)


def test_log_probabilities_only_on_request(model):
    story = model.generate("AB", max_new_tokens=4, temperature=0)
    story.read()
    assert story.logprobs == story.top_logprobs == []
    story = model.generate("AB", max_new_tokens=4, temperature=0, logprobs=0)
    story.read()
    assert len(story.logprobs) == 4 and story.top_logprobs == [{}] * 4


@pytest.mark.parametrize(
    "options, message",
    [
        ({"logprobs": -1}, "logprobs must be 0 or more, not -1"),
        ({"top_k": -1}, "top_k must be a whole number"),
        ({"prompt": []}, "the prompt has 0 tokens"),
    ],
)
def test_options_are_checked_at_the_call(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**options)


def test_a_prompt_may_be_tokens(model):
    tokens = model.tokenizer.encode("ABC")
    a = model.generate(tokens, temperature=0, max_new_tokens=9).read()
    assert a == model.generate("ABC", temperature=0, max_new_tokens=9).read()


def test_a_state_is_read_on_not_again(model, monkeypatch):
    read, forward = [], model.transformer.forward

    def watch(tokens, state, all_logits=False):
        read.append(len(tokens))
        return forward(tokens, state, all_logits)

    monkeypatch.setattr(model.transformer, "forward", watch)
    state = model.new_state()
    first = model.generate("ABC", state=state, temperature=0, max_new_tokens=10)
    first.read()
    assert state is first.state and state.pos == len(first.prompt) + 9
    read.clear()
    more = [*first.prompt, *first.tokens]
    second = model.generate(more, state=state, temperature=0, max_new_tokens=10)
    second.read()
    assert read == [1] * 10
    whole = model.generate("ABC", temperature=0, max_new_tokens=20)
    whole.read()
    assert whole.tokens == first.tokens + second.tokens


def test_two_texts_cannot_be_written_with_one_state(model):
    state = model.new_state()
    one = model.generate("ABC", state=state, temperature=0, max_new_tokens=40)
    next(one)
    model.generate("FED", state=state, temperature=0, max_new_tokens=7).read()
    with pytest.raises(ValueError, match="the state was used for another text"):
        one.read()


def test_one_prompt_read_once_has_many_continuations(model):
    prompt = model.tokenizer.encode("ABCDEF")
    read = model.new_state()
    model.forward(prompt[:-1], read)
    for seed in range(1, 6):
        forked = model.generate(prompt, state=read.fork(), seed=seed, max_new_tokens=12)
        alone = model.generate(prompt, seed=seed, max_new_tokens=12)
        assert forked.read() == alone.read()
    assert read.pos == len(prompt) - 1


def test_penalties_reach_the_sampler(model):
    plain = model.generate("A", temperature=0, max_new_tokens=60)
    plain.read()
    assert len(set(plain.tokens)) < len(plain.tokens)  # it repeats itself
    for name in ("presence_penalty", "frequency_penalty", "repetition_penalty"):
        varied = model.generate("A", temperature=0, max_new_tokens=60, **{name: 1e6})
        varied.read()
        assert len(set(varied.tokens)) == len(varied.tokens)
        from_prompt = set(varied.tokens) & set(varied.prompt)
        assert not from_prompt or name != "repetition_penalty"


# Speculative decoding


def one_thread(test):
    """Run a test with one thread of the kernels: a row of tiny models should not wait for others.

    The number of numba's threads is that of the thread that calls it.
    """

    @wraps(test)
    def alone(*args, **kwargs):
        with ThreadPoolExecutor(1, initializer=kernels.set_threads, initargs=(1,)) as pool:
            return pool.submit(test, *args, **kwargs).result()

    return alone


def written(model, prompt, **options):
    story = model.generate(prompt, **options)
    story.read()
    return story.tokens, story.stop_reason, story.state.tokens.tolist()


@pytest.fixture(scope="module")
def quantized():
    """It drafts, and its own rows are the same bit for bit."""
    return Llama.load(box.STORIES_INT8)


def prompts(model, count):
    """Beginnings of stories, cut anywhere."""
    for seed in range(1, count + 1):
        yield model.generate("", seed=seed, max_new_tokens=3 + seed % 17).read()


@pytest.mark.compiled
@pytest.mark.parametrize("kind", ["float32", "int8"])
@one_thread
def test_greedy_speculative_output_is_plain_output(quantized, kind):
    model = quantized if kind == "int8" else Llama.load(box.STORIES)
    options, count, passes = {"temperature": 0, "max_new_tokens": 40}, examples(25), 0
    for prompt in prompts(model, count):
        plain = model.generate(prompt, **options)
        plain.read()
        for draft in (PromptLookup(), DraftModel(quantized)):

            def counted(tokens, draft=draft):
                nonlocal passes
                passes += isinstance(draft, DraftModel)
                return draft(tokens)

            guessed = model.generate(prompt, draft=counted, **options)
            guessed.read()
            assert plain.tokens == guessed.tokens
            assert plain.stop_reason == guessed.stop_reason
            assert plain.state.tokens.tolist() == guessed.state.tokens.tolist()
    assert passes < count * 20  # the small model guesses well: few passes for 40 tokens


@pytest.mark.compiled
@one_thread
def test_speculative_sampling_draws_the_same_tokens(quantized):
    """Any seed, any option, to the last bit."""
    for seed, prompt in enumerate(prompts(quantized, 12), 1):
        options = {"seed": seed, "max_new_tokens": 40, "frequency_penalty": 0.3, "logprobs": 2}
        plain = quantized.generate(prompt, **options)
        guessed = quantized.generate(prompt, draft=PromptLookup(2, 5), **options)
        assert plain.read() == guessed.read()
        assert plain.logprobs == guessed.logprobs and plain.top_logprobs == guessed.top_logprobs


@pytest.fixture
def int8_model(write, tmp_path):
    path = write("q8.bin", Header(2, TINY, True, 16))
    return Llama.load(path, write_tokenizer(tmp_path / "t.bin"))


_GUESSES = st.lists(st.integers(0, TINY.vocab_size - 1), max_size=9)


@pytest.mark.compiled
@settings(deadline=None, max_examples=examples(40))
@given(script=st.lists(_GUESSES, min_size=1, max_size=5), limit=st.integers(0, 200))
@one_thread
def test_no_guess_however_bad_changes_the_output(int8_model_once, script, limit):
    model = int8_model_once
    truth = written(model, "AB", temperature=0, max_new_tokens=200)
    start = len(model.tokenizer.encode("AB"))

    def draft(tokens):
        """Some right tokens, then anything."""
        guess = script[len(tokens) % len(script)]
        at = len(tokens) - start
        return truth[0][at : at + len(guess) // 2] + guess

    plain = written(model, "AB", temperature=0, max_new_tokens=limit)
    assert written(model, "AB", temperature=0, max_new_tokens=limit, draft=draft) == plain


@pytest.fixture(scope="module")
def int8_model_once(tmp_path_factory):
    from conftest import random_tensors

    from llama2np.formats.checkpoint import save

    folder, header = tmp_path_factory.mktemp("model"), Header(2, TINY, True, 16)
    save(folder / "q8.bin", header, random_tensors(header))
    return Llama.load(folder / "q8.bin", write_tokenizer(folder / "t.bin"))


def test_the_state_has_read_just_what_was_yielded(int8_model):
    """Also if the stream is left in the middle of a guess that was right."""
    plain = int8_model.generate("AB", temperature=0, max_new_tokens=20)
    plain.read()
    truth, start = plain.tokens, len(plain.prompt)

    def oracle(tokens):
        return truth[len(tokens) - start :][:6]

    for count in range(1, 12):
        story = int8_model.generate("AB", temperature=0, draft=oracle)
        for _ in range(count):
            next(story)
        assert story.state.tokens.tolist() == [*story.prompt, *truth[: count - 1]]


def test_right_guesses_save_passes(int8_model, monkeypatch):
    plain = int8_model.generate("AB", temperature=0, max_new_tokens=21)
    plain.read()
    passes, forward = [], int8_model.transformer.forward

    def watch(tokens, state, all_logits=False):
        passes.append(len(tokens))
        return forward(tokens, state, all_logits)

    monkeypatch.setattr(int8_model.transformer, "forward", watch)
    start = len(plain.prompt)
    oracle = int8_model.generate(
        "AB",
        temperature=0,
        max_new_tokens=21,
        draft=lambda tokens: plain.tokens[len(tokens) - start :][:4],
    )
    oracle.read()
    assert oracle.tokens == plain.tokens
    assert passes == [start, 5, 5, 5, 5]


@pytest.mark.parametrize(
    "tokens, ngram, ahead, guess",
    [
        ([1, 2, 3, 4, 1, 2, 3], 3, 2, [4, 1]),
        ([1, 2, 3, 4, 1, 2, 3], 3, 9, [4, 1, 2, 3, 4, 1, 2, 3, 4]),  # and round again
        ([1, 2, 9, 1, 2, 8, 1, 2], 2, 1, [8]),  # the latest place
        ([7, 2, 9, 3, 2], 3, 1, [9]),  # two and three tokens stand nowhere else
        ([5, 5], 3, 4, [5, 5, 5, 5]),
        ([1, 2, 3], 3, 4, []),
        ([1], 3, 4, []),
        ([], 3, 4, []),
    ],
)
def test_prompt_lookup(tokens, ngram, ahead, guess):
    assert PromptLookup(ngram, ahead)(np.array(tokens, np.int64)) == guess


def test_prompt_lookup_is_careful_after_a_wrong_guess():
    text = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3])
    draft = PromptLookup(ngram=3, ahead=6)

    def after(*more):
        return draft(np.append(text, more).astype(np.int64))

    assert after() == [4, 5, 6, 7, 8, 9]
    assert after(4, 5, 77, 4, 5) == [77, 4, 5, 77, 4]  # two were right: up to five
    assert after(4, 5, 77, 4, 5, 88, 4) == []  # none was: a token alone is not enough any more
    assert after(4, 5, 77, 4, 5, 88, 4, 5, 77) == [4]  # three are, for one
    assert after(4, 5, 77, 4, 5, 88, 4, 5, 77, 4) == [5, 88, 4, 5, 77, 4]  # it was right


def test_a_draft_model_guesses_what_it_would_say(int8_model):
    said = written(int8_model, "AB", temperature=0, max_new_tokens=9)[0]
    draft, prompt = DraftModel(int8_model, ahead=4), int8_model.tokenizer.encode("AB")
    assert draft(np.array(prompt)) == said[:4]
    assert draft(np.array([*prompt, *said[:3]])) == said[3:7]
    assert draft(np.array([*prompt, 99])) != said[1:5]  # another sequence
    assert draft(np.array([*prompt, *said[:1]])) == said[1:5]


def test_a_draft_model_with_a_shorter_context_falls_silent(int8_model):
    draft = DraftModel(int8_model, ahead=4)
    assert len(draft(np.full(TINY.seq_len - 1, 5))) == 2
    assert draft(np.full(TINY.seq_len + 1, 5)) == []
    assert draft(np.full(TINY.seq_len + 40, 5)) == []


@pytest.mark.parametrize("make", [lambda: DraftModel(None, 0), lambda: PromptLookup(0)])
def test_drafts_of_nothing_are_refused(make):
    with pytest.raises(ValueError, match="must be 1 or more"):
        make()
