"""One-file checkpoints: tensors as safetensors, the rest as JSON in the same file's header."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .values import ParameterError

# Above this size a module keeps only what training changes (adapters, trainable weights, buffers).
WHOLE_MODULE_BYTES = 512 * 2**20
# How each kind of random generator gives and takes its state.
GENERATORS = {
    torch.Generator: (torch.Generator.get_state, torch.Generator.set_state),
    random.Random: (random.Random.getstate, random.Random.setstate),
    np.random.RandomState: (np.random.RandomState.get_state, np.random.RandomState.set_state),
    np.random.Generator: (
        lambda g: g.bit_generator.state,
        lambda g, state: setattr(g.bit_generator, "state", state),
    ),
}


@contextmanager
def told(path: Path) -> Iterator[None]:
    """One sentence that names the file where the disk refuses to write it."""
    try:
        yield
    except OSError as error:
        raise ParameterError(
            f"{path.name} in the folder {path.parent.name} could not be written ({error.strerror});"
            " what was there before is intact: free some space, or name another out_dir, and run"
            " again to resume"
        ) from error


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a crash or a full disk leaves the previous file intact."""
    partial = path.with_name(path.name + ".partial")
    with told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


class Damaged(ValueError):
    """A file that does not hold what was written into it; the message names the file."""


def save(path: Path, content: Any) -> None:
    """Write nested dicts, lists and tuples of tensors, arrays and JSON values to one file."""
    write_atomic(path, packed(content))


def packed(content: Any) -> bytes:
    """The bytes of a file of `save`; TypeError where something would come back as something else."""
    import safetensors.torch

    skeleton, tensors = _flat(content)
    # One entry only: safetensors writes several in an order that changes from run to run.
    return safetensors.torch.save(tensors, {"json": f"{skeleton}\n{_checksum(skeleton, tensors)}"})


def load(path: Path) -> Any:
    """Read what `save` wrote; tensors are on the CPU.  Raises Damaged for any change of the file."""
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        skeleton, _, checksum = header["json"].partition("\n")
        # Earlier files hold the checksum in an entry of its own.
        if header.get("checksum", checksum) != _checksum(skeleton, tensors):
            raise ValueError("another checksum")
    except FileNotFoundError:
        raise
    except Exception as error:  # each library has errors of its own for broken files
        raise Damaged(f"{path.name} is damaged") from error
    return _unpack(json.loads(skeleton), tensors)


def storable(value: Any) -> Any:
    """The value as `load` will return it; TypeError where it would come back as something else."""
    skeleton, tensors = _flat(value)
    return _unpack(json.loads(skeleton), tensors)


