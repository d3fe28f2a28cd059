"""TEST ONLY stand-in for the native comfy-aimdo library: the part of its Python surface that ComfyUI calls, on the
simulated accelerator, so that the app's own Dynamic VRAM code (`ModelPatcherDynamic`, faults, host buffers) runs there.

Its policy is a plain one: a weight that faults becomes resident if the device, or the cap `SIMDEV_VBAR_MB`, has room
for it, else the app streams it; nothing is evicted on its own, only when the app asks. Pressure between models is
therefore not like the library's; sizes, ownership and the order of calls are. Memory graphs fail as its own do.
"""
