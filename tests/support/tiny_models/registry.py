"""The list of small model files: their names, where they go, how they are made. Knows nothing about architectures."""

from collections.abc import Callable
from dataclasses import dataclass

# kinds: "plain" files load in an unmodified app; "shim" files carry dims that a loader hard-codes, and need shim/.
PLAIN, SHIM = "plain", "shim"

Tensors = dict
Metadata = dict


@dataclass(frozen=True)
class Recipe:
    name: str
    path: str  # below the models folder
    note: str
    make: Callable[[int], tuple[Tensors, Metadata]]  # seed -> state dict, safetensors metadata
    kind: str = PLAIN
    on_demand: bool = False  # not in the default set, made when a test asks for it: of real size, or not of every app


RECIPES: dict[str, Recipe] = {}


def recipe(name: str, path: str, note: str, kind: str = PLAIN, on_demand: bool = False):
    """Decorator: `make(seed)` returns (tensors, metadata) of the file."""

    def register(make):
        RECIPES[name] = Recipe(name, path, note, make, kind, on_demand)
        return make

    return register
