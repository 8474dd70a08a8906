import subprocess
import sys

import pytest
import torch
from torch import nn

from counterflow.backbones import DEFAULT_LEARNING_RATE, LEARNING_RATES, build, learning_rate
from counterflow.errors import ConfigError

RETNET = '''
import torch
from torch import nn


class RetNet(nn.Module):
    """A user's own network: retention over the features, one decay, nothing imported from us."""

    def __init__(self, state_shape, condition_dim, width=16, depth=2):
        super().__init__()
        self.embed = nn.Parameter(torch.randn(state_shape[0], width))
        self.condition = nn.Linear(condition_dim + 1, width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.out = nn.Linear(width, 1)

    def forward(self, x, t, condition):
        listened = self.condition(torch.cat([condition.pooled, t[:, None]], dim=1))
        h = self.embed * x[..., None] + listened[:, None]
        steps = torch.arange(x.shape[1])
        decay = 0.9 ** (steps[:, None] - steps).abs()
        for layer in self.qkv:
            q, k, v = layer(h).chunk(3, dim=-1)
            h = h + ((q @ k.mT) * decay) @ v / x.shape[1]
        return self.out(h)[..., 0]
'''


@pytest.fixture
def retnet(tmp_path, monkeypatch):
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "retnet.py").write_text(RETNET)
    (tmp_path / "mylab" / "broken.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "mylab.retnet:RetNet"
    for name in [name for name in sys.modules if name.split(".")[0] == "mylab"]:
        del sys.modules[name]


def test_your_own_network_by_import_string_class_and_instance(retnet, make_condition):
    x, t, condition = torch.randn(4, 20), torch.rand(4), make_condition(4)
    by_string = build(retnet, (20,), 12, depth=3)
    cls = type(by_string)
    assert len(by_string.qkv) == 3
    by_class = build(cls, (20,), 12, depth=3)
    by_class.load_state_dict(by_string.state_dict())
    assert build(by_string, (20,), 12) is by_string
    assert torch.equal(by_class(x, t, condition), by_string(x, t, condition))
    assert build(lambda shape, dim: cls(shape, dim, width=8), (20,), 12).out.in_features == 8


def test_an_import_string_from_a_file_needs_trust(retnet):
    for trusted in ([], ["my"], ["mylab.retne"], ["counterflow"]):
        with pytest.raises(ConfigError, match=r"trust_packages=\['mylab'\]"):
            build(retnet, (20,), 12, trust_packages=trusted)
    for trusted in (["mylab"], ["other", "mylab.retnet"]):
        assert isinstance(build(retnet, (20,), 12, trust_packages=trusted), nn.Module)
    assert isinstance(build("mlp", (20,), 12, trust_packages=[]), nn.Module)  # names of ours are always good


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("mpl", "did you mean 'mlp'"),
        ("retnet", "package.module:Name"),
        ("no_such_lab.retnet:RetNet", "no module 'no_such_lab'"),
        ("mylab.retnet:RetNot", "did you mean 'RetNet'"),
        (7, "not 7"),
        (dict, "no signature"),
        (lambda shape, dim: shape, "made a tuple, not a torch.nn.Module"),
    ],
)
def test_what_is_not_a_backbone_is_said(retnet, backbone, message):
    with pytest.raises(ConfigError, match=message):
        build(backbone, (20,), 12)


def test_an_error_inside_the_users_module_is_shown_as_it_is(retnet):
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
        build("mylab.broken:Net", (20,), 12)


def test_unknown_keywords_name_the_near_and_the_accepted(retnet):
    with pytest.raises(ConfigError, match="did you mean 'depth'.*genes_per_token"):
        build("dit", (20,), 12, dept=3)
    with pytest.raises(ConfigError, match="It takes: width, depth"):
        build(retnet, (20,), 12, n_layers=3)


def test_conditioning_is_handed_on_only_where_it_is_taken(retnet):
    assert build("dit", (20,), 12, conditioning="cross").trunk.conditioning == "cross"
    with pytest.raises(ConfigError, match="conditioning='cross'"):
        build(retnet, (20,), 12, conditioning="cross")
    with pytest.raises(ConfigError, match="ready module"):
        build(build("mlp", (20,), 12), (20,), 12, conditioning="cross")
    with pytest.raises(ConfigError, match="no conditioning 'in_context'"):
        build("mlp", (20,), 12, conditioning="in_context")


def test_feature_order_is_handed_on_only_where_it_is_taken():
    order = torch.randperm(200)
    assert torch.equal(build("ssm", (200,), 12, feature_order=order).tokenizer.layout.order, order)
    assert isinstance(build("mlp", (200,), 12, feature_order=order), nn.Module)


def test_a_missing_argument_is_named():
    def needy(state_shape, condition_dim, *, depth):
        return nn.Identity()

    with pytest.raises(ConfigError, match="'needy' needs depth"):
        build(needy, (20,), 12)


def test_backbones_are_imported_only_when_they_are_built():
    code = "import sys, counterflow.backbones; print([name for name in sys.modules if name.startswith('counterflow.nn')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_backbone_for_cells_has_a_learning_rate_and_others_the_default():
    assert {learning_rate(name) for name in ("mlp", "dit", "set", "ssm")} == set(LEARNING_RATES.values())
    assert learning_rate("mylab:RetNet") == learning_rate(nn.Linear(1, 1)) == DEFAULT_LEARNING_RATE
