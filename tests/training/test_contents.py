"""What a checkpoint holds must load anywhere, with ties kept."""

import torch

from lmloop.training.states import on_cpu


def test_tensors_on_the_cpu_stay_the_same_objects() -> None:
    tensor = torch.ones(3)
    state = {"a": tensor, "b": [tensor, (1, "x")], "c": None}
    copied = on_cpu(state, {})
    assert copied["a"] is tensor
    assert copied["b"] == [tensor, (1, "x")]
    assert copied["c"] is None


def test_two_names_of_one_tensor_are_copied_once() -> None:
    meta = torch.empty(4, device="meta")
    copies = {(meta.data_ptr(), meta.shape): torch.full((4,), 7.0)}
    copied = on_cpu({"embedding": meta, "head": meta}, copies)
    assert copied["embedding"] is copied["head"]
    assert copied["embedding"].device.type == "cpu"
