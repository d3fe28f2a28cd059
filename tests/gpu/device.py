"""The device under test: CUDA, or with LAYERWISE_GPU_TESTS=sim the simulated one, to try the tests themselves."""

import os

from bench.device import CUDA, SIM, Device

device = Device(SIM if os.environ.get("LAYERWISE_GPU_TESTS") == SIM else CUDA)
