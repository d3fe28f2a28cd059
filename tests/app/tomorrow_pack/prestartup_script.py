"""Makes of the app one that has added an argument, `tomorrow`, to everything that it calls of its patchers.

Every method of `ModelPatcher` takes it. Every call of a method that a subclass overrides passes it, the constructor and
`clone` among them, and so does every call of a factory that a pack has registered for twins of its patchers. The
constructor keeps the argument, as a real one would, and `clone` fails where it got lost on the way.

With `TOMORROW_PACK=closed` in the environment the constructors of subclasses refuse the argument, as those of a pack do
that was written before it came.
"""

import functools
import inspect
import os
import sys

PASSED = "passed"
_parameter = inspect.Parameter("tomorrow", inspect.Parameter.KEYWORD_ONLY, default=None)


def _takes_it(method):
    """The app's method with one argument more."""

    @functools.wraps(method)
    def taking(*args, tomorrow=None, **kwargs):
        return method(*args, **kwargs)

    signature = inspect.signature(method)
    parameters = list(signature.parameters.values())
    many = [p for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD]
    taking.__signature__ = signature.replace(parameters=[*(p for p in parameters if p not in many), _parameter, *many])
    return taking


def _keeps_it(constructor, base):
    """The app's constructor with one argument more, which its own loaders pass."""
    takes = _takes_it(constructor)

    @functools.wraps(takes)
    def keeping(self, *args, tomorrow=None, **kwargs):
        takes(self, *args, **kwargs)
        is_the_apps = type(self).__module__ == base.__module__
        self.tomorrow = PASSED if is_the_apps else tomorrow

    return keeping


def _needs_it(clone):
    @functools.wraps(clone)
    def cloning(self, *args, **kwargs):
        if self.tomorrow != PASSED:
            raise RuntimeError(f"{type(self).__name__} has lost the argument `tomorrow` of its constructor")
        return clone(self, *args, **kwargs)

    return cloning


def _passes_it(method):
    """A subclass's method, called as the app of tomorrow calls it."""

    @functools.wraps(method)
    def passing(self, *args, **kwargs):
        return method(self, *args, **{"tomorrow": PASSED, **kwargs})

    return passing


def _closed(constructor, owner):
    def closed(self, model, load_device, offload_device, size=0, weight_inplace_update=False):
        constructor(self, model, load_device, offload_device, size, weight_inplace_update)

    closed.__qualname__ = f"{owner.__name__}.__init__"
    return closed


def _override(base, cls):
    """What happens to the methods of a class that is derived from the app's patcher from now on."""
    methods = {name: value for name, value in vars(cls).items() if inspect.isfunction(value) and hasattr(base, name)}
    if os.environ.get("TOMORROW_PACK") == "closed":
        methods["__init__"] = _closed(methods["__init__"], cls)
    for name, method in methods.items():
        if name == "__init__" or not name.startswith("__"):
            setattr(cls, name, _passes_it(method))


class _Factory:
    """The attribute `cached_patcher_init` of patchers: a pack's factory is called with one argument more."""

    def __get__(self, patcher, owner=None):
        registered = vars(patcher).get("_registered_factory")
        if registered is None:
            return None
        factory, *rest = registered
        function = getattr(factory, "func", factory)
        is_the_apps = function.__module__.partition(".")[0] == "comfy"
        return registered if is_the_apps else (functools.partial(factory, tomorrow=PASSED), *rest)

    def __set__(self, patcher, registered):
        vars(patcher)["_registered_factory"] = registered


def _tomorrow():
    base = sys.modules["comfy.model_patcher"].ModelPatcher
    for name, method in list(vars(base).items()):
        if inspect.isfunction(method) and not name.startswith("__"):
            setattr(base, name, _takes_it(method))
    base.__init__ = _keeps_it(base.__init__, base)
    base.clone = _needs_it(base.clone)
    base.cached_patcher_init = _Factory()
    base.__init_subclass__ = classmethod(lambda cls: _override(base, cls))


_done = []


def _before_packs_are_loaded(event, arguments):
    # the app lists the folder of packs right before it loads them; the last audit event before ours
    lists_packs = event == "os.listdir" and str(arguments[0]).endswith("custom_nodes")
    if lists_packs and "comfy.sd" in sys.modules and not _done:
        _done.append(True)
        _tomorrow()


sys.addaudithook(_before_packs_are_loaded)
