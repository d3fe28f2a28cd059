"""TEST ONLY node pack: lets the small files carry dims that the app's loaders hard-code, and makes random conditioning.

Wraps four loader functions and a class of the app; a file without our keys goes through unchanged. It also lets the
convolutional families compute in bfloat16: on a CPU, which is what simulates the device, a convolution in float16 takes
300 times as long. Never ship this.
"""

import contextlib
import json
import tempfile

import comfy.clip_vision
import comfy.model_detection
import comfy.sd
import comfy.supported_models
import comfy.text_encoders.llama
import comfy.text_encoders.lt
import torch


def _from_json_tensor(tensor) -> dict:
    return json.loads(bytes(tensor.tolist()).decode())


_detect_unet_config = comfy.model_detection.detect_unet_config


def detect_unet_config(state_dict, key_prefix, metadata=None):
    config = _detect_unet_config(state_dict, key_prefix, metadata=metadata)
    if config is not None and metadata and "tiny_unet_config" in metadata:
        config.update(json.loads(metadata["tiny_unet_config"]))
    return config


_model_config_from_unet_config = comfy.model_detection.model_config_from_unet_config


def model_config_from_unet_config(unet_config, *args, **kwargs):
    """The app tells some classes by a size. It is shown the real one, and the class gets the small one afterwards."""
    real = unet_config.pop("recognised_by", {})
    found = _model_config_from_unet_config({**unet_config, **real}, *args, **kwargs)
    if found is not None:
        found.unet_config.update({name: unet_config[name] for name in real})
    return found


_load_text_encoder_state_dicts = comfy.sd.load_text_encoder_state_dicts


def load_text_encoder_state_dicts(state_dicts=(), *args, model_options=None, **kwargs):
    options = dict(model_options or {})
    names = {}
    eyes = {}
    for state_dict in state_dicts:
        dims = state_dict.pop("__tiny_te__", None)
        carried = _from_json_tensor(dims) if dims is not None else {}
        names[id(state_dict)] = carried.pop("recognised_as", None)
        eyes.update(carried.pop("vision", {}))
        for name, config in carried.items():
            options[name] = {**options.get(name, {}), **config}
            if name == "clip_l_model_config":  # the long-CLIP probe rebuilds this entry from "model_config"
                options["model_config"] = dict(options[name])
    with _encoders_recognised_as(names), _seeing_with(eyes):
        return _load_text_encoder_state_dicts(state_dicts, *args, model_options=options, **kwargs)


@contextlib.contextmanager
def _encoders_recognised_as(names: dict):
    """The app's detection of encoders, which answers with these names of `TEModel` by id of a file's tensors."""
    if not any(names.values()):
        yield
        return
    detect = comfy.sd.detect_te_model

    def detect_te_model(state_dict):
        name = names.get(id(state_dict))
        return comfy.sd.TEModel[name] if name else detect(state_dict)

    comfy.sd.detect_te_model = detect_te_model
    try:
        yield
    finally:
        comfy.sd.detect_te_model = detect


@contextlib.contextmanager
def _seeing_with(eyes: dict):
    """Encoders with other vision towers than the app's constants name: `gemma3`, or names of its Qwen 3.5 models."""
    gemma = comfy.text_encoders.llama.Gemma3_4B_Vision_Config
    qwen = comfy.text_encoders.qwen35.QWEN35_MODELS if set(eyes) - {"gemma3"} else {}
    before = gemma.vision_config, dict(qwen)
    gemma.vision_config = eyes.get("gemma3", gemma.vision_config)
    qwen.update({name: {**qwen[name], "vision": eyes[name]} for name in qwen if name in eyes})
    try:
        yield
    finally:
        gemma.vision_config = before[0]
        qwen.update(before[1])


_load_clipvision_from_sd = comfy.clip_vision.load_clipvision_from_sd
_ClipVisionModel = comfy.clip_vision.ClipVisionModel


def load_clipvision_from_sd(sd, *args, **kwargs):
    dims = sd.pop("__tiny_vision__", None)
    if dims is None:
        return _load_clipvision_from_sd(sd, *args, **kwargs)

    def with_dims(config_path):
        with open(config_path) as file:
            config = {**json.load(file), **_from_json_tensor(dims)}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(config, file)
            file.flush()
            return _ClipVisionModel(file.name)

    comfy.clip_vision.ClipVisionModel = with_dims
    try:
        return _load_clipvision_from_sd(sd, *args, **kwargs)
    finally:
        comfy.clip_vision.ClipVisionModel = _ClipVisionModel


class _LTXAVTEModel(comfy.text_encoders.lt.LTXAVTEModel):
    """With the sizes that the files name. The app's projection has 1.4 GB, of which no byte is touched here."""

    def __init__(self, *args, model_options=None, **kwargs):
        options = model_options or {}
        projection = options.get("ltxav_projection")
        if projection:
            options = {**options, "model_name": "gemma3_12b"}  # the app builds the encoder in it without a name
        super().__init__(*args, model_options=options, **kwargs)
        if projection:
            made, (outputs, inputs) = self.text_embedding_projection, projection["size"]
            kind = {"dtype": made.weight.dtype, "device": made.weight.device}
            self.text_embedding_projection = type(made)(inputs, outputs, bias=False, **kind)


comfy.text_encoders.lt.LTXAVTEModel = _LTXAVTEModel
for _convolutional in (comfy.supported_models.SD15, comfy.supported_models.SDXL):
    _convolutional.supported_inference_dtypes = [torch.bfloat16, torch.float32]
comfy.model_detection.detect_unet_config = detect_unet_config
comfy.model_detection.model_config_from_unet_config = model_config_from_unet_config
comfy.sd.load_text_encoder_state_dicts = load_text_encoder_state_dicts
comfy.clip_vision.load_clipvision_from_sd = load_clipvision_from_sd


class TinyRandomConditioning:
    """Seeded noise in place of an encoded text, for models whose encoder has no small form."""

    CATEGORY, FUNCTION, RETURN_TYPES = "_test", "run", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - the app's name
        return {
            "required": {
                "width": ("INT", {"default": 2048, "min": 1, "max": 65536}),
                "pooled": ("INT", {"default": 1280, "min": 0, "max": 65536}),
                "tokens": ("INT", {"default": 16, "min": 1, "max": 4096}),
                "seed": ("INT", {"default": 0}),
            },
            "optional": {"llama_layers": ("INT", {"default": 0, "min": 0, "max": 64})},
        }

    def run(self, width, pooled, tokens, seed, llama_layers=0):
        generator = torch.Generator().manual_seed(seed)
        extra = {"pooled_output": torch.randn(1, pooled, generator=generator)} if pooled else {}
        text = torch.randn(1, tokens, width, generator=generator)
        if llama_layers:  # HiDream is told the hidden states of several layers of an encoder
            extra["conditioning_llama3"] = torch.randn(1, llama_layers, tokens, width, generator=generator)
        return ([[text, extra]],)


# no literal id: scanners of clones would list it among our nodes
NODE_CLASS_MAPPINGS = {node.__name__: node for node in (TinyRandomConditioning,)}
