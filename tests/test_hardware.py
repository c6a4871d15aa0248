"""What this machine is taken to be."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch

from lmloop import hardware
from lmloop.hardware import Machine, compiles, forget_memory, memory_in_use_bytes, pick_precision, remarks, this_machine

CPU = Machine("cpu", "a processor", 8, 2**34, bf16=True)
GPU = Machine("cuda", "a GPU", 8, 2**36, bf16=True)
MAC = Machine("mps", "a Mac", 8, 2**36, bf16=False)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of a process cannot be reset here")
def test_a_peak_that_is_forgotten() -> None:
    cpu, size = torch.device("cpu"), 400 << 20
    held = torch.ones(size // 4)
    peak = memory_in_use_bytes(cpu)
    assert peak >= size
    del held
    forget_memory(cpu)
    assert memory_in_use_bytes(cpu) < peak - size // 2


@pytest.mark.parametrize(
    ("asked", "machine", "expected"),
    [
        ("auto", GPU, "bf16"),
        ("auto", replace(GPU, bf16=False), "fp32"),
        ("auto", CPU, "bf16"),
        ("auto", replace(CPU, bf16=False), "fp32"),
        ("auto", MAC, "fp32"),
        ("fp32", GPU, "fp32"),
        ("bf16", replace(CPU, bf16=False), "bf16"),
    ],
)
def test_precision(asked: Literal["auto", "fp32", "bf16"], machine: Machine, expected: str) -> None:
    assert pick_precision(asked, machine) == expected


def test_a_machine_is_known_again_and_not_taken_for_another() -> None:
    prints = {
        machine.fingerprint
        for machine in (CPU, GPU, replace(CPU, cores=9), replace(CPU, memory_bytes=1), replace(CPU, name="another"))
    }
    assert len(prints) == 5
    assert replace(CPU).fingerprint == CPU.fingerprint
    assert len(CPU.fingerprint) == 12


def test_what_it_says_of_itself() -> None:
    assert CPU.describe() == "a processor, 8 cores, 16 GiB"
    assert GPU.describe() == "a GPU (cuda), 64 GiB, 8 CPU cores"
    assert GPU.torch_device == torch.device("cuda")


def test_this_machine_is_plausible() -> None:
    machine = this_machine()
    assert machine is this_machine()
    assert machine.name
    assert 1 <= machine.cores <= 4096
    assert machine.memory_bytes > 2**28
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert machine.device == "cpu"


@pytest.mark.parametrize(
    ("flags", "native"),
    [
        ("fpu sse avx512f", False),
        ("fpu avx512_bf16 sse", True),
        ("amx_bf16", True),
        ("asimd bf16", True),
        ("avx512_bf16x", False),
    ],
)
def test_bf16_counts_only_where_the_processor_has_it(flags: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_processor_flags", lambda: ("a processor", set(flags.split())))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert this_machine.__wrapped__().bf16 is native


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells")
def test_memory_in_use_is_the_peak_of_the_process() -> None:
    peak_kib = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
    assert memory_in_use_bytes(torch.device("cpu")) == pytest.approx(int(peak_kib) * 1024, rel=0.01)


def test_processes_share_a_machine_but_not_a_gpu() -> None:
    assert (CPU.share(3).cores, CPU.share(3).memory_bytes) == (2, 2**34 // 3)
    assert CPU.share(100).cores == 1
    assert (GPU.share(3).cores, GPU.share(3).memory_bytes) == (2, GPU.memory_bytes)
    assert CPU.share(1) == CPU


def test_each_process_claims_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    claimed: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", claimed.append)
    hardware.claim_device(3, 4)
    assert claimed == [3]
    with pytest.raises(ValueError, match=r"8 processes on this machine, which has 4 GPUs: .*--nproc_per_node=4"):
        hardware.claim_device(0, 8)


def test_processes_do_not_share_apples_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ValueError, match="without torchrun"):
        hardware.claim_device(0, 2)


def test_what_a_machine_must_do_without_is_one_line() -> None:
    (line,) = remarks(MAC)
    assert "fp32" in line
    assert "adapter.quantize" in line
    assert "\n" not in line
    assert remarks(CPU) == remarks(GPU) == []


@pytest.mark.parametrize(
    ("asked", "machine", "expected"),
    [("auto", GPU, True), ("auto", CPU, False), ("auto", MAC, False), (True, CPU, True), (False, GPU, False)],
)
def test_compiling(asked: bool | Literal["auto"], machine: Machine, expected: bool) -> None:
    assert compiles(asked, machine) is expected


def test_apples_gpu_is_taken_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    machine = this_machine.__wrapped__()
    assert (machine.device, machine.bf16) == ("mps", False)
    assert "(mps)" in machine.describe()


@pytest.mark.parametrize(("users", "expected"), [(None, "1"), ("200", "200")])
def test_products_are_not_kept_twice_unless_the_user_says_so(users: str | None, expected: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "LRU_CACHE_CAPACITY"}
    environment |= {"LRU_CACHE_CAPACITY": users} if users else {}
    script = (
        "import os; from lmloop.hardware import this_machine, use_machine; use_machine(this_machine(), 1); "
        "print(os.environ['LRU_CACHE_CAPACITY'])"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected]
