"""The training loop: seeded, and resumable at any of its checkpoints."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from llama2np.atomic import replacing, write_file
from llama2np.model.config import Config
from tools.training.copying import said_twice
from tools.training.corpus import Corpus, batches
from tools.training.network import Network
from tools.training.schedule import Settings, rate_at


class Training:
    """A network on its way; `path` is its checkpoint, read if it is there."""

    def __init__(self, config: Config, settings: Settings, corpus: Corpus, path: Path):
        self.config, self.settings, self.corpus, self.path = config, settings, corpus, path
        torch.manual_seed(settings.seed)
        self.network = Network(config)
        weights = list(self.network.parameters())
        groups = [
            {"params": [w for w in weights if w.dim() > 1], "weight_decay": settings.decay},
            {"params": [w for w in weights if w.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
        self.step = 0
        self.losses: list[float] = []
        self.seconds = 0.0
        self._order = self._batches()
        if path.exists():
            self._resume()

    @property
    def last_step(self) -> int:
        """The number of steps, those of copying included."""
        return self.settings.copying + self.settings.steps

    def run(self, until: int | None = None, every: int = 100, log: bool = True) -> None:
        """Train up to a step, by default the last; write a checkpoint `every` steps."""
        until = self.last_step if until is None else until
        started = time.perf_counter()
        while self.step < until:
            self.losses.append(self._train_batch())
            self.step += 1
            if self.step % every == 0 or self.step == until:
                self.seconds += time.perf_counter() - started
                started = time.perf_counter()
                self.save()
                if log:
                    mean = np.mean(self.losses[-every:])
                    print(f"step {self.step}: loss {mean:.4f}, {self.seconds:.0f} s", flush=True)

    def _batches(self) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        while len(found) < self.settings.steps:
            seed = self.settings.seed + len(found)
            more = batches(self.corpus.lengths, self.settings.batch, seed)
            if not more:
                raise ValueError(f"{len(self.corpus)} stories: a batch is {self.settings.batch}")
            found += more
        return found

    def _train_batch(self) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(self.step, self.settings)
        told = self.step - self.settings.copying
        if told < 0:
            vocabulary, seed = self.config.vocab_size, (self.settings.seed, self.step)
            tokens, targets = said_twice(self.settings.batch, vocabulary, seed)
            weights = targets >= 0
        else:
            tokens, targets, again = self.corpus.rows(self._order[told], 16)
            emphasis = self.settings.emphasis if told < self.settings.emphasised else 1
            weights = np.where(again, emphasis, targets >= 0)
        loss = self._losses(tokens, targets, weights).sum() / weights.sum()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self.optimizer.step()
        return loss.item()

    def _losses(self, tokens: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> torch.Tensor:
        """Nats for each target, times its weight; 0 where there is none (-1). All (rows, T)."""
        logits = self.network(torch.from_numpy(tokens)).transpose(1, 2)
        wanted = torch.from_numpy(targets)
        losses = functional.cross_entropy(logits, wanted, ignore_index=-1, reduction="none")
        return losses * torch.from_numpy(weights.astype(np.float32))

    @torch.no_grad()
    def loss(self, corpus: Corpus) -> float:
        """Nats for a token of a corpus, in float32, the ends of stories included."""
        order = np.argsort(corpus.lengths, kind="stable")
        parts = np.array_split(order, -(-len(order) // 64))
        total = 0.0
        for part in parts:
            tokens, targets, _ = corpus.rows(part, 16)
            total += self._losses(tokens, targets, targets >= 0).sum().item()
        return total / int(corpus.lengths.sum())

    def state(self) -> dict:
        """llama2.c's checkpoint, which export.py reads, and what it takes to go on."""
        arguments = {
            "dim": self.config.dim,
            "n_layers": self.config.n_layers,
            "n_heads": self.config.n_heads,
            "n_kv_heads": self.config.n_kv_heads,
            "vocab_size": self.config.vocab_size,
            "max_seq_len": self.config.seq_len,
            "norm_eps": self.config.norm_eps,
        }
        return {
            "model": self.network.state_dict(),
            "model_args": arguments,
            "optimizer": self.optimizer.state_dict(),
            "settings": asdict(self.settings),
            "step": self.step,
            "losses": self.losses,
            "seconds": self.seconds,
        }

    def save(self) -> None:
        """Write the checkpoint, and the losses beside it."""
        with replacing(self.path) as file:
            torch.save(self.state(), file)
        text = "".join(json.dumps(loss) + "\n" for loss in self.losses)
        write_file(self.path.with_suffix(".losses"), text.encode())

    def _resume(self) -> None:
        state = torch.load(self.path, weights_only=True)
        if state["settings"] != asdict(self.settings):
            raise ValueError(
                f"{self.path}: was made with {state['settings']}; delete it to start again"
            )
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.losses, self.seconds = state["step"], state["losses"], state["seconds"]
