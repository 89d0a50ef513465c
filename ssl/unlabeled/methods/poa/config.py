"""Options of POA; the defaults are the paper's for ViT-L (arXiv 2408.01031)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from unlabeled.config.augment import Crop, ResizedCrop
from unlabeled.config.base.curve import CurveRule, Momentum, Temperature
from unlabeled.config.base.strict import Strict
from unlabeled.config.recipe import MethodConfig, Smallest


def _is_a_range(ratio: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= ratio[0] <= ratio[1] <= 1:
        raise ValueError(f"ratio is a range of shares, 0 <= smallest <= largest <= 1; got {list(ratio)}")
    return ratio


class Elastic(Strict):
    """The elastic student, a sub-network of the intact one."""

    weight: float = Field(0.2, gt=0, lt=1, description="of its terms; the intact student's have one minus it")
    cross_view: bool = Field(True, description="it learns from the teacher across views, and from its patches")
    same_view: bool = Field(True, description="it learns from the intact student on the same view")

    @model_validator(mode="after")
    def _it_learns(self) -> Elastic:
        if not (self.cross_view or self.same_view):
            raise ValueError("the elastic student has no term: set cross_view or same_view, or elastic: null")
        return self


class Patches(Strict):
    """Masked patches of global crops, whose place the teacher sees (iBOT, arXiv 2111.07832)."""

    weight: float = Field(1.0, gt=0)
    start_epoch: float = Field(30, ge=0, description="no crop is masked before; 0.5 is half an epoch")
    masked: float = Field(0.5, gt=0, le=1, description="share of the global crops that are masked")
    ratio: Annotated[tuple[float, float], AfterValidator(_is_a_range)] = Field(
        (0.1, 0.5), description="smallest and largest share of a masked crop's patches that is hidden"
    )


class POAConfig(MethodConfig):
    """`method: {name: poa, ...}`; the backbone is an elastic one."""

    streams: ClassVar[tuple[str, ...]] = ("train",)
    needs: ClassVar[frozenset[str]] = frozenset({"elastic"})

    name: Literal["poa"] = "poa"
    prototypes: list[Annotated[int, Field(gt=0)]] = Field(
        [8192, 16384, 32768, 65536], min_length=1, description="outputs of every head"
    )
    hidden: int = Field(2048, gt=0, description="width of the first two layers of a head")
    bottleneck: int = Field(256, gt=0, description="width of a head's third layer")
    elastic: Elastic | None = Field(Elastic(), description="null: the intact student alone, which is DINOv2")
    patches: Patches | None = Field(Patches(), description="null: nothing is masked")
    koleo: float = Field(0.1, ge=0, description="weight of the spread of the class tokens of a block")
    targets: Literal["sinkhorn", "centering"] = Field("sinkhorn", description="how the teacher's logits become targets")
    center_momentum: float = Field(0.9, ge=0, lt=1, description="of the centre, with targets: centering")
    student_temperature: Temperature = 0.1
    teacher_temperature: Temperature = CurveRule(
        start=0.07, shape="constant", warmup_epochs=30, warmup_start=0.04, warmup_rule="k/(w-1)"
    )
    momentum: Momentum = CurveRule(start=0.992, end=0.9999)
    layer_decay: float = Field(0.9, gt=0, le=1, description="factor on the learning rate per layer below the output")
    patch_embed_lr: float = Field(0.2, gt=0, le=1, description="further factor for the layer that embeds patches")
    freeze_prototypes: float = Field(1, ge=0, description="epochs in which the prototypes have a learning rate of 0")
    blur: Literal["effective", "paper"] = Field(
        "effective", description="its probabilities: 0, 0.9 and 0.5 as the published models had, or 1, 0.1 and 0.5 of "
        "the paper's table"
    )
    crop: Crop = ResizedCrop(area=(0.32, 1.0))
    local_crop: Crop = ResizedCrop(size=96, area=(0.05, 0.32))
    local_crops: int = Field(8, ge=0)

    @model_validator(mode="after")
    def _center_belongs_to_centering(self) -> POAConfig:
        default = type(self).model_fields["center_momentum"].default  # which a run's own recipe names
        if self.targets != "centering" and self.center_momentum != default:
            raise ValueError("'center_momentum' has no effect with targets: sinkhorn, which has no centre")
        return self

    def starts(self) -> dict[str, float]:
        """Return the epoch from which on patches are hidden."""
        return {} if self.patches is None else {"method.patches": self.patches.start_epoch}

    def works_by_blocks(self) -> bool:
        """Return True: sub-networks, masks, random depth and KoLeo are those of a block."""
        return True

    def smallest_batch(self, stream: str) -> Smallest | None:
        """Return two images: KoLeo spreads an image away from its nearest neighbour."""
        return Smallest(2, "every image has a nearest neighbour") if self.koleo else None
