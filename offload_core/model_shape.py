"""From tensor names and shapes to components, layers and compute times, before anything is loaded.

The same idea of a layer as the engine's own discovery, seen through names: the children of the module lists that hold
most of the bytes. Knows nothing about files, devices or budgets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .cost_model import tokens_for
from .inventory import Inventory, LayerSpec
from .plan_text import format_bytes
from .safetensors_header import TensorInfo

__all__ = ["Compute", "components_of", "inventory_of"]

SMALL_LAYER_BYTES = 1 << 20  # a layer below this stays: a copy this short costs more than it frees
HOST_TABLE_BYTES = 64 << 20  # an embedding table from this size on is gathered on the host
SINGLE_LAYER_BYTES = 64 << 20  # a module outside any list from this size on is a layer of its own
_LIST_SHARE = 0.02  # a module list that holds less than this share of a component is not a list of blocks
_SPLIT_SHARE = 1 / 8  # of a list of one child that is not taken for blocks
# A child larger than both, these bytes and this share, is split at the lists inside it, as the engine does.
SPLIT_LAYER_BYTES = 256 << 20
_LARGE_SHARE = 1 / 16
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
# Words in tensor names that give a single model away, the most telling first.
_SIGNS = (
    ("lora", ("lora_up", "lora_down", "lora_A", "lora_B", "lora_unet")),
    ("dit", ("double_blocks.", "single_blocks.", "transformer_blocks.", "input_blocks.", "x_embedder",
             "time_projection.", "patchify_proj", "joint_blocks.", "diffusion_model.")),
    ("text_encoder", ("embed_tokens", "token_embd")),  # also one that sees pictures
    ("image_encoder", ("vision_model.encoder.", "visual.transformer.")),
    ("text_encoder", ("text_model.", "shared.weight", "token_embedding", "encoder.block.", "enc.blk.")),
    ("vae", ("decoder.", "encoder.", "quant_conv", "post_quant_conv")),
)  # fmt: skip
_TABLES = ("embed_tokens", "shared.weight", "token_embd", "token_embedding", "wte.")
_ONE_TOKEN = ("_mod.", "modulation", "adaln", "norm1.linear", "time_", "vector_in", "guidance_in")
_TEXT_STREAM = ("txt_", "context_block", "add_k_proj", "add_q_proj", "add_v_proj", "to_add_out", "ff_context")


@dataclass(frozen=True, slots=True)
class Compute:
    """How fast, and on how much: dense 16-bit TFLOPS, and tokens (None: the usual number for the component)."""

    tflops: float
    tokens: int | None = None


def components_of(tensors: Iterable[TensorInfo], hint: str = "") -> dict[str, list[TensorInfo]]:
    """The tensors of each component. A bundle is told by its prefixes, a single model by telling names, else by `hint`
    (its folder)."""
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
    folders = {"diffusion_models": "dit", "unet": "dit", "text_encoders": "text_encoder", "clip": "text_encoder"}
    return folders.get(hint, {"vae": "vae", "clip_vision": "image_encoder"}.get(hint, "other"))


def inventory_of(component: str, tensors: Iterable[TensorInfo], compute: Compute) -> Inventory:
    """Layers, what lies outside them, and estimated compute times of one component, in the order of the file's names.

    Two operations per parameter and token it meets, and 4 x tokens^2 x width for the attention of a diffusion model's
    block. Modulation meets one token. Where blocks have a stream for the text, its weights meet the text's tokens, and
    blocks without one take both streams together.
    """
    tensors = list(tensors)
    tables = [tensor for tensor in tensors if _is_host_table(tensor)]
    rest = [tensor for tensor in tensors if not _is_host_table(tensor)]
    groups, loose = _layers(rest)
    tokens = compute.tokens or tokens_for(component)
    joint = component == "dit" and any(_is_text_stream(tensor) for tensor in rest)
    layers = []
    for name, members in groups.items():
        size = sum(tensor.bytes for tensor in members)
        layers.append(
            LayerSpec(
                name=name,
                bytes=size,
                compute_ns=round(_flops(component, members, tokens, joint) / compute.tflops / 1e3),
                keep="under 1 MB" if size < SMALL_LAYER_BYTES else None,
            )
        )
    notes = [f"{table.name} ({format_bytes(table.bytes)}) is gathered on the host" for table in tables]
    if not layers:
        notes.append("no blocks were found: nothing can be streamed")
    return Inventory(component, tuple(layers), (), sum(tensor.bytes for tensor in loose), tuple(notes))


def _is_host_table(tensor: TensorInfo) -> bool:
    return tensor.bytes >= HOST_TABLE_BYTES and len(tensor.shape) == 2 and any(word in tensor.name for word in _TABLES)


def _layers(tensors: list[TensorInfo]) -> tuple[dict[str, list[TensorInfo]], list[TensorInfo]]:
    """Layers by name, lists in the order the names first come, indices ascending; and what is outside any layer."""
    total = sum(tensor.bytes for tensor in tensors)
    found: dict[str, list[TensorInfo]] = {}
    loose = _take_large_modules(_split(tensors, -1, total, found), found)
    return dict(sorted(found.items(), key=lambda item: _natural(item[0]))), loose


def _take_large_modules(loose: list[TensorInfo], found: dict[str, list[TensorInfo]]) -> list[TensorInfo]:
    """Move single huge modules (a modulation all blocks share, say) from what is loose to the layers."""
    modules: dict[str, list[TensorInfo]] = defaultdict(list)
    for tensor in loose:
        modules[tensor.name.rpartition(".")[0]].append(tensor)
    large = {name: members for name, members in modules.items() if name and _bytes(modules, name) >= SINGLE_LAYER_BYTES}
    found.update((name, members) for name, members in large.items() if name not in found)
    return [tensor for tensor in loose if tensor.name.rpartition(".")[0] not in large]


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sorts indices as numbers, and what runs first before what runs later where names tell."""
    order = {"input_blocks": 0, "down_blocks": 0, "double_blocks": 0, "encoder": 0, "middle_block": 1, "mid_block": 1}
    return tuple((0, int(part)) if part.isdigit() else (1 + order.get(part, 2), part) for part in name.split("."))


