"""Measures of a representation that need no labels, and the warning when it has collapsed."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.ops.precision import at_least_float32, full_precision

RANK_SAMPLES = 25_600  # what arXiv 2210.02885 found to be enough
PAIR_SAMPLES = 4_096  # uniformity looks at all pairs of these
# untrained ResNets stand at 0.03 and 2 to 3 (their features share one large mean), so the alarm lies below that
COLLAPSED_STD = 0.01
COLLAPSED_RANK = 1.5


def health(features: Tensor) -> dict[str, float]:
    """Return feature_std, effective_rank and uniformity of features [n, F]; large sets are thinned evenly.

    One image has no health: the measures are empty.
    """
    if len(features) < 2:
        return {}
    x = thin(features, RANK_SAMPLES)
    return {"feature_std": feature_std(x), "effective_rank": effective_rank(x), "uniformity": uniformity(features)}


@torch.no_grad()
def feature_std(features: Tensor) -> float:
    """Return the mean deviation of the dimensions of unit-length features [n, F], times sqrt(F).

    1 if directions are spread evenly, 0 if all are equal (arXiv 2011.10566 section 4.1).
    """
    x = F.normalize(at_least_float32(features), dim=1)
    return float(x.std(0, correction=0).mean() * math.sqrt(x.shape[1]))


@torch.no_grad()
def effective_rank(features: Tensor, eps: float = 1e-7) -> float:
    """Return RankMe of features [n, F]: exp of the entropy of the normalised singular values (arXiv 2210.02885 eq. 2).

    The singular values come from the smaller Gram matrix in float64; what its rounding leaves (1e-8 of the largest
    value) is below the paper's eps.
    """
    x = features.double()
    if not bool(torch.isfinite(x).all()):
        return math.nan
    x = x / x.abs().amax().clamp(min=1e-300)
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    values = torch.linalg.eigvalsh(gram.cpu())
    values = torch.where(values > values.amax() * 1e-15, values, 0.0).sqrt()
    p = values / values.sum().clamp(min=1e-300) + eps
    return float(torch.exp(-(p * p.log()).sum()))


@torch.no_grad()
def uniformity(features: Tensor, t: float = 2.0) -> float:
    """Return log mean exp(-t |x - y|^2) over pairs of unit-length features [n, F] (arXiv 2005.10242 eq. 4).

    0 if all are equal; the lower, the more evenly the sphere is filled. At most PAIR_SAMPLES rows, spread evenly.
    """
    x = F.normalize(at_least_float32(thin(features, PAIR_SAMPLES)), dim=1)
    with full_precision(x.device):
        near = torch.exp(-t * (2 - 2 * (x @ x.T)).clamp_(min=0))
    near.fill_diagonal_(0)
    return math.log(float(near.sum(dtype=torch.float64)) / (len(x) * (len(x) - 1)))


@torch.no_grad()
def alignment(a: Tensor, b: Tensor) -> float:
    """Return the mean squared distance of unit-length partners a, b [n, F] (arXiv 2005.10242 eq. 3, alpha 2)."""
    a, b = (F.normalize(at_least_float32(x), dim=1) for x in (a, b))
    return float((a - b).square().sum(1).mean())


def collapse_warning(measured: Mapping[str, float]) -> str | None:
    """Return one line that says how the features of `health` have collapsed and what to try, or None."""
    std, rank = measured.get("feature_std", 1.0), measured.get("effective_rank", math.inf)
    if math.isnan(std) or math.isnan(rank):
        return "features are not finite: lower optim.lr.base or lengthen optim.warmup_epochs, and start again"
    if std < COLLAPSED_STD:
        return (f"collapse: all images get almost the same features (deviation {std:.4f}; healthy is 0.1 to 1). "
                "Lower optim.lr.base or lengthen optim.warmup_epochs; check the method's temperature and momentum")
    if rank < COLLAPSED_RANK:
        return (f"collapse: features lie on about one line (effective rank {rank:.1f}). "
                "Lower optim.weight_decay or optim.lr.base; use more images per update or stronger crops and colour")
    return None


def thin(x: Tensor, limit: int) -> Tensor:
    """Return at most `limit` rows of x, spread evenly over it."""
    if len(x) <= limit:
        return x
    return x[torch.arange(limit, device=x.device) * len(x) // limit]
