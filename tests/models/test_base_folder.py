"""The files of a pretrained model: what is found, what it is known by, and what is refused before it is loaded."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmloop.models import base_hub
from lmloop.models.base_folder import find_base, require_same
from lmloop.models.from_transformers import open_model
from lmloop.models.tensor_files import INDEX, SINGLE
from tests.models.bases import make_base


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    make_base(folder, "llama")
    return folder


@pytest.fixture
def base(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "base"))


def refusal(folder: Path | str, **named: Any) -> str:
    """Of the files, or of the loading of them."""
    with pytest.raises(ValueError, match=r".") as error:
        open_model(find_base(str(folder), **named), dtype=torch.float32)
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    assert len(message) < 500, message
    return message


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / SINGLE)
    change(weights)
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / SINGLE, metadata={"format": "pt"})


def cut_in_two(folder: Path) -> None:
    """The same weights in two files with an index."""
    weights = load_file(folder / SINGLE)
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[:8], "model-00002-of-00002.safetensors": names[8:]}
    for file, of_file in parts.items():
        save_file({name: weights[name] for name in of_file}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, of_file in parts.items() for name in of_file}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / SINGLE).unlink()


# ---- what is there ----


def test_a_whole_folder_is_loaded(base: Path) -> None:
    found = find_base(str(base))
    model = open_model(found, dtype=torch.bfloat16)
    weights = load_file(base / SINGLE)
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == dict.fromkeys(weights, torch.bfloat16)
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"].bfloat16())
    assert (found.name, found.revision, found.folder) == (str(base), None, base)


def test_files_in_parts(base: Path) -> None:
    whole = find_base(str(base)).identity
    cut_in_two(base)
    found = find_base(str(base))
    assert len(found.files) == 2
    assert found.identity == whole, "the same model"
    open_model(found, dtype=torch.float32)


# ---- what it is known by ----


def test_a_base_is_known_wherever_it_lies(base: Path, tmp_path: Path) -> None:
    saved = find_base(str(base)).identity
    assert json.loads(json.dumps(saved)) == saved
    moved = shutil.move(base, tmp_path / "elsewhere")
    change_config(Path(moved), transformers_version="9.9", _name_or_path="who/knows")
    require_same(find_base(str(moved)), saved)


def test_a_model_of_the_same_shape_is_another_base(base: Path) -> None:
    saved = find_base(str(base)).identity
    change_weights(base, lambda weights: weights["model.layers.1.mlp.up_proj.weight"].mul_(1.01))
    with pytest.raises(ValueError, match=r"another base than this run was begun on, .*: its weights differ; name that"):
        require_same(find_base(str(base)), saved)
    change_config(base, rope_theta=5.0)
    with pytest.raises(ValueError, match="its config and weights differ"):
        require_same(find_base(str(base)), saved)


# ---- what is wrong with files ----


def truncate(folder: Path, keep: float) -> None:
    path = folder / SINGLE
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def only(name: str, content: bytes = b"") -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        for path in folder.iterdir():
            path.unlink()
        (folder / name).write_bytes(content)

    return change


def without_weights(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / SINGLE).rename(folder / name)


def in_two(change: Callable[[Path], object]) -> Callable[[Path], object]:
    def both(folder: Path) -> None:
        cut_in_two(folder)
        change(folder)

    return both


def edit_index(places: Any) -> Callable[[Path], object]:
    return in_two(lambda folder: (folder / INDEX).write_text(json.dumps({"weight_map": places})))


SECOND = "model-00002-of-00002.safetensors"

DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (lambda folder: truncate(folder, 0.7), f"{SINGLE} is cut off ("),
    "cut in the header": (lambda folder: truncate(folder, 0.01), f"{SINGLE} is no safetensors file, or a damaged one"),
    "empty": (put(SINGLE, b""), f"{SINGLE} is no safetensors file, or a damaged one"),
    "longer": (lambda f: put(SINGLE, (f / SINGLE).read_bytes() + b"x")(f), f"{SINGLE} is damaged ("),
    "no header": (put(SINGLE, (2).to_bytes(8, "little") + b"[]"), f"{SINGLE} is no safetensors file"),
    "odd header": (put(SINGLE, (20).to_bytes(8, "little") + b'{"a":{"shape":[1]}} '), "is no safetensors file"),
    "pointer": (put(SINGLE, b"version https://git-lfs.github.com/spec/v1\noid sha256:0"), "is a pointer of Git LFS"),
    "pickle": (without_weights("pytorch_model.bin"), "holds its weights as pytorch_model.bin, a file that can run code"),
    "no weights": (without_weights("weights.txt"), "holds no weights: model.safetensors or"),
    "one part gone": (in_two(lambda f: (f / SECOND).unlink()), f"{SECOND} of 2 files of weights is missing"),
    "one part cut off": (in_two(lambda f: put(SECOND, (f / SECOND).read_bytes()[:-1])(f)), f"{SECOND} is cut off"),
    "promise": (edit_index({"x.weight": SECOND}), f"{SECOND} does not hold x.weight, which"),
    "file elsewhere": (edit_index({"x.weight": "../model.safetensors"}), f"{INDEX} cannot be used"),
    "index of nothing": (edit_index({}), f"{INDEX} cannot be used"),
    "index of numbers": (edit_index([1]), f"{INDEX} cannot be used"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json: name a folder that transformers has saved"),
    "config of nothing": (put("config.json", b"{}"), "config.json cannot be used (it names no model_type)"),
    "config cut off": (put("config.json", b'{"model_type": "ll'), "config.json cannot be used"),
    "config of depth": (put("config.json", b"[" * 100_000), "config.json cannot be used"),
    "adapter": (only("adapter_config.json", b"{}"), "holds an adapter, not a base"),
    "adapter beside it": (put("adapter_config.json", b"{}"), "holds an adapter beside a model"),
    "run": (only("lm_current.pth"), "is a run's folder: make a base of it with `lmloop export "),
    "gguf": (only("model-Q4_K_M.gguf"), "holds GGUF files, which are for llama.cpp"),
    "quantized": (lambda f: change_config(f, quantization_config={"quant_method": "gptq"}), "is stored quantized (gptq)"),
    "unknown": (lambda f: change_config(f, model_type="hyena9"), "transformers does not know the model_type 'hyena9'"),
    "own code": (
        lambda f: change_config(f, model_type="hyena9", auto_map={"AutoModelForCausalLM": "modeling.M"}),
        "is run by code of its own, which could do anything: if you trust it, write model.trust_remote_code '",
    ),
    "translator": (lambda f: change_config(f, model_type="t5"), "is a 't5', which is no language model that continues text"),
    "nonsense": (lambda f: change_config(f, hidden_size="wide"), "transformers cannot load it ("),
    "no heads": (lambda f: change_config(f, num_attention_heads=0), "transformers cannot load it ("),
    "missing tensor": (
        lambda f: change_weights(f, lambda w: w.pop("model.norm.weight")),
        "its weights do not fit its config.json (model.norm.weight is missing from the files)",
    ),
    "too many tensors": (
        lambda f: change_weights(f, lambda w: w.update({"model.extra.weight": torch.ones(2)})),
        "(model.extra.weight is not in the model)",
    ),
    "another shape": (
        lambda f: change_weights(f, lambda w: w.update({"model.norm.weight": torch.ones(31)})),
        "(model.norm.weight is 31 in the files and 32 in the model)",
    ),
    "fewer layers": (lambda f: change_config(f, num_hidden_layers=1), "is not in the model; and 6 more)"),
    "another architecture": (lambda f: change_config(f, model_type="gpt2"), "its weights do not fit its config.json ("),
    "another width": (lambda f: change_config(f, intermediate_size=64), "is 48x32 in the files and 64x32 in the model"),
    "no head": (lambda f: change_weights(f, lambda w: w.pop("lm_head.weight")), "lm_head.weight is missing from the files"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_is_wrong_is_said_in_one_line(case: str, base: Path) -> None:
    damage, reason = DAMAGE[case]
    damage(base)
    message = refusal(base)
    assert reason in message
    assert message.startswith(f"model.pretrained: {base}")


def test_a_tied_head_may_be_left_out(tmp_path: Path) -> None:
    make_base(tmp_path, "qwen2")
    assert "lm_head.weight" not in load_file(tmp_path / SINGLE)
    open_model(find_base(str(tmp_path)), dtype=torch.float32)


class Trap:
    """What a pickle could do."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


