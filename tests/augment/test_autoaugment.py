"""AutoAugment: torchvision's policy, its law, and its values to the bit."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import AutoAugmentPolicy, v2

from unlabeled.augment import autoaugment
from unlabeled.augment.operations import OPERATIONS
from unlabeled.ops.distributed import Share

NAMES = list(OPERATIONS)
THEIRS = v2.AutoAugment(AutoAugmentPolicy.IMAGENET, fill=list(autoaugment.GRAY))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def row(policy: int, first: bool, second: bool, signs: tuple[float, float]) -> list[float]:
    """Return the uniforms that choose a sub-policy, which of its operations are done, and their signs."""
    done = [0.0 if chosen else 1.0 for chosen in (first, second)]  # 1: above every probability but 1
    return [(policy + 0.5) / len(autoaugment.POLICY), *done, *signs]


def test_the_policy_is_torchvisions() -> None:
    assert [tuple(tuple(change) for change in pair) for pair in autoaugment.POLICY] == THEIRS._policies


@pytest.mark.parametrize("policy", range(25))
@pytest.mark.parametrize("signs", [(0.1, 0.9), (0.9, 0.1)])
def test_a_sub_policy_is_torchvisions_to_the_bit(policy: int, signs: tuple[float, float], natural) -> None:
    """Each of the two operations as torchvision does it with the same magnitude, sign and filling."""
    images = torch.from_numpy(natural(2, 28, 36, seed=5)).permute(0, 3, 1, 2).contiguous()
    drawn = autoaugment.sub_policies(torch.tensor([row(policy, True, True, signs)] * 2, dtype=torch.float64))
    expected = images
    for (name, probability, bin_), sign in zip(THEIRS._policies[policy], signs, strict=True):
        magnitudes, signed = THEIRS._AUGMENTATION_SPACE[name]
        values = magnitudes(10, 28, 36)
        magnitude = 0.0 if values is None else float(values[bin_])
        magnitude = -magnitude if signed and sign <= 0.5 else magnitude
        assert 0 <= probability <= 1
        expected = THEIRS._apply_image_or_video_transform(
            expected, name, magnitude, interpolation=THEIRS.interpolation, fill=THEIRS._fill)
    assert torch.equal(autoaugment.auto_augment(images, drawn), expected)


def test_what_is_not_chosen_leaves_the_image_alone(natural) -> None:
    images = torch.from_numpy(natural(25, 16, 16, seed=5)).permute(0, 3, 1, 2).contiguous()
    uniforms = torch.tensor([row(k, False, False, (0.3, 0.3)) for k in range(25)], dtype=torch.float64)
    drawn = autoaugment.sub_policies(uniforms)
    always = torch.tensor([[change.probability == 1 for change in pair] for pair in autoaugment.POLICY])
    assert torch.equal(drawn.operation > 0, always)
    changed = autoaugment.auto_augment(images, drawn)
    assert torch.equal(changed[~always.any(1)], images[~always.any(1)])


def test_sub_policies_operations_and_signs_come_as_often_as_torchvision_draws_them() -> None:
    n = 200_000
    drawn = autoaugment.draw(n, generator())
    expected = torch.zeros(2, len(NAMES), dtype=torch.float64)
    for pair in autoaugment.POLICY:
        for place, change in enumerate(pair):
            expected[place, NAMES.index(change.name)] += change.probability / 25
    for place in range(2):
        share = torch.bincount(drawn.operation[:, place], minlength=len(NAMES)).double() / n
        assert (share[1:] - expected[place, 1:]).abs().max() < 0.004
    rotated = drawn.magnitude[drawn.operation == NAMES.index("Rotate")]
    assert abs(float((rotated > 0).double().mean()) - 0.5) < 0.01
    assert (drawn.magnitude[drawn.operation == NAMES.index("Solarize")] > 0).all()
    both = ((drawn.operation[:, 0] == NAMES.index("Invert")) & (drawn.operation[:, 1] == NAMES.index("Equalize"))).sum()
    assert abs(float(both) / n - 2 * 0.6 / 25) < 0.004, "the two operations of a sub-policy go together"


def test_a_process_draws_its_rows_of_the_global_batch() -> None:
    whole = autoaugment.draw(12, generator(3))
    share = Share(12, slice(6, 12))
    part = autoaugment.draw(share.total, generator(3)).rows(share.mine)
    assert torch.equal(part.operation, whole.operation[6:]) and torch.equal(part.magnitude, whole.magnitude[6:])


def test_the_corners_of_a_rotated_image_are_gray() -> None:
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    policy = next(k for k, pair in enumerate(autoaugment.POLICY) if pair[0].name == "Rotate" and pair[0].bin == 8
                  and pair[1].bin == 0)  # a colour of strength 0, which leaves the image alone
    drawn = autoaugment.sub_policies(torch.tensor([row(policy, True, False, (0.9, 0.9))], dtype=torch.float64))
    turned = autoaugment.auto_augment(white, drawn)
    assert turned[0, :, 0, 0].tolist() == [128, 128, 128] and turned[0, :, 16, 16].tolist() == [255, 255, 255]
