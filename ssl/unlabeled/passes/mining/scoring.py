"""What the teacher says of every image, and by what its copies are found: a pass over the pool and the test set."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from unlabeled.augment.geometry import EvalCrop
from unlabeled.augment.photometric import to_input
from unlabeled.augment.plain_crops import Whole
from unlabeled.backbones.sizes import refuse_images
from unlabeled.data.batch import Batch
from unlabeled.data.evaluation import ImageMaker
from unlabeled.data.sources.base import Source
from unlabeled.engine.exports.split import last_linear
from unlabeled.engine.method import load_teacher
from unlabeled.engine.passes.kept_features import network_digest
from unlabeled.engine.passes.run import Work
from unlabeled.errors import UserError
from unlabeled.ops.precision import Resolved, autocast
from unlabeled.ops.selection import likeliest_classes
from unlabeled.passes.mining.hashes import BYTES, SIDE, thumbnail_hashes, wave_hashes


class Scorer:
    """A classifier and the linear layer that gives its logits, whose input is the image's embedding.

    classes, width: numbers of logits and of the embedding. names: of the classes, if known. Raises UserError for a
    network that gives no logits, takes no images of its own size, or ends in another layer.
    """

    def __init__(self, name: str, device: torch.device, precision: Resolved) -> None:
        export = load_teacher(name)
        if export.gives != "logits":
            raise UserError(f"{name} gives {export.gives} and no logits: mining ranks images by the classes of a "
                            "teacher; name a classifier, such as an export of a run of method finetune")
        self.name, self.precision, self.input, self.names = name, precision, export.input, export.names
        self.network = export.build().to(device).to(memory_format=torch.channels_last).eval()
        refuse_images(self.network, {self.input.size: "size"}, f"the teacher {name}")
        self._vectors: list[Tensor] = []
        linear = self._linear(device)
        self.classes, self.width = linear.out_features, linear.in_features
        linear.register_forward_pre_hook(lambda _, inputs: self._vectors.append(inputs[0]))
        self.identity = network_digest(self.network, repr(self.input), precision)

    @torch.inference_mode()
    def _linear(self, device: torch.device) -> nn.Linear:
        _, last = last_linear(self.network, torch.zeros(2, 3, self.input.size, self.input.size, device=device))
        if last is None:
            raise UserError(f"{self.name}: its logits are not what one linear layer gives, so there are no features "
                            "before it to find near copies by; take another teacher")
        return last.linear

    def __call__(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities, float64 [b, C], and embeddings of length 1, [b, D], of crops uint8 [b, 3, S, S].

        In float64 the probabilities of a confident teacher are still ranked: in float32 many are equal to 1.
        """
        x = to_input(crops, self.input.mean, self.input.std).contiguous(memory_format=torch.channels_last)
        self._vectors.clear()
        with autocast(crops.device, self.precision):
            logits = self.network(x)
        return logits.double().softmax(1), nn.functional.normalize(self._vectors[-1].float(), dim=1)


def scoring(teacher: Scorer, source: Source, top_p: int) -> Work:
    """Return the pass that keeps, of every image of `source`, all that mining decides by.

    class, score: the `top_p` most probable classes, of equal ones the first, and their probabilities. embedding: of
    length 1. thumbnail, waves: see `hashes`.
    """
    compute: Callable[[Batch], dict[str, Tensor]] = lambda batch: _compute(teacher, batch, top_p)  # noqa: E731
    fields: dict[str, tuple[str, tuple[int, ...]]] = {
        "class": ("<i4", (top_p,)), "score": ("<f8", (top_p,)), "embedding": ("<f2", (teacher.width,)),
        "thumbnail": ("<i8", ()), "waves": ("|u1", (BYTES,))}
    about = {"teacher": teacher.name, "network": teacher.identity, "outputs": teacher.classes, "top_p": top_p,
             "precision": teacher.precision}
    maker = ImageMaker(source, [EvalCrop(teacher.input.size), Whole(SIDE)])
    return Work("mining", fields, about, maker, compute)


def _compute(teacher: Scorer, batch: Batch, top_p: int) -> dict[str, Tensor]:
    prob, embedding = teacher(batch.crops[0])
    classes, score = likeliest_classes(prob, top_p)
    squeezed = batch.crops[1]
    return {"class": classes, "score": score, "embedding": embedding,
            "thumbnail": thumbnail_hashes(squeezed), "waves": wave_hashes(squeezed)}
