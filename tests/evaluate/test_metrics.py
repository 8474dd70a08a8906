"""The suite as a whole: its convention, and the constructed predictors it has to see through."""

import numpy as np
import pytest

from counterflow.evaluate import metrics
from counterflow.evaluate.metrics import METRICS, compute, differential, needs, welch_t

INPUTS = {
    *("predicted_mean", "real_mean", "control_mean", "reference_mean", "abs_t", "predicted", "real"),
    *("predicted_pcs", "real_pcs", "predicted_de", "real_de", "predicted_effects", "real_effects", "predicted_means", "real_means"),
}


class Screen:
    """Count data with known truth: 10 conditions of 60 cells, a shared response and one of their own."""

    def __init__(self, n=10, cells=60, genes=80, seed=0):
        rng = np.random.default_rng(seed)
        rate = rng.gamma(1.5, 1, genes)
        self.fold = np.exp(0.35 * rng.normal(size=genes) + 0.4 * rng.normal(size=(n, genes)))
        draw = lambda mu: np.log1p(rng.poisson(mu * rng.lognormal(0, 0.3, (cells, 1))))  # noqa: E731
        self.control = np.concatenate([draw(rate), draw(rate)])
        self.real, self.other = (np.stack([draw(rate * f) for f in self.fold]) for _ in range(2))
        self.training = [draw(rate * np.exp(0.4 * rng.normal(size=genes)) * self.fold.prod(0) ** (1 / n)) for _ in range(20)]
        self.reference = np.mean([x.mean(0) for x in self.training], 0)
        centred = np.concatenate([*self.training, draw(rate)])
        self.origin = centred.mean(0)
        self.axes = np.linalg.svd(centred - self.origin, full_matrices=False)[2][:10].T

    def inputs(self, predicted, p=0):
        """Of condition `p` and, for the ranks, of all; `predicted` holds cells [P, n, G]."""
        c = self.control.mean(0)
        means, real_means = predicted.mean(1), self.real.mean(1)
        return {
            "predicted_mean": means[p],
            "real_mean": real_means[p],
            "control_mean": c,
            "reference_mean": self.reference,
            "abs_t": np.abs(welch_t(self.real[p], self.control)),
            "predicted": predicted[p],
            "real": self.real[p],
            "predicted_pcs": (predicted[p] - self.origin) @ self.axes,
            "real_pcs": (self.real[p] - self.origin) @ self.axes,
            "predicted_de": differential(predicted[p], self.control),
            "real_de": differential(self.real[p], self.control),
            "predicted_effects": means - c,
            "real_effects": real_means - c,
            "predicted_means": means,
            "real_means": real_means,
        }

    def cheats(self):
        """Predictors with a known flaw, made from the second half of the real cells."""
        c = self.control.mean(0)
        mean = self.other.mean(1, keepdims=True)
        control = np.repeat(self.control[None, :60], len(self.real), 0)
        return {
            "control": control,
            "generic response": control + (self.reference - c),
            "shuffled labels": np.roll(self.other, 1, axis=0),
            "tile of the true mean": np.repeat(self.real.mean(1, keepdims=True), 60, 1),
            "inflated variance": mean + 2 * (self.other - mean),
            "effect x 3": self.other + 2 * (mean - c),
            "effect x 0.3": self.other - 0.7 * (mean - c),
        }


@pytest.fixture(scope="module")
def screen():
    return Screen()


def test_every_metric_follows_the_convention(screen):
    inputs = screen.inputs(screen.other)
    assert set(inputs) == INPUTS
    assert set().union(*(needs(name) for name in METRICS)) <= INPUTS
    assert set(metrics.__all__) >= set(METRICS)
    for name in METRICS:
        value = np.asarray(compute(name, inputs))
        assert value.shape == ((10,) if "pds" in name or name in ("centroid_acc", "rank_perturbench") else ())
        assert np.isfinite(value).all()
        assert value.dtype == float


def test_the_truth_beats_the_other_half_beats_the_control_on_every_metric(screen):
    truth, half, floor = (screen.inputs(x) for x in (screen.real, screen.other, screen.cheats()["control"]))
    slack = {"c2st_pca": 0.1, "c2st_gene": 0.1, "precision": 0.1, "recall": 0.1, "coverage": 0.1, "cover90": 0.1, "std_log2ratio": 0.1}
    for name, metric in METRICS.items():
        best, middle, worst = (np.mean(compute(name, x)) for x in (truth, half, floor))
        if name.startswith("c2st"):
            best = 0.5  # copies in two folds are an artefact
        if isinstance(metric.better, float):
            best, middle, worst = (-abs(v - metric.better) for v in (best, middle, worst))
        elif metric.better == "lower":
            best, middle, worst = -best, -middle, -worst
        assert best >= middle - slack.get(name, 0), name
        assert middle >= worst - slack.get(name, 0), name


def headline(screen, cells):
    """Larger is better; the four families of the protocol."""
    inputs = screen.inputs(cells)
    return {
        "pertref": compute("pearson_delta_pertref", inputs),
        "pds": compute("pds_cosine", inputs).mean(),
        "wmse": -compute("wmse", inputs),
        "energy": -compute("energy", inputs),
        "c2st_gene": -compute("c2st_gene", inputs),
    }


def test_the_headline_set_rejects_every_cheat_and_no_single_metric_does(screen):
    margin = {"pertref": 0.2, "pds": 0.2, "wmse": 0.05, "energy": 0.1, "c2st_gene": 0.15}
    replicate = headline(screen, screen.other)
    rejected_by = {}
    for name, cells in screen.cheats().items():
        scores = headline(screen, cells)
        rejected_by[name] = {metric for metric in scores if scores[metric] < replicate[metric] - margin[metric]}
        assert rejected_by[name], name
    for metric in ("pertref", "pds", "wmse"):
        assert not all(metric in by for by in rejected_by.values())
    assert rejected_by["tile of the true mean"] <= {"energy", "c2st_gene"}  # everything made of means is blind to it
    assert "pds" not in rejected_by["effect x 3"]  # ranks by cosine are blind to scale
    assert "pds" in rejected_by["generic response"] and "pds" in rejected_by["shuffled labels"]


def test_a_generic_response_and_shuffled_labels_score_a_half(screen):
    for name in ("generic response", "shuffled labels"):
        inputs = screen.inputs(screen.cheats()[name])
        assert abs(compute("pds_cosine", inputs).mean() - 0.5) < (1e-9 if name.startswith("generic") else 0.25)
