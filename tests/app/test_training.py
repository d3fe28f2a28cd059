"""A LoRA trained through a streamed model is the one that the app trains."""

import pytest

from tests.support import saved_weights
from tests.support.workflows import LATENT, MODEL, POSITIVE, build, node

pytestmark = pytest.mark.app

TRAINING = {
    **{"batch_size": 1, "grad_accumulation_steps": 1, "steps": 1, "learning_rate": 0.01, "rank": 2},
    **{"optimizer": "SGD", "loss_function": "MSE", "seed": 0, "training_dtype": "fp32", "lora_dtype": "fp32"},
    **{"quantized_backward": False, "algorithm": "LoRA", "gradient_checkpointing": True, "checkpoint_depth": 1},
    **{"offloading": False, "existing_lora": "[None]", "bucket_mode": False},
}
BYPASS = {"bypass_mode": True}
"""Adapters beside the weights: then the backward reads the weights themselves, where they lie."""


def trained(server, loader: str) -> dict[str, str]:
    settings = {} if loader == "app" else {"placement": "layerwise", "budget_gb": 0.03}
    inputs = {"model": [MODEL, 0], "latents": [LATENT, 0], "positive": [POSITIVE, 0]}
    prompt = {
        key: entry for key, entry in build("flux2", loader, **settings).items() if key in (MODEL, POSITIVE, LATENT)
    }
    prompt["40"] = node("TrainLoraNode", **inputs, **TRAINING, **BYPASS)
    prompt["41"] = node("SaveLoRA", lora=["40", 0], prefix="loras/trained", steps=["40", 2])
    server.run(prompt).check()
    file = saved_weights.take(server.base / "output", "trained")
    server.free()
    return file


def test_a_trained_lora_is_the_apps(app_server_factory):
    server = app_server_factory("sim", extra_args=("--fp32-unet",))  # as trained: nothing is cast on the way
    trained(server, "app")  # the adapters begin with random numbers that the run before has left the seed for
    assert trained(server, "layerwise") == trained(server, "app")
    assert server.sim_stats()["races"] == 0, server.sim_stats()["race_message"]
