"""What processes say to one another; a single one says nothing and needs nobody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lmloop.processes import ALONE, Notes, Place, Processes, RankLostError, find_place
from tests.distributed.harness import together

NESTED: dict[str, Any] = {
    "text": "ä",
    "moments": [{"step": torch.tensor(3.0), "m": torch.arange(6.0).view(2, 3).T}, {"none": None}],
    "bits": (torch.tensor([True, False]), torch.arange(4).bfloat16(), torch.empty(0, 3)),
}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


def talk(processes: Processes) -> None:
    rank, world = processes.rank, processes.world
    assert processes.first == (rank == 0)
    # Each its own count, also more than fit into one message.
    assert processes.exchange([rank] * rank) == [[float(r)] * r for r in range(world)]
    assert processes.exchange([2.0**53] * (200 * rank)) == [[2.0**53] * (200 * r) for r in range(world)]
    assert processes.exchange([]) == [[]] * world
    assert [processes.any(rank == one) for one in (0, world - 1, world)] == [True, True, False]
    assert processes.gather({"rank": rank}) == [{"rank": r} for r in range(world)]
    assert processes.average(torch.tensor([float(rank), 1.0])).tolist() == [(world - 1) / 2, 1.0]
    assert processes.on_first(lambda: f"from {rank}") == "from 0"
    assert same(processes.broadcast(NESTED if rank == 0 else {"other": rank}), NESTED)
    paths = []
    taken = processes.broadcast(NESTED if rank == 0 else None, lambda path, tensor: paths.append((path, tensor.numel())))
    assert paths[:2] == [(("moments", 0, "step"), 1), (("moments", 0, "m"), 6)]
    assert taken["moments"] == [{"step": None, "m": None}, {"none": None}]
    assert processes.together(lambda: rank) == rank

    def fail() -> None:
        if rank == 1:
            raise ValueError("made to fail")

    kind, text = (ValueError, "^made to fail") if rank == 1 else (OSError, "^rank 1: made to fail")
    with pytest.raises(kind, match=text):
        processes.together(fail)
    assert processes.any(rank == 1)  # and nobody waits in vain


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_hears_the_same(world: int, tmp_path: Path) -> None:
    ended = together(tmp_path, talk, world=world)
    assert ended.whole, ended


def leave(processes: Processes) -> None:
    if processes.rank == 1:
        Notes(find_place()).explain("it had to go")
        raise SystemExit(3)
    with pytest.raises(RankLostError, match=r"^rank 1: it had to go$"):
        processes.exchange([1.0])


def test_who_waits_for_one_that_has_left_learns_why(tmp_path: Path) -> None:
    ended = together(tmp_path, leave)
    assert ended.statuses[1] == 3
    assert "Traceback" not in ended.outputs[0]


def test_a_single_process_gets_back_what_it_gave() -> None:
    assert ALONE.first
    assert ALONE.exchange([1.0, 2.0]) == [[1.0, 2.0]]
    assert ALONE.any(True)
    assert not ALONE.any(False)
    assert ALONE.gather("x") == ["x"]
    assert ALONE.broadcast(NESTED) is NESTED
    assert ALONE.broadcast({"a": torch.tensor(2)}, lambda path, tensor: (path, int(tensor))) == {"a": (("a",), 2)}
    assert ALONE.on_first(lambda: 5) == 5
    assert ALONE.together(lambda: 6) == 6
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place()),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Place(1, 2, 1, 2)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Place(5, 8, 1, 4)),
        ({"WORLD_SIZE": "8"}, Place()),  # some systems set it for everything that they run
    ],
)
def test_the_launcher_says_which_one_it_is(
    environment: dict[str, str], place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert find_place() == place
