"""Memory graphs: what a thread allocates and frees on one stream is recorded once and expected in the same order later.

The surface is that of comfy-aimdo 0.6.0. What this one knows of the memory it learns from the simulated device, whose
threads keep a diary of what they allocate; it moves nothing into pages of its own. It fails where the library does:

* memory cannot be had inside the graph, even what the library would have taken from pages that it keeps;
* memory of the graph is freed in a scope inside that in which it was allocated, after the end of its scope and before
  the outermost end, or where the graph does not see it (another thread, another stream, while it is paused).

A failed graph lets all memory pass, and refuses every call but `abort`. Another order than the recorded one is a graph
break: no failure, but recorded anew. Memory from outside the graph may be freed inside, as since 0.5.3.
"""

import contextlib
import threading

from torch_npu import library

_PAGE_BYTES = 8 << 20
_SMALL_BYTES = 4 << 20
"""Smaller allocations lie in pages that they share."""

_ERROR = "aimdo memory compile error"
_thread = threading.local()


class _Step:
    """Something that happened in a scope, and what came next: more than one thing where the order has differed."""

    def __init__(self, kind, value=None, slot=None, before=None):
        self.kind, self.value, self.slot, self.before = kind, value, slot, before
        self.after = []
        self.inner = _Step("start") if kind == "scope" else None
        if before is not None:
            before.after.append(self)

    def cut_out(self):
        """What came after it comes after what was before it."""
        place = self.before.after.index(self)
        self.before.after[place : place + 1] = self.after
        for step in self.after:
            step.before = self.before


class _Level:
    """A scope that is open."""

    def __init__(self, at, recording):
        self.at, self.recording, self.broken = at, recording, False
        self.open = {}
        """Serial -> step of the allocations of this scope that are still there."""


class _Recording:
    """The graph itself: told what happens, it says whether that was expected, and whether it has failed."""

    def __init__(self, stream_id, assert_breaks):
        self.stream_id, self.assert_breaks = stream_id, assert_breaks
        self.root = _Step("start")
        self.levels = [_Level(self.root, True)]
        self.failed = self.paused = self.aborted = self.complete = False
        self.candidates, self.handed_over = {}, {}
        """Serial -> step of what was still there at the end of its scope; before and after the outermost end."""
        self.rogue_count = self.used = self.peak_used = 0
        self.slot_bytes = {}

    # ------------------------------------------------------------------ memory

    def happened(self, kind, serial, nbytes, stream_id):
        """An entry of the thread's diary."""
        if self.failed:
            return
        inside = not self.paused and stream_id == self.stream_id
        if kind == library.FREED:
            self._freed(serial, inside)
        elif inside and kind == library.ALLOCATED:
            self._allocated(serial, nbytes)
        elif inside:
            self.failed = True

    def _allocated(self, serial, nbytes):
        level, taken = self.levels[-1], self._taken()
        step = None
        if not level.recording:
            step = self._expected("alloc", nbytes, lambda step: step.slot not in taken)
            if step is None and not self._break():
                return
        if step is None:
            taken |= {step.slot for level in self.levels for step in level.open.values()}
            small = nbytes < _SMALL_BYTES
            slot = next(slot for number in range(len(taken) + 1) if (slot := (small, number)) not in taken)
            step = _Step("alloc", nbytes, slot, level.at)
        self.slot_bytes[step.slot] = max(nbytes, self.slot_bytes.get(step.slot, 0))
        level.at = level.open[serial] = step
        self.used += nbytes
        self.peak_used = max(self.peak_used, self.used)

    def _freed(self, serial, inside):
        level = self.levels[-1]
        if not any(serial in other.open for other in self.levels):
            self.failed = serial in self.candidates  # else it is not of the graph, or not any more
            return
        if not inside or serial not in level.open:
            self.failed = True
            return
        slot = level.open[serial].slot
        step = None if level.recording else self._expected("free", slot)
        if step is None and not level.recording and not self._break():
            return
        self.used -= level.open.pop(serial).value
        level.at = step or _Step("free", slot, before=level.at)

    def _taken(self):
        """Slots of memory that is out of the graph's hands."""
        self.handed_over = {serial: step for serial, step in self.handed_over.items() if library.holds(serial)}
        return {step.slot for step in (*self.handed_over.values(), *self.candidates.values())}

    def look(self):
        """Whether it has failed, by what was freed behind its back too."""
        seen = [serial for level in self.levels for serial in level.open]
        self.failed = self.failed or not all(map(library.holds, [*seen, *self.candidates]))
        return self.failed

    # ------------------------------------------------------------------ order

    def _expected(self, kind, value=None, fits=lambda step: True):
        steps = self.levels[-1].at.after
        return next((step for step in steps if step.kind == kind and step.value == value and fits(step)), None)

    def _break(self):
        """It goes on in another way than recorded. False: that is a failure here."""
        self.failed = self.failed or self.assert_breaks
        level = self.levels[-1]
        level.recording = level.broken = True
        return not self.failed

    def enter(self, name):
        """A scope inside. Scopes of one name that follow each other are one scope, with several orders if need be."""
        level = self.levels[-1]
        step = self._expected("scope", name)
        if step is None and not level.recording and not self._break():
            return False
        self.levels.append(_Level((step or _Step("scope", name, before=level.at)).inner, step is None))
        return True

    def again(self):
        self.levels, self.complete = [_Level(self.root, False)], False

    def leave(self):
        """1, or 2 if it was not as recorded; 0: failed."""
        level = self.levels[-1]
        end = None if level.recording else self._expected("end")
        if end is None and not level.recording and not self._break():
            return 0
        for serial, step in level.open.items():
            if level.at is step:
                level.at = step.before
            step.cut_out()
            self.candidates[serial] = step
            self.rogue_count += 1
        if end is None:
            _Step("end", before=level.at)
        self.levels.pop()
        if not self.levels:
            self.hand_over()
            self.complete = True
        return 2 if level.broken else 1

    def hand_over(self):
        """What is still there belongs to the program from now on."""
        for level in self.levels:
            self.candidates |= level.open
        self.used -= sum(step.value for step in self.candidates.values())
        self.handed_over |= self.candidates
        self.levels, self.candidates = [], {}


