"""A device that is not there: tensors that live elsewhere and, as on Apple's GPUs, know no float64."""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

FAR = torch.device("meta")  # the only one that autograd takes without a driver


class Far(torch.Tensor):
    """A tensor of the absent device around `real`, which holds its numbers on the CPU."""

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> "Far":
        if real.dtype == torch.float64:
            raise TypeError("this device has no float64")
        made = torch.Tensor._make_wrapper_subclass(
            cls, real.shape, strides=real.stride(), dtype=real.dtype, device=FAR
        )
        made.real_ = real
        return made

    def __repr__(self) -> str:
        return f"Far({self.real_})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        with _Device() as mode:
            return mode.__torch_dispatch__(function, types, args, kwargs)


class _Device(TorchDispatchMode):
    """Runs each operation on the CPU; results are far where an argument is, or where it says so."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        given = tree_flatten((args, kwargs))[0]
        tensors = [x for x in given if isinstance(x, torch.Tensor)]
        far = any(isinstance(x, Far) for x in tensors)
        near = [x for x in tensors if not isinstance(x, Far) and x.ndim]
        moves = function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        indexed = str(function).startswith(("aten.index.", "aten.index_put"))  # indices may stay
        if far and near and not moves and not indexed:
            raise RuntimeError(
                f"{function}: tensors on the device and on the CPU, expected one device"
            )
        wanted = kwargs.get("device")
        if wanted is not None:
            far = torch.device(wanted).type == FAR.type
            kwargs["device"] = torch.device("cpu")
        elif function is torch.ops.aten.copy_.default:
            far = isinstance(args[0], Far)
        plain = tree_map(lambda x: x.real_ if isinstance(x, Far) else x, (args, kwargs))
        found = function(*plain[0], **plain[1])
        if not far:
            return found
        first = args[0] if args and isinstance(args[0], Far) else None
        return tree_map(
            lambda x: (
                first
                if first is not None and x is first.real_  # in place
                else Far(x)
                if isinstance(x, torch.Tensor)
                else x
            ),
            found,
        )


@contextmanager
def far_device():
    """Inside, `.to(FAR)` and `device=FAR` make tensors of the absent device."""
    with _Device():
        yield FAR


def far(x: torch.Tensor) -> Far:
    return Far(x.detach().clone())
