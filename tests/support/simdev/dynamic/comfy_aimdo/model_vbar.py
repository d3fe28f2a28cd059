"""Virtual ranges of device memory, one for each model and device. A weight's handle is (range, address, bytes)."""

import ctypes
import os
import weakref

import torch

LIVE = weakref.WeakSet()
_ALIGNMENT = 512
_PAGE = 32 * 1024**2
_next_base = 1 << 44


def _cap_bytes():
    megabytes = os.environ.get("SIMDEV_VBAR_MB")
    return float(megabytes) * 2**20 if megabytes else float("inf")


class ModelVBAR:
    """What of a model is resident: bytes by address, with a signature that changes whenever they are made anew."""

    def __init__(self, size, device):
        global _next_base
        self.device, self.size, self.offset = device or 0, int(size), 0
        self.base = _next_base
        _next_base += (self.size + (1 << 30)) & ~((1 << 30) - 1)
        self._bytes, self._signatures, self._pins, self._generation = {}, {}, {}, 0
        LIVE.add(self)

    def alloc(self, nbytes):
        self.offset = -(-self.offset // _ALIGNMENT) * _ALIGNMENT
        if self.offset + nbytes > self.size:
            raise MemoryError("the virtual range is too small")
        address = self.base + self.offset
        self.offset += nbytes
        return self, address, nbytes

    def _tensor(self, address, nbytes):
        return self._bytes[address][:nbytes]

    def fault(self, address, nbytes):
        """The signature of the resident bytes, or None where there is no room for them."""
        if address not in self._bytes:
            if sum(vbar.loaded_size() for vbar in LIVE) + nbytes > _cap_bytes():
                return None
            try:
                self._bytes[address] = torch.empty(nbytes, dtype=torch.uint8, device=torch.device("npu", self.device))
            except torch.OutOfMemoryError:
                return None
            self._generation += 1
            signature = (ctypes.c_uint32 * (nbytes // _PAGE + 2))()
            signature[0] = self._generation
            self._signatures[address] = signature
        self._pins[address] = self._pins.get(address, 0) + 1
        return self._signatures[address]

    def unpin(self, address):
        self._pins[address] = max(0, self._pins.get(address, 0) - 1)

    def loaded_size(self):
        return sum(held.numel() for held in self._bytes.values())

    def free_memory(self, nbytes):
        """Give up weights that are not in use, the last ones first, until `nbytes` are free. Returns what was freed."""
        freed = 0
        for address in sorted(self._bytes, reverse=True):
            if freed >= nbytes:
                break
            if not self._pins.get(address):
                freed += self._bytes.pop(address).numel()
                del self._signatures[address]
        return freed

    def prioritize(self, *ignored):
        pass

    deprioritize = set_watermark_limit = set_watermark = prioritize

    def get_nr_pages(self):
        return self.offset // _PAGE + 1

    def get_watermark(self):
        return self.get_nr_pages()

    def get_residency(self):
        return [1] * self.get_nr_pages()


def vbar_fault(handle):
    vbar, address, nbytes = handle
    return vbar.fault(address, nbytes)


def vbar_unpin(handle):
    if handle is not None:
        vbar, address, _ = handle
        vbar.unpin(address)


def vbar_signature_compare(one, other):
    return one is not None and other is not None and memoryview(one) == memoryview(other)


def vbars_reset_watermark_limits():
    pass


def vbars_analyze(device=None):
    return 0
