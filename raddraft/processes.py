"""Devices and processes: choosing a device, sharing work out, and one model sharded over processes (FSDP 2).

    model = prepare_model(model, accelerator, shard=True)
    optimizer = accelerator.prepare(torch.optim.AdamW(model.parameters()))

With `shard`, weights, gradients and optimizer states lie in equal parts on all processes. A transformer block is
gathered where it runs and freed again. Checkpoints hold whole tensors under the names and in the order of a model that
is not sharded, so a run resumes with any number of processes.
"""

from __future__ import annotations

import os
import timeit
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from raddraft.errors import RadDraftError

if TYPE_CHECKING:
    from accelerate import Accelerator

WAIT = timedelta(hours=4)
"""How long processes wait for one that writes a checkpoint or has more images left to encode. NCCL's own ten minutes
would end the run."""


SLOW = 4
"""How many times longer than in float32 a matrix product takes in 16 bits, from which on a warning is due."""


def pick_device(name: str) -> str:
    """The device to compute on: `name`, or for "auto" the first accelerator, else the CPU.

    Raises:
        RadDraftError: there is no such device here.
    """
    if name != "auto":
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError) as error:
            raise RadDraftError(f"Device {name!r} cannot be used, try auto: {str(error).splitlines()[0]}") from None
        return name
    accelerator = torch.accelerator.current_accelerator()  # what torch was built for, whether it is there or not
    return accelerator.type if accelerator and torch.accelerator.is_available() else "cpu"


@cache
def warn_if_slow(dtype: torch.dtype, device: str) -> None:
    """Warn, once, where the CPU computes in a 16-bit type many times slower than in float32.

    CPUs without instructions for it (on x86 AVX-512 or AMX) do. The product of two [128, 128] matrices is timed.
    """
    if not device.startswith("cpu") or dtype.itemsize != 2 or not is_main_process():
        return
    times = {
        one: min(timeit.repeat(partial(torch.mm, x, x), number=1, repeat=5))
        for one in (torch.float32, dtype)
        for x in [torch.ones(128, 128, dtype=one)]
    }
    if (ratio := times[dtype] / times[torch.float32]) > SLOW:
        warnings.warn(
            f"{str(dtype).removeprefix('torch.')} is slow on this CPU: a matrix product takes {ratio:.0f} times as "
            "long as in float32. Use float32 (in training: precision no)",
            stacklevel=3,
        )


def is_main_process() -> bool:
    """Whether this process prints and writes for all that were launched together."""
    return os.environ.get("RANK", "0") == "0"


def part_ways() -> None:
    """Let each of the processes that were launched together work for itself, on its own GPU, as if started alone."""
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if rank and torch.accelerator.is_available():
        torch.accelerator.set_device_index(rank)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


def process_share(accelerator: Accelerator) -> tuple[int, int]:
    """Index of this process and the number of processes."""
    return accelerator.process_index, accelerator.num_processes


def check_launch(accelerator: Accelerator) -> Accelerator:
    """The Accelerator, if it has found all processes that were launched; else each would do the whole work by itself.

    Raises:
        RadDraftError: it has not.
    """
    launched, found = int(os.environ.get("WORLD_SIZE", "1")), accelerator.num_processes
    if launched != found:
        hint = "start them by `accelerate launch`, without GPUs with ACCELERATE_USE_CPU=true; or unset WORLD_SIZE"
        raise RadDraftError(f"WORLD_SIZE states {launched} processes, and Accelerate has found {found}: {hint}")
    return accelerator


