"""Who says whether an image is good: a classifier that was trained on other real images, and distances in its features."""

import torch
from torch import Tensor, nn

from counterflow.data.images import Images

N_STEPS, BATCH, LR, BLUR = 800, 64, 2e-3, 0.1
N_FEATURES = 64


class Judge(nn.Module):
    """A small convolutional classifier of 8 x 8 images; its last hidden layer is where distances are taken."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * 16, N_FEATURES), nn.ReLU(),
        )  # fmt: skip
        self.classify = nn.Linear(N_FEATURES, n_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores of the classes."""
        return self.classify(self.features(pixels))

    @torch.no_grad()
    def accuracy(self, images: Images) -> float:
        """Share of images that are taken for what they should be."""
        return float((self(images.pixels).argmax(1) == images.labels).double().mean())

    @torch.no_grad()
    def distance(self, a: Tensor, b: Tensor) -> float:
        """Fréchet distance of two sets of images in the features."""
        return frechet(self.features(a), self.features(b))


def train_judge(images: Images, seed: int) -> Judge:
    """Trained on noised versions of the images, so that it does not mind a little noise."""
    torch.manual_seed(seed)
    judge = Judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=LR, weight_decay=1e-2)
    for _ in range(N_STEPS):
        rows = torch.randint(len(images.labels), (BATCH,))
        noised = images.pixels[rows] + BLUR * torch.randn(BATCH, *images.pixels.shape[1:])
        loss = nn.functional.cross_entropy(judge(noised), images.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return judge.eval()


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared 2-Wasserstein distance of the Gaussians with the means and covariances of two samples (arXiv 1706.08500)."""
    a, b = a.double(), b.double()
    values, vectors = torch.linalg.eigh(a.T.cov())
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    between = torch.linalg.eigvalsh(root @ b.T.cov() @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * between)


def to_nearest(pixels: Tensor, others: Tensor) -> float:
    """Median distance of an image to the nearest of `others`: samples far closer to training images than new real ones are copies."""
    return float(torch.cdist(pixels.flatten(1), others.flatten(1)).amin(1).median())
