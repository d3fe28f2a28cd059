"""A pytest plugin for the app's own tests: their client waits for a server that takes longer than 20 s to start."""

import time

import websocket

PATIENCE_S = 180
_connect = websocket.WebSocket.connect


def connect(self, *args, **kwargs):
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return _connect(self, *args, **kwargs)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


websocket.WebSocket.connect = connect
