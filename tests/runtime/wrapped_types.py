"""Home-made tensor types, one for each way in which a type tells, or does not tell, what it is made of."""

from __future__ import annotations

import torch
from torch import nn


class Scaled(torch.Tensor):
    """A wrapper as quantised weights are: small integers and a scale. Detaching copies the scale, as others do."""

    @staticmethod
    def __new__(cls, stored, scale, dtype=torch.float32):
        return torch.Tensor._make_wrapper_subclass(cls, stored.shape, dtype=dtype, device=stored.device)

    def __init__(self, stored, scale, dtype=torch.float32):
        self._stored, self._scale = stored, scale

    def __tensor_flatten__(self):
        return ["_stored", "_scale"], {"dtype": self.dtype}

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Scaled(inner["_stored"], inner["_scale"], context["dtype"])

    def plain(self):
        return self._stored.to(self.dtype) * self._scale

    @classmethod
    def of(cls, weight, scale=0.25):
        """What `weight` is once it has been rounded to multiples of `scale`."""
        return cls((weight / scale).round().to(torch.int8), torch.tensor(scale), weight.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        first = args[0]
        if func is torch.ops.aten.detach.default:
            return Scaled(first._stored.detach(), first._scale.clone(), first.dtype)
        if func is torch.ops.aten._to_copy.default and "device" in (kwargs or {}):
            device = kwargs["device"]
            return Scaled(first._stored.to(device), first._scale.to(device), first.dtype)
        plain = [a.plain() if isinstance(a, Scaled) else a for a in args]
        return func(*plain, **(kwargs or {}))


class Pair(torch.Tensor):
    """A wrapper around a wrapper and a plain tensor with strides of its own."""

    @staticmethod
    def __new__(cls, scaled, offset):
        return torch.Tensor._make_wrapper_subclass(cls, scaled.shape, dtype=scaled.dtype, device=scaled.device)

    def __init__(self, scaled, offset):
        self.scaled, self.offset = scaled, offset

    def __tensor_flatten__(self):
        return ["scaled", "offset"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Pair(inner["scaled"], inner["offset"])

    def plain(self):
        return self.scaled.plain() + self.offset

    @classmethod
    def of(cls, weight):
        return cls(Scaled.of(weight), torch.randn(weight.shape[1], weight.shape[0]).t())

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return args[0]
        return func(*[a.plain() if isinstance(a, Pair) else a for a in args], **(kwargs or {}))


class GGUFLike(torch.Tensor):
    """Bytes with a type, a shape and patches hung onto them, in the way of the GGUF packs: no protocol of torch's."""

    @staticmethod
    def __new__(cls, stored, tensor_type, tensor_shape):
        return torch.Tensor.as_subclass(stored, cls)

    def __init__(self, stored, tensor_type, tensor_shape):
        self.tensor_type, self.tensor_shape, self.patches = tensor_type, tensor_shape, []

    def detach(self, *args, **kwargs):
        return self

    @property
    def shape(self):
        return self.tensor_shape

    def plain(self):
        stored = self.as_subclass(torch.Tensor)
        return (stored.to(torch.float32) / 16).reshape(self.tensor_shape)

    @classmethod
    def of(cls, weight):
        return cls((weight * 16).round().to(torch.int8).reshape(-1, 8), "Q8", weight.shape)


class Silent(torch.Tensor):
    """Says nothing of what it is made of."""

    @staticmethod
    def __new__(cls, stored):
        return torch.Tensor._make_wrapper_subclass(cls, stored.shape, dtype=stored.dtype, device=stored.device)

    def __init__(self, stored):
        self._stored = stored

    def plain(self):
        return self._stored

    @classmethod
    def of(cls, weight):
        return cls(weight)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return args[0]
        if func is torch.ops.aten._to_copy.default:
            return cls(func(args[0]._stored, **(kwargs or {})))
        return func(*[a._stored if isinstance(a, Silent) else a for a in args], **(kwargs or {}))


class Forgetful(Scaled):
    """Puts together another type than it was taken apart from."""

    @classmethod
    def of(cls, weight):
        return cls(weight.to(torch.int8), torch.tensor(1.0), weight.dtype)


class Fleeting(Scaled):
    """Makes its parts anew at each access: bytes written to them are lost."""

    @property
    def fresh(self):
        return self._stored.clone()

    def __tensor_flatten__(self):
        return ["fresh"], None

    @staticmethod
    def __tensor_unflatten__(inner, context, size, stride):
        return Fleeting(inner["fresh"], torch.tensor(1.0))


class QuantisedLinear(nn.Module):
    """y = x W^T with a weight of one of these types, brought to where the input is if it is elsewhere."""

    def __init__(self, weight):
        super().__init__()
        weight._is_param = True
        self._parameters["weight"] = weight

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight.plain())
