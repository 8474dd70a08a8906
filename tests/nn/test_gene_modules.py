"""Overlapping groups of genes as tokens."""

import pytest
import torch

from counterflow.errors import ConfigError
from counterflow.nn.gene_modules import ModuleHead, ModuleLayout, ModuleTokenizer

MEMBERS = torch.tensor([[0, 1, 2], [2, 3, -1], [4, -1, -1], [1, 2, 4]])  # 2 is in three modules, 1 and 4 in two
S, D = 5, 6


def test_a_token_is_the_sum_over_its_genes(randomise):
    tokenizer, x = randomise(ModuleTokenizer(S, D, MEMBERS)), torch.randn(3, S)
    E, W = tokenizer.embedding, tokenizer.direction
    tokens = tokenizer(x)
    torch.testing.assert_close(tokens[:, 1], E[1] + x[:, 2:3] * W[1, 0] + x[:, 3:4] * W[1, 1])
    torch.testing.assert_close(tokens[:, 2], E[2] + x[:, 4:5] * W[2, 0])
    torch.testing.assert_close(tokens[:, 3], E[3] + x[:, 1:2] * W[3, 0] + x[:, 2:3] * W[3, 1] + x[:, 4:5] * W[3, 2])


def test_a_gene_gets_the_mean_of_what_its_modules_say(randomise):
    head, tokens, c = randomise(ModuleHead(S, D, MEMBERS)), torch.randn(3, 4, D), torch.randn(3, 1, D)
    h = head.film(head.norm(tokens), c)
    said = {(n, g): h[:, n] @ head.weight[n, :, k] for n, row in enumerate(MEMBERS.tolist()) for k, g in enumerate(row) if g >= 0}
    answers = head(tokens, c)
    for gene in range(S):
        of_modules = [value for (_, g), value in said.items() if g == gene]
        torch.testing.assert_close(answers[:, gene], sum(of_modules) / len(of_modules) + head.bias[gene])


def test_a_fresh_head_is_zero_and_fresh_tokens_have_unit_variance():
    assert (ModuleHead(S, D, MEMBERS)(torch.randn(3, 4, D), torch.randn(3, 1, D)) == 0).all()
    big = torch.arange(400).view(4, 100)
    torch.manual_seed(0)
    tokenizer = ModuleTokenizer(400, 256, big)
    assert 0.9 < (tokenizer(torch.randn(20, 400)) - tokenizer.embedding).std() < 1.1


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([[0, 1], [2, 2], [3, 4]], "twice"),
        ([[0, 1], [2, 3]], "1 of 5 genes are in no module"),
        ([[0, 1, 2, 3, 5]], "genes 0 .. 4"),
        ([[0, 1, 2, 3, 4], [-1, -1, -1, -1, -1]], "at least one"),
        ([[0, 1, 2, 3, 4, -2]], "-1 pads"),
    ],
)
def test_what_is_no_layout_is_said(members, message):
    with pytest.raises(ConfigError, match=message):
        ModuleLayout(S, torch.tensor(members))
