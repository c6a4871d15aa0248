"""Hugging Face folders, each loaded by the transformers that is installed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import lmloop.export.hf as hf
from lmloop.export.bundle import Bundle
from lmloop.export.export import export_bundle
from lmloop.generation.conversation import Conversation
from lmloop.generation.engine import Engine
from lmloop.models.build import build_model
from lmloop.preset.schema import GenerationSection
from tests.export.bundles import DECODER, FOREIGN, OWN, foreign, memorised, own, tokenizer


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "bundle", [*(own(name) for name in OWN), own("gpt2", feed_forward="gelu")], ids=[*OWN, "gpt2, exact GELU"]
)
def test_what_was_trained_here(bundle: Bundle, tmp_path: Path) -> None:
    report = export_bundle(bundle, "hf", tmp_path / "out")
    assert report["quantize"] == "f32"
    assert report["check"]["reader"].startswith("transformers")
    assert report["check"]["written_tokens"] > 0
    assert not report["check"]["rounded"]
    # Once more without the code of the check: the folder alone.
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32
    tokens_BT = torch.randint(bundle.rows, (2, min(bundle.context_tokens, 50)), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens_BT).logits, bundle.logits(tokens_BT), atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", FOREIGN)
def test_models_of_transformers(name: str, tmp_path: Path) -> None:
    report = export_bundle(foreign(name), "hf", tmp_path / "out")
    assert report["check"]["difference"] < 1e-6


def test_a_text_ends_where_the_model_ends_it(tmp_path: Path) -> None:
    bundle = memorised()
    report = export_bundle(bundle, "hf", tmp_path / "out")
    assert report["check"]["written_tokens"] < 24 * 3  # the end token counts; the limit was never reached
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer_there = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = model.generate(**tokenizer_there("What", return_tensors="pt"), do_sample=False)[0]
    assert ids[-1] == bundle.tokenizer.eos_id
    assert tokenizer_there.decode(ids, skip_special_tokens=True) == "What is rare"


def test_the_configuration_speaks_to_both_versions(tmp_path: Path) -> None:
    export_bundle(own("yarn"), "hf", tmp_path / "yarn")
    config = read(tmp_path / "yarn" / "config.json")
    assert config["rope_theta"] == 10_000.0
    scaling = {"rope_type": "yarn", "factor": 200 / 64, "original_max_position_embeddings": 64}
    assert config["rope_scaling"] == scaling
    assert config["rope_parameters"] == {**scaling, "rope_theta": 10_000.0}
    assert config["torch_dtype"] == "float32"
    assert read(tmp_path / "yarn" / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert AutoConfig.from_pretrained(tmp_path / "yarn").rope_parameters["factor"] == 200 / 64


def test_the_tokens_that_matter(tmp_path: Path) -> None:
    bundle = own("decoder")
    export_bundle(bundle, "hf", tmp_path / "out")
    ours = bundle.tokenizer
    for name in ("config.json", "generation_config.json"):
        content = read(tmp_path / "out" / name)
        ids = (content["bos_token_id"], content["eos_token_id"], content["pad_token_id"])
        assert ids == (ours.start_id, ours.eos_id, ours.pad_id)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == ids
    assert theirs.model_max_length == bundle.context_tokens
    text = "The 12345 naïve"
    assert theirs(text)["input_ids"] == [ours.start_id, *ours.encode(text)]
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text).tolist()
    both = theirs(["a", "a longer text"], padding=True)
    assert ours.pad_id in both["input_ids"][0]
    assert theirs.decode(theirs(text)["input_ids"], skip_special_tokens=True) == text


def test_the_way_of_writing_is_carried(tmp_path: Path) -> None:
    options = GenerationSection(temperature=0.7, top_k=5, top_p=0.9, min_p=0.02, repetition_penalty=1.2, max_new_tokens=9)
    export_bundle(own("decoder", options), "hf", tmp_path / "out")
    config = GenerationConfig.from_pretrained(tmp_path / "out")
    carried = {key: getattr(config, key) for key in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")}
    assert carried == {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2}
    assert (config.do_sample, config.max_new_tokens) == (True, 9)
    export_bundle(own("decoder", GenerationSection(temperature=0.0)), "hf", tmp_path / "greedy")
    assert GenerationConfig.from_pretrained(tmp_path / "greedy").do_sample is False


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    names = {}
    for name in ("decoder", "untied, wide heads, one key head"):
        export_bundle(own(name), "hf", tmp_path / name)
        names[name] = {stored for stored, _ in hf.read_weights(tmp_path / name)}
    assert "lm_head.weight" not in names["decoder"]
    assert "lm_head.weight" in names["untied, wide heads, one key head"]


@pytest.mark.parametrize(("kind", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_half_the_size(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    bundle = own("decoder")
    report = export_bundle(bundle, "hf", tmp_path / "out", kind)
    assert report["check"]["rounded"]
    assert 0 < report["check"]["rounding_nats"] < 1e-3
    for name, tensor in hf.read_weights(tmp_path / "out"):
        assert torch.equal(tensor, bundle.weights[name].to(dtype))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == dtype


def test_numbers_that_a_type_lacks_are_refused(tmp_path: Path) -> None:
    bundle = own("decoder")
    for value, kind, reason in ((1e6, "f16", "beyond the range of f16"), (float("nan"), "f32", "not finite")):
        weights = {name: tensor.clone() for name, tensor in bundle.weights.items()}
        weights["model.norm.weight"][3] = value
        with pytest.raises(ValueError, match=rf"model\.norm\.weight .*{reason}"):
            export_bundle(dataclasses.replace(bundle, weights=weights), "hf", tmp_path / "out", kind)
        assert list(tmp_path.iterdir()) == []


def test_large_weights_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf, "SHARD_BYTES", 100_000)
    report = export_bundle(own("decoder"), "hf", tmp_path / "out")
    shards = [name for name in report["files"] if name.endswith(".safetensors")]
    assert len(shards) > 2
    assert all(report["files"][name] < 150_000 for name in shards)
    assert set(read(tmp_path / "out" / "model.safetensors.index.json")["weight_map"].values()) == set(shards)


FORMATS = {"Q: {user}\nA:": True, "Frage — '{user}' oder \"{user}\"\\n\nAntwort:": True, "{user}": False}


@pytest.mark.parametrize("chat_format", FORMATS)
def test_a_chat_format_becomes_a_template(chat_format: str, tmp_path: Path) -> None:
    options = GenerationSection(chat_format=chat_format, max_new_tokens=4, temperature=0.0)
    bundle = own("decoder", options, seq_length=256)
    export_bundle(bundle, "hf", tmp_path / "out")
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    if not FORMATS[chat_format]:
        assert theirs.chat_template is None
        return
    model = build_model(DECODER.model_copy(update={"seq_length": 256}), bundle.rows, seed=0)
    conversation = Conversation(Engine(model, bundle.tokenizer, torch.device("cpu")), options, seed=0)
    conversation.turns = [("How\nare you?", "Well."), ("And 'now'?", "Still {{ well }}.\n")]
    prompt, _ = conversation._prompt("So?")
    messages = [
        {"role": role, "content": content}
        for turn in [*conversation.turns, ("So?", "")]
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ][:-1]
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == bundle.token(bundle.tokenizer.start_id) + prompt
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == [bundle.tokenizer.start_id, *bundle.tokenizer.encode(prompt)]
    assert (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8") == bundle.chat_template


def test_a_template_that_is_broken_is_no_export(tmp_path: Path) -> None:
    for template in ("{{ 1 / 0 }}", "{% for %}", "{{ raise_exception('no') }}"):
        bundle = dataclasses.replace(own("decoder"), chat_template=template)
        with pytest.raises(ValueError, match=r"the chat template cannot be |the template cannot be read") as error:
            export_bundle(bundle, "hf", tmp_path / "out")
        assert "\n" not in str(error.value)
    dated = dataclasses.replace(own("decoder"), chat_template="{{ bos_token + strftime_now('%Y-%m-%d') }}")
    export_bundle(dated, "hf", tmp_path / "out")  # what it says changes with the day: there is nothing to compare


def test_a_folder_that_transformers_cannot_load_is_no_export(tmp_path: Path) -> None:
    bundle = own("decoder")
    broken = {
        "hidden_size": 32,  # matrices of another shape
        "num_hidden_layers": 3,  # a layer that is not there
        "model_type": "no such thing",
    }
    for key, value in broken.items():
        with pytest.raises(ValueError, match="transformers") as error:
            export_bundle(dataclasses.replace(bundle, config={**bundle.config, key: value}), "hf", tmp_path / "out")
        assert "\n" not in str(error.value)
        assert list(tmp_path.iterdir()) == []


def test_a_model_in_bf16_stays_in_bf16(tmp_path: Path) -> None:
    report = export_bundle(foreign("qwen3", torch.bfloat16), "hf", tmp_path / "out")
    assert report["quantize"] == "bf16"
    assert not report["check"]["rounded"]


def test_a_tokenizer_that_the_embedding_has_no_rows_for(tmp_path: Path) -> None:
    import transformers

    from lmloop.export.foreign import bundle_of_transformers

    config = transformers.LlamaConfig(
        vocab_size=tokenizer("bpe").vocab_size - 1,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
    )
    with pytest.raises(ValueError, match="400 tokens, the model's embedding 399 rows"):
        bundle_of_transformers("foreign", transformers.AutoModelForCausalLM.from_config(config), tokenizer("bpe"))
