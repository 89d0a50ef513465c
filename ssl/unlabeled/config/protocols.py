"""All evaluation protocols: what a file of eval/ may be. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from unlabeled.config.protocol import Classify, FewLabels, Knn, Linear, Logistic, Trained
from unlabeled.config.protocol_dense import Correspondence, SegmentationFcn, SegmentationLinear
from unlabeled.config.protocol_detection import Detection

AnyProtocol = Annotated[
    Knn | Linear | FewLabels | Logistic | Classify | Trained | SegmentationLinear | SegmentationFcn | Correspondence
    | Detection,
    Field(discriminator="protocol"),
]
