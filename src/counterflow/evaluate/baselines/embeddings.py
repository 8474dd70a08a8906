"""Perturbations that were never measured: effects from what the perturbed genes look like in other cells."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from counterflow.data.screen import Screen
from counterflow.evaluate.baselines.rule import Level, MeasuredRule, Situation
from counterflow.types import ConditionSpec

N_COMPONENTS = 10
RIDGE = 0.1
N_NEIGHBOURS = 5


class EmbeddingRule(MeasuredRule):
    """A rule on a gene embedding: principal components (over genes) of the training conditions' mean effects."""

    @classmethod
    def applies(cls, situation: Situation) -> bool:
        """An unseen gene that is measured is asked for, and at least three such were perturbed in training."""
        return situation.unseen_parts

    def fit(self, cells: Screen) -> None:
        """Embed every gene."""
        super().fit(cells)
        self.centre = self.measured.effect.mean(0)
        centred = self.measured.effect - self.centre
        left, size, _ = np.linalg.svd(centred.T, full_matrices=False)
        k = max(1, min(N_COMPONENTS, len(self.measured.specs) - 1))
        self.embedding = (left * size)[:, :k]  # G x k
        self.column = {gene: i for i, gene in enumerate(self.genes)}
        self.learn()

    def learn(self) -> None:
        """Relate the embedding of training conditions to their effects."""

    def embed(self, spec: ConditionSpec) -> NDArray | None:
        """Sum over the parts that are measured genes; None without any."""
        columns = [self.column[part] for part in spec.parts if part in self.column]
        return self.embedding[columns].sum(0) if columns else None

    def training(self) -> tuple[NDArray, NDArray]:
        """Embeddings (P x k) and effects (P x G) of the training conditions that can be embedded."""
        rows = [
            (x, effect)
            for spec, effect in zip(self.measured.specs, self.measured.effect, strict=True)
            if (x := self.embed(spec)) is not None
        ]
        if not rows:
            return np.zeros((0, self.embedding.shape[1])), np.zeros((0, len(self.genes)))
        return np.array([x for x, _ in rows]), np.array([effect for _, effect in rows])


class Bilinear(EmbeddingRule):
    """Y - b = G W P: genes and perturbations in one embedding, ridge 0.1 on both sides (Ahlmann-Eltze et al., Nat Methods 2025)."""

    name: ClassVar[str] = "bilinear"

    def learn(self) -> None:
        """W by ridge regression from the left and from the right."""
        p, effects = self.training()
        g, k = self.embedding, self.embedding.shape[1]
        y = (effects - self.centre).T  # G x P
        self.w = np.linalg.solve(g.T @ g + RIDGE * np.eye(k), g.T @ y @ p) @ np.linalg.inv(p.T @ p + RIDGE * np.eye(k))

    def effect(self, spec: ConditionSpec, context: Level, control: NDArray) -> NDArray | None:
        """The mean effect where the parts are not measured genes."""
        del context, control
        x = self.embed(spec)
        return self.generic if x is None else self.centre + self.embedding @ (self.w @ x)


class NearestPerturbations(EmbeddingRule):
    """The effects of the five perturbations whose genes are most alike, weighted by cosine."""

    name: ClassVar[str] = "knn"

    def learn(self) -> None:
        """Keep them."""
        self.known, self.effects = self.training()

    def effect(self, spec: ConditionSpec, context: Level, control: NDArray) -> NDArray | None:
        """The mean effect where nothing is alike."""
        del context, control
        x = self.embed(spec)
        if x is None or not len(self.known):
            return self.generic
        length = np.linalg.norm(self.known, axis=1) * np.linalg.norm(x)
        cosine = np.maximum(np.divide(self.known @ x, length, out=np.zeros(len(length)), where=length > 0), 0)
        nearest = np.argsort(-cosine, kind="stable")[:N_NEIGHBOURS]
        weight = cosine[nearest]
        return weight @ self.effects[nearest] / weight.sum() if weight.sum() > 0 else self.generic


class Ridge(EmbeddingRule):
    """Ridge regression of the effect on which parts a condition has (one-hot), and on their embedding where they are measured genes."""

    name: ClassVar[str] = "ridge"

    @classmethod
    def applies(cls, situation: Situation) -> bool:
        """Combinations of parts, or unseen parts."""
        return situation.combinations or situation.unseen_parts

    def learn(self) -> None:
        """In the dual, because there are fewer conditions than features; embeddings scaled to length 1 on average."""
        self.parts = {part: i for i, part in enumerate(sorted({part for spec in self.measured.specs for part in spec.parts}))}
        self.scale = max(float(np.sqrt(np.square(self.embedding).sum(1).mean())), 1e-12)
        x = np.array([self._features(spec) for spec in self.measured.specs])
        self.weights = x.T @ np.linalg.solve(x @ x.T + RIDGE * np.eye(len(x)), self.measured.effect)

    def _features(self, spec: ConditionSpec) -> NDArray:
        one_hot = np.zeros(len(self.parts))
        for part in spec.parts:
            if part in self.parts:
                one_hot[self.parts[part]] += 1
        embedded = self.embed(spec)
        rest = np.zeros(self.embedding.shape[1]) if embedded is None else embedded / self.scale
        return np.concatenate([[float(len(spec.parts))], one_hot, rest])

    def effect(self, spec: ConditionSpec, context: Level, control: NDArray) -> NDArray | None:
        """Linear in the features."""
        del context, control
        return self._features(spec) @ self.weights
