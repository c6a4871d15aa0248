"""Models of transformers behind our interface: the same logits, documents apart, caches, memory; and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmloop.generation.engine import Engine
from lmloop.models.base import LanguageModel
from lmloop.models.build import build_model
from lmloop.models.loading import load_weights, parameter_counts
from lmloop.models.pretrained import Pretrained
from lmloop.objectives.language import LanguageObjective
from lmloop.preset.schema import AdapterSection, ModelSection
from lmloop.tokens.batch import Batch
from tests.generation.fakes import GREEDY, tokenizer_of
from tests.models.bases import TRAINED, VOCAB, make_base

TOLERANCE = 1e-5
SEQ_LENGTH = 40


def section(folder: Path, **changes: Any) -> ModelSection:
    return ModelSection(pretrained=str(folder), seq_length=SEQ_LENGTH, **changes)


def opened(folder: Path, adapter: AdapterSection | None = None, **named: Any) -> Pretrained:
    model = build_model(section(folder), VOCAB, 0, adapter, **named)
    assert isinstance(model, Pretrained)
    return model


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder for each family."""
    folder = tmp_path_factory.mktemp("bases")
    for family in TRAINED:
        make_base(folder / family, family)
    return folder


def tokens(rows: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def segments(*cuts: tuple[int, ...]) -> Tensor:
    """Numbers of documents of these lengths, a row for each."""
    return torch.stack([torch.repeat_interleave(torch.arange(len(c)), torch.tensor(c)) for c in cuts]).int()


CUTS = ((7, 18, 1, 14), (40,), (1, 1, 37, 1))


def alone(model: LanguageModel, tokens_BT: Tensor) -> Tensor:
    """What `CUTS`' documents have for hidden states when each is a row of its own."""
    rows = zip(tokens_BT, CUTS, strict=True)
    return torch.stack([torch.cat([model.hidden(part[None])[0] for part in row.split(cuts)]) for row, cuts in rows])


# ---- the same model ----


@pytest.mark.parametrize("family", TRAINED)
def test_logits_are_those_of_transformers(family: str, bases: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = opened(bases / family).eval()
    theirs = AutoModelForCausalLM.from_pretrained(bases / family, attn_implementation="eager").eval()
    with torch.no_grad():
        expected_BTV = theirs(tokens(3, 40)).logits
        logits_BTV = model.head(model.hidden(tokens(3, 40)))
    torch.testing.assert_close(logits_BTV, expected_BTV, atol=TOLERANCE, rtol=TOLERANCE)
    assert model.vocab_size == VOCAB
    assert parameter_counts(model)["total"] == theirs.num_parameters()


@pytest.mark.parametrize("family", TRAINED)
def test_packed_documents_are_as_if_alone(family: str, bases: Path) -> None:
    """mistral's window of 12 is shorter than its documents; bloom has no positions that could restart."""
    model = opened(bases / family).eval()
    tokens_BT = tokens(3, 40)
    packed_BTD = model.hidden(tokens_BT, segments(*CUTS))
    torch.testing.assert_close(packed_BTD, alone(model, tokens_BT), atol=TOLERANCE, rtol=TOLERANCE)
    changed_BT = tokens_BT.clone()
    changed_BT[0, :7] = (changed_BT[0, :7] + 1) % VOCAB
    changed_BTD = model.hidden(changed_BT, segments(*CUTS))
    assert (changed_BTD[0, :7] != packed_BTD[0, :7]).any()
    torch.testing.assert_close(changed_BTD[0, 7:], packed_BTD[0, 7:], atol=1e-6, rtol=0)
    assert model.packs == (family != "bloom")
    assert len(model.notices) == (family == "bloom")


def test_gradients_of_packed_documents_are_those_of_documents_alone(bases: Path) -> None:
    model = opened(bases / "qwen3")
    tokens_BT = tokens(3, 40)
    model.hidden(tokens_BT, segments(*CUTS)).square().sum().backward()
    packed = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    alone(model, tokens_BT).square().sum().backward()
    compared = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(packed[name], parameter.grad, atol=1e-4, rtol=1e-4)
            compared += 1
    assert compared == len(list(model.parameters())) - 1, "all but the head"


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_packed_documents_in_bf16(family: str, bases: Path) -> None:
    """The blocks that are fast on a CPU, against transformers' masks in fp32; documents longer than a block."""
    make_base(bases / f"{family}-long", family, max_position_embeddings=512, sliding_window=400)
    model = build_model(ModelSection(pretrained=str(bases / f"{family}-long"), seq_length=300), VOCAB, 0)
    assert isinstance(model, Pretrained)
    tokens_BT, segments_BT = tokens(2, 300), segments((200, 60, 40), (300,))
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        fast_BTD = model.hidden(tokens_BT, segments_BT).float()
    model.attention = "eager"
    plain_BTD = model.hidden(tokens_BT, segments_BT)
    assert (fast_BTD - plain_BTD).norm() < 0.03 * plain_BTD.norm()


def test_the_loss_and_its_gradient_are_transformers_own(bases: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = opened(bases / "llama")
    theirs = AutoModelForCausalLM.from_pretrained(bases / "llama").train()
    tokens_BT = tokens(4, 20)
    inputs_BT, targets_BT = tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous()
    batch = Batch(inputs_BT, targets_BT, torch.ones(4, 19), None, torch.zeros(4, dtype=torch.int64), ((),) * 4)
    term = LanguageObjective()(model, batch)["loss"]
    loss = term.sum / term.count
    expected = theirs(tokens_BT, labels=tokens_BT).loss
    torch.testing.assert_close(loss, expected, atol=TOLERANCE, rtol=TOLERANCE)
    loss.backward()
    expected.backward()
    for name, parameter in theirs.named_parameters():
        own = model.get_parameter(f"network.{name}").grad
        torch.testing.assert_close(own, parameter.grad, atol=TOLERANCE, rtol=1e-4)


# ---- writing ----


@pytest.mark.parametrize("family", TRAINED)
def test_decoding_bit_by_bit_behind_padding_is_reading_at_once(family: str, bases: Path) -> None:
    model = opened(bases / family).eval()
    texts = [tokens(1, length, seed=length)[0] for length in (30, 19, 1)]
    longest = max(map(len, texts))
    padded_BT = torch.stack([torch.nn.functional.pad(text, (longest - len(text), 0), value=3) for text in texts])
    with torch.no_grad():
        cache = model.make_cache(3, longest)
        cache.pad_B = torch.tensor([longest - len(text) for text in texts])
        pieces = [model.decode(piece_BT, cache) for piece_BT in padded_BT.split([20, 1, 1, 8], dim=1)]
        hidden_BTD = torch.cat(pieces, dim=1)
        for row, text in zip(hidden_BTD, texts, strict=True):
            expected_TD = model.hidden(text[None])[0]
            torch.testing.assert_close(row[longest - len(text) :], expected_TD, atol=TOLERANCE, rtol=TOLERANCE)


def test_a_cache_can_be_set_back(bases: Path) -> None:
    model = opened(bases / "llama").eval()
    text = tokens(1, 12)
    with torch.no_grad():
        cache = model.make_cache(1, 20)
        model.decode(tokens(1, 9, seed=8), cache)
        cache.length = 0
        model.decode(text[:, :5], cache)
        model.decode(tokens(1, 4, seed=9), cache)
        cache.length = 5
        hidden_BTD = model.decode(text[:, 5:], cache)
        torch.testing.assert_close(hidden_BTD, model.hidden(text)[:, 5:], atol=TOLERANCE, rtol=TOLERANCE)


def test_the_engine_writes_what_transformers_writes(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = tokenizer_of("the quick brown fox jumps over the lazy dog 0123456789")
    base = make_base(tmp_path, "qwen3", vocab_size=tokenizer.vocab_size, eos_token_id=tokenizer.eos_id)
    with torch.no_grad():
        base.lm_head.weight[: tokenizer.vocab_size - 30] = 0.0  # letters, and no bytes that are no text
    base.save_pretrained(tmp_path)
    model = build_model(section(tmp_path), tokenizer.vocab_size, 0)
    engine = Engine(model, tokenizer, torch.device("cpu"))
    prompts = ["the quick", "dog", "brown fox 12"]
    written = engine.generate(prompts, GREEDY, max_new_tokens=20)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    never = [[token] for token in {tokenizer.pad_id, tokenizer.start_id} - {tokenizer.eos_id}]
    for prompt, text in zip(prompts, written, strict=True):
        ids = torch.tensor([[tokenizer.start_id, *tokenizer.encode(prompt).tolist()]])
        all_ids = theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False, bad_words_ids=never,
            pad_token_id=tokenizer.pad_id,
        )[0]  # fmt: skip
        assert text.text == tokenizer.decode(all_ids[ids.shape[1] :].tolist())
        assert len(text.text) > 5


# ---- memory ----


def test_what_precision_weights_are_kept_in(bases: Path) -> None:
    def dtypes(model: Pretrained) -> tuple[set[torch.dtype], set[torch.dtype]]:
        trained = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
        return trained, {parameter.dtype for parameter in model.parameters() if not parameter.requires_grad}

    assert dtypes(opened(bases / "llama", bf16=True)) == ({torch.float32}, set())
    assert dtypes(opened(bases / "llama", AdapterSection(), bf16=True)) == ({torch.float32}, {torch.bfloat16})
    assert dtypes(opened(bases / "llama", AdapterSection())) == ({torch.float32}, {torch.float32})
    with_biases = opened(bases / "qwen2", AdapterSection(bias="all"), bf16=True)
    assert dtypes(with_biases) == ({torch.float32}, {torch.float32})


@pytest.mark.parametrize("adapter", [None, AdapterSection(rank=2, dropout=0.3)])
def test_recomputed_blocks_have_the_same_gradients(adapter: AdapterSection | None, bases: Path) -> None:
    model = opened(bases / "llama", adapter)
    calls: list[int] = []
    model.body.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))

    def gradients(*, recompute: bool) -> dict[str, Tensor]:
        model.activation_checkpointing = recompute
        model.zero_grad()
        torch.manual_seed(3)
        model.hidden(tokens(3, 40), segments(*CUTS)).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = gradients(recompute=False)
    assert len(calls) == 1
    recomputed = gradients(recompute=True)
    assert len(calls) == 3, "once in the forward pass, once in the backward pass"
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-5)
    gradients(recompute=False)
    assert len(calls) == 4


