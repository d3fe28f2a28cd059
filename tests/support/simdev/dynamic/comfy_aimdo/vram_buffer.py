"""A device buffer that grows when more is asked of it; what streamed weights pass through."""

import torch

_CHUNK = 1 << 20


class VRAMBuffer:
    def __init__(self, max_size, device):
        self.device, self.max_size = device or 0, max_size
        self._bytes, self._base = None, id(self) << 8

    def size(self):
        return 0 if self._bytes is None else self._bytes.numel()

    def get(self, size, offset=0):
        needed = int(size) + int(offset)
        if needed > self.size():
            device = torch.device("npu", self.device)
            self._bytes = torch.empty(-(-needed // _CHUNK) * _CHUNK, dtype=torch.uint8, device=device)
        return self, self._base + int(offset), int(size)

    def _tensor(self, address, nbytes):
        start = address - self._base
        return self._bytes[start : start + nbytes]
