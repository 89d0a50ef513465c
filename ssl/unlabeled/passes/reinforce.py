"""Dataset reinforcement's pass: views of every image, kept as parameters, and what teachers say of them.

Faghri et al., arXiv 2303.08983. Views are rendered from what is stored, as it is stored, on the path on which training
replays them. Differs: all is drawn by (seed, place, entry), partners over the whole split and not the batch, so that
neither the order of the pass nor its jobs matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from unlabeled.augment.replay.crops import drawing
from unlabeled.augment.replay.entries import RANDAUGMENT_INTERPOLATION, Law, fields
from unlabeled.backbones.sizes import refuse_images
from unlabeled.config.augment import StorableCrop
from unlabeled.config.passes.reinforce import KIND, ReinforceSettings
from unlabeled.config.passes.shared import MOST_CLASSES
from unlabeled.data.records.classes import (
    WITH_THE_CARD,
    Classes,
    classes_of_card,
    classes_of_teacher,
    refuse_other_classes,
)
from unlabeled.data.records.store import Store
from unlabeled.data.sources.base import Source
from unlabeled.engine.launch import pick_precision
from unlabeled.engine.method import load_teacher
from unlabeled.engine.passes.kept_features import network_digest
from unlabeled.engine.passes.run import Work, run_pass
from unlabeled.errors import UserError
from unlabeled.methods.base import BackboneModule, Export
from unlabeled.passes.entries import EntryMaker
from unlabeled.passes.teachers import Teachers, teach


def reinforce(source: Source, teachers: Sequence[str], settings: ReinforceSettings, device: torch.device,
              ) -> Store | None:
    """Keep the entries of all images of `source` in the folder `settings.out`; None while other parts are missing.

    teachers: classifiers, RUN[:EXPORT], timm:NAME[@FILE] or torchvision:NAME[@FILE]. Raises UserError for what is no
    classifier, for teachers and sets whose classes differ, for images that a teacher does not take, and as `run_pass`.
    """
    exports = [_classifier(teacher) for teacher in teachers]
    crop = _sized(settings.crop, exports[0])
    networks = [cast(BackboneModule, export.build().to(device).to(memory_format=torch.channels_last).eval())
                for export in exports]
    for teacher, network in zip(teachers, networks, strict=True):
        refuse_images(network, {crop.size: "crop.size"}, f"'{teacher}'")
    precision = pick_precision(settings.precision, device.type)
    panel = Teachers(networks, [export.input for export in exports], precision)
    count, classes = _classes(teachers, exports, panel, crop.size, source, device)
    topk = settings.topk if "topk" in settings.model_fields_set else min(settings.topk, count)
    if topk > count:
        raise UserError(f"unlabeled reinforce: topk={topk}, but the teachers know {count} classes; give no more than "
                        "these")
    about = {
        **classes.about(),
        **settings.model_dump(include={"entries", "mix", "randaugment", "erasing", "seed"}),
        "topk": topk,
        "crop": crop.model_dump(),
        "randaugment_interpolation": RANDAUGMENT_INTERPOLATION,
        "teachers": [{"teacher": teacher, "network": network_digest(network, repr(export.input))}
                     for teacher, network, export in zip(teachers, networks, exports, strict=True)],
        "precision": precision,
        "device": device.type,
    }
    law = Law(crop.size, settings.randaugment, settings.erasing, settings.mix)
    maker = EntryMaker(source, drawing(crop), law, settings.entries, settings.seed)
    work = Work(KIND, fields(settings.entries, topk, settings.mix), about, maker,
                lambda batch: teach(batch, panel, topk, settings.batch))
    return run_pass(work, source, Path(settings.out).expanduser(), part=settings.share,
                    batch=max(1, settings.batch // settings.entries), workers=settings.workers, device=device,
                    max_corrupt=settings.max_corrupt)


def _classifier(teacher: str) -> Export:
    export = load_teacher(teacher)
    if export.gives != "logits":
        raise UserError(f"teacher '{teacher}' gives {export.gives} and no logits; name a network with its classifier, "
                        "such as a fine-tuned run")
    return export


def _sized(crop: StorableCrop, teacher: Export) -> StorableCrop:
    """Return a crop of the teacher's own size where none is given."""
    return crop if "size" in crop.model_fields_set else crop.model_copy(update={"size": teacher.input.size})


@torch.inference_mode()
def _classes(teachers: Sequence[str], exports: Sequence[Export], panel: Teachers, size: int, source: Source,
             device: torch.device) -> tuple[int, Classes]:
    """Return number and names of the classes. Raises UserError unless they are those of all teachers and of the set."""
    known: list[Classes] = []
    count = 0
    black = torch.zeros(1, 3, size, size, device=device)
    for teacher, export, network in zip(teachers, exports, panel.networks, strict=True):
        count = network(black).shape[1]
        own = classes_of_teacher(teacher, count, export.names)
        refuse_other_classes(own, classes_of_card(source), WITH_THE_CARD)
        for other in known:
            refuse_other_classes(own, other, "name teachers of the same classes, whose probabilities can be averaged")
        if count > MOST_CLASSES:
            raise UserError(f"'{teacher}' knows {count} classes; entries hold the numbers of {MOST_CLASSES} at most")
        known.append(own)
    return count, min(known, key=lambda each: (each.names is None, each.public))  # with names, in words of the set
