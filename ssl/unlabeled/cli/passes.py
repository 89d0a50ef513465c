"""What the commands share that take a network over many samples (`config.passes.shared`)."""

from __future__ import annotations

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
