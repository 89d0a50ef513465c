"""All evaluation protocols: what a file of eval/ may be. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from unlabeled.config.protocols.dense import Correspondence, SegmentationFcn, SegmentationLinear
from unlabeled.config.protocols.detection import Detection
from unlabeled.config.protocols.vectors import (
    Classify,
    Clustering,
    FewLabels,
    Knn,
    Linear,
    Logistic,
    Retrieval,
    Trained,
)

AnyProtocol = Annotated[
    Knn | Linear | FewLabels | Logistic | Clustering | Retrieval | Classify | Trained | SegmentationLinear
    | SegmentationFcn | Correspondence | Detection,
    Field(discriminator="protocol"),
]
