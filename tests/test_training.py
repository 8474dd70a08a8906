import lightning as L
import pytest
import torch

from counterflow import ConfigError, CounterFlow, DataError, training
from counterflow.backbones import LEARNING_RATES
from counterflow.training import FlowTraining, ema_update


def test_the_memory_of_the_average_grows_with_the_updates():
    averaged, current = torch.tensor([1.0]), torch.tensor([3.0])
    for n, beta in ((0, 1 / 10), (8, 0.5), (10**7, 0.9999)):
        torch.testing.assert_close(ema_update(averaged.clone(), current, torch.tensor(n)), beta * averaged + (1 - beta) * current)
    assert ema_update(torch.tensor(4), torch.tensor(5), 3) == 5  # a counter is not averaged


class Weights(L.Callback):
    """One weight after every step, as the optimiser left it."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(next(pl_module.module.backbone.parameters()).detach().clone())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_trained_model_holds_the_average_of_its_weights(declared, precision):
    model, weights = CounterFlow(declared, anchor="none"), Weights()
    model.train(max_steps=6, batch_size=64, progress=False, callbacks=[weights], precision=precision)
    averaged = None
    for n, weight in enumerate(weights.seen):
        averaged = weight if averaged is None else ema_update(averaged, weight, n)
    kept = next(model.module.backbone.parameters())
    assert kept.dtype == torch.float32 and not torch.equal(kept, weights.seen[-1])
    torch.testing.assert_close(kept, averaged, atol=1e-7, rtol=1e-6)


class Exploding(torch.nn.Module):
    """A backbone whose output is NaN from its third call on (the first two measure memory)."""

    def __init__(self, good_calls: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.calls, self.good_calls = 0, good_calls

    def forward(self, x, t, condition):
        self.calls += 1
        return x * self.weight * (torch.nan if self.calls > self.good_calls else 1.0)


def test_a_loss_that_is_not_finite_stops_at_its_step_and_leaves_the_last_good_checkpoint(declared, tmp_path):
    model = CounterFlow(declared, backbone=Exploding(2 + 5), anchor="none")
    with pytest.raises(DataError, match=r"became nan at step 5 in . of its sets .*the last good checkpoint is kept") as caught:
        model.train(max_steps=20, progress=False, run_dir=tmp_path)
    assert any(repr(name) in str(caught.value) for name in declared.obs["perturbation"].unique())
    content = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 5 and not model.is_trained


def test_weights_that_are_not_finite_never_replace_a_checkpoint():
    training = FlowTraining(torch.nn.Linear(2, 2), lr=1.0, weight_decay=0.0, max_steps=1, warmup=1, seed=0, data="abc")
    content: dict = {}
    training.on_save_checkpoint(content)
    assert content == {"data": "abc"}
    with torch.no_grad():
        training.module.weight[0, 0] = torch.inf
    with pytest.raises(DataError, match="weights became NaN or infinite"):
        training.on_save_checkpoint({})


def test_a_run_is_resumed_on_the_same_cells_only(declared, tmp_path):
    options = {"anchor": "none", "backbone_kwargs": {"width": 8, "depth": 1}}
    CounterFlow(declared, **options).train(max_steps=2, progress=False, run_dir=tmp_path)
    last = tmp_path / "checkpoints" / "last.ckpt"
    CounterFlow(declared, **options).train(max_steps=3, progress=False, resume_from=last)
    other = declared.copy()
    other.X.data[0] += 1
    with pytest.raises(DataError, match="the data changed since"):
        CounterFlow(other, **options).train(max_steps=3, progress=False, resume_from=last)
    CounterFlow(other, **options).train(max_steps=3, progress=False, resume_from=last, force_data=True)


def test_what_would_not_repeat_its_bits_is_not_resumed(declared, tmp_path):
    options = {"max_steps": 2, "progress": False, "run_dir": tmp_path, "accumulate_grad_batches": 2}
    model = CounterFlow(declared, anchor="none", backbone_kwargs={"width": 8, "depth": 1})
    model.train(**options)
    with pytest.raises(ConfigError, match="accumulate_grad_batches cannot be resumed"):
        model.train(**options, resume_from=tmp_path / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(("given", "taken"), [({}, LEARNING_RATES["set"]), ({"lr": 2e-4}, 2e-4)])
def test_the_learning_rate_is_that_of_the_backbone_unless_given(declared, monkeypatch, given, taken):
    taken_by, fit = [], training.fit
    monkeypatch.setattr(training, "fit", lambda *args, **options: taken_by.append(options["lr"]) or fit(*args, **options))
    CounterFlow(declared, backbone="set", anchor="none").train(max_steps=1, batch_size=8, progress=False, **given)
    assert taken_by == [taken]
