"""Networks that several ranks share out, here the threads of a process (see threaded_peers.py)."""

import gc

import numpy as np
import pytest

from llama2np import Batch, Edit, Llama, State, Trace, Transformer
from llama2np.formats.sharing import share_of
from llama2np.model.blocks import KINDS, Blocks
from llama2np.model.config import Config
from llama2np.model.shares import shares
from llama2np.model.weights import Dense, Int8, Weights
from tests.networks import tiny, weights_of
from tests.threaded_peers import shared_out

FAMILIES = (
    *("llama", "mistral", "mixtral", "qwen2", "qwen3", "phi", "phi3", "gpt2", "gpt_neox"),
    *("gemma", "gemma2", "gemma3_text"),
)
TOKENS = [1, 5, 3, 8, 2, 9, 4, 4, 7, 6, 1]


def network(family, seed=0):
    """Four query heads, of which two share keys where the family allows it."""
    alone = family in ("phi", "gpt2", "gpt_neox")
    sizes = dict(n_heads=4, n_kv_heads=4 if alone else 2, head_dim=6, hidden_dim=22)
    config, tensors = tiny(family, seed, **sizes)
    return config, weights_of(tensors)


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
    for size in (2, 3, 4):
        with shared_out(config, weights, size, engine) as shared:
            state = State(shared.config)
            close(shared.forward(TOKENS[:4], state, all_logits=True), expected[:4])
            close(shared.forward(TOKENS[4:], state, all_logits=True), expected[4:])
            close(shared.forward([3], state), after)
            assert shared.board.sums == 3 * 2 * config.n_layers


def test_keys_are_shared_out_or_repeated():
    config, weights = network("llama")

    def kv_heads(size):
        return [share.kv_heads for share in shares(config, weights, size)]

    assert kv_heads(1) == [(0, 1)]
    assert kv_heads(2) == [(0,), (1,)]
    assert kv_heads(3) == [(0,), (0,), (1,)]
    assert kv_heads(4) == [(0,), (0,), (1,), (1,)]
    # Three query heads for each: those of the second rank have different numbers of neighbours.
    fields = {"head_dim": 2, "n_heads": 6, "n_kv_heads": 2}
    six = Config(8, 16, 1, vocab_size=9, seq_len=4, **fields)
    found = [(share.heads, share.kv_heads) for share in shares(six, {}, 4)]
    assert found == [((0, 1), (0,)), ((1, 3), (0,)), ((3, 4), (1,)), ((4, 6), (1,))]
    # Where a rank has one query head of a key and two of another, the second key is repeated.
    ten = Config(8, 16, 1, head_dim=2, n_heads=10, n_kv_heads=2, vocab_size=9, seq_len=4)
    found = [(share.heads, share.kv_heads) for share in shares(ten, {}, 3)]
    assert found == [((0, 3), (0,)), ((3, 6), (0, 0, 1)), ((6, 10), (1,))]


def quantized(config, weights, seed=1):
    """Q8_0 in groups of 8."""
    random, made = np.random.default_rng(seed), {}
    for name, tensor in weights.items():
        made[name] = tensor
        if isinstance(tensor, Dense):
            d, n = tensor.shape
            q = random.integers(-127, 128, (d, n), np.int8)
            scales = random.random((d, n // 8), np.float32) / 200
            made[name] = Int8(q, scales)
    return Weights(made)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_int8_is_cut_between_groups_and_has_the_tokens_of_one_process(size):
    config, tensors = tiny("llama", dim=48, n_heads=4, n_kv_heads=2, head_dim=8, hidden_dim=56)
    weights = quantized(config, weights_of(tensors))
    assert all(share.hidden[0] % 8 == 0 for share in shares(config, weights, size))
    whole = Transformer(config, weights)
    expected, tokens = greedy(whole, State(config))
    with shared_out(config, weights, size, "compiled") as shared:
        found, same = greedy(shared, State(shared.config))
    assert same == tokens
    close(found, expected)


def greedy(network, state):
    """The logits of a greedy text, and its tokens."""
    token, tokens, logits = 1, [], []
    for _ in range(12):
        logits.append(network.forward([token], state))
        tokens.append(token := int(logits[-1].argmax()))
    return np.array(logits), tokens


def test_blocks_are_cut_between_blocks_or_refused():
    config, tensors = tiny("llama", dim=64, n_heads=4, n_kv_heads=4, head_dim=16, hidden_dim=96)
    weights, kind = dict(weights_of(tensors)), KINDS["Q4_0"]
    random = np.random.default_rng(0)
    for name, tensor in weights.items():
        if name.endswith((".wo", ".w_down")):
            d, n = tensor.shape
            blocks = random.integers(0, 256, (d, n // kind.values, kind.nbytes), np.uint8)
            blocks[..., :2] = np.array([0.01], np.float16).view(np.uint8)
            weights[name] = Blocks(blocks.reshape(d, -1), "Q4_0")
    weights = Weights(weights)
    found = shares(config, weights, 2)
    assert [share.heads for share in found] == [(0, 2), (2, 4)]  # two heads in a block of 32
    assert [share.hidden for share in found] == [(0, 32), (32, 96)]
    state = State(config)
    expected = Transformer(config, weights, engine="numpy").forward(TOKENS, state)
    with shared_out(config, weights, 2) as shared:
        close(shared.forward(TOKENS, State(shared.config)), expected)
    with pytest.raises(ValueError, match=r"4 heads in blocks of 2, .*among 3 processes: at most 2"):
        shares(config, weights, 3)


def test_a_rank_has_its_share_of_the_bytes():
    config, weights = network("llama")
    for share in shares(config, weights, 2):
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
    """The library's ways to generate, over ranks: the same texts."""
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
        shares(config, {}, 2)


def test_too_many_processes_are_refused():
    config, weights = network("llama")
    with pytest.raises(ValueError, match="4 heads cannot be shared out among 5.*: at most 4"):
        shares(config, weights, 5)


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
