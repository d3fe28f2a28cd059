"""What a model's file says without reading its weights: names, types, sizes and the layers they make up.

`safetensors_header` and `gguf_header` read one file's header, `model_files` those of a whole model, `file_kinds` tells
which kind of component it is, `model_shape` makes an inventory of the names (`name_tree`) by the walk of `layer_walk`,
which the engine takes as well. No torch.
"""

__all__ = ["file_kinds", "gguf_header", "layer_walk", "model_files", "model_shape", "safetensors_header"]
