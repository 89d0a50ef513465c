"""What the commands share that take a network over many samples (`config.passes.shared`)."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unlabeled.config.passes.shared import SplitPassSettings
    from unlabeled.data.records.store import Store

# for the help of `key=value`; the model of the settings checks them
HOW = (
    "part=3/16 (the third of sixteen jobs that share the samples, default 1/1), batch=256, workers=4, precision=fp32, "
    "bf16 or fp16, in which the network runs (default auto: bf16 on GPUs and on CPUs with AMX, else fp32), "
    "max_corrupt={max_corrupt} (share of unreadable images)"
)
WHERE = (
    "card=CARD or [CARD, CARD], split=train, root=FOLDER (of the data), out=FOLDER (new, or that of a pass that was "
    "cut short, which goes on)"
)


def settings_help(own: str = "", *, max_corrupt: float = 0.001, split: bool = True) -> str:
    """Return the help of a command's settings: where, its own, how; split: it reads splits of cards."""
    how = HOW.format(max_corrupt=f"{max_corrupt:g}")
    return "; ".join(part for part in (WHERE if split else "", own, how) if part)


def tell_kept(store: Store | None, settings: SplitPassSettings) -> None:
    """Print where the rows are that a pass has finished, and how a run reads them; nothing while parts are missing."""
    from unlabeled.config.passes import reinforce
    from unlabeled.data.records import labelmaps
    from unlabeled.ops.distributed import rank

    if store is None or rank() != 0:
        return
    kind, unreadable = store.header.kind, len(store.unreadable)
    recipe = {labelmaps.KIND: "relabel", reinforce.KIND: "reinforcement"}[kind]
    lacking = f", {unreadable} of them unreadable and without rows" if unreadable else ""
    if isinstance(settings.card, list):  # in the place of a recipe's card, the whole block
        sets = ", ".join(f"{{card: {card}, split: {settings.split}}}" for card in settings.card)
        words = [f"data.train={{mix: [{sets}], batch: BATCH, records: {{{kind}: {store.folder}}}}}"]
    else:
        known = {"card": settings.card, "root": settings.root, "split": settings.split, f"records.{kind}": store.folder}
        words = [f"data.train.{key}={value}" for key, value in known.items()
                 if (key, value) not in (("root", None), ("split", "train"))]
    print(f"{store.folder} is complete: {kind} rows of {len(store)} images{lacking}. Train on them: unlabeled pretrain "
          f"{recipe} {shlex.join(words)}")
