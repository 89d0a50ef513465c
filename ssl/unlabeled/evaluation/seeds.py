"""One protocol with several seeds: of its labels, its held-out images and its training; then the mean and interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unlabeled.config.protocols.vectors import Classify, Nearest, Trained
from unlabeled.config.read import read_protocol
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.report.report import Report
from unlabeled.report.seeds import print_seeds


def evaluate_seeds(protocol: str, run: Path, overrides: Sequence[str], seeds: Sequence[int], out: Path | None = None,
                   ) -> list[Report]:
    """Evaluate `run` once per seed, each with its own table and file, and print the mean with its 95 % interval.

    Returns the reports, on other ranks than 0 none. Raises UserError for a protocol that draws nothing, and for
    overrides that set a seed too.
    """
    cfg = read_protocol(protocol, overrides)
    if isinstance(cfg, Nearest | Classify):
        raise UserError(
            f"protocol '{cfg.protocol}' draws nothing: its number is the same for every seed; leave --seeds "
            "out, or evaluate runs of several train.seed"
        )
    own = [text for text in overrides if text.partition("=")[0] in ("seed", "data.subset.seed")]
    if own:
        raise UserError(f"'{own[0]}' and --seeds both set the seed; leave one of them out")
    keys = ["seed"]
    if isinstance(cfg, Trained) and cfg.data.subset is not None and cfg.data.subset.list is None:
        keys.append("data.subset.seed")
    found = [evaluate(protocol, run, [*overrides, *(f"{key}={seed}" for key in keys)], out=out) for seed in seeds]
    reports = [report for report in found if report is not None]
    if reports:
        print_seeds({Path(protocol).stem: [[report] for report in reports]}, "protocol")
    return reports
