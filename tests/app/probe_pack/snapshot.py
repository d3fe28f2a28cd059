"""What stands behind every public name of some modules of the app, and behind the names of their classes. Test only."""

import importlib
import inspect

MODULES = ("comfy.model_management", "comfy.model_patcher", "comfy.ops", "comfy.sd")
PYTHONS_OWN = ("__weakref__", "__slotnames__")
"""Members that Python itself adds to a class; the second when one of its objects is copied."""

taken: dict[str, dict] = {}


def take() -> dict:
    """Dotted name -> the object itself, which is kept alive so that its identity means something."""
    found = {}
    for module_name in MODULES:
        for name, value in vars(importlib.import_module(module_name)).items():
            if name.startswith("__"):
                continue
            found[f"{module_name}.{name}"] = value
            if inspect.isclass(value) and value.__module__ == module_name:
                members = {key: member for key, member in vars(value).items() if key not in PYTHONS_OWN}
                found.update({f"{module_name}.{name}.{key}": member for key, member in members.items()})
    return found


def changes(before: dict, after: dict) -> list[str]:
    """Names that are new, gone, or stand for another object. Numbers and texts are compared by value."""
    return sorted(name for name in before.keys() | after.keys() if _differs(name, before, after))


def _differs(name: str, before: dict, after: dict) -> bool:
    if name not in before or name not in after:
        return True
    one, other = before[name], after[name]
    plain = isinstance(one, (int, float, str, bytes, type(None))) and type(one) is type(other)
    return one != other if plain else one is not other
