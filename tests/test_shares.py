"""Networks that several ranks share out, here the threads of a process (see threaded_peers.py)."""

import gc
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import EXHAUSTIVE, pairs

from llama2np import Batch, Edit, Llama, State, Trace, Transformer, beam_search
from llama2np.analysis.evaluation import evaluate
from llama2np.formats.mapped import in_huge_pages, in_small_pages, map_weights
from llama2np.formats.sharing import share_of
from llama2np.model.config import Config
from llama2np.model.shares import shares
from llama2np.model.weights import Dense, Int8, Weights
from tests.networks import tiny, weights_of
from tests.ops import random_blocks
from tests.threaded_peers import shared_out

FAMILIES = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "phi", "phi3", "gpt2", "gpt_neox"),
    *("gemma", "gemma2", "gemma3_text"),
)
FORMS = [(form, engine) for form in ("int8", "Q8_0") for engine in ("numpy", "compiled")]
QUANTIZED = ("llama", "mixtral", "qwen3", "phi", "gpt2", "gpt_neox", "gemma2")
TOKENS = [1, 5, 3, 8, 2, 9, 4, 4, 7, 6, 1]


def network(family, seed=0):
    """Four query heads, of which two share keys where the family allows it."""
    alone = family in ("phi", "gpt2", "gpt_neox")
    sizes = dict(n_heads=4, n_kv_heads=4 if alone else 2, head_dim=6, hidden_dim=22)
    config, tensors = tiny(family, seed, **sizes)
    return config, weights_of(tensors)


def sizes(i):
    """Numbers of ranks: each of them in turn, or all. Among 3, the shares are unequal."""
    return (2, 3, 4) if EXHAUSTIVE else (2 + i % 3,)


