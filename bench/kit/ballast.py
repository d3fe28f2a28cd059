"""Holds all device memory but a given rest, so that the card is as small for everybody as one of that size.

    python -m bench.kit.ballast --leave-gb 12

Plain allocations of the driver, so every engine sees the same free memory, whatever allocator it has. Prints `ready`
when it holds them, and holds them until it is ended.
"""

from __future__ import annotations

import argparse
import time

import torch

PIECE_BYTES = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leave-gb", type=float, required=True)
    leave = int(parser.parse_args().leave_gb * 1e9)
    held = []
    while (spare := torch.cuda.mem_get_info()[0] - leave) > 4 << 20:
        held.append(torch.empty(min(spare, PIECE_BYTES), dtype=torch.uint8, device="cuda"))
    print(
        f"ready: holds {sum(map(len, held)) / 1e9:.1f} GB, leaves {torch.cuda.mem_get_info()[0] / 1e9:.2f}", flush=True
    )
    while True:
        time.sleep(60)


if __name__ == "__main__":
    main()
