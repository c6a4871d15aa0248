"""What this machine is: device, memory, threads, and the arithmetic that is fast on it."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import hashlib
import os
import platform
import resource
import sys
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import torch


@dataclass(frozen=True)
class Machine:
    """The device that trains and what surrounds it."""

    device: Literal["cpu", "cuda", "mps"]
    name: str
    """The processor that does the arithmetic, as it calls itself."""
    cores: int
    """CPU cores that this process may use."""
    memory_bytes: int
    """Memory of the device; of the whole machine where they are one."""
    bf16: bool
    """The device multiplies bf16 matrices natively."""

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits that stay the same on one machine: the key of cached measurements."""
        return hashlib.sha256(repr(sorted(asdict(self).items())).encode()).hexdigest()[:12]

    @property
    def torch_device(self) -> torch.device:
        """As PyTorch names it."""
        return torch.device(self.device)

    def share(self, processes: int) -> Machine:
        """What one of several processes on this machine may use; a GPU is a process's own."""
        memory_bytes = self.memory_bytes if self.device == "cuda" else self.memory_bytes // processes
        return replace(self, cores=max(self.cores // processes, 1), memory_bytes=memory_bytes)

    def describe(self) -> str:
        """One line for people."""
        memory = f"{self.memory_bytes / 2**30:.0f} GiB"
        if self.device == "cpu":
            return f"{self.name}, {self.cores} cores, {memory}"
        return f"{self.name} ({self.device}), {memory}, {self.cores} CPU cores"


def _processor_flags() -> tuple[str, set[str]]:
    """Name and instruction sets of the CPU, from the kernel where it tells."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    return name, flags


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _machine_memory_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")  # a container may have less than the machine
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total


def claim_device(local_rank: int, local_world: int) -> None:
    """Give each process on this machine a GPU of its own, where it has any; before anything else asks for the device.

    Raises:
        ValueError: there are fewer GPUs than processes, or the GPU is one that cannot be shared.
    """
    if torch.cuda.is_available():
        if torch.cuda.device_count() < local_world:
            raise ValueError(
                f"{local_world} processes on this machine, which has {torch.cuda.device_count()} GPUs: "
                f"start it with --nproc_per_node={torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local_rank)
    elif torch.backends.mps.is_available():
        raise ValueError("several processes train on CUDA or on CPUs, not on Apple's GPU: start it without torchrun")


@cache
def this_machine() -> Machine:
    """The best device here: CUDA (the one of this process), then Apple's GPU, then the CPU."""
    name, flags = _processor_flags()
    cores = _usable_cores()
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return Machine(
            "cuda", properties.name, cores, properties.total_memory, torch.cuda.is_bf16_supported(including_emulation=False)
        )
    if torch.backends.mps.is_available():
        return Machine("mps", name, cores, _machine_memory_bytes(), bf16=False)
    # Emulated bf16 (AVX-512 without the bf16 instructions) is slower than fp32: only native support counts.
    return Machine("cpu", name, cores, _machine_memory_bytes(), bf16=bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}))


def pick_precision(asked: Literal["auto", "fp32", "bf16"], machine: Machine) -> Literal["fp32", "bf16"]:
    """The arithmetic of the matrix products: bf16 where the device has it, at any width.

    Narrow models gain too: with AVX-512 bf16 `lmloop plan` of a model 32, 64, 128 and 192 wide made 1.0 to 1.8 times
    fp32's tokens/s.
    """
    if asked != "auto":
        return asked
    return "bf16" if machine.bf16 else "fp32"


def remarks(machine: Machine) -> list[str]:
    """What a run on `machine` must do without, a line each with the way round."""
    if machine.device != "mps":
        return []
    return [
        "Apple's GPU: trained in fp32, with no base in 4 bits (adapter.quantize): where memory is short, a smaller base, "
        "train.activation_checkpointing, or fewer rows at a time"
    ]


def compiles(asked: bool | Literal["auto"], machine: Machine) -> bool:
    """Whether `train.compile` means yes here: `auto` does on CUDA; on a CPU it takes 15 s and gains little."""
    return machine.device == "cuda" if asked == "auto" else asked


def use_machine(machine: Machine, threads: int | None) -> None:
    """Set this process up for arithmetic on `machine`; `threads`: of the CPU, by default one for each core.

    What a training step frees, the next one takes again. glibc would give large blocks back to the kernel each time, and
    the page faults of getting them anew took part of every step on a CPU: so freed memory is kept, and taken in huge
    pages, which PyTorch asks the kernel for where this variable says so before its first tensor.

    PyTorch keeps the last 1,024 products of oneDNN by their shapes, each with working memory of its own, beside the 1,024
    whose code oneDNN keeps: where shapes vary, as with conversations, that doubles what grows, and saves no time.

    At its end Python looks for cycles through all that PyTorch has made, which takes most of a second and frees nothing of
    use: so all that is there then is left out of it.
    """
    atexit.register(gc.freeze)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "1")  # read at the first product
    torch.set_num_threads(threads or machine.cores)
    torch.set_float32_matmul_precision("high")  # TF32 where the device has it
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20)):
            libc.mallopt(option, value)


_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""Options of glibc's mallopt (malloc.h)."""


def memory_in_use_bytes(device: torch.device) -> int:
    """Peak memory so far: of the device's allocator on CUDA, of the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_memory(device: torch.device) -> None:
    """Give freed memory back and begin the peak anew, for what has nothing to do with what was before.

    On CUDA, and for a process on Linux; elsewhere the peak stays what it is.
    """
    gc.collect()
    if device.type == "cuda" and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    if sys.platform == "linux":
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)
        with contextlib.suppress(OSError):  # a container may not let it
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): 5 resets the peak of the resident set
