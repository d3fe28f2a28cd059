"""TEST ONLY node pack: reads and turns the simulated accelerator's knobs in a running server, so that one server serves
many cases. Has no nodes. Answers 404 where the server runs on another device.

GET  /simdev/stats       all counters of torch_npu.stats()
POST /simdev/reset       start counting anew
POST /simdev/configure   any of the knobs of `torch_npu.configure`: {"mb": .., "bandwidth": .., "race": ..}

It also ends the server when the process that started it is gone, so that a killed test run leaves nothing behind.
"""

import os
import sys
import threading
import time

from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}


def _end_with_parent(parent: int):
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _torch_npu():
    module = sys.modules.get("torch_npu")
    if module is None:
        raise web.HTTPNotFound(reason="this server does not run on the simulated accelerator")
    return module


@PromptServer.instance.routes.get("/simdev/stats")
async def stats(request):
    return web.json_response(_torch_npu().stats())


@PromptServer.instance.routes.post("/simdev/reset")
async def reset(request):
    _torch_npu().reset()
    return web.json_response(_torch_npu().stats())


@PromptServer.instance.routes.post("/simdev/configure")
async def configure(request):
    _torch_npu().configure(**await request.json())
    return web.json_response(_torch_npu().stats())