def test_llama_31_8b_with_rank_16_has_the_known_number_of_trained_parameters(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    from lmloop.models.loading import trainable_and_total

    shape = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256}
    LlamaConfig(hidden_size=4096, intermediate_size=14336, **shape).save_pretrained(tmp_path)
    for targets in ("all-linear", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]):
        with torch.device("meta"):
            model = build_model(section(tmp_path), 128_256, 0, AdapterSection(rank=16, target_modules=targets))
        assert trainable_and_total(model) == (41_943_040, 8_030_261_248 + 41_943_040)


# ---- rows ----


def test_a_larger_tokenizer_gives_rows_to_a_model_that_is_trained_as_a_whole(bases: Path) -> None:
    for family in ("llama", "qwen2"):
        model = build_model(section(bases / family), VOCAB + 3, 0)
        assert isinstance(model, Pretrained)
        assert model.vocab_size == VOCAB + 3
        embedding = model.causal.get_input_embeddings().weight
        for table in (embedding, model.head_weight()):
            torch.testing.assert_close(table[VOCAB:], table[:VOCAB].mean(dim=0).expand(3, -1))
        assert (embedding is model.head_weight()) == (family == "qwen2")
        model.hidden(torch.tensor([[VOCAB + 2, 5]]))


def test_under_an_adapter_a_base_gets_a_row_for_padding_and_no_more(bases: Path) -> None:
    adapter = AdapterSection(rank=2)
    model = build_model(section(bases / "llama"), VOCAB + 1, 0, adapter)
    assert model.vocab_size == VOCAB + 1
    assert all("lora" in name for name in model.trainable_state_dict())
    with pytest.raises(ValueError, match="an adapter does not train new ones"):
        build_model(section(bases / "llama"), VOCAB + 2, 0, adapter)
    assert build_model(section(bases / "llama"), VOCAB - 20, 0, adapter).vocab_size == VOCAB, "rows to spare"


