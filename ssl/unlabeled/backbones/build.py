"""From the recipe's `backbone:` block to a network."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from unlabeled.backbones.options import constructor_options, written
from unlabeled.config.base.objects import is_dotted, load_object, refuse_unknown_options
from unlabeled.config.recipe import RESERVED_OPTIONS, Backbone
from unlabeled.config.sources import public
from unlabeled.config.tables import BACKBONE_OPTIONS, BACKBONES
from unlabeled.config.yaml.explain import show
from unlabeled.errors import UserError, did_you_mean, nearest
from unlabeled.ops.machine.convolutions import avoid_broken_kernels


def build_backbone(cfg: Backbone) -> nn.Module:
    """Build a network with random weights: forward [b, 3, S, S] -> [b, num_features], `forward_features` -> the map.

    Raises UserError for a name that neither the table nor timm knows, and for options the network does not have.
    """
    try:
        model: Any = _build(cfg)
    except UserError:
        raise
    except Exception as error:  # a constructor may raise anything for a value that it does not expect
        if not cfg.options:
            raise
        raise UserError(_blame(cfg, error)) from error
    avoid_broken_kernels(model)
    if cfg.grad_checkpointing:
        recompute_activations(model, cfg.name)
    return model


def recompute_activations(network: Any, name: str) -> None:
    """Let a network recompute its activations in the backward pass. Raises UserError if it cannot."""
    try:
        network.set_grad_checkpointing()
    except (AttributeError, AssertionError) as error:  # it is missing, or refuses, as timm's do
        raise UserError(f"backbone.grad_checkpointing: '{name}' cannot recompute activations; leave it false"
                        ) from error


def loading_lines(cfg: Backbone, weights: str) -> str:
    """Return the Python lines that load exported `weights`; timm's networks and one's own load without this
    package."""
    if (named := public(cfg.name)) is not None:
        from unlabeled.backbones import torchvision_networks

        loading = f'model.load_state_dict(load_file("{weights}"))'
        return torchvision_networks.torchvision_lines(named.name, written(cfg), loading)
    if is_dotted(cfg.name):
        module, _, builder = cfg.name.partition(":")
        return (
            f"from safetensors.torch import load_file\nfrom {module} import {builder}\n"
            f"model = {builder}({written(cfg).removeprefix(', ')}){f'.part({cfg.size!r})' if cfg.size else ''}\n"
            f'model.load_state_dict(load_file("{weights}"))'
        )
    if cfg.name not in BACKBONES:
        return (
            f"import timm\nfrom safetensors.torch import load_file\n"
            f'model = timm.create_model("{cfg.name}", num_classes=0{written(cfg)})\n'
            f'model.load_state_dict(load_file("{weights}"))'
        )
    from unlabeled.backbones import resnet

    if cfg.name in resnet.LAYERS and not cfg.sk_ratio:
        return resnet.loading_lines(cfg, weights)
    options = cfg.model_dump(exclude_defaults=True, include={"name", *BACKBONE_OPTIONS, "options"})
    return (
        f"from safetensors.torch import load_file\nfrom unlabeled.backbones.build import build_backbone\n"
        f"from unlabeled.config.recipe import Backbone\n"
        f"model = build_backbone(Backbone({', '.join(f'{key}={value!r}' for key, value in options.items())}))\n"
        f'model.load_state_dict(load_file("{weights}"))'
    )


def _build(cfg: Backbone) -> nn.Module:
    if (named := public(cfg.name)) is not None:
        from unlabeled.backbones import torchvision_networks

        return torchvision_networks.build_torchvision(named.name, constructor_options(cfg))
    if is_dotted(cfg.name):
        return _sized(_own(cfg), cfg)
    if cfg.name not in BACKBONES:
        return _from_timm(cfg)
    return _sized(load_object(BACKBONES[cfg.name][0])(cfg), cfg)


def _sized(network: Any, cfg: Backbone) -> nn.Module:
    """Return the network, or what `backbone.size` names of an elastic one. Raises UserError if it is not elastic."""
    whole: nn.Module = network
    if cfg.size is None:
        return whole
    if not hasattr(network, "grid"):
        raise UserError(f"backbone.size is {cfg.size}, but '{cfg.name}' gives a {type(network).__name__}, which is not "
                        "elastic; leave it out")
    part: nn.Module = network.part(cfg.size).train()  # as new networks are
    return part


def _own(cfg: Backbone) -> nn.Module:
    """Call a builder of the user's own with the options. Raises UserError if it is none."""
    try:
        builder = load_object(cfg.name)
    except UserError as error:
        raise UserError(f"backbone.name: {error}") from error
    refuse_unknown_options("backbone.options", builder, cfg.name, cfg.options)
    network = builder(**constructor_options(cfg))
    if not isinstance(network, nn.Module) or not isinstance(getattr(network, "num_features", None), int):
        raise UserError(f"backbone.name: '{cfg.name}' must give an nn.Module with num_features, the width of its "
                        f"vectors, but gives a {type(network).__name__}")
    return network


def _blame(cfg: Backbone, error: Exception) -> str:
    """Say in one line which of `cfg.options` the network does not take, found by giving it one at a time."""
    with torch.device("meta"):
        for key, value in () if is_dotted(cfg.name) else cfg.options.items():
            try:
                _build(cfg.model_copy(update={"options": {key: value}}))
            except Exception as alone:
                if f"argument '{key}'" not in str(alone):
                    said = (str(alone) or type(alone).__name__).splitlines()[0]
                    return f"backbone.options.{key} {show(value)} does not fit {cfg.name}: {said}"
                network = _build(cfg.model_copy(update={"options": {}}))
                taken = inspect.signature(type(network).__init__).parameters
                known = [name for name in taken if name not in ("self", *RESERVED_OPTIONS)]
                question = did_you_mean(nearest(key, known), f"Known: {', '.join(known)}")
                return f"backbone.options.{key}: {cfg.name} has no such option.{question}"
    said = (str(error) or type(error).__name__).splitlines()[0]
    together = " together" if len(cfg.options) > 1 else ""
    return f"backbone.options {', '.join(cfg.options)} do not fit {cfg.name}{together}: {said}"


def _from_timm(cfg: Backbone) -> nn.Module:
    import timm

    if not timm.is_model(cfg.name):
        known = list(dict.fromkeys([*BACKBONES, *timm.list_models()]))
        question = did_you_mean(nearest(cfg.name, known, 3), "timm.list_models() names timm's.")
        raise UserError(f"backbone.name: no network '{cfg.name}' here or in timm.{question}")
    model = timm.create_model(cfg.name, num_classes=0, **constructor_options(cfg))
    # some of timm's networks end in a layer wider than the map that num_features counts
    model.num_features = getattr(model, "head_hidden_size", None) or model.num_features
    return model
