"""Host memory that grows in place, and reading of file slices into it."""

import ctypes
import mmap
import os


def _read(file, address, nbytes, offset):
    view = memoryview((ctypes.c_uint8 * nbytes).from_address(address)).cast("B")
    descriptor = file if isinstance(file, int) else file.fileno()
    done = 0
    while done < nbytes:
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count <= 0:
            raise RuntimeError("the file ends too early")
        done += count


def read_file_to_device(file, offset, nbytes, stream, address, device, mark_cold=True):
    _read(file, address, nbytes, offset)


def cleanup_file_reader():
    pass


class HostBuffer:
    def __init__(self, size, prewarm=0, max_grow_size=0, mark_cold=True):
        self.size, self._most = 0, max(int(size), int(max_grow_size))
        self._memory = mmap.mmap(-1, max(self._most, 4096))
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        if size:
            self.extend(size)

    def get_raw_address(self):
        return self._address

    def extend(self, size, reallocate=False, register=True):
        grown = int(size) if reallocate else self.size + int(size)
        if grown > self._most:
            raise RuntimeError("the host buffer cannot grow so far")
        address = self._address + self.size
        self.size = grown
        return address

    def read_file_slice(self, file, file_offset, size, offset=0, stream=0, device_ptr=0, device=-1):
        _read(file, self._address + offset, size, file_offset)
        if device_ptr:
            ctypes.memmove(device_ptr, self._address + offset, size)
        self.size = max(self.size, offset + size)

    def register(self, offset, size):
        pass

    def unregister(self, offset):
        pass

    def truncate(self, size, do_unregister=True):
        self.size = int(size)
