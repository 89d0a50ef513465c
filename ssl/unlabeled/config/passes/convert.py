"""The published formats that `unlabeled convert` reads. Imports no torch."""

from __future__ import annotations

# format -> (its settings, what converts a folder or file by them), as module:object
FORMATS: dict[str, tuple[str, str]] = {
    "relabel-pt": ("unlabeled.config.passes.convert_relabel:RelabelFiles", "unlabeled.passes.convert_relabel:convert"),
    "ml-dr": ("unlabeled.config.passes.convert_ml_dr:MlDrFiles", "unlabeled.passes.convert_ml_dr:convert"),
}
