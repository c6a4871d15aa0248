import itertools
import math
import random

import pytest
import torch

from lmloop.generation.sampling import (
    NUCLEUS_CANDIDATES,
    History,
    adjust,
    apply_temperature,
    block,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    row_generator,
    sample,
)
from lmloop.preset.schema import GenerationSection

CPU = torch.device("cpu")
PLAIN = {"temperature": 1.0, "top_p": 1.0}


def logits(rows: int, vocabulary: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))


def softmax(row: list[float]) -> list[float]:
    largest = max(row)
    exponentials = [math.exp(x - largest) for x in row]
    return [x / sum(exponentials) for x in exponentials]


def kept(logits_BV: torch.Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits_BV]


@pytest.mark.parametrize("k", [1, 2, 7, 49])
def test_top_k_keeps_the_k_largest(k: int) -> None:
    given = logits(4, 50)
    expected = [set(sorted(range(50), key=lambda token: -row[token])[:k]) for row in given.tolist()]
    result = keep_top_k(given, k)
    assert kept(result) == expected
    assert all(result[row, token] == given[row, token] for row in range(4) for token in expected[row])


@pytest.mark.parametrize("vocabulary", [50, 4 * NUCLEUS_CANDIDATES])
@pytest.mark.parametrize("p", [0.01, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.01, 1.0])  # nearly equal logits need more than the first candidates
def test_top_p_keeps_the_smallest_set_that_reaches_p(p: float, vocabulary: int, spread: float) -> None:
    given = spread * logits(3, vocabulary)
    expected = []
    for row in given.tolist():
        probabilities, chosen, total = softmax(row), set(), 0.0
        for token in sorted(range(vocabulary), key=lambda token: -row[token]):
            chosen.add(token)
            total += probabilities[token]
            if total >= p:
                break
        expected.append(chosen)
    assert kept(keep_top_p(given, p)) == expected


def test_equals_of_the_last_one_stay() -> None:
    given = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    assert kept(keep_top_p(given, 0.1)) == [{0, 1, 3}]
    assert kept(keep_top_k(given, 2)) == [{0, 1, 3}]


@pytest.mark.parametrize("share", [1e-6, 0.05, 0.5, 1.0])
def test_min_p_compares_with_the_likeliest(share: float) -> None:
    given = logits(4, 50)
    expected = []
    for row in given.tolist():
        probabilities = softmax(row)
        expected.append({token for token in range(50) if probabilities[token] >= share * max(probabilities) * (1 - 1e-6)})
    assert kept(keep_min_p(given, share)) == expected


def test_penalty_makes_what_was_seen_less_likely_on_either_side_of_zero() -> None:
    given = torch.tensor([[2.0, -2.0, 1.0, -1.0], [2.0, -2.0, 1.0, -1.0]])
    seen = torch.tensor([[True, True, False, False], [False, False, True, True]])
    expected = torch.tensor([[1.0, -4.0, 1.0, -1.0], [2.0, -2.0, 0.5, -2.0]])
    assert torch.equal(penalise_repetition(given, seen, 2.0), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_history_bans_what_would_repeat_an_ngram(size: int) -> None:
    options = GenerationSection(no_repeat_ngram_size=size)
    generator = random.Random(size)
    tokens = [generator.randrange(4) for _ in range(60)]
    history = History(options, 4, CPU, tokens[:20])
    for count in range(20, 60):
        before = tokens[:count]
        ngrams = {tuple(before[i : i + size]) for i in range(count - size + 1)}
        expected = {token for token in range(4) if (*before[count - size + 1 :], token) in ngrams}
        assert set(history.banned()) == expected
        history.append(tokens[count])


def test_history_keeps_nothing_that_is_off() -> None:
    history = History(GenerationSection(), 4, CPU, [1, 2, 1, 2])
    history.append(1)
    assert history.seen_V is None
    assert not history.banned()


def test_blocking_is_by_row() -> None:
    assert kept(block(torch.zeros(3, 4), [{0, 2}, (), [3]])) == [{1, 3}, {0, 1, 2, 3}, {0, 1, 2}]


@pytest.mark.parametrize("temperature", [1e-300, 1e-6, 0.5, 1.0, 100.0])
def test_temperature_is_a_power_of_the_distribution(temperature: float) -> None:
    given = logits(2, 6).double()
    expected = [softmax([(x - max(row)) / temperature for x in row]) for row in given.tolist()]
    torch.testing.assert_close(apply_temperature(given, temperature).softmax(-1), torch.tensor(expected).double())


def test_order_is_that_of_transformers() -> None:
    """Each option changes what the next one sees; transformers' own processors are the oracle."""
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    given = logits(3, 40, seed=5)
    tokens = torch.randint(0, 40, (3, 60), generator=torch.Generator().manual_seed(1))
    options = GenerationSection(
        temperature=0.7, top_k=12, top_p=0.8, min_p=0.08, repetition_penalty=1.7, no_repeat_ngram_size=2
    )
    processors = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.7),
            NoRepeatNGramLogitsProcessor(2),
            TemperatureLogitsWarper(0.7),
            TopKLogitsWarper(12),
            TopPLogitsWarper(0.8),
            MinPLogitsWarper(0.08),
        ]
    )
    expected = processors(tokens, given.clone()).softmax(-1)  # type: ignore[arg-type]
    histories = [History(options, 40, CPU, row) for row in tokens.tolist()]
    torch.testing.assert_close(adjust(given, options, histories).softmax(-1), expected)
    assert 1 < (expected > 0).sum(-1).max() < 12


