"""Names of methods, backbones and protocols and where their code stands; importing this imports no torch."""

from __future__ import annotations

# method name -> (configuration class, method class), as module:object
METHODS: dict[str, tuple[str, str]] = {
    "simclrv2": ("unlabeled.methods.simclrv2_config:SimCLRv2Config", "unlabeled.methods.simclrv2:SimCLRv2"),
}

# backbone name -> (builder, what it offers a method)
BACKBONES: dict[str, tuple[str, frozenset[str]]] = {
    name: ("unlabeled.backbones.resnet:build_resnet", frozenset({"map", "stages"}))
    for name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200")
}

# protocol name -> runner; its settings are the class of `config.protocol` that has this name
PROTOCOLS: dict[str, str] = {
    "knn": "unlabeled.evaluation.knn:run",
    "linear": "unlabeled.evaluation.linear:run",
    "few-labels": "unlabeled.evaluation.few_labels:run",
}
