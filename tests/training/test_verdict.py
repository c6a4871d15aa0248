import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lmloop.training.run_files import Metrics, read_run
from lmloop.training.verdict import judge, train_loss_around

Curve = Callable[[float], float]


def metrics_of(tmp_path: Path, train: Curve, validation: Curve, *, evaluations: int = 10, lengths: bool = False) -> Metrics:
    lines = []
    for step in range(1, 201):
        done = step / 200
        line = {"step": step, "tokens": step * 1000, "loss": train(done), "seq_len": 64 if lengths and done <= 0.5 else 256}
        if evaluations and step % (200 // evaluations) == 0:
            line["val_loss"] = validation(done)
        lines.append(json.dumps(line))
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    return read_run(tmp_path).metrics


@pytest.mark.parametrize(
    ("label", "train", "validation"),
    [
        ("over-fits", lambda f: 3 - 2 * f, lambda f: 2 + abs(f - 0.5)),
        ("begins to over-fit", lambda f: 1.5, lambda f: 2.0),
        ("still improving", lambda f: 4 - 2 * f, lambda f: 4 - 1.95 * f),
        ("levelled off", lambda f: 1.98, lambda f: 2.0),
        # Validation rises, but so does the training loss: that is divergence, not over-fitting.
        ("levelled off", lambda f: 2 + abs(f - 0.5), lambda f: 2 + abs(f - 0.5)),
    ],
)
def test_verdicts(tmp_path: Path, label: str, train: Curve, validation: Curve) -> None:
    fit = judge(metrics_of(tmp_path, train, validation))
    assert fit.label == label
    assert [rule.holds for rule in fit.rules].count(True) >= 1


@pytest.mark.parametrize("evaluations", [0, 1, 2])
def test_too_little_to_judge_by(tmp_path: Path, evaluations: int) -> None:
    fit = judge(metrics_of(tmp_path, lambda f: 2.0, lambda f: 2.0, evaluations=evaluations))
    assert fit.label == ""
    assert "too little" in fit.words


def test_training_losses_at_other_row_lengths_are_not_compared(tmp_path: Path) -> None:
    metrics = metrics_of(tmp_path, lambda f: 5.0 if f <= 0.5 else 2.0, lambda f: 2.0, lengths=True)
    assert train_loss_around(metrics, 200_000) == pytest.approx(2.0)
    assert train_loss_around(metrics, 20_000) is None
