"""Reads rows of an embedding table in a file when they are looked up, so that the table takes no memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..files.weight_file import dtype_of, slice_of
from .parts import is_plain


def stays_in_file(table: torch.Tensor, max_norm: float | None) -> bool:
    """Whether `table` can stay in its file: plain rows in the type wanted, which lookups do not renormalise."""
    return is_plain(table) and slice_of(table) is not None and _is_rows(table) and max_norm is None


def _is_rows(table: torch.Tensor) -> bool:
    return table.dim() == 2 and table.is_contiguous() and dtype_of(table) == table.dtype


def look_up(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor | None:
    """The result of a call of `functional.embedding` whose table lies in a file; else None. Raises FileReadError."""
    if func is not torch.nn.functional.embedding:
        return None
    given = dict(zip(("input", "weight"), args)) | dict(kwargs)
    indices, table = given.get("input"), given.get("weight")
    if not isinstance(indices, torch.Tensor) or not isinstance(table, torch.Tensor):
        return None
    part = slice_of(table)
    if part is None or indices.device.type != "cpu" or not _is_rows(table) or given.get("max_norm") is not None:
        return None
    numbers, places = torch.unique(indices, return_inverse=True)
    if not len(numbers) or not 0 <= int(numbers[0]) <= int(numbers[-1]) < len(table):
        return None  # torch's own error, or nothing at all
    rows = torch.empty(len(numbers), table.shape[1], dtype=table.dtype)
    width = table.shape[1] * rows.element_size()
    for place, number in enumerate(numbers.tolist()):
        part.file.read_into(rows.data_ptr() + place * width, width, part.offset + number * width)
    part.file.check(part.offset)
    return torch.nn.functional.embedding(places, rows)
