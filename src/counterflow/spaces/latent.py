"""The VAE latent: scvi-tools' SCVI with a negative-binomial likelihood, standardised per dimension."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from counterflow.errors import ConfigError, DataError

if TYPE_CHECKING:
    from anndata import AnnData

_BLOCK = 2048  # cells encoded or decoded at a time


@contextmanager
def _own_world(seed: int) -> Iterator[None]:
    """scvi-tools seeds and reads the global random states, and talks; inside, they are `seed`'s, and afterwards as they were."""
    import scvi

    theirs = scvi.settings.seed
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "scvi")]
    levels, python, numbers = [logger.level for logger in loggers], random.getstate(), np.random.get_state()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")
            scvi.settings.seed = seed
            try:
                yield
            finally:
                scvi.settings.seed = theirs
    finally:
        os.environ.pop("PL_GLOBAL_SEED", None)
        random.setstate(python)
        np.random.set_state(numbers)
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def load_scvi(path: str | os.PathLike[str], adata: AnnData, *, trust: bool = False) -> Any:
    """A trained `scvi.model.SCVI` from the directory it was saved in, for ``CounterFlow(adata, space=load_scvi(...))``.

    Parameters
    ----------
    path
        The directory that the model's ``save`` wrote.
    adata
        The cells it was trained on, all of them, with its genes in its order.
    trust
        scvi-tools unpickles the files of a model, and a pickle can run any code: say True for files that you would run as a program.

    Raises
    ------
    ConfigError
        Without ``trust=True``; nothing was read then.
    """
    if trust is not True:
        raise ConfigError(
            f"{os.fspath(path)!r} was not read: scvi-tools unpickles its models, and a pickle can run any code. If it is yours, or you "
            "trust who made it as you trust a program of theirs: load_scvi(path, adata, trust=True)"
        )
    if not (Path(path) / "model.pt").is_file():
        raise ConfigError(f"{os.fspath(path)!r} holds no model of scvi-tools (model.pt is not there): give the directory its save() wrote")
    import scvi

    with _own_world(0):
        try:
            return scvi.model.SCVI.load(os.fspath(path), adata, accelerator="cpu")
        except Exception as error:  # of many classes: what is in there is theirs
            line = (str(error).splitlines() or [""])[0]
            raise ConfigError(f"scvi-tools cannot load {os.fspath(path)!r} for these cells ({type(error).__name__}: {line})") from error