@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": 3},
        {"top_p": 0.5},
        {"min_p": 0.3},
        {"repetition_penalty": 2.0},
        {"no_repeat_ngram_size": 1},
        {"temperature": 0.5},
    ],
)
def test_logits_are_left_as_they_were(changes: dict[str, float]) -> None:
    given = logits(2, 10)
    before = given.clone()
    options = GenerationSection(**{**PLAIN, **changes})  # type: ignore[arg-type]
    histories = [History(options, 10, CPU, [1, 2]) for _ in range(2)]
    assert not torch.equal(adjust(given, options, histories), before)
    assert torch.equal(given, before)


def chi_square(counts: list[int], probabilities: list[float]) -> float:
    total = sum(counts)
    return sum((count - total * p) ** 2 / (total * p) for count, p in zip(counts, probabilities, strict=True) if p > 0)


CRITICAL = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47}
"""Chi-square that is exceeded with probability 0.001, by degrees of freedom."""


@pytest.mark.parametrize(
    ("changes", "ruled_out"),
    [
        ({}, set()),
        ({"temperature": 2.0}, set()),
        ({"top_k": 3}, {0, 3}),
        ({"top_p": 0.8}, {0, 2, 3}),
        ({"min_p": 0.3}, {0, 3}),
    ],
)
def test_distribution_of_five_tokens(changes: dict[str, float], ruled_out: set[int]) -> None:
    weights = [0.05, 0.4, 0.15, 0.03, 0.37] if "top_p" not in changes else [0.05, 0.45, 0.05, 0.03, 0.42]
    options = GenerationSection(**{**PLAIN, **changes})  # type: ignore[arg-type]
    power = 1 / options.temperature
    powered = [0.0 if token in ruled_out else weight**power for token, weight in enumerate(weights)]
    expected = [x / sum(powered) for x in powered]
    draws = 20_000
    rows = torch.tensor(weights).log().expand(draws, 5)
    shared = row_generator(7, 0)
    chosen = sample(rows, options, [shared] * draws, [History(options, 5, CPU)] * draws)
    counts = torch.bincount(chosen, minlength=5).tolist()
    assert all(counts[token] == 0 for token in ruled_out)
    assert chi_square(counts, expected) < CRITICAL[4 - len(ruled_out)], counts


def test_draw_inverts_the_cumulative_sum() -> None:
    given = torch.tensor([[0.2, 0.0, 0.3, 0.5]]).log()
    at = {0.0: 0, 0.19: 0, 0.21: 2, 0.49: 2, 0.51: 3, 1 - 2**-53: 3}
    for uniform, token in at.items():
        assert draw(given, torch.tensor([uniform], dtype=torch.float64)).tolist() == [token]


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53, 1.0])
def test_draw_never_takes_what_is_ruled_out(uniform: float) -> None:
    for allowed in itertools.chain([[0], [4]], itertools.combinations(range(5), 2)):
        given = torch.full((1, 5), -math.inf)
        given[0, list(allowed)] = 0.0
        assert draw(given, torch.tensor([uniform], dtype=torch.float64)).item() in allowed


def test_greedy_takes_the_largest_of_what_is_allowed() -> None:
    options = GenerationSection(temperature=0.0, no_repeat_ngram_size=1)
    given = torch.tensor([[1.0, 5.0, 3.0]])
    assert sample(given, options, [row_generator(0, 0)], [History(options, 3, CPU)]).tolist() == [1]
    assert sample(given, options, [row_generator(0, 0)], [History(options, 3, CPU, [1])]).tolist() == [2]


def test_random_numbers_depend_on_all_of_the_seed_and_the_row_and_not_on_the_global_state() -> None:
    def first(seed: int, row: int) -> float:
        return torch.rand((), generator=row_generator(seed, row)).item()

    torch.manual_seed(0)
    state = torch.get_rng_state()
    cases = [(0, 0), (0, 1), (1, 0), (2**32, 0), (2**63 - 1, 0)]
    values = [first(*case) for case in cases]
    assert len(set(values)) == len(cases)
    torch.manual_seed(1)
    assert values == [first(*case) for case in cases]
    torch.manual_seed(0)
    assert torch.equal(state, torch.get_rng_state())
