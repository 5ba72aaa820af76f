"""A small training in torch and in ours, with the same weights and batches: the same losses."""

import numpy as np
import pytest

from llama2np.learning.batch import Batch
from llama2np.learning.initial import initial_llama
from llama2np.learning.trainer import Settings, Trainer
from llama2np.learning.writing import new_source
from llama2np.model.config import Config
from llama2np.model.transformer import Transformer

CONFIG = Config(
    dim=32, hidden_dim=48, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=50, seq_len=24
)
THEIRS = {
    **{"embedding": "tok_embeddings", "final_norm": "norm"},
    **{"attn_norm": "attention_norm", "ffn_norm": "ffn_norm"},
    **{name: f"attention.{name}" for name in ("wq", "wk", "wv", "wo")},
    **{"w_gate": "feed_forward.w1", "w_down": "feed_forward.w2", "w_up": "feed_forward.w3"},
}


class Batches:
    name = "random"

    def batch(self, number):
        return Batch.next_tokens(np.random.default_rng(number).integers(0, 20, (4, 17)))


def test_the_same_losses():
    torch = pytest.importorskip("torch", reason="the twin needs torch: pip install torch")
    from torch_network import Network

    parameters = initial_llama(CONFIG, seed=1)
    network, theirs = Network(CONFIG), {}
    for name, array in parameters.items():
        *layer, base = name.split(".")
        theirs[".".join([*layer, THEIRS[base], "weight"])] = torch.from_numpy(array.copy())
    missing = network.load_state_dict(theirs, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"output.weight"}
    weights = list(network.parameters())
    groups = [
        {"params": [w for w in weights if w.dim() > 1], "weight_decay": 0.1},
        {"params": [w for w in weights if w.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    settings, losses = Settings(12, 1e-2, warmup=3, clip=1.0), []
    for step in range(12):
        batch = Batches().batch(step)
        for group in optimizer.param_groups:
            group["lr"] = settings.schedule.rate_at(step)
        logits = network(torch.from_numpy(batch.tokens)).transpose(1, 2)
        wanted = torch.from_numpy(batch.targets.reshape(batch.shape))
        loss = torch.nn.functional.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.clip)
        optimizer.step()
        losses.append(loss.item())
    program = Transformer(CONFIG, new_source(CONFIG, parameters).weights(), engine="numpy").program
    trainer = Trainer(program, parameters, Batches(), settings)
    trainer.run()
    np.testing.assert_allclose(trainer.losses, losses, rtol=0, atol=1e-4)
    assert losses[-1] < losses[0] - 0.5