class LatentSpace(nn.Module):
    """Posterior means of a variational autoencoder (Lopez et al. 2018); decodes to negative-binomial means.

    Parameters
    ----------
    n_genes
        G.
    n_latent, n_hidden, n_layers
        Size of the autoencoder.
    max_epochs
        Training length; ``None`` takes about 8,000 optimiser steps at most 200 epochs.
    """

    decoder = "transport"

    def __init__(self, n_genes: int, n_latent: int = 32, n_hidden: int = 128, n_layers: int = 1, max_epochs: int | None = None) -> None:
        super().__init__()
        from scvi.module import VAE

        self.state_shape = (n_latent,)
        self.size = {"n_latent": n_latent, "n_hidden": n_hidden, "n_layers": n_layers}
        self.max_epochs = max_epochs
        self.trained = False
        with torch.random.fork_rng(devices=[]):  # its first weights are replaced, and cost the caller no random numbers
            self.vae = VAE(n_genes, n_hidden=n_hidden, n_latent=n_latent, n_layers=n_layers, gene_likelihood="nb")
        self.centre: Tensor
        self.scale: Tensor
        self.register_buffer("centre", torch.zeros(n_latent))
        self.register_buffer("scale", torch.ones(n_latent))

    @classmethod
    def from_trained(cls, model: Any, genes: tuple[str, ...]) -> LatentSpace:
        """Take a trained `scvi.model.SCVI` over the same genes in the same order (the caller vouches for what it was trained on)."""
        if tuple(model.adata.var_names) != genes:
            raise DataError("the handed-in SCVI model has other genes, or another order: train it on adata[:, genes] of this screen")
        if not model.is_trained:
            raise DataError("the handed-in SCVI model is not trained: call its train() first")
        vae = model.module
        if vae.gene_likelihood != "nb" or vae.n_batch > 1 or vae.latent_distribution != "normal":
            raise ConfigError("the handed-in SCVI model must have gene_likelihood='nb', latent_distribution='normal' and no batch_key")
        hidden = vae.z_encoder.encoder.fc_layers
        space = cls(len(genes), vae.n_latent, hidden[0][0].out_features, len(hidden))
        space.vae.load_state_dict(vae.state_dict())
        space.trained = True
        return space

    @staticmethod
    def trained_on(model: Any) -> list[str]:
        """Names of the cells that a trained `scvi.model.SCVI` says it has learned from: those registered, but for its own test set."""
        names = np.array(model.adata.obs_names, dtype=object)
        unseen = getattr(model, "test_indices", None)
        return list(names if unseen is None else np.delete(names, np.asarray(unseen, dtype=int)))

    @property
    def dispersion(self) -> Tensor:
        """Inverse dispersion of each gene (G)."""
        return self.vae.px_r.detach().exp()

    def fit(self, counts: sparse.csr_matrix, library: np.ndarray, *, seed: int) -> None:
        """Train the autoencoder on these cells, unless it came trained, and standardise its latent on them."""
        if not self.trained:
            self._train(counts, seed)
        state = self._posterior_mean(counts)
        self.centre.copy_(state.mean(0))
        self.scale.copy_(state.std(0).clamp(min=1e-3))

    def _train(self, counts: sparse.csr_matrix, seed: int) -> None:
        import anndata
        import scvi

        cells = anndata.AnnData(counts.copy())
        batch_size = 128 if counts.shape[0] > 1000 else 32
        epochs = self.max_epochs or max(20, min(200, 8000 * batch_size // counts.shape[0]))
        width = self.vae.z_encoder.encoder.fc_layers
        with _own_world(seed):
            scvi.model.SCVI.setup_anndata(cells)
            model = scvi.model.SCVI(
                cells, n_hidden=width[0][0].out_features, n_latent=self.state_shape[0], n_layers=len(width), gene_likelihood="nb"
            )
            model.train(
                max_epochs=epochs,
                batch_size=batch_size,
                train_size=1.0,
                accelerator="cpu",
                enable_progress_bar=False,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
            )
        self.vae.load_state_dict(model.module.state_dict())
        self.vae.eval()

    def exposure(self, counts: sparse.csr_matrix, library: np.ndarray) -> np.ndarray:
        """The sum over the modelled genes: the autoencoder's rates add up to one over these."""
        del library
        return np.asarray(counts.sum(1), dtype=np.float32).ravel()

    def encode(self, counts: sparse.csr_matrix, library: np.ndarray) -> Tensor:
        """Standardised posterior means (n x S)."""
        del library
        return (self._posterior_mean(counts) - self.centre) / self.scale

    @torch.no_grad()
    def _posterior_mean(self, counts: sparse.csr_matrix) -> Tensor:
        self.vae.eval()
        blocks = []
        for start in range(0, counts.shape[0], _BLOCK):
            x = torch.from_numpy(counts[start : start + _BLOCK].toarray())
            batch = torch.zeros(len(x), 1, dtype=torch.long)
            try:
                with torch.random.fork_rng(devices=[]):  # it also draws a sample, which nobody reads
                    blocks.append(self.vae.inference(x, batch)["qz"].loc)
            except ValueError:  # distributions refuse what is no number
                raise DataError("the autoencoder gives states that are no numbers: its weights are out of range; fit it again") from None
        return torch.cat(blocks)

    @torch.no_grad()
    def decode(self, state: Tensor, exposure: np.ndarray) -> np.ndarray:
        """Negative-binomial means (n x G)."""
        self.vae.eval()
        z = state.float() * self.scale + self.centre
        size = torch.from_numpy(np.log(np.maximum(exposure, 1.0)).astype(np.float32))[:, None]
        blocks = []
        for start in range(0, len(z), _BLOCK):
            rows = slice(start, start + _BLOCK)
            batch = torch.zeros(len(z[rows]), 1, dtype=torch.long)
            blocks.append(self.vae.generative(z[rows], size[rows], batch)["px"].mean)
        return torch.cat(blocks).numpy()
