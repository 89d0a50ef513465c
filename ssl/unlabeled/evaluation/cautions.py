"""What a number does not say: test images that were learnt from."""

from __future__ import annotations

from unlabeled.config.protocols.vectors import Nearest, Protocol


def cautions(cfg: Protocol, train: str, test: str, shared: int, scored: int, trained: str | None = None) -> list[str]:
    """Return the sentences that go with the numbers of `cfg` on the splits `train` and `test`.

    shared: of the `scored` test images, those that stand in train too. trained: the run's stream that reads the test
    split itself.
    """
    notes = []
    if shared:
        if train == test:
            which = f"test '{test}' is the training split"
        else:
            which = f"{shared} of the {scored} test images of '{test}' stand in the training split '{train}' too"
        what = ("each is left out when it is the query itself" if isinstance(cfg, Nearest) else
                "the numbers tell how well these were learnt by heart, not what holds for other images")
        notes.append(f"{which}: {what}")
    if trained:
        notes.append(f"the run itself was trained on test '{test}' ({trained})")
    return notes
