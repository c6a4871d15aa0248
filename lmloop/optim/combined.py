"""Several optimizers that look like one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Optimizer


class Combined(Optimizer):
    """Steps each part in turn. Groups and state are its own and the parts work on them, so that a schedule writes
    `param_groups` and a checkpoint takes `state_dict` as of any other optimizer.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = tuple(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None, "gradients are computed before the step"
        for part in self.parts:
            part.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over groups and state; loading makes new objects of both, so the parts are given them anew."""
        super().load_state_dict(state_dict)
        self._share()
