"""The shape of a network. Knows no file format and no arithmetic."""

from dataclasses import MISSING, dataclass, fields

from llama2np.arguments import number, whole

# The deepest Llama has 126 layers. Each costs some kB of objects, however few its weights are: a
# file of 100 MB could claim a million of them.
MAX_LAYERS = 1024


@dataclass(frozen=True, slots=True)
class Config:
    """The shape of a Llama network, as a checkpoint's header states it.

    NumPy's numbers become Python's, and None the default, where there is one. Raises ValueError
    naming the field when the numbers do not make a network.
    """

    dim: int  # width of the residual stream
    hidden_dim: int  # width inside the feed-forward branch
    n_layers: int
    n_heads: int  # query heads
    n_kv_heads: int  # key/value heads, each serving n_heads // n_kv_heads query heads
    vocab_size: int
    seq_len: int  # the most positions a sequence can have
    rope_theta: float = 10000.0  # base of the rotary frequencies
    norm_eps: float = 1e-5  # added to the mean square in RMSNorm

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is not MISSING:
                value = field.default
            value = (whole if field.type is int else number)(field.name, value)
            object.__setattr__(self, field.name, value)
            if not 0 < value < float("inf"):  # also refuses nan
                raise ValueError(f"{field.name} must be a positive number, not {value}")
        if self.n_layers > MAX_LAYERS:
            raise ValueError(f"n_layers must be at most {MAX_LAYERS:,}, not {self.n_layers:,}")
        if self.dim % self.n_heads:
            raise ValueError(f"n_heads={self.n_heads} does not divide dim={self.dim}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads={self.n_kv_heads} does not divide n_heads={self.n_heads}")
        if self.head_dim % 2:
            raise ValueError(
                f"dim / n_heads = {self.head_dim} is odd: rotary positions need pairs of values"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def kv_dim(self) -> int:
        """Width of all keys, or all values, of one position."""
        return self.n_kv_heads * self.head_dim
