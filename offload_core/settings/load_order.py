"""The order in which to load components from their files. Plain arithmetic on names and sizes."""

from __future__ import annotations

from collections.abc import Mapping

from .groups import numbered_base


def load_order(sizes_bytes: Mapping[str, int]) -> list[str]:
    """Component names, largest size first, as most host memory is free at the start.

    Variants of one base (`dit`, `dit_2`) are adjacent, ordered by the largest of them, the highest number first.
    """
    bases = {name: numbered_base(name)[0] for name in sizes_bytes}
    largest = {base: max(size for name, size in sizes_bytes.items() if bases[name] == base) for base in bases.values()}
    return sorted(sizes_bytes, key=lambda name: (-largest[bases[name]], bases[name], -numbered_base(name)[1]))
