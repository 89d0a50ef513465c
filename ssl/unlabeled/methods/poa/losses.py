"""The losses of POA for one head (arXiv 2408.01031 section 3.3, its code), in at least float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.methods.poa.networks import Logits
from unlabeled.ops.precision import at_least_float32

_EPS = 1e-8  # of KoLeo in its published code


def cross_entropy(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of every row [..., n] of logits [..., n, K] at a temperature, under targets [n, K]."""
    return -(target * (at_least_float32(logits) / temperature).log_softmax(-1)).sum(-1)


def local_cross_entropy(target: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Return the sum over local and global crops of the mean cross-entropy of each pair, 0-d.

    target: of the global crops, [2 b, K]. logits: of the local ones, [V b, K]; crop after crop.
    """
    both = target.unflatten(0, (2, -1)).sum(0)  # the cross-entropy is linear in its target
    by_crop = logits.unflatten(0, (len(logits) // len(both), len(both)))
    return cross_entropy(both, by_crop, temperature).mean(1).sum()


def cross_view_loss(target: Tensor, logits: Logits, temperature: float) -> Tensor:
    """Return the mean cross-entropy of all pairs of a crop and another global one, 0-d; target: [2 b, K]."""
    pairs = 2 + 4 * len(logits.local) // len(target)
    loss = 2 * cross_entropy(target, logits.crops, temperature).mean()
    return (loss + local_cross_entropy(target, logits.local, temperature)) / pairs


def patch_loss(target: Tensor, logits: Logits, weights: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy of the hidden patches, mean over those of a crop, then over all crops, 0-d.

    target: [n, K]. weights: 1 / the number of hidden patches in the crop of each, [n].
    """
    return (cross_entropy(target, logits.patches, temperature) * weights).sum() / len(logits.crops)


def same_view_loss(intact: Logits, elastic: Logits, temperature: float) -> Tensor:
    """Return the cross-entropy of the elastic student under the intact one, mean over global plus mean over local, 0-d.

    No gradient reaches the intact student.
    """
    loss = torch.zeros((), device=intact.crops.device)
    for whole, part in ((intact.crops, elastic.crops), (intact.local, elastic.local)):
        target = (at_least_float32(whole.detach()) / temperature).softmax(1)
        loss = loss + cross_entropy(target, part, temperature).sum() / max(1, len(whole))
    return loss


def koleo(vectors: Tensor) -> Tensor:
    """Return the mean negative log distance of unit vectors [n, D] to their nearest neighbours, 0-d.

    Kozachenko and Leonenko's estimate of the entropy (arXiv 1806.03198).
    """
    with torch.autocast(vectors.device.type, enabled=False):
        z = F.normalize(at_least_float32(vectors), dim=1, eps=_EPS)
        with torch.no_grad():
            nearest = (z @ z.T).fill_diagonal_(-2).argmax(1)
        return -(F.pairwise_distance(z, z[nearest], eps=_EPS) + _EPS).log().mean()
