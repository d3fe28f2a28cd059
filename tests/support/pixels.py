"""Comparing pictures and latents bit for bit. Knows nothing about where they come from."""

import hashlib

import numpy


def sha256(arrays) -> str:
    """One digest over shapes, types and bytes of a list of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(numpy.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def difference(expected, found) -> str:
    """Empty if both lists are the same bit for bit, else one line that says how they differ."""
    if len(expected) != len(found):
        return f"{len(found)} arrays instead of {len(expected)}"
    for index, (a, b) in enumerate(zip(expected, found)):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"array {index}: {b.dtype}{b.shape} instead of {a.dtype}{a.shape}"
        if a.tobytes() != b.tobytes():
            gap = numpy.abs(a.astype(numpy.float64) - b.astype(numpy.float64))
            return f"array {index}: {int((a != b).sum())} of {a.size} values differ, by at most {numpy.nanmax(gap)}"
    return ""


def assert_sane(arrays):
    """Finite and not constant: a picture of zeros or NaN equals itself and proves nothing."""
    assert arrays, "nothing was saved"
    for array in arrays:
        values = array.astype(numpy.float64)
        assert numpy.isfinite(values).all(), "values are not finite"
        assert values.std() > 0, "all values are the same"


def assert_identical(expected, found):
    assert_sane(expected)
    gap = difference(expected, found)
    assert not gap, gap
