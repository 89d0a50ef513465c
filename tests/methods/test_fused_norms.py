"""Networks whose norms do more than normalise: several processes are one, and the export is the trained network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from processes import run_processes
from tiny import tiny_recipe, tiny_run

from unlabeled.config.recipe import Recipe
from unlabeled.config.yaml.write import to_yaml
from unlabeled.data.streams import open_streams
from unlabeled.engine.build import info_record, make_info
from unlabeled.engine.exports.networks import write_exports
from unlabeled.engine.method import load_export
from unlabeled.engine.run.folder import RunFolder
from unlabeled.ops.batchnorm import unsynchronised_buffers
from unlabeled.ops.distributed import rank

# by name, with options of timm's that make the deep ones shallow
NETWORKS = {
    "efficientnet_b0": "",
    "mobilenetv3_small_050": "",
    "regnety_002": "",
    "densenet121": "block_config: [2, 2]",
    "resnetv2_50": "layers: [1, 1, 1, 1]",
}


def recipe_of(network: str) -> Recipe:
    small = ["data.train.batch=6", "method.crop.size=16", "train.channels_last=false"]
    backbone = f"backbone={{name: {network}, options: {{{NETWORKS[network]}}}}}"
    return tiny_recipe("simclrv2", "plain", [backbone, *small])


def first_update(network: str) -> dict[str, object]:
    tiny = tiny_run(recipe_of(network), torch.float64)
    _, loss, grads = tiny.first_gradients()
    return {"loss": float(loss), "grads": {name: grad.numpy() for name, grad in grads.items()},
            "apart": len(unsynchronised_buffers(tiny.updater.method))}


def on_rank(number: int) -> dict[str, dict[str, object]]:
    return {network: first_update(network) for network in NETWORKS}


def test_two_processes_are_one_in_the_first_update() -> None:
    parts = run_processes(2, on_rank)
    for network in NETWORKS:
        whole = first_update(network)
        assert [part[network]["apart"] for part in parts] == [0, 0]
        assert sum(part[network]["loss"] for part in parts) / 2 == pytest.approx(whole["loss"], rel=1e-10)
        largest = max(float(abs(grad).max()) for grad in whole["grads"].values())
        for part in parts:
            for name, grad in whole["grads"].items():
                assert float(abs(part[network]["grads"][name] - grad).max()) <= 1e-8 * largest, f"{network}: {name}"


def train_and_export(number: int, folder: str) -> dict[str, object]:
    found = {}
    for network in ("regnety_002", "densenet121"):
        recipe, run = recipe_of(network), Path(folder) / network
        tiny = tiny_run(recipe)
        tiny.train(0, 1)
        backbone = tiny.updater.method.backbone.eval()
        with torch.no_grad():
            found[network] = backbone(images()).numpy()
        if rank() == 0:
            run.mkdir()
            (run / "recipe.yaml").write_text(to_yaml(recipe))
            (run / "run.json").write_text(json.dumps({"info": info_record(make_info(recipe, open_streams(recipe)))}))
            write_exports(RunFolder(run), recipe, tiny.updater.method, 1)
    return found


def images() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_export_is_the_network_that_was_trained(tmp_path: Path) -> None:
    """It is built without synchronised norms, from names that are the same."""
    first, second = run_processes(2, train_and_export, str(tmp_path))
    for network, trained in first.items():
        with torch.no_grad():
            exported = load_export(str(tmp_path / network)).build().eval()(images())
        trained = torch.as_tensor(trained)
        assert torch.equal(trained, torch.as_tensor(second[network]))
        assert float((exported - trained).abs().max()) <= 1e-6 * float(trained.abs().max())
