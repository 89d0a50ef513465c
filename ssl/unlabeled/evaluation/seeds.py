"""One protocol several times: with several seeds, then mean and interval, or on all folds of a card, then the mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unlabeled.config.protocols.vectors import Classify, Nearest, Trained
from unlabeled.config.read import read_card, read_protocol
from unlabeled.engine.restore import load_run
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.evaluation.setup import scored_stream
from unlabeled.report.report import Report
from unlabeled.report.seeds import print_folds, print_seeds


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


def evaluate_folds(protocol: str, run: Path, overrides: Sequence[str], out: Path | None = None) -> list[Report]:
    """Evaluate `run` on every fold of the data card, each with its own table and file, and print their mean.

    Returns the reports, on other ranks than 0 none. Raises UserError if the card lists no folds, and for overrides that
    set a split too.
    """
    cfg = read_protocol(protocol, overrides)
    card = read_card(cfg.card or scored_stream(load_run(run))[1].card)
    if not card.folds:
        raise UserError(f"data card '{card.name}' lists no folds: leave --folds out, or name pairs of splits in it, as "
                        "data/ucf101.yaml does")
    own = [text for text in overrides if text.partition("=")[0] in ("train", "test")]
    if own:
        raise UserError(f"'{own[0]}' and --folds both choose the split; leave one of them out")
    every = [evaluate(protocol, run, [*overrides, f"train={train}", f"test={test}"], out=out)
             for train, test in card.folds]
    reports = [report for report in every if report is not None]
    if reports:
        print_folds(reports)
    return reports
