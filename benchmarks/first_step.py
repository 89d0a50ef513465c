"""One training step in a new process, by the product or by a bare loop; `benchmarks.startup` runs and times it.

Both read the same images from a file, make two random views of each, and take a SimCLR step with a ResNet-18.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

RECIPE = """\
method:
  name: simclrv2
  temperature: 0.5
  head: {{layers: 2, out_dim: 128}}
  crop: {{kind: resized, size: 32, interpolation: bilinear}}
  augment: {{convention: torchvision, jitter: 0.5, blur_p: 0.0, normalize: true}}
backbone: {{name: resnet18}}
data: {{workers: 0, train: {{card: {card}, batch: 64}}}}
optim: {{name: sgd, lr: {{base: 0.06}}}}
train: {{updates: 100}}
eval: {{every: 0}}
"""


def product(folder: Path) -> None:
    """Run `unlabeled pretrain` until its first update is done."""
    recipe = folder / "first.yaml"
    recipe.write_text(RECIPE.format(card=folder / "card.yaml"))
    from unlabeled.cli.main import main
    from unlabeled.engine.updater import Updater

    update = Updater.update

    def first(self, *arguments, **named):
        update(self, *arguments, **named)
        _done()

    Updater.update = first  # type: ignore[method-assign]
    sys.exit(main(["pretrain", str(recipe), f"run={folder / 'run'}", "fresh=true"]))


def bare(folder: Path) -> None:
    """Do the same with nothing but torch, torchvision and timm."""
    import numpy as np
    import timm
    import torch
    from PIL import Image
    from torch.nn import functional as F
    from torchvision import transforms

    images = np.load(folder / "train.npz")["images"][:64]
    pipeline = transforms.Compose([
        transforms.RandomResizedCrop(32), transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), transforms.RandomGrayscale(0.2),
        transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ])
    views = torch.stack([pipeline(Image.fromarray(image)) for _ in range(2) for image in images])
    backbone = timm.create_model("resnet18", num_classes=0)
    head = torch.nn.Sequential(
        torch.nn.Linear(512, 512, bias=False), torch.nn.BatchNorm1d(512), torch.nn.ReLU(),
        torch.nn.Linear(512, 128, bias=False), torch.nn.BatchNorm1d(128))
    optimizer = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.06, momentum=0.9)
    z = F.normalize(head(backbone(views)), dim=1)
    similar = z @ z.T / 0.5
    similar.fill_diagonal_(-torch.inf)
    F.cross_entropy(similar, torch.arange(128).roll(64)).backward()
    optimizer.step()
    _done()


def _done() -> None:
    sys.stdout.flush()
    os._exit(0)  # what comes after the first step is not looked at


if __name__ == "__main__":
    {"product": product, "bare": bare}[sys.argv[1]](Path(sys.argv[2]))
