"""The shape of a network. This module has no file formats and no arithmetic."""

from dataclasses import MISSING, dataclass, fields

from llama2np.arguments import number, whole

# The deepest Llama has 126 layers. Each costs some kB of objects, even with few weights, and a file
# of 100 MB could claim a million of them.
MAX_LAYERS = 1024


class _Derived(int):
    """A number that follows from others, and is derived again in a copy by dataclasses.replace."""


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
    norm_eps: float = 1e-5  # added to the mean square in RMSNorm
    head_dim: int = 0  # width of one attention head; 0 means dim / n_heads
    rotary_dim: int = 0  # how many values of a head RoPE rotates; 0 means all
    # 0: the two values of a rotary pair are adjacent (Meta's layout); 1: they are rotary_dim / 2
    # apart (Hugging Face's layout).
    rope_halves: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, _Derived) or (value is None and field.default is not MISSING):
                value = field.default
            value = (whole if field.type is int else number)(field.name, value)
            object.__setattr__(self, field.name, value)
            absent = field.default == 0 and value == 0
            if not (absent or 0 < value < float("inf")):  # false for nan, too
                raise ValueError(f"{field.name} must be a positive number, not {value}")
        if self.n_layers > MAX_LAYERS:
            raise ValueError(f"n_layers must be at most {MAX_LAYERS:,}, not {self.n_layers:,}")
        if not self.head_dim:
            if self.dim % self.n_heads:
                raise ValueError(f"n_heads={self.n_heads} does not divide dim={self.dim}")
            object.__setattr__(self, "head_dim", _Derived(self.dim // self.n_heads))
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}")
        if not self.rotary_dim:
            object.__setattr__(self, "rotary_dim", _Derived(self.head_dim))
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            what = "dim / n_heads" if self.rotary_dim == self.head_dim else "rotary_dim"
            raise ValueError(
                f"{what} = {self.rotary_dim} is odd: rotary positions need pairs of values"
                if self.rotary_dim % 2
                else f"rotary_dim={self.rotary_dim} is more than head_dim={self.head_dim}"
            )

    @property
    def q_dim(self) -> int:
        """Width of all queries of one position."""
        return self.n_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Width of all keys, or all values, of one position."""
        return self.n_kv_heads * self.head_dim
