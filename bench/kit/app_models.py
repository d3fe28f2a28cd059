"""The models of the app's flow: which files each has, and what a picture of it looks like. Data, and sizes by name.

Files are noise in the shape of the published model: nothing is downloaded. Sizes of layers, types and names are what
time depends on, and those are real.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TINY_FLUX: dict[str, Any] = {"hidden_size": 256, "num_heads": 2, "depth": 2, "depth_single_blocks": 4}
TINY_FLUX |= {"context_in_dim": 768}


@dataclass(frozen=True)
class FileOf:
    """A file of noise: a builder of `bench.full_size`, the type of its matrices and of the rest, other sizes."""

    name: str
    builder: str
    dtype: str = "bfloat16"
    matrices: str = ""
    """The type of what has two dimensions, where it is another."""
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def file(self) -> str:
        return f"{self.name}.safetensors"


@dataclass(frozen=True)
class AppModel:
    """A diffusion model and its text encoders, as a workflow names them."""

    dit: FileOf
    encoders: tuple[FileOf, ...]
    clip_type: str
    """As the app's loader spells it."""
    latent: tuple[int, ...]
    """The latent's shape without height and width, which are an eighth of the picture's."""

    @property
    def files(self) -> tuple[FileOf, ...]:
        return (self.dit, *self.encoders)

    def latent_shape(self, pixels: int) -> list[int]:
        return [*self.latent, pixels // 8, pixels // 8]


CLIP_L = FileOf("clip_l", "clip_l", "float16")
T5 = FileOf("t5xxl", "t5xxl", "float16")
T5_BASE = FileOf("t5_base", "t5_base", "float16")

MODELS: dict[str, AppModel] = {
    "flux": AppModel(FileOf("flux_dev", "flux_dev"), (CLIP_L, T5), "flux", (1, 16)),
    "flux-fp8": AppModel(FileOf("flux_dev_fp8", "flux_dev", matrices="float8_e4m3fn"), (CLIP_L, T5), "flux", (1, 16)),
    "qwen-image": AppModel(
        FileOf("qwen_image", "qwen_image"), (FileOf("qwen25_vl_7b", "qwen25_vl_7b"),), "qwen_image", (1, 16, 1)
    ),
    # For rehearsals. T5 base is the smallest encoder that the app takes as it is; its words are 768 wide.
    "tiny": AppModel(
        FileOf("flux_tiny", "flux_dev", changes=tuple(TINY_FLUX.items())), (T5_BASE,), "stable_audio", (1, 16)
    ),
}