def _split(tensors: list[TensorInfo], depth: int, total: int, found: dict[str, list[TensorInfo]]) -> list[TensorInfo]:
    """Put the children of the lists after name part `depth` into `found`; returns what is in none of them."""
    lists: dict[str, dict[str, list[TensorInfo]]] = defaultdict(lambda: defaultdict(list))
    loose: list[TensorInfo] = []
    for tensor in tensors:
        parts = tensor.name.split(".")
        place = next((i for i in range(depth + 1, len(parts) - 1) if _is_element(parts, i)), None)
        if place is None:
            loose.append(tensor)
        else:
            lists[".".join(parts[:place])][".".join(parts[: place + 1])].append(tensor)
    for children in lists.values():
        size = _bytes(children)
        # One numbered child alone is no list of blocks (a modulation's last layer, say), unless it holds lists itself.
        alone = len(children) < 2 and depth < 0 and size <= _SPLIT_SHARE * total
        if alone or size < _LIST_SHARE * total:
            loose += [tensor for members in children.values() for tensor in members]
            continue
        for name, members in children.items():
            rest = members
            large = max(SPLIT_LAYER_BYTES, _LARGE_SHARE * total)
            if _bytes(children, name) > large or _is_walked(name, members):
                inner: dict[str, list[TensorInfo]] = {}
                rest = _split(members, name.count("."), total, inner)
                found.update(inner)
            if rest:
                found[name] = rest
    return loose


def _bytes(children: Mapping[str, list[TensorInfo]], *names: str) -> int:
    """Of all children, or of these."""
    return sum(tensor.bytes for name in names or children for tensor in children[name])


def _is_element(parts: list[str], place: int) -> bool:
    """Whether a part of a name is that of a list's element: a number, or what an autoencoder keeps in its `mid`."""
    return (parts[place].isdigit() and parts[place].isascii()) or (place > 0 and parts[place - 1] == "mid")


def _is_walked(name: str, members: list[TensorInfo]) -> bool:
    """Whether a list's element is only gone through and never called, so that what is in it are the layers.

    A UNet's input_blocks.4 is a list itself, of 4.0 and 4.1; an autoencoder's up.2 is a stage with a list of blocks.
    """
    parts = name.split(".")
    if len(parts) > 1 and parts[-2] in ("up", "down"):
        return True
    return all(tensor.name[len(name) + 1 :].split(".")[0].isdigit() for tensor in members)


def _is_text_stream(tensor: TensorInfo) -> bool:
    return any(word in tensor.name.lower() for word in _TEXT_STREAM)


def _flops(component: str, members: list[TensorInfo], tokens: int, joint: bool) -> float:
    together = tokens + _TEXT_TOKENS if joint else tokens
    apart = joint and any(_is_text_stream(tensor) for tensor in members)
    flops, width = 0.0, 0
    for tensor in members:
        if len(tensor.shape) < 2:
            continue
        met = tokens if apart else together
        if any(word in tensor.name.lower() for word in _ONE_TOKEN):
            met = 1
        elif apart and _is_text_stream(tensor):
            met = _TEXT_TOKENS
        flops += 2.0 * tensor.elements * met
        if len(tensor.shape) == 2:
            width = max(width, min(tensor.shape))
    if component == "dit":
        flops += 4.0 * together * together * width
    return flops
