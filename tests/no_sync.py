"""Refuses whatever would make the host wait for a GPU, without a GPU.

``no_sync("cuda")`` runs code on tensors that say they are on a GPU and hold no values
(``FakeTensorMode``): the code takes the branches it takes there, but no gradient can be computed.
``no_sync("cpu")`` runs it on ordinary tensors and takes every one of them to be on the device, for
backward passes.
"""

from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

# Their result, or its size, must be known to the host before it can go on.
WAITING = {
    aten._local_scalar_dense,  # item(), int(), bool(), if
    aten.is_nonzero,
    aten.equal,
    aten.nonzero,
    aten.masked_select,
    aten.unique_consecutive,
    aten.unique_dim,
    aten._unique,
    aten._unique2,
    aten.bincount,
    aten.repeat_interleave,  # unless it is told output_size
    aten.masked_scatter_backward,
    aten._linalg_check_errors,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COPIES = {aten._to_copy, aten.copy_, aten.copy}
READ_BY_THE_HOST = {Tensor.tolist, Tensor.numpy, Tensor.__array__}  # seen by no dispatch mode


class SyncError(AssertionError):
    """The code would have waited for the GPU."""


class _NoSync(TorchDispatchMode):
    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        on_device = [
            leaf
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, Tensor) and leaf.device.type == self.device
        ]
        if on_device and packet in WAITING and kwargs.get("output_size") is None:
            raise SyncError(f"{func} waits for its result")
        if on_device and packet in INDEXING:
            for index in args[1]:
                if index is not None and index.dtype in (torch.bool, torch.uint8):
                    raise SyncError(f"{func} with a mask waits for the number of its elements")
                if index is not None and index.device.type != self.device:
                    raise SyncError(f"{func} with indices of the host waits for their copy")
        result = func(*args, **kwargs)
        if packet in COPIES:
            source = args[0] if packet is aten._to_copy else args[1]
            devices = {source.device.type, result.device.type}
            waits = not kwargs.get("non_blocking", (*args, False, False)[2])
            if len(devices) == 2 and (waits or result.device.type == "cpu"):
                raise SyncError(f"{func} from {source.device} to {result.device} waits")
        return result


class _NoReading(TorchFunctionMode):
    def __init__(self, device, reads):
        super().__init__()
        self.device = device
        self.reads = reads

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in READ_BY_THE_HOST and args[0].device.type == self.device:
            self.reads -= 1
            if self.reads < 0:
                raise SyncError(f"{func.__name__} reads a tensor of the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_sync(device="cpu", reads=0):
    """Raises a SyncError inside of it where code would wait for tensors on ``device``.

    With ``device="cpu"`` as many calls of ``tolist`` or ``numpy`` as ``reads`` pass.
    """
    with _NoSync(device), _NoReading(device, reads):
        yield


@contextmanager
def fake_gpu():
    """Tensors that are made inside hold no values, and may be on a GPU that is not there."""
    with FakeTensorMode():
        yield


def to_fake_gpu(model):
    """Moves a model that was made under ``fake_gpu``."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(_on_fake_gpu(parameter)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _on_fake_gpu(buffer))
    return model


def _on_fake_gpu(tensor):
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
