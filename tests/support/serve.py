"""A real ComfyUI with the pack for a person to open in the browser. Run by `python3 dev.py serve`."""

import argparse
import time

from tests.support import devices
from tests.support.app_server import AppServer


def main() -> int:
    parser = argparse.ArgumentParser(prog="dev.py serve")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--memory-mb", type=int, default=1400)
    arguments = parser.parse_args()
    device = devices.choose(arguments.device)
    print(f"ComfyUI is starting on device '{device}'", flush=True)
    with AppServer(device, memory_mb=arguments.memory_mb, bandwidth=2e9, race=False, port=arguments.port) as server:
        print(f"open {server.url}   (log: {server.log_path}; Ctrl-C ends it)", flush=True)
        try:
            while server.alive:
                time.sleep(0.5)
        except KeyboardInterrupt:
            return 0
        print(f"the server ended by itself\n{server.log_tail()}")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
