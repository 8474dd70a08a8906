import pytest
import torch

from counterflow.backbones import build
from counterflow.errors import ConfigError


def n_parameters(name, size, n_features=250, **kwargs):
    with torch.device("meta"):
        return sum(p.numel() for p in build(name, (n_features,), 128, size=size, **kwargs).parameters())


@pytest.mark.parametrize("name", ["mlp", "dit", "set", "ssm"])
def test_sizes_grow_from_small_for_a_cpu_to_large(name):
    sizes = [n_parameters(name, size) for size in ("XS", "S", "B", "L")]
    assert sizes[0] < 5e5
    assert all(small < 0.5 * large for small, large in zip(sizes, sizes[1:], strict=False))


def test_trunk_of_dit_s_has_the_parameters_of_the_paper():
    width, depth, n_tokens, k = 384, 12, 250, 1
    blocks = depth * (18 * width**2 + 15 * width)  # the closed form of the reference: attention, MLP and modulation
    time = 256 * width + width + width**2 + width
    condition = 128 * width + width
    tables = n_tokens * width * (1 + k) + n_tokens * (width + 1) * k
    final_modulation = 2 * width**2 + 2 * width
    assert n_parameters("dit", "S") == blocks + time + condition + tables + final_modulation


@pytest.mark.parametrize(
    ("name", "most", "kwargs"),
    [("dit", 256, {}), ("ssm", 128, {}), ("longconv", 1024, {}), ("set", 3000, {}), ("ssm", 3000, {"order": "none"})],
)
def test_tokens_are_kept_few_unless_genes_are_a_set(name, most, kwargs):
    for n_features, expected in ((100, 100), (3000, None)):
        tokens = build(name, (n_features,), 12, size="S", **kwargs).tokenizer.layout.n_tokens
        assert most / 2 < tokens <= most if expected is None else tokens == expected


@pytest.mark.parametrize("name", ["dit", "ssm", "longconv"])
def test_the_smallest_size_puts_four_features_in_a_token(name):
    for n_features, n_tokens in ((50, 13), (3, 1)):
        assert build(name, (n_features,), 12).tokenizer.layout.n_tokens == n_tokens
    assert build(name, (50,), 12, genes_per_token=1).tokenizer.layout.n_tokens == 50


def test_numbers_override_the_size():
    assert len(build("dit", (30,), 12, depth=5).trunk.blocks) == 5
    assert build("mlp", (30,), 12, size="B", width=96).input.out_features == 96


def test_what_cannot_be_built_is_said():
    with pytest.raises(ConfigError, match="no size 'M'"):
        build("dit", (30,), 12, size="M")
    with pytest.raises(ConfigError, match="depth must be at least 1"):
        build("mlp", (30,), 12, depth=0)
    with pytest.raises(ConfigError, match="n_heads must divide width"):
        build("dit", (30,), 12, width=50, n_heads=4)
    with pytest.raises(ConfigError, match=r"vectors.*\(3, 8, 8\)"):
        build("mlp", (3, 8, 8), 12)
