"""The shape of a network. This module has no file formats and no arithmetic."""

from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from llama2np.arguments import number, whole

# The deepest Llama has 126 layers. Each costs some kB of objects, even with few weights, and a file
# of 100 MB could claim a million of them.
MAX_LAYERS = 1024
# More than any number of a network, and few enough that int64, in which the kernels compute, holds
# the sum of some of them.
MAX_NUMBER = 2**48
# For YaRN's beta_fast and beta_slow, by which the length of the original context is divided.
_FEWEST_TURNS = 1e-6


class _Derived(int):
    """A number that follows from others, and is derived again in a copy by dataclasses.replace."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the rotary frequencies are changed for long texts. rope.py has the formulas.

    `original_len` is the context of the training before. Raises ValueError for numbers that are
    not valid.
    """

    kind: str  # "linear", "llama3", "dynamic", "yarn" or "longrope"
    factor: float = 1.0
    original_len: int = 0
    low_freq_factor: float = 1.0  # these two: llama3
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0  # these three: yarn
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0  # cos and sin are multiplied by it
    short_factors: tuple[float, ...] = ()  # longrope: divisors of the frequencies, up to
    long_factors: tuple[float, ...] = ()  # original_len positions, and beyond

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3", "dynamic", "yarn", "longrope"):
            raise ValueError(f"RoPE scaling {self.kind!r} is not known")
        if not 0 < self.factor < float("inf"):
            raise ValueError(f"the factor of RoPE scaling must be positive, not {self.factor}")
        if not 0 < self.attention_factor < float("inf"):
            raise ValueError(f"attention_factor must be positive, not {self.attention_factor}")
        if self.kind != "linear" and self.original_len < 1:
            raise ValueError(f"{self.kind} scaling needs the original number of positions")
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"low_freq_factor={self.low_freq_factor} must be positive and less than "
                f"high_freq_factor={self.high_freq_factor}"
            )
        if self.original_len > MAX_NUMBER:
            raise ValueError(f"the original number of positions is {self.original_len}")
        for name in ("beta_fast", "beta_slow"):
            if not _FEWEST_TURNS <= getattr(self, name) < float("inf"):
                raise ValueError(
                    f"{name} must be {_FEWEST_TURNS} or more, not {getattr(self, name)}"
                )
        for values in (self.short_factors, self.long_factors):
            if not all(0 < value < float("inf") for value in values):
                raise ValueError("the factors of longrope must be positive")


@dataclass(frozen=True, slots=True)
class DualChunk:
    """Dual chunk attention (An et al. 2024): no distance that RoPE sees exceeds chunk_size.

    Beyond `original_len` positions (0: never) attention scores are multiplied by YaRN's
    m = 0.1 ln(n / original_len) + 1 for n positions: `scaling` "keys" multiplies the keys (as vLLM
    does), "both" the queries, too (as YaRN does), and "none" neither.
    """

    chunk_size: int
    local_size: int
    original_len: int = 0
    scaling: str = "keys"

    def __post_init__(self) -> None:
        if not 0 <= self.local_size < self.chunk_size:
            raise ValueError(
                f"dual chunk attention: local_size={self.local_size} must be less than "
                f"chunk_size={self.chunk_size}"
            )
        if max(self.chunk_size, self.original_len) > MAX_NUMBER:
            raise ValueError(f"dual chunk attention: a number is more than {MAX_NUMBER:,}")
        if self.scaling not in ("keys", "both", "none"):
            raise ValueError(f"scaling must be 'keys', 'both' or 'none', not {self.scaling!r}")

    @property
    def stride(self) -> int:
        """The number of positions after which the rotary positions begin again."""
        return self.chunk_size - self.local_size


