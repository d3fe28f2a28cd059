"""Components, layers and compute times of a model, estimated from tensor names and shapes before it is loaded.

Layers are found by the engine's own walk (`layer_walk.py`), over the tree made of the names (`name_tree.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass

from ..planning.cost_model import tokens_for
from ..planning.inventory import Inventory, LayerSpec
from ..units import format_bytes
from .layer_walk import HOST_GATHER_BYTES, MIN_LAYER_BYTES, small_tensor_bytes, units
from .name_tree import tensors_below, tree_of
from .safetensors_header import TensorInfo

_TEXT_TOKENS = 512

# Prefixes of checkpoints that bundle several models.
_BUNDLES = (
    ("model.diffusion_model.", "dit"),
    ("first_stage_model.", "vae"),
    ("vae.", "vae"),
    ("cond_stage_model.", "text_encoder"),
    ("conditioner.", "text_encoder"),
    ("text_encoders.", "text_encoder"),
)
# (component, words in tensor names that identify it), the least ambiguous first.
_SIGNS = (
    ("lora", ("lora_up", "lora_down", "lora_A", "lora_B", "lora_unet")),
    ("dit", ("double_blocks.", "single_blocks.", "transformer_blocks.", "input_blocks.", "x_embedder",
             "time_projection.", "patchify_proj", "joint_blocks.", "diffusion_model.")),
    ("text_encoder", ("embed_tokens", "token_embd")),  # also one with a vision tower
    ("image_encoder", ("vision_model.encoder.", "visual.transformer.")),
    ("text_encoder", ("text_model.", "shared.weight", "token_embedding", "encoder.block.", "enc.blk.")),
    ("vae", ("decoder.", "encoder.", "quant_conv", "post_quant_conv")),
)  # fmt: skip
_FOLDERS = {
    **{"diffusion_models": "dit", "unet": "dit", "text_encoders": "text_encoder", "clip": "text_encoder"},
    **{"vae": "vae", "clip_vision": "image_encoder"},
}
_TABLES = ("embed_tokens", "shared.weight", "token_embd", "token_embedding", "wte.")
_ONE_TOKEN = ("_mod.", "modulation", "adaln", "norm1.linear", "time_", "vector_in", "guidance_in")
_TEXT_STREAM = ("txt_", "context_block", "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "ff_context")


@dataclass(frozen=True, slots=True)
class Compute:
    """Dense 16-bit TFLOPS of the device, and tokens in a pass (None: the usual number for the component)."""

    tflops: float
    tokens: int | None = None


def components_of(tensors: Iterable[TensorInfo], hint: str = "") -> dict[str, list[TensorInfo]]:
    """The tensors of each component. A checkpoint that bundles several models is divided by its prefixes; a single
    model is identified by words in its tensor names, or else by `hint`, the name of its folder."""
    tensors = list(tensors)
    if not any(tensor.name.startswith("model.diffusion_model.") for tensor in tensors):
        return {_kind(tensors, hint): tensors} if tensors else {}
    result: dict[str, list[TensorInfo]] = defaultdict(list)
    for tensor in tensors:
        kind = next((kind for prefix, kind in _BUNDLES if tensor.name.startswith(prefix)), "other")
        result[kind].append(tensor)
    return dict(result)


def _kind(tensors: list[TensorInfo], hint: str) -> str:
    for kind, signs in _SIGNS:
        if any(sign in tensor.name for tensor in tensors for sign in signs):
            return kind
    return _FOLDERS.get(hint, "other")


def inventory_of(component: str, tensors: Iterable[TensorInfo], compute: Compute) -> Inventory:
    """The inventory of one component, with layers in natural order of their names and estimated compute times.

    Estimate: 2 operations per parameter and token, plus 4 x tokens^2 x width for the attention of a diffusion model's
    block. Modulation is computed for one token. In models whose blocks have a text stream, weights of that stream are
    applied to the text's tokens, and blocks without such a stream process the tokens of both.
    """
    tensors = list(tensors)
    groups, rest = _layers(tensors)
    tables = [tensor for tensor in rest if _is_host_table(tensor)]
    loose = [tensor for tensor in rest if not _is_host_table(tensor)]
    tokens = compute.tokens or tokens_for(component)
    joint = component == "dit" and any(_is_text_stream(tensor) for tensor in tensors)
    layers = []
    for name, members in groups.items():
        size = sum(tensor.bytes for tensor in members)
        compute_ns = round(_flops(component, members, tokens, joint) / compute.tflops / 1e3)
        layers.append(LayerSpec(name, size, compute_ns, keep="under 1 MB" if size < MIN_LAYER_BYTES else None))
    notes = [f"{table.name} ({format_bytes(table.bytes)}) is gathered on the host" for table in tables]
    if not layers:
        notes.append("no blocks were found: nothing can be streamed")
    return Inventory(component, tuple(layers), (), sum(tensor.bytes for tensor in loose), tuple(notes))


def _is_host_table(tensor: TensorInfo) -> bool:
    return tensor.bytes >= HOST_GATHER_BYTES and len(tensor.shape) == 2 and any(word in tensor.name for word in _TABLES)


def _layers(tensors: list[TensorInfo]) -> tuple[dict[str, list[TensorInfo]], list[TensorInfo]]:
    """The tensors of each layer by the layer's name, in natural order, and the tensors outside any layer."""
    layers: dict[str, list[TensorInfo]] = {}
    for name, part in units(tree_of(tensors)):
        members = _moved([tensor for tensor in tensors_below(part) if not _is_host_table(tensor)])
        if members:
            layers[name] = members
    in_layers = {tensor.name for members in layers.values() for tensor in members}
    rest = [tensor for tensor in tensors if tensor.name not in in_layers]
    return dict(sorted(layers.items(), key=lambda item: _natural_key(item[0]))), rest


