"""What decides the result of a training, and how it becomes a trainer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llama2np.learning import trainer
from llama2np.learning.initial import initial_llama
from llama2np.learning.schedule import Phases, Schedule
from llama2np.learning.trainer import Trainer
from llama2np.learning.writing import new_source
from llama2np.model.config import Config
from llama2np.model.transformer import Transformer
from tools.training.corpus import Corpus
from tools.training.lessons import Lessons


@dataclass(frozen=True)
class Settings:
    """All that decides the result, beside the corpus and the shape."""

    copying: int = 200  # steps on repeated random tokens, before those on stories
    steps: int = 10_000  # on stories
    # In the first steps, repeated names have more weight. Otherwise a network learns late to look
    # names up; with the weight until the end, it would use names too often.
    emphasis: float = 8.0
    emphasised: int = 2000
    batch: int = 16
    rate: float = 3e-3  # the highest learning rate
    warmup: int = 100
    last_rate: float = 0.02  # of the highest, at the end
    decay: float = 0.05  # weight decay of matrices
    clip: float = 1.0
    seed: int = 1

    @property
    def schedule(self) -> Phases:
        """Up in a straight line and level for copying, then for stories up and down as a cosine."""
        stories = Schedule(self.rate, self.steps, self.warmup, "cosine", self.last_rate)
        if not self.copying:
            return Phases((stories,))
        return Phases((Schedule(self.rate, self.copying, self.warmup, "constant"), stories))

    @property
    def training(self) -> trainer.Settings:
        """The settings of the trainer."""
        return trainer.Settings(
            self.copying + self.steps,
            rate=self.rate,
            weight_decay=self.decay,
            clip=self.clip,
            seed=self.seed,
        )


def new_trainer(config: Config, settings: Settings, corpus: Corpus, folder: Path) -> Trainer:
    """A trainer of a new network; it goes on from the checkpoint in `folder`, if there is one."""
    parameters = initial_llama(config, seed=settings.seed, by_width=True)
    weights = new_source(config, parameters).weights()
    lessons = Lessons(
        *(corpus, config.vocab_size, settings.batch, settings.copying, settings.steps),
        *(settings.emphasis, settings.emphasised, settings.seed),
    )
    return Trainer(
        Transformer(config, weights, engine="numpy").program,
        parameters,
        lessons,
        settings.training,
        schedule=settings.schedule,
        checkpoint=folder / "training.npz",
        log=folder / "losses.jsonl",
    )