@dataclass(frozen=True, slots=True)
class Config:
    """The shape of a network, as in the header of a checkpoint or in config.json.

    The defaults are those of a plain Llama. NumPy's numbers become Python's, and None becomes the
    default of the field. Raises ValueError with the name of the field if the numbers are not valid.
    """

    dim: int  # width of the residual stream
    hidden_dim: int  # width inside the feed-forward branch
    n_layers: int
    n_heads: int  # query heads
    n_kv_heads: int  # key/value heads, each serving n_heads // n_kv_heads query heads
    vocab_size: int
    seq_len: int  # the maximum number of positions of a sequence
    rope_theta: float = 10000.0  # base of the rotary frequencies
    norm_eps: float = 1e-5  # added to the mean square in RMSNorm, to the variance in LayerNorm
    head_dim: int = 0  # width of one attention head; 0 means dim / n_heads
    rotary_dim: int = 0  # how many values of a head RoPE rotates; 0 means all
    # 0: the two values of a rotary pair are adjacent (Meta's layout); 1: they are rotary_dim / 2
    # apart (Hugging Face's layout).
    rope_halves: int = 0
    architecture: str = "llama"  # a name in architectures.ARCHITECTURES
    rope_scaling: RopeScaling | None = None
    # The base for layers with a window, whose frequencies are not scaled then; 0 means that they
    # have the frequencies of the other layers.
    local_rope_theta: float = 0.0
    # For each layer the number of positions that a token attends to, itself included; 0 means all.
    # () means that no layer has a window.
    windows: tuple[int, ...] = ()
    dual_chunk: DualChunk | None = None
    n_experts: int = 0  # feed-forward networks of a block, of which a router chooses; 0: just one
    n_experts_used: int = 0  # how many it chooses for a token
    # 0: the shares of the chosen experts sum to 1 (Mixtral); 1: they are their probabilities among
    # all experts (Switch Transformers).
    expert_probabilities: int = 0
    attention_scale: float = 0.0  # factor of the attention scores; 0 means head_dim ** -0.5
    attention_scale_by_layer: int = 0  # 1: the scores of layer i are divided by i + 1, too
    attention_softcap: float = 0.0  # c: scores become c tanh(score / c); 0 means that they do not
    logit_softcap: float = 0.0  # the same for the logits
    embedding_scale: float = 0.0  # factor of the embedding; 0 means 1
    gelu_exact: int = 0  # 1: GELU with erf; 0: its approximation with tanh
    parallel_residual: int = 0  # 1: attention and feed-forward both read the block's input
    n_types: int = 0  # token types (segments) of an encoder
    n_labels: int = 0  # of a network that classifies texts; 0 for one that predicts tokens
    # The rows of the classifier in this process; 0 means all: see shares.py.
    outputs_here: int = 0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, _Derived) or (value is None and each.default is not MISSING):
                value = each.default
            if each.type in (int, float):
                value = _positive(each, value)
            object.__setattr__(self, each.name, value)
        if self.n_layers > MAX_LAYERS:
            raise ValueError(f"n_layers must be at most {MAX_LAYERS:,}, not {self.n_layers:,}")
        self._check_heads()
        self._check_scaling()
        object.__setattr__(self, "windows", tuple(self.windows))
        if self.windows and len(self.windows) != self.n_layers:
            raise ValueError(f"there are {len(self.windows)} windows for {self.n_layers} layers")
        if not all(isinstance(window, int) and 0 <= window for window in self.windows):
            raise ValueError(f"windows must be 0 or positive integers, not {self.windows}")
        if self.windows and max(self.windows) > MAX_NUMBER:
            raise ValueError(f"a window is {max(self.windows)}, at most it is {MAX_NUMBER:,}")
        if not any(self.windows):
            object.__setattr__(self, "windows", ())
        if not (
            self.n_experts_used <= self.n_experts and (self.n_experts_used or not self.n_experts)
        ):
            raise ValueError(
                f"n_experts_used={self.n_experts_used} must be 1 to n_experts={self.n_experts}"
            )

    def _check_heads(self) -> None:
        if not self.head_dim:
            if self.dim % self.n_heads:
                raise ValueError(f"n_heads={self.n_heads} does not divide dim={self.dim}")
            object.__setattr__(self, "head_dim", _Derived(self.dim // self.n_heads))
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}")
        if not self.rotary_dim:
            object.__setattr__(self, "rotary_dim", _Derived(self.head_dim))
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            derived = self.rotary_dim == self.head_dim == self.dim / self.n_heads
            own = "head_dim" if self.rotary_dim == self.head_dim else "rotary_dim"
            what = "dim / n_heads" if derived else own
            raise ValueError(
                f"{what} = {self.rotary_dim} is odd: rotary positions need pairs of values"
                if self.rotary_dim % 2
                else f"rotary_dim={self.rotary_dim} is more than head_dim={self.head_dim}"
            )

    def _check_scaling(self) -> None:
        """Whether the formulas of rope.py can be computed with these numbers."""
        scaling, pairs = self.rope_scaling, self.rotary_dim // 2
        if scaling is None:
            return
        if scaling.kind == "longrope":
            counts = len(scaling.short_factors), len(scaling.long_factors)
            if counts != (pairs, pairs):
                raise ValueError(
                    f"longrope has {counts[0]} short and {counts[1]} long factors, expected "
                    f"{pairs} of each, rotary_dim / 2"
                )
        if scaling.kind == "yarn" and self.rope_theta <= 1:
            raise ValueError(f"yarn needs a rope_theta of more than 1, not {self.rope_theta}")
        if scaling.kind == "dynamic" and pairs < 2:
            raise ValueError("dynamic RoPE scaling needs a rotary_dim of 4 or more, not 2")

    @property
    def q_dim(self) -> int:
        """Width of all queries of one position."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all keys, or all values, of one position."""
        return self.n_kv_heads * self.head_dim

    @property
    def n_outputs(self) -> int:
        """Width of the output of the network: a logit for each token, or for each label."""
        return self.n_labels or self.vocab_size

    @property
    def classifier_rows(self) -> int:
        """The rows of the classifier that this process has: n_outputs, or its share of them."""
        return self.outputs_here or self.n_outputs

    @property
    def window(self) -> int:
        """The positions that a token attends to if all layers have a window, else 0.

        If it is not 0, older positions are not needed any more.
        """
        return max(self.windows) if self.windows and all(self.windows) else 0


def _positive(each: Field[Any], value: Any) -> Any:
    """A number of a Config, checked."""
    value = (whole if each.type is int else number)(each.name, value)
    absent = each.default == 0 and value == 0
    if not (absent or 0 < value < float("inf")):  # false for nan, too
        raise ValueError(f"{each.name} must be a positive number, not {value}")
    if each.type is int and value > MAX_NUMBER:
        raise ValueError(f"{each.name} must be at most {MAX_NUMBER:,}, not {value}")
    return value