def test_nothing_is_unpickled(base: Path, tmp_path: Path) -> None:
    (base / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    open_model(find_base(str(base)), dtype=torch.float32)
    (base / SINGLE).unlink()
    refusal(base)
    assert not (tmp_path / "sprung").exists()


CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({proof!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own-llama"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_code_of_a_model_runs_only_where_its_name_is_trusted(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    proof = tmp_path / "ran"
    (base / "modeling_own.py").write_text(CODE.format(proof=str(proof)))
    own = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnModel"}
    change_config(base, model_type="own-llama", auto_map=own)
    assert "if you trust it, write model.trust_remote_code" in refusal(base)
    assert "'someone/else' is not model.pretrained" in refusal(base, trusted="someone/else")
    assert not proof.exists()
    model = open_model(find_base(str(base), trusted=str(base)), dtype=torch.float32)
    assert type(model).__name__ == "OwnModel"
    assert proof.exists()


# ---- names ----


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in (tmp_path / "file", tmp_path / "nothing", "./nothing", "a/b/c"):
        assert "is not a folder: name one that holds config.json, or a hub id" in refusal(name)
    assert "has none: leave it out" in refusal(tmp_path, revision="main")


@pytest.fixture
def hub(base: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub with `base` as owner/model; `error` is raised in the place of its answers."""
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    state: dict[str, Any] = {"error": None, "asked": [], "away": None, "cached": True}
    snapshot = base.parent / "snapshots" / ("c" * 40)

    def download(name: str, file: str, revision: str | None = None, local_files_only: bool = False) -> str:
        state["asked"].append((file, revision))
        if state["error"] is not None:
            raise state["error"]
        assert name == "owner/model"
        if local_files_only and not (snapshot / file).exists():
            raise LocalEntryNotFoundError(f"{file} is not in the cache")
        if not (base / file).is_file():
            raise RemoteEntryNotFoundError(f"no {file}", response=_Response(404))  # type: ignore[arg-type]
        snapshot.mkdir(parents=True, exist_ok=True)
        shutil.copy(base / file, snapshot / file)
        return str(snapshot / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(base_hub, "unreachable", lambda: state["away"])
    return state


class _Response:
    def __init__(self, status: int) -> None:
        self.status_code = status
        self.headers: dict[str, str] = {}
        self.request = None


@pytest.mark.parametrize("parts", [False, True])
def test_a_hub_id(parts: bool, hub: dict[str, Any], base: Path) -> None:
    if parts:
        cut_in_two(base)
    found = find_base("owner/model", "v2")
    assert (found.name, found.revision) == ("owner/model", "c" * 40)
    assert hub["asked"][0] == ("config.json", "v2")
    assert {revision for _, revision in hub["asked"][1:]} == {"c" * 40}, "all of one commit"
    open_model(found, dtype=torch.float32)
    assert find_base("owner/model", weights=False).config == found.config
    hub["away"] = "no network"
    assert find_base("owner/model").identity == found.identity, "from the cache"


def test_the_hubs_answers_in_words(hub: dict[str, Any]) -> None:
    from huggingface_hub import errors

    def said(error: Exception) -> str:
        hub["error"] = error
        return refusal("owner/model", revision="v2")

    gone = _Response(404)
    assert "owner/model is gated: accept its conditions at https://" in said(errors.GatedRepoError("x", response=gone))  # type: ignore[arg-type]
    assert "has no revision 'v2'" in said(errors.RevisionNotFoundError("x", response=gone))  # type: ignore[arg-type]
    assert "no model of that name is on the hub" in said(errors.RepositoryNotFoundError("x", response=gone))  # type: ignore[arg-type]
    assert "the hub refuses owner/model to your token" in said(errors.HfHubHTTPError("x", response=_Response(403)))  # type: ignore[arg-type]
    assert "could not be fetched (no space left)" in said(OSError("no space left"))
    hub["away"] = "no answer within 3 s"
    assert "not to be had from the hub (no answer within 3 s)" in said(errors.LocalEntryNotFoundError("x"))
