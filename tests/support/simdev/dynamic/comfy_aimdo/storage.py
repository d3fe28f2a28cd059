"""What kind of disk a file is on: as the library answers outside of Windows."""

lib = None


def fast_disk(path):
    return None