# ---- what a checkpoint stores ----


def test_a_model_trained_as_a_whole_needs_its_base_no_more(bases: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    make_base(folder, "bloom")
    old = opened(folder).eval()
    with torch.no_grad():
        for parameter in old.parameters():
            parameter *= 1.1
    weights, identity = copy.deepcopy(old.trainable_state_dict()), copy.deepcopy(old.base_identity)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    model = opened(folder, saved_base=identity)
    report = load_weights(model, weights)
    assert not report.new
    assert not model.packs, "as it was tried"
    assert model.base_identity == identity
    tokens_BT = tokens(3, 40)
    expected_BTD = old.hidden(tokens_BT, segments(*CUTS))
    torch.testing.assert_close(model.eval().hidden(tokens_BT, segments(*CUTS)), expected_BTD)


def test_the_global_random_state_is_left_alone(bases: Path) -> None:
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first = opened(bases / "llama", AdapterSection()).trainable_state_dict()
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(12)
    second = opened(bases / "llama", AdapterSection()).trainable_state_dict()
    other = build_model(section(bases / "llama"), VOCAB, 1, AdapterSection()).trainable_state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


# ---- what cannot be trained ----


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gemma2", {}, "caps its logits (at 30)"),
        ("phi", {}, "has a bias in its output head"),
        ("llama", {"is_causal": False}, "lets positions see later ones"),
    ],
)
def test_what_the_loss_or_the_rows_would_get_wrong_is_refused(
    family: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    make_base(tmp_path, family, **changes)
    with pytest.raises(ValueError, match=r".") as error:
        opened(tmp_path)
    assert reason in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_weights_that_are_not_finite_are_noticed(tmp_path: Path) -> None:
    base = make_base(tmp_path)
    with torch.no_grad():
        base.model.norm.weight[3] = torch.nan
    base.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gives outputs that are not finite: its weights are damaged"):
        opened(tmp_path)


def test_another_head_is_noticed(bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaForCausalLM

    forward = LlamaForCausalLM.forward

    def bent(self: Any, **named: Any) -> Any:
        output = forward(self, **named)
        output.logits = output.logits.tanh()
        return output

    monkeypatch.setattr(LlamaForCausalLM, "forward", bent)
    with pytest.raises(ValueError, match="makes its logits otherwise than by its head's matrix"):
        opened(bases / "llama")


def test_attention_that_lets_documents_mix_is_not_used(bases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, and then also the masks that transformers makes."""
    from lmloop.models import segment_attention

    attend = segment_attention.attend

    def blind(*arguments: Any, packing: Any = None, **named: Any) -> Any:
        return attend(*arguments[:4], None if packing else arguments[4], *arguments[5:], **named)

    monkeypatch.setattr(segment_attention, "attend", blind)
    model = opened(bases / "llama")
    assert (model.packs, model.attention) == (True, "sdpa")
    tokens_BT = tokens(3, 40)
    torch.testing.assert_close(
        model.hidden(tokens_BT, segments(*CUTS)), alone(model, tokens_BT), atol=TOLERANCE, rtol=TOLERANCE
    )

    import transformers.masking_utils

    monkeypatch.setattr(transformers.masking_utils, "find_packed_sequence_indices", lambda positions: None)
    model = opened(bases / "llama")
    assert not model.packs
    torch.testing.assert_close(
        model.hidden(tokens_BT, segments(*CUTS)), alone(model, tokens_BT), atol=TOLERANCE, rtol=TOLERANCE
    )


def test_rows_longer_than_the_model_are_refused(bases: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.seq_length: 65 tokens, but .* has 64 positions: lower it"):
        build_model(ModelSection(pretrained=str(bases / "llama"), seq_length=65), VOCAB, 0)
