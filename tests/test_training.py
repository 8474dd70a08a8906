import lightning as L
import pytest
import torch

from counterflow import CounterFlow
from counterflow.training import ema_update


def test_the_memory_of_the_average_grows_with_the_updates():
    averaged, current = torch.tensor([1.0]), torch.tensor([3.0])
    for n, beta in ((0, 1 / 10), (8, 0.5), (10**7, 0.9999)):
        torch.testing.assert_close(ema_update(averaged, current, torch.tensor(n)), beta * averaged + (1 - beta) * current)
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
