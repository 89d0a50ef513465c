"""What was measured of a finished run, found again, so that a command that goes on measures nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from unlabeled.config.files import find
from unlabeled.config.read import read_protocol
from unlabeled.engine.run.folder import RunFolder
from unlabeled.evaluation.evaluate import evaluate_many
from unlabeled.ops.distributed import on_rank0
from unlabeled.report.report import Report, read_report


def measured(run: Path, protocols: Sequence[str]) -> list[Report]:
    """Return the reports of a finished run by `protocols`: those that it keeps if all are there, else new ones.

    Raises UserError as `evaluate_many` does.
    """
    if not protocols:
        return []
    kept = on_rank0(partial(kept_reports, run, protocols))
    return evaluate_many(protocols, run) if kept is None else kept


def kept_reports(run: Path, protocols: Sequence[str]) -> list[Report] | None:
    """Return the reports that a finished run keeps, None if one of them is missing or was measured by other settings.

    A set without labels has one in place of all, of health.
    """
    update = finished_after(run)
    if update is None:
        return None
    health = read_report(run / "eval" / f"health-update{update:08d}.json")
    reports = []
    for protocol in protocols:
        report = read_report(run / "eval" / f"{find('eval', protocol).stem}-update{update:08d}.json")
        if report is None or report.settings != read_protocol(protocol).model_dump(mode="json"):
            return None if health is None else [health]
        reports.append(report)
    return reports


def finished_after(run: Path) -> int | None:
    """Return after how many updates a run was finished, None if it is not."""
    try:
        return int(RunFolder(run).done.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None