def close(found, expected):
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize("engine", ["numpy", "compiled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_logits_of_one_process(family, engine):
    config, weights = network(family)
    whole = Transformer(config, weights, engine="numpy")
    state = State(config)
    expected = whole.forward(TOKENS, state, all_logits=True)
    after = whole.forward([3], state)
    for size in sizes(FAMILIES.index(family)):
        with shared_out(config, weights, size, engine) as shared:
            state = State(shared.config)
            close(shared.forward(TOKENS[:4], state, all_logits=True), expected[:4])
            close(shared.forward(TOKENS[4:], state, all_logits=True), expected[4:])
            close(shared.forward([3], state), after)
            assert shared.board.sums == 3 * 2 * config.n_layers


def test_keys_are_shared_out_or_repeated():
    config, weights = network("llama")

    def kv_heads(size):
        return [share.kv_heads for share in shares(config, size)]

    assert kv_heads(1) == [(0, 1)]
    assert kv_heads(2) == [(0,), (1,)]
    assert kv_heads(3) == [(0,), (0,), (1,)]
    assert kv_heads(4) == [(0,), (0,), (1,), (1,)]
    # Three query heads for each: those of the second rank have different numbers of neighbours.
    fields = {"head_dim": 2, "n_heads": 6, "n_kv_heads": 2}
    six = Config(8, 16, 1, vocab_size=9, seq_len=4, **fields)
    found = [(share.heads, share.kv_heads) for share in shares(six, 4)]
    assert found == [((0, 1), (0,)), ((1, 3), (0,)), ((3, 4), (1,)), ((4, 6), (1,))]
    # Where a rank has one query head of a key and two of another, the second key is repeated.
    ten = Config(8, 16, 1, head_dim=2, n_heads=10, n_kv_heads=2, vocab_size=9, seq_len=4)
    found = [(share.heads, share.kv_heads) for share in shares(ten, 3)]
    assert found == [((0, 3), (0,)), ((3, 6), (0, 0, 1)), ((6, 10), (1,))]


def quantized(tensors, form):
    """Random matrices in a quantized format: "int8" (groups of 8) or a kind of Blocks."""
    made = {}
    for i, (name, tensor) in enumerate(tensors.items()):
        made[name] = np.float32(tensor)
        if tensor.ndim == 2 and form == "int8":
            random, (d, n) = np.random.default_rng(i), tensor.shape
            q = random.integers(-127, 128, (d, n), np.int8)
            made[name] = Int8(q, random.random((d, n // 8), np.float32) / 200)
        elif tensor.ndim == 2:
            made[name] = random_blocks(form, *tensor.shape, i, 0.01)
    return Weights(made)


def quantized_network(family, form, alone=False):
    """As `network`, with sizes that the format allows. alone: no query heads share keys."""
    alone = alone or family in ("phi", "gpt2", "gpt_neox")
    sizes = dict(n_heads=4, n_kv_heads=4 if alone else 2, head_dim=16, dim=64, hidden_dim=96)
    config, tensors = tiny(family, **sizes)
    return config, quantized(tensors, form)


def answers(network):
    """The logits of a prompt in one pass, of single tokens, and of a batch."""
    state, other = State(network.config), State(network.config)
    logits = [network.forward(TOKENS, state, all_logits=True)]
    logits += [network.forward([token], state)[None] for token in (3, 8)]
    logits.append(network.forward_rows([[4], [5, 6, 7]], [state, other]))
    return np.concatenate(logits)


@pytest.mark.parametrize("case", pairs(QUANTIZED, FORMS), ids=str)
def test_quantized_networks_have_the_bits_of_one_process(case):
    family, (form, engine) = case
    # The bits of NumPy's products of floats depend on shapes, so also on the heads that share keys.
    config, weights = quantized_network(family, form, alone=engine == "numpy")
    expected = answers(Transformer(config, weights, engine=engine))
    assert np.ptp(expected) > 0.01
    for size in sizes(QUANTIZED.index(family) + (engine == "numpy")):
        with shared_out(config, weights, size, engine) as shared:
            found = answers(shared)
            assert (shared.board.sums, shared.board.gathers) == (0, 4 * 4 * config.n_layers)
        if engine == "numpy" and form == "Q8_0":  # it multiplies floats
            close(found, expected)
        else:
            np.testing.assert_array_equal(found, expected)


def test_quantized_matrices_are_cut_by_rows():
    """At any head: the values of a block, here of 32, are together on all ranks."""
    config, weights = quantized_network("llama", "Q8_0")
    found = shares(config, 3)
    assert [share.heads for share in found] == [(0, 1), (1, 2), (2, 4)]
    assert [share.dim for share in found] == [(0, 16), (16, 32), (32, 64)]
    own = share_of(weights, found[2])
    assert own["layers.0.wo"].shape == (32, 64)
    assert own["layers.0.w_down"].shape == (32, 96)
    assert own["layers.0.w_up"].shape == (32, 64)
    # Each way for its matrices, where a file has both.
    mixed = Weights(dict(weights) | {"layers.1.wo": Dense(np.ones((64, 64), np.float32) / 64)})
    expected = Transformer(config, mixed, engine="numpy").forward(TOKENS, State(config))
    with shared_out(config, mixed, 3) as shared:
        close(shared.forward(TOKENS, State(shared.config)), expected)
        assert (shared.board.sums, shared.board.gathers) == (1, 3 * 2)


def test_a_rank_has_its_share_of_the_bytes():
    config, weights = network("llama")
    for share in shares(config, 2):
        own = share_of(weights, share)
        for name in ("wq", "wk", "wv", "wo", "w_gate", "w_up"):
            full = weights[f"layers.1.{name}"].w.nbytes
            assert 2 * own[f"layers.1.{name}"].w.nbytes == full, name
        state = State(share.config)
        state.reserve(16)
        assert state.keys.shape[1] == 1


def test_states_are_mirrored():
    """Forks, truncated and freed States, drafts: the other ranks have the same keys."""
    config, weights = network("llama")
    whole = Transformer(config, weights)
    with shared_out(config, weights, 2, "compiled") as shared:
        results = []
        for each in (whole, shared):
            a = State(each.config)
            logits = [each.forward(TOKENS, a)]
            b = a.fork(5)
            a.truncate(0)
            logits.append(each.forward([7, 7, 7], a))  # over the keys that b has a copy of
            logits.append(each.forward([2], b))
            c = b.fork()
            del b
            logits.append(each.forward_rows([[3], [4, 5]], [c, a])[0])
            unread = State(each.config)
            logits.append(each.forward([9], unread.fork()))
            results.append(np.array(logits))
        followers = shared.ranks[1]._engine._states
        close(results[1], results[0])
        del a, c, unread
        gc.collect()  # a State and its engine's memory refer to each other
        each.forward([1], State(each.config))
        assert len(followers) == 1


def test_generation_batches_and_drafts(model):
    """The library's ways to generate and to score texts, over ranks: the same results."""
    config, weights = model.config, model.transformer.weights
    prompts = ["a cat", "dogs and", "x"]
    options = dict(max_new_tokens=8, temperature=0.9, seed=3)
    expected = [model.generate(each, **options).tokens for each in prompts]
    with shared_out(config, weights, 2, "compiled") as network:
        shared = Llama(network, model.tokenizer)
        assert [shared.generate(each, **options).tokens for each in prompts] == expected
        batch = shared.generate_batch(prompts, **options)
        assert [each.tokens for each in sorted(batch, key=lambda e: e.index)] == expected
        plain = model.generate("a cat", max_new_tokens=12, temperature=0).tokens
        assert shared.generate("a cat", max_new_tokens=12, temperature=0).tokens == plain

        def draft(tokens):
            return [plain[0], 5, plain[2]]

        beams = [
            beam_search(each, [1, 5, 3], beams=3, max_new_tokens=6) for each in (model, shared)
        ]
        assert [beam.tokens for beam in beams[1]] == [beam.tokens for beam in beams[0]]
        nats = [evaluate(each, "a cat and a dog").nats for each in (model, shared)]
        assert nats[1] == pytest.approx(nats[0], abs=1e-4)
        drafted = shared.generate("a cat", max_new_tokens=12, temperature=0, draft=draft)
        assert drafted.tokens == plain
        assert len(Batch(network, model.tokenizer)) == 0


def test_what_needs_one_process_is_refused(tmp_path):
    config, weights = network("llama")
    with shared_out(config, weights, 2) as shared:
        state = State(shared.config)
        shared.forward(TOKENS, state)
        for call in (
            lambda: shared.with_hooks([Trace("mlp")]).forward([1], State(shared.config)),
            lambda: shared.with_hooks([Edit("mlp", print)]).forward([1], State(shared.config)),
            lambda: next(shared.walk([1])),
            lambda: shared.unembed(np.zeros((1, 12), np.float32)),
            lambda: shared.step_seconds(),
        ):
            with pytest.raises(ValueError, match="shared out among several"):
                call()
        with pytest.raises(ValueError, match="greedy: several processes"):
            shared.greedy(1, state, 2)
        with pytest.raises(ValueError, match="in several processes"):
            state.save(tmp_path / "state.npz")
        assert shared.max_greedy_tokens == 1
        other = State(shared.config)
        other.reserve(4)
        other.pos = 2
        with pytest.raises(ValueError, match="not read by this network"):
            shared.forward([1], other)
        assert shared.forward([1], State(shared.config)).shape == (17,)  # it still works


@pytest.mark.parametrize("family, what", [("bert", "reads whole texts"), ("llama", "classifies")])
def test_other_networks_are_refused_by_name(family, what):
    config, _ = tiny(family, **({} if family == "bert" else {"n_labels": 3}))
    with pytest.raises(ValueError, match=f"{family}.*{what}"):
        shares(config, 2)


def test_too_many_processes_are_refused():
    config, weights = network("llama")
    with pytest.raises(ValueError, match="4 heads cannot be shared out among 5.*: at most 4"):
        shares(config, 5)


def side_by_side(b, c):
    """CONTRIBUTING's description, and one that needs whole arrays where it has none."""
    x = b.embed("embedding")
    for b.layer in range(c.n_layers):
        h = b.rmsnorm(x, "attn_norm")
        q, k = b.rope(*b.linear(h, "wq", "wk"))
        attn = b.linear(b.attention(q, k, b.linear(h, "wv")), "wo", name="attn_out")
        gate, up = b.linear(b.rmsnorm(x, "ffn_norm"), "w_gate", "w_up")
        x = b.add(x, b.add(attn, b.linear(b.swiglu(gate, up), "w_down")))
    b.logits(b.rmsnorm(x, "final_norm"), "classifier")


def test_what_is_gathered_stays_until_it_is_read():
    config, weights = quantized_network("llama", "int8")
    expected = Transformer(config, weights, side_by_side).forward(TOKENS, State(config))
    with shared_out(config, weights, 2, "compiled", describe=side_by_side) as shared:
        found = shared.forward(TOKENS, State(shared.config))
    np.testing.assert_array_equal(found, expected)


def test_any_description_is_shared_out_if_it_can_be():
    config, weights = network("llama")
    expected = Transformer(config, weights, side_by_side).forward(TOKENS, State(config))
    with shared_out(config, weights, 2, describe=side_by_side) as shared:
        close(shared.forward(TOKENS, State(shared.config)), expected)

    def crooked(b, c):
        b.layer = 0
        x = b.embed("embedding")
        b.linear(b.linear(x, "w_up"), "odd")
        b.logits(x, "classifier")

    odd = {"odd": Dense(np.ones((2, 11), np.float32))}
    names = "embedding", "layers.0.w_up", "classifier"
    with pytest.raises(ValueError, match="linear odd.*: needs arrays that are shared out"):
        chosen = Weights({name: weights[name] for name in names} | odd)
        with shared_out(config, chosen, 2, describe=crooked):
            pass


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages here"
)
def test_only_whole_huge_pages_of_a_rank_are_mapped_as_such(tmp_path):
    """A huge page that reaches into the rows of others would count as memory of this rank."""
    huge = 2**21
    (tmp_path / "w.bin").write_bytes(bytes(6 * huge))
    with open(tmp_path / "w.bin", "rb") as file:
        data = map_weights(file)
    rows = data[1000 : 5 * huge + 1000]
    in_small_pages(data)
    in_huge_pages(rows)
    first, end = rows.ctypes.data, rows.ctypes.data + rows.nbytes
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if re.fullmatch("[0-9a-f]+-[0-9a-f]+", words[0]):
            inside = line.endswith("w.bin")
            start, stop = (int(x, 16) for x in words[0].split("-"))
        elif inside and words[0] == "VmFlags:" and "nh" not in words:
            assert first <= start and stop <= end
            found += stop - start
    assert found in (4 * huge, 5 * huge)  # by the place of the map
