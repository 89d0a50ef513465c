"""What timm and torchvision know of a network: how it is built, its classifier, input, classes, published weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.options import constructor_options
from unlabeled.backbones.torchvision_networks import build_torchvision, classifier_of, refuse_unknown
from unlabeled.config.recipe import Backbone
from unlabeled.config.sources import Public
from unlabeled.engine.public.files import State
from unlabeled.errors import UserError, did_you_mean, nearest

_LARGEST = 3  # names that are suggested


class Library:
    """A network of a library. config: what is published of it, in timm's words."""

    config: Mapping[str, Any]

    def __init__(self, named: Public, options: Mapping[str, Any]) -> None:
        self.named = named
        self.backbone = Backbone(name=named.backbone, options=dict(options))

    def build(self, classes: int = 0) -> nn.Module:
        """Build it with random weights: vectors [b, num_features], or logits [b, classes]."""
        if not classes:
            return build_backbone(self.backbone)
        return self._classifying(classes, constructor_options(self.backbone))

    def classifier(self) -> tuple[str, ...]:
        """Return the names of its classifiers; the first one's rows are the classes."""
        raise NotImplementedError

    def published(self) -> State:
        """Return the weights that the library publishes, from its cache or the network. Raises UserError."""
        raise NotImplementedError

    def conversions(self) -> list[Callable[..., Any]]:
        """Return the functions with which the library reads files in the form of the network's authors."""
        return []

    def _classifying(self, classes: int, options: dict[str, Any]) -> nn.Module:
        raise NotImplementedError

    def _unreachable(self, error: Exception) -> UserError:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        named = self.named
        return UserError(f"{named}: its weights are not in {named.library}'s cache and could not be fetched "
                         f"({said}); fetch them where there is a network, or name a file of them: {named}@FILE")


class _Timm(Library):
    def __init__(self, named: Public, options: Mapping[str, Any]) -> None:
        import timm

        super().__init__(named, options)
        if not timm.is_model(named.name):
            question = did_you_mean(nearest(named.architecture, timm.list_models(), _LARGEST),
                                    "timm.list_models() names them.")
            raise UserError(f"timm has no network '{named.architecture}'.{question}")
        tags = [name for name in timm.list_pretrained(f"{named.architecture}.*")]
        if named.name != named.architecture and named.name not in tags:
            question = did_you_mean(nearest(named.name, tags, _LARGEST), f"Known: {', '.join(tags) or 'none'}")
            raise UserError(f"timm has no weights '{named.name}'.{question}")
        card = timm.get_pretrained_cfg(named.name)
        self.config = {} if card is None else card.to_dict()

    def classifier(self) -> tuple[str, ...]:
        names = self.config.get("classifier") or ()
        return (names,) if isinstance(names, str) else tuple(names)

    def published(self) -> State:
        import timm

        if not any(self.config.get(key) for key in ("url", "hf_hub_id", "file")):
            raise UserError(f"timm publishes no weights of {self.named.name}; name a file of them: {self.named}@FILE")
        try:
            with _quiet("huggingface_hub"):
                return timm.create_model(self.named.name, pretrained=True).state_dict()
        except Exception as error:  # no network, no such file, no room on the disk
            raise self._unreachable(error) from error

    def conversions(self) -> list[Callable[..., Any]]:
        import sys

        from timm.models import model_entrypoint

        module = sys.modules[model_entrypoint(self.named.architecture).__module__]
        return [value for name, value in vars(module).items() if name.endswith("filter_fn") and callable(value)]

    def _classifying(self, classes: int, options: dict[str, Any]) -> nn.Module:
        import timm

        network: nn.Module = timm.create_model(self.named.architecture, num_classes=classes, **options)
        return network


class _Torchvision(Library):
    def __init__(self, named: Public, options: Mapping[str, Any]) -> None:
        from torchvision import models

        refuse_unknown(named.name)
        super().__init__(named, options)
        self.weights = models.get_model_weights(named.name).DEFAULT
        way = self.weights.transforms()
        side = way.crop_size[0]
        self.config = {"architecture": named.name, "input_size": (3, side, side), "mean": tuple(way.mean),
                       "std": tuple(way.std), "label_names": self.weights.meta["categories"]}

    def classifier(self) -> tuple[str, ...]:
        with torch.device("meta"):
            return (classifier_of(self.build(1)),)

    def published(self) -> State:
        from torchvision import models

        try:
            return models.get_model(self.named.name, weights=self.weights, progress=False).state_dict()
        except Exception as error:
            raise self._unreachable(error) from error

    def _classifying(self, classes: int, options: dict[str, Any]) -> nn.Module:
        if self.named.backbone == self.named.name:  # one of timm's too
            return _Timm(self.named, options).build(classes)
        return build_torchvision(self.named.name, options, classes)


def library_of(named: Public, options: Mapping[str, Any]) -> Library:
    """Return what a library knows of a network. Raises UserError, with the nearest name, if it does not know it."""
    if not named.name:
        raise UserError(f"'{named}' names no network; give {named.library}:NAME or {named.library}:NAME@FILE")
    return (_Timm if named.library == "timm" else _Torchvision)(named, options)


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Keep a library from telling of each of its attempts; what comes of them is told in one line."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