def _flat(value: Any) -> tuple[str, dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    return json.dumps(_pack(value, tensors, "value")), tensors


def _checksum(skeleton: str, tensors: dict[str, Tensor]) -> str:
    total = hashlib.blake2b(skeleton.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(raw(tensor))
    return total.hexdigest()


def raw(tensor: Tensor) -> Any:
    """The bytes of a tensor, element by element.  A single element may have any stride."""
    flat = tensor.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def _pack(value: Any, tensors: dict[str, Tensor], place: str) -> Any:
    kind = type(value)
    whole = isinstance(value, Tensor) and not value.is_quantized
    if whole or kind is np.ndarray and value.dtype != object:
        if kind is np.ndarray:  # torch takes neither negative strides nor unsigned wide integers
            native = value.dtype.newbyteorder("=")
            tensor, name = torch.from_numpy(np.array(value, native, order="C")), "array"
        else:
            tensor, name = value.detach(), "tensor"
        key = f"t{len(tensors)}"
        tensors[key] = tensor.to("cpu", copy=True).contiguous()
        return {name: key}
    if isinstance(value, np.generic):
        return value.item()
    if kind is dict or kind.__name__ in ("OrderedDict", "FrozenDict"):
        return {
            "dict": [
                [_pack(k, tensors, place), _pack(v, tensors, f"{place}[{k!r}]")]
                for k, v in value.items()
            ]
        }
    if kind in (list, tuple, torch.Size):
        items = [_pack(v, tensors, f"{place}[{i}]") for i, v in enumerate(value)]
        return {"list" if kind is list else "tuple": items}
    if value is None or kind in (bool, int, float, str):
        return value
    raise TypeError(
        f"{place} is a {kind.__name__}; use tensors, arrays, numbers, strings, lists, tuples, dicts"
    )


def _unpack(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(skeleton, dict):
        return skeleton
    kind, body = next(iter(skeleton.items()))
    if kind == "tensor":
        return tensors[body]
    if kind == "array":
        return tensors[body].numpy()
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in body}
    items = [_unpack(v, tensors) for v in body]
    return items if kind == "list" else tuple(items)


def snapshot(thing: Any) -> Any:
    """What must be stored of a module, optimizer, generator, tensor, list or dict."""
    if isinstance(thing, nn.Module):
        return _module_state(thing)
    for kind, (give, _) in GENERATORS.items():
        if isinstance(thing, kind):
            return give(thing)
    if hasattr(thing, "state_dict"):
        return thing.state_dict()
    if isinstance(thing, (Tensor, np.ndarray, list, dict)):
        return thing
    raise TypeError(
        f"state of type {type(thing).__name__} cannot be restored in place:"
        " put it in a tensor, a list or a dict"
    )


def restore(thing: Any, stored: Any) -> None:
    """Bring `thing` back, in place, to what `snapshot` returned."""
    if isinstance(thing, nn.Module):
        own = dict(thing.state_dict(keep_vars=True))
        for name, value in stored.items():
            if name not in own or own[name].shape != value.shape:
                raise ValueError(
                    f"the checkpoint's `{name}` {list(value.shape)} does not fit the"
                    " module: delete the run folder or use another out_dir"
                )
            _copy(own[name], value)
    elif kind := next((k for k in GENERATORS if isinstance(thing, k)), None):
        GENERATORS[kind][1](thing, stored)
    elif hasattr(thing, "load_state_dict"):
        thing.load_state_dict(stored)
    elif isinstance(thing, Tensor):
        _copy(thing, stored)
    elif isinstance(thing, np.ndarray):
        thing[...] = stored
    elif isinstance(thing, list):
        thing[:] = [_kept(old, new) for old, new in zip(thing, stored)] + stored[len(thing) :]
    else:
        values = {k: _kept(thing.get(k), v) for k, v in stored.items()}
        thing.clear()
        thing.update(values)


def _kept(old: Any, new: Any) -> Any:
    """The old tensor with the new content, so that other references to it stay valid."""
    if isinstance(old, Tensor) and isinstance(new, Tensor) and old.shape == new.shape:
        _copy(old, new)
        return old
    return new


def _copy(target: Tensor, source: Tensor) -> None:
    with torch.no_grad():
        target.copy_(source)


def _module_state(module: nn.Module) -> dict[str, Tensor]:
    """All weights, or for a big module those that training changes."""
    state = dict(module.state_dict(keep_vars=True))
    size = sum(t.numel() * t.element_size() for t in state.values())
    trained = any(p.requires_grad for p in module.parameters())
    if size <= WHOLE_MODULE_BYTES or not trained:
        return state
    return {
        name: t
        for name, t in state.items()
        if not isinstance(t, nn.Parameter) or t.requires_grad or "lora_" in name
    }


def _unnamed() -> list[Any]:
    """The generators that code draws from without naming one."""
    if torch.cuda.is_available():
        torch.cuda.init()
    unnamed = [torch.default_generator, random.getstate.__self__, np.random.get_state.__self__]
    return unnamed + list(torch.cuda.default_generators)


def begun() -> list[tuple[str, str]]:
    """Of each global generator what a phase that draws from it depends on, and a hash of its state.

    Of PyTorch's that is the seed: the first weights of any layer come from it, so that its state
    tells how many phases were computed and how many restored.  Of the others it is the state.
    """
    stands = [(g, hashlib.sha256(packed(snapshot(g))).hexdigest()) for g in _unnamed()]
    return [(str(g.initial_seed()) if hasattr(g, "initial_seed") else s, s) for g, s in stands]


def states(state: Mapping[str, Any], drawn: list, begin: list[tuple]) -> dict[str, Any]:
    """What a phase leaves behind: its state, the generators that it drew from, and of the global
    ones those that are no longer as `begun` said at its beginning."""
    moved = zip(_unnamed(), begin, begun())
    return {
        "state": {k: snapshot(v) for k, v in state.items()},
        "drawn": [snapshot(g) for g in drawn],
        "rng": [[was[0], snapshot(g)] if was != now else [] for g, was, now in moved],
    }


def restore_states(state: Mapping[str, Any], drawn: list, stored: Mapping[str, Any]) -> None:
    """Bring all of that back, in place, to what `states` returned."""
    if set(state) != set(stored["state"]):
        raise ValueError(
            f"the checkpoint holds {sorted(stored['state'])}, the notebook passes "
            f"{sorted(state)}: delete the run folder or use another out_dir"
        )
    for name, thing in state.items():
        restore(thing, stored["state"][name])
    for generator, kept in zip(drawn, stored["drawn"]):
        restore(generator, kept)
    for generator, moved in zip(_unnamed(), stored["rng"]):
        if moved:
            restore(generator, moved[1])


@contextmanager
def weights_kept(weights: Iterable[Tensor]) -> Iterator[None]:
    """Put trainable weights back that the body changed: what follows a result then finds the same
    weights whether it was computed or restored."""
    kept = [(weight, weight._version, weight.detach().clone()) for weight in weights]
    yield
    for weight, version, before in kept:
        if weight._version != version:
            _copy(weight, before)
