"""SSLD against arrays computed with the published code (the selection: from the text's steps)."""

from __future__ import annotations

import golden_files
import numpy as np
from golden_files import Case

from unlabeled.ops.selection import likeliest_classes, top_per_class

KINDS = ("ssld_js_loss", "ssld_topk_selection", "ssld_lr_schedule")


def parametrize(kind: str):
    return golden_files.parametrize(kind, KINDS)


# ---- selection


@parametrize("ssld_topk_selection")
def test_selection(case: Case) -> None:
    prob = case["teacher_prob"]
    classes, scores = likeliest_classes(prob)
    assert np.array_equal(classes[:, 0], case["predicted_class"])
    assert np.array_equal(scores[:, 0], case["predicted_score"])
    removed = case["duplicate_indices"]
    selection = top_per_class(classes, scores, k=int(case["k"]), total=prob.shape[1], removed=removed)
    assert np.array_equal(selection.places, case["selected_indices_by_class"])
    assert np.array_equal(selection.images, case["selected_indices_sorted"])
    assert np.array_equal(selection.counts, case["selected_count_per_class"])