class MallocGraph:
    """One thread's graph on one stream. Every method raises RuntimeError once it has failed, but `abort`."""

    def __init__(self, handle, stream):
        self._handle, self._stream, self._scopes = handle, stream, []

    def _ask(self, active=True):
        """The recording, with everything noted that has happened. Raises if it has failed or is not under way."""
        if getattr(_thread, "active", None) is self._handle:
            for event in library.diary():
                self._handle.happened(*event)
        elif active:
            raise RuntimeError(_ERROR)
        if self._handle.look():
            raise RuntimeError(_ERROR)
        return self._handle

    def push(self, name=None):
        recording = self._ask(active=name is not None)
        if name is None:
            if not recording.complete or getattr(_thread, "active", None) is not None:
                raise RuntimeError(_ERROR)
            recording.again()
            _activate(recording)
        elif not recording.enter(name):
            raise RuntimeError(_ERROR)
        else:
            self._scopes.append(None)

    def pop(self):
        """Close the innermost scope. Whether what happened in it was not what had been recorded."""
        recording = self._ask()
        result = recording.leave()
        if not result:
            raise RuntimeError(_ERROR)
        if recording.complete:
            _activate(None)
        if self._scopes:
            self._scopes.pop()
        return result == 2

    def abort(self):
        recording = self._handle
        if not recording.aborted:
            if getattr(_thread, "active", None) is not recording:
                raise RuntimeError(_ERROR)
            with contextlib.suppress(RuntimeError):
                self._ask()
            recording.hand_over()
            recording.aborted = True
            _activate(None)
        self._scopes.clear()

    def pause(self, sync=False):
        self._ask().paused = True

    def resume(self, sync=False):
        self._ask().paused = False

    @contextlib.contextmanager
    def use_stream(self, stream):
        previous = self._stream
        self._ask().stream_id = stream.stream_id
        self._stream = stream
        try:
            yield
        finally:
            self._ask().stream_id = previous.stream_id
            self._stream = previous

    def iterate(self, name=None):
        """End the scope of that name, if it is the innermost one, and begin it again; without a name, only end it."""
        ends = bool(self._scopes) and name in (None, self._scopes[-1])
        broken = self.pop() if ends else False
        if name is not None:
            self.push(name)
            self._scopes[-1] = name
        return broken

    peak_used = property(lambda self: self._handle.peak_used)
    virtual_bytes = property(lambda self: _in_pages(self._handle.slot_bytes))
    physical_bytes = property(lambda self: _in_pages(self._handle.slot_bytes))
    rogue_count = property(lambda self: self._handle.rogue_count)

    def __del__(self):
        if getattr(_thread, "active", None) is self._handle:
            _activate(None)


def _in_pages(slots):
    small = sum(nbytes for (is_small, _), nbytes in slots.items() if is_small)
    return sum(-(-nbytes // _PAGE_BYTES) * _PAGE_BYTES for (is_small, _), nbytes in slots.items() if not is_small) + (
        -(-small // _PAGE_BYTES) * _PAGE_BYTES
    )


def _activate(recording):
    """From now on this one is told what the thread does with device memory; None: no longer."""
    _thread.active = recording
    library.follow(recording is not None)


def record(stream, assert_graph_breaks=False):
    """A graph that is under way in this thread on `stream`, with its outermost scope open."""
    if getattr(_thread, "active", None) is not None:
        raise RuntimeError(f"{_ERROR}: could not start recording")
    recording = _Recording(stream.stream_id, assert_graph_breaks)
    _activate(recording)
    return MallocGraph(recording, stream)