def _moved(members: list[TensorInfo]) -> list[TensorInfo]:
    """The tensors of a layer that are streamed: small ones (norms, biases) stay outside, as in the engine.

    Tensors that belong to a weight, such as its quantisation scales, are treated like that weight.
    """
    small_bytes = small_tensor_bytes(sum(tensor.bytes for tensor in members))
    nbytes = {tensor.name: tensor.bytes for tensor in members}
    return [tensor for tensor in members if nbytes[_weight_of(tensor.name, nbytes)] >= small_bytes]


def _weight_of(name: str, names: Container[str]) -> str:
    """The name of the weight that tensor `name` belongs to; `name` itself for a bias or without such a weight."""
    stem, _, leaf = name.rpartition(".")
    weight = f"{stem}.weight"
    return weight if leaf != "bias" and weight in names else name


def _natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort key: indices as numbers, and down, middle and other blocks in the order in which they run."""
    order = {"input_blocks": 0, "down_blocks": 0, "double_blocks": 0, "encoder": 0, "middle_block": 1, "mid_block": 1}
    return tuple((0, int(part)) if part.isdigit() else (1 + order.get(part, 2), part) for part in name.split("."))


def _is_text_stream(tensor: TensorInfo) -> bool:
    return any(word in tensor.name.lower() for word in _TEXT_STREAM)


def _flops(component: str, members: list[TensorInfo], tokens: int, joint: bool) -> float:
    """Floating point operations of one visit of a layer (formula: see `inventory_of`). `joint`: the model has blocks
    with a text stream."""
    all_tokens = tokens + _TEXT_TOKENS if joint else tokens
    two_streams = joint and any(_is_text_stream(tensor) for tensor in members)
    flops, width = 0.0, 0
    for tensor in members:
        if len(tensor.shape) < 2:
            continue
        applied_to = tokens if two_streams else all_tokens
        if any(word in tensor.name.lower() for word in _ONE_TOKEN):
            applied_to = 1
        elif two_streams and _is_text_stream(tensor):
            applied_to = _TEXT_TOKENS
        flops += 2.0 * tensor.elements * applied_to
        if len(tensor.shape) == 2:
            width = max(width, min(tensor.shape))
    if component == "dit":
        flops += 4.0 * all_tokens * all_tokens * width
    return flops