def make_accelerator(out: Path, precision: str, trackers: Sequence[str], shard_option: str) -> Accelerator:
    """The Accelerator of a training run, with its experiment trackers started.

    Args:
        out: the run folder, where trackers write.
        precision: mixed precision: no, bf16 or fp16.
        trackers: Accelerate's names of them, e.g. tensorboard.
        shard_option: this project's option for sharding the model, for the error message.

    Raises:
        RadDraftError: the launch asks Accelerate itself to shard the model, or as `check_launch`.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    # Every process computes the same buffers; by default DDP would broadcast them at each forward pass.
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False), InitProcessGroupKwargs(timeout=WAIT)]
    accelerator = Accelerator(
        mixed_precision=precision, log_with=list(trackers) or None, project_dir=out, kwargs_handlers=handlers
    )
    check_launch(accelerator)
    if precision != "no":
        warn_if_slow(torch.bfloat16 if precision == "bf16" else torch.float16, accelerator.device.type)
    kind = accelerator.distributed_type.value
    if kind in ("FSDP", "DEEPSPEED"):
        raise RadDraftError(
            f"Launched with {kind}; launch with configs/accelerate/ddp_8.yaml and set {shard_option}: true instead"
        )
    if trackers:
        accelerator.init_trackers("raddraft")
    return accelerator


def prepare_model(model: nn.Module, accelerator: Accelerator, shard: bool) -> nn.Module:
    """The model on its device, ready to train; with `shard` and several processes it is itself cut into parts.

    Gradients are averaged over processes either way. Sharded ones are so after every backward pass (without sharding
    `accelerator.no_sync` puts that off): no process ever holds them whole.

    To be called before the optimizer is made, and again whenever `requires_grad` of parameters has changed. Once a
    model is in parts, its parameters must keep their type.
    """
    from torch.distributed.fsdp import FSDPModule

    if not shard or accelerator.num_processes == 1:
        return accelerator.prepare(model)
    if not isinstance(model, FSDPModule):
        _cut(model, accelerator)
    for part in model.modules():
        if isinstance(part, FSDPModule):  # FSDP looks at what trains when it puts a part together like this
            part.unshard()
            part.reshard()
    return accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)  # that is, without DDP


@contextmanager
def whole_model(model: nn.Module) -> Iterator[None]:
    """Every process holds all of a model in parts for as long as this lasts.

    So it can run the model without the others, and gradients can flow through what FSDP does not see, such as the keys
    and values of a prompt that several texts share. They are summed over the processes as ever.
    """
    from torch.distributed.fsdp import FSDPModule

    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]

    def keep_whole(whole: bool) -> None:
        for part in parts:
            part.set_reshard_after_forward(not whole, recurse=False)
            part.set_reshard_after_backward(not whole, recurse=False)

    keep_whole(True)
    for part in parts:
        part.unshard()
    yield
    keep_whole(False)
    for part in parts:
        part.reshard()


def release_model(model: nn.Module, wrapped: nn.Module, accelerator: Accelerator) -> None:
    """Undo what `prepare_model` did to the forward pass, and forget the optimizer, so that both can be made anew."""
    accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    vars(model).pop("_is_accelerate_prepared", None)  # or Accelerate would not switch mixed precision on again
    accelerator.free_memory()


def _cut(model: nn.Module, accelerator: Accelerator) -> None:
    """Share out each transformer block, and then what is left.

    Blocks are put together in the 16-bit type of mixed precision: half the traffic, and no second copy of the weights
    is kept for the backward pass. All else is left to autocast, as without sharding.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer  # every block of transformers is one

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    policy = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False)
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for block in reversed(blocks):  # inner ones first
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # or the parameters would stay whole after a validation


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale gradients down to a norm, and return what it was. Of a loss that was scaled, unscale them before."""
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return float(_whole(norm))


def gather(named: Iterable[tuple[str, Tensor]], accelerator: Accelerator) -> dict[str, Tensor]:
    """Whole tensors on the CPU of the main process, nothing on the others; every process has to take part."""
    whole = ((name, _whole(tensor.detach())) for name, tensor in named)
    return {name: tensor.cpu().contiguous() for name, tensor in whole if accelerator.is_main_process}


@torch.no_grad()
def load_tensors(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    """Put whole tensors into the parameters and buffers of their names."""
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, value in saved.items():
        named[name].copy_(_part(value, named[name]))


def run_state(accelerator: Accelerator, optimizer: Any = None) -> dict[str, Any]:
    """Whole optimizer, loss scaler and all processes' random states, for the main process to save.

    Without an optimizer, only the other two. Every process has to take part.
    """
    from accelerate.utils import gather_object

    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None  # of this process's own GPU
    random = gather_object([{"cpu": torch.get_rng_state(), "cuda": cuda}])
    scaler = None if accelerator.scaler is None else accelerator.scaler.state_dict()
    if optimizer is None:
        return {"optimizer": None, "scaler": scaler, "random": random}
    whole = optimizer.state_dict()
    whole["state"] = {index: gather(values.items(), accelerator) for index, values in whole["state"].items()}
    return {"optimizer": whole, "scaler": scaler, "random": random}


def load_run_state(saved: dict[str, Any], accelerator: Accelerator, optimizer: Any) -> None:
    """Go on from what `run_state` gave."""
    if saved["optimizer"] is not None:
        whole = saved["optimizer"]
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, values in whole["state"].items():
            whole["state"][index] = {name: _part(value, parameters[index]) for name, value in values.items()}
        optimizer.load_state_dict(whole)
    if saved["scaler"] is not None:
        accelerator.scaler.load_state_dict(saved["scaler"])
    state = saved["random"][accelerator.process_index % len(saved["random"])]
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is shared out; all of any other."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _whole(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _part(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor cut as `like` is, of the same shape; scalars beside it (the optimizer's step) stay as they are."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
