"""Names of methods, backbones and protocols and where their code stands; importing this imports no torch."""

from __future__ import annotations

# method name -> (configuration class, method class), as module:object
METHODS: dict[str, tuple[str, str]] = {
    "cvrl": ("unlabeled.methods.cvrl.config:CVRLConfig", "unlabeled.methods.cvrl.method:CVRL"),
    "distil": ("unlabeled.methods.distil_config:DistilConfig", "unlabeled.methods.distil:Distil"),
    "feature-distil": (
        "unlabeled.methods.feature_distil.config:FeatureDistilConfig",
        "unlabeled.methods.feature_distil.method:FeatureDistil",
    ),
    "finetune": ("unlabeled.methods.finetune_config:FinetuneConfig", "unlabeled.methods.finetune:Finetune"),
    "linear-grid": (
        "unlabeled.methods.probe.grid_config:LinearGridConfig",
        "unlabeled.methods.probe.grid:LinearGrid",
    ),
    "pixpro": ("unlabeled.methods.pixpro_config:PixProConfig", "unlabeled.methods.pixpro:PixPro"),
    "poa": ("unlabeled.methods.poa.config:POAConfig", "unlabeled.methods.poa.method:POA"),
    "probe": ("unlabeled.methods.probe.config:ProbeConfig", "unlabeled.methods.probe.method:Probe"),
    "reinforcement": (
        "unlabeled.methods.reinforcement.config:ReinforcementConfig",
        "unlabeled.methods.reinforcement.method:Reinforcement",
    ),
    "relabel": ("unlabeled.methods.relabel.config:RelabelConfig", "unlabeled.methods.relabel.method:Relabel"),
    "rotnet": ("unlabeled.methods.rotnet_config:RotNetConfig", "unlabeled.methods.rotnet:RotNet"),
    "simclrv2": ("unlabeled.methods.simclrv2_config:SimCLRv2Config", "unlabeled.methods.simclrv2:SimCLRv2"),
    "simmatchv2": ("unlabeled.methods.simmatchv2_config:SimMatchV2Config", "unlabeled.methods.simmatchv2:SimMatchV2"),
    "ssld": ("unlabeled.methods.ssld.config:SSLDConfig", "unlabeled.methods.ssld.method:SSLD"),
}

_BOTTLENECKS = ("resnet50", "resnet101", "resnet152", "resnet200")
_RESNETS = ("resnet18", "resnet34", *_BOTTLENECKS)
_R3DS = ("r3d50", "r3d101", "r3d152", "r3d_tiny")

# backbone name -> (builder, what it offers a method)
BACKBONES: dict[str, tuple[str, frozenset[str]]] = {
    **{name: ("unlabeled.backbones.resnet:build_resnet", frozenset({"map", "stages"})) for name in _RESNETS},
    "nin": ("unlabeled.backbones.nin:build_nin", frozenset({"map"})),
    "alexnet_bn": ("unlabeled.backbones.alexnet:build_alexnet", frozenset({"map"})),
    **{name: ("unlabeled.backbones.wrn:build_wrn", frozenset({"map"})) for name in ("wrn28_2", "wrn28_8", "wrn37_2")},
    **{
        name: ("unlabeled.backbones.elastic.build:build_elastic_vit", frozenset({"elastic", "tokens"}))
        for name in ("elastic_vit_l", "elastic_vit_b", "elastic_vit_s", "elastic_vit_tiny")
    },
    **{
        name: (f"unlabeled.backbones.elastic.build:build_elastic_{family}", frozenset({"elastic", "map", "tokens"}))
        for family, names in (
            ("swin", ("elastic_swin_b", "elastic_swin_tiny")),
            ("resnet", ("elastic_resnet152", "elastic_resnet_tiny")),
        )
        for name in names
    },
    **{name: ("unlabeled.backbones.video.r3d:build_r3d", frozenset({"video"})) for name in _R3DS},
}

# the networks that no class of timm's builds: `backbone.options` are options of timm's constructors
NOT_TIMMS = ("nin", "alexnet_bn", "wrn28_2", "wrn28_8", "wrn37_2", *_R3DS)

# option of `backbone` -> the networks that have it
BACKBONE_OPTIONS: dict[str, tuple[str, ...]] = {
    "width": (*_RESNETS, *_R3DS),
    "stem": _RESNETS,
    "sk_ratio": _BOTTLENECKS,
    "project_first": ("resnet18", "resnet34"),
    "blocks": ("nin",),
    "avg_after_block3": ("nin",),
    "size": tuple(name for name, (_, offers) in BACKBONES.items() if "elastic" in offers),
}

# protocol name -> runner; its settings are the class of `config.protocol` that has this name
PROTOCOLS: dict[str, str] = {
    "knn": "unlabeled.evaluation.vectors.knn:run",
    "linear": "unlabeled.evaluation.vectors.linear:run",
    "few-labels": "unlabeled.evaluation.vectors.few_labels:run",
    "logistic": "unlabeled.evaluation.vectors.logistic:run",
    "retrieval": "unlabeled.evaluation.vectors.retrieval:run",
    "clustering": "unlabeled.evaluation.vectors.clustering:run",
    "segmentation-linear": "unlabeled.evaluation.dense.segmentation_linear:run",
    "segmentation-fcn": "unlabeled.evaluation.dense.segmentation_fcn:run",
    "correspondence": "unlabeled.evaluation.dense.correspondence:run",
    "detection": "unlabeled.evaluation.dense.detection:run",
}
