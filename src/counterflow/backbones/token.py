"""Every token model: tokenizer, trunk, head."""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from counterflow.types import Condition


class TokenBackbone(nn.Module):
    """A backbone made of three parts; what kind of model it is depends on the tokenizer and on the trunk's mixer.

    Parameters
    ----------
    tokenizer
        State to tokens, for example `counterflow.nn.tokens.GeneTokenizer`.
    trunk
        `trunk(tokens, t, condition)` gives tokens and the vector the head modulates by, see `counterflow.nn.trunk.Trunk`.
    head
        Tokens and that vector to the state's shape.
    """

    def __init__(self, tokenizer: nn.Module, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.tokenizer, self.trunk, self.head = tokenizer, trunk, head

    def forward(
        self, x: Float[Tensor, "b *s"], t: Float[Tensor, "..."], condition: Condition, features: Int[Tensor, "f"] | None = None
    ) -> Float[Tensor, "b *s"]:
        """Velocity of the cells `x` at the time `t` (one per cell, or a single one) under `condition`.

        `features` are the indices of the genes in `x`, for tokenizers that can take a subset of the genes or another order of them.
        """
        which = () if features is None else (features,)
        tokens, c = self.trunk(self.tokenizer(x, *which), t, condition)
        return self.head(tokens, c, *which).to(x.dtype)
