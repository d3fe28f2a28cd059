"""Writes to attributes of other objects that `foreign_writes.py` lets pass."""

ON_PURPOSE: tuple[tuple[str, str, str, str], ...] = (
    # file, owner, attribute, why; `*` for any, and for an attribute whose name is computed
    ("*", "*", "data", "a parameter that is pointed into a master, a file or memory of its own stays the same object"),
    ("*", "counters", "*", "totals are added to where things happen"),
    ("*", "self.counters", "*", "totals are added to where things happen"),
    ("*", "memory", "owner", "keeps the bytes alive that a ctypes array looks at"),
    ("*", "*", "atexit", "weakref.finalize takes it in no other way"),
    (
        "offload_core/runtime/host/host_parameter.py",
        "host",
        "*",
        "a parameter lends by another class while its layer is ours",
    ),
    ("offload_core/runtime/host/host_parameter.py", "blank", "*", "the attributes of a marked tensor (GGUF)"),
    ("offload_core/runtime/host/host_layer.py", "parameter", "*", "the attributes of a marked tensor (GGUF)"),
    (
        "offload_core/runtime/layers/layer.py",
        "self.device_bindings[index][2]",
        "*",
        "the attributes of a marked tensor (GGUF)",
    ),
    ("offload_core/runtime/layers/loose.py", "tensor", "*", "the attributes of a marked tensor (GGUF)"),
    (
        "offload_core/runtime/tensors/parts.py",
        "built",
        "*",
        "the attributes of a marked tensor (GGUF); torch's mark of a parameter",
    ),
    (
        "offload_core/planning/look_ahead.py",
        "layer",
        "pending",
        "the count is look-ahead's own, kept on the layer for speed",
    ),
    (
        "offload_core/runtime/files/weight_file.py",
        "parameter",
        "*",
        "where a parameter lies in its file is noted on it",
    ),
    ("offload_core/runtime/device/staging.py", "event", "*", "the port's own note on an event, made in each visit"),
    ("offload_core/runtime/device/staging.py", "done", "*", "the same"),
    ("offload_core/runtime/engine/interpose.py", "self.module", "*", "the call that is interposed"),
    (
        "offload_core/runtime/engine/interpose.py",
        "_outside_graphs",
        "_torchdynamo_disable",
        "torch.compile reads it from the function",
    ),
    ("offload_core/runtime/engine/interpose.py", "_call", "*", "torch.compile reads it from the function"),
    ("offload_core/runtime/files/written_pages.py", "byte", "value", "ctypes"),
    ("offload_core/runtime/files/direct_read.py", "_own", "reader", "of the thread"),
    ("bridge/load/patcher.py", "model", "*", "what the app's own patcher notes on a model that it has loaded"),
    ("bridge/load/patcher.py", "self.model", "*", "what the app's own patcher notes on a model that it has loaded"),
    ("bridge/load/patcher.py", "module", "*", "what the app's own patcher sets on each module that it loads"),
    ("bridge/load/patcher.py", "patcher", "__class__", "a patcher of the app's becomes ours in place"),
    (
        "bridge/component/component.py",
        "model",
        "*",
        "our component hangs on the app's model; what the app notes on a loaded one",
    ),
    ("bridge/component/true_values.py", "model", "*", "notes on the app's model that its hooks are there"),
    ("bridge/load/loading.py", "comfy.model_patcher", "CoreModelPatcher", "the app's class of patchers, for one load"),
    ("bridge/load/loading.py", "patcher", "cached_patcher_init", "the app looks there for what makes a twin"),
    ("bridge/component/mapped_load.py", "place", "*", "the app's reader of files, for one load"),
    ("bridge/app/foreign.py", "holder", "*", "a stand-in for the model, made in the same function"),
    ("bridge/app/foreign.py", "parameter", "*", "takes a pack's patches off its tensors"),
    ("bridge/app/compat.py", "management", "TOTAL_PINNED_MEMORY", "the app's account of page-locked memory"),
)

TO_CURE: dict[str, int] = {
    "offload_core/files/name_tree.py": 5,
    "offload_core/runtime/engine/controller.py": 3,
    "offload_core/runtime/host/host_parameter.py": 3,
    "offload_core/runtime/engine/tier_moves.py": 1,
    "offload_core/runtime/patches/versions.py": 1,
    "offload_core/planning/search.py": 1,
}
"""How many writes there still are in which file. A number may become smaller, and a file may go; none may be added."""
