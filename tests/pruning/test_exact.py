from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from graftlm.pruning import prune_chain
from graftlm.pruning.greedy import Deletions, exact_order
from graftlm.pruning.scorer import Scorer
from tests.conftest import ARCHITECTURES, VOCABULARY, tiny_model
from tests.pruning.reference import greedy, objective_value

QUESTION, CHAIN, ANSWER = list(b"How?"), list(b"2+3=5, so"), list(b" 5.")


def exact(model: Any, objective: str = "joint", chain: Any = None, **options: Any) -> Deletions:
    units = [[token] for token in CHAIN] if chain is None else chain
    return exact_order(Scorer(model, QUESTION, units, ANSWER, objective, **options), ())


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["joint", "answer"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_order_is_that_of_the_plain_algorithm(architecture: str, objective: str) -> None:
    model = tiny_model(architecture, initializer_range=0.3).double()
    order, values = greedy(model, QUESTION, [[token] for token in CHAIN], ANSWER, objective)
    found = exact(model, objective)
    assert found.order == order
    assert found.values == pytest.approx(values, abs=1e-9)


@pytest.mark.parametrize("objective", ["joint", "answer"])
def test_of_equally_good_deletions_the_first_in_the_text_counts(objective: str) -> None:
    # Without either of two equal neighbours the text is the same.
    model, units = tiny_model(initializer_range=0.3).double(), [[token] for token in b"aabbbccd"]
    order, _ = greedy(model, QUESTION, units, ANSWER, objective)
    assert exact(model, objective, units).order == order
    for runs in ([0, 1], [2, 3, 4], [5, 6]):
        assert [unit for unit in order if unit in runs] == runs


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["joint", "answer"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reusing_keys_and_values_changes_nothing(architecture: str, objective: str) -> None:
    model = tiny_model(architecture, initializer_range=0.3)
    ours, plain = exact(model, objective), exact(model, objective, reuse=False)
    assert ours.scorer.cache is not None and plain.scorer.cache is None
    assert ours.order == plain.order
    assert ours.values == pytest.approx(plain.values, abs=1e-4)


@pytest.mark.parametrize("architecture", ["gemma3_text", "mistral"])
def test_a_sliding_window_is_kept_to(architecture: str) -> None:
    model = tiny_model(architecture, initializer_range=0.3, sliding_window=4).double()
    order, values = greedy(model, QUESTION, [[token] for token in CHAIN], ANSWER, "joint")
    found = exact(model)
    assert found.order == order and found.values == pytest.approx(values, abs=1e-9)
    wide = tiny_model(architecture, initializer_range=0.3).double()  # so that this can fail
    assert exact(wide).values != pytest.approx(values, abs=1e-3)


def test_layers_with_other_states_than_keys_and_values_are_not_reused() -> None:
    model = tiny_model("lfm2", initializer_range=0.3, layer_types=["conv", "full_attention"]).double()
    found = exact(model)
    assert found.scorer.cache is None
    assert found.order == greedy(model, QUESTION, [[token] for token in CHAIN], ANSWER, "joint")[0]


@pytest.mark.parametrize("objective", ["joint", "answer"])
def test_words_are_deleted_as_units(objective: str) -> None:
    model, units = tiny_model(initializer_range=0.3).double(), [list(b"So"), list(b" 2+3"), list(b" is"), list(b" 5")]
    order, values = greedy(model, QUESTION, units, ANSWER, objective)
    found = exact(model, objective, units)
    assert found.order == order and found.values == pytest.approx(values, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("batch_tokens", [1, 7, 40, 10_000])
def test_the_size_of_a_pass_changes_nothing(batch_tokens: int) -> None:
    model = tiny_model(initializer_range=0.3).double()
    assert exact(model, batch_tokens=batch_tokens).order == exact(model).order


def test_scores_of_some_units_are_those_of_all(model: Any) -> None:
    scorer = Scorer(model.double(), QUESTION, [[token] for token in CHAIN], ANSWER)
    scorer.delete(3)
    expected = [
        objective_value(model, QUESTION, [CHAIN[other] for other in scorer.left if other != unit], ANSWER, "joint")
        for unit in scorer.left
    ]
    assert scorer.scores(scorer.left).tolist() == pytest.approx(expected, abs=1e-9)
    some = [place for place, unit in enumerate(scorer.left) if unit in (1, 5, 8)]
    assert scorer.scores([1, 5, 8]).tolist() == pytest.approx([expected[place] for place in some], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "window"), [*((each, None) for each in ARCHITECTURES), ("gemma3_text", 4), ("mistral", 4)]
)
def test_rows_that_are_read_in_parts_say_what_they_say_in_one(architecture: str, window: int | None) -> None:
    sliding = {} if window is None else {"sliding_window": window}
    model = tiny_model(architecture, initializer_range=0.3, **sliding).double()
    units = [list(text) for text in (b"So", b" 2", b"+", b"3 is", b" 5", b",", b" t", b"hat", b" i", b"s", b" it")]
    generator, lengths = random.Random(0), set()
    parts = Scorer(model, QUESTION, units, ANSWER, batch_tokens=24)
    while len(parts.left) > 3:
        fresh = Scorer(model, QUESTION, [units[unit] for unit in parts.left], ANSWER)
        assert parts.value == pytest.approx(fresh.value, abs=1e-9)
        torch.testing.assert_close(parts.hidden, fresh.hidden)
        expected = dict(zip(parts.left, fresh.read_without(range(len(parts.left))).values(), strict=True))
        some = generator.sample(parts.left, 4)
        for reach in (2, 3):
            for unit, found in parts.read_without(some, reach).items():
                lengths.add(len(found) == len(expected[unit]))
                assert found.tolist() == pytest.approx(expected[unit][: len(found)].tolist(), abs=1e-9)
        for unit, found in parts.read_without(some[:3]).items():
            assert found.tolist() == pytest.approx(expected[unit].tolist(), abs=1e-9)
        best = max(some[:3], key=lambda unit: float(expected[unit].sum()))
        parts.delete(best if len(parts.left) % 2 else generator.choice(parts.left))
    assert lengths == {True, False}


def test_what_is_read_in_part_begins_where_something_has_changed(model: Any) -> None:
    scorer = Scorer(model.double(), QUESTION, [[token] for token in CHAIN], ANSWER, batch_tokens=1)
    assert scorer.known.end < len(QUESTION) + 5  # of what comes after, no states are kept
    first = len(QUESTION)
    assert len(scorer.read_without([0], 2)[0]) == first + 2
    scorer.read_without([0])
    scorer.delete(7)
    # Without 0 the sequence is up to where 7 was what it was.
    assert len(scorer.read_without([0], 2)[0]) == first + 6 + 2
    assert len(scorer.read_without([8], 2)[8]) == first + 7 + 2


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_chain_that_fills_the_context_can_be_read_in_parts(architecture: str) -> None:
    length = len(QUESTION) + len(CHAIN) + len(ANSWER)
    name = "n_positions" if architecture == "gpt2" else "max_position_embeddings"
    model = tiny_model(architecture, initializer_range=0.3, **{name: length}).double()
    scorer = Scorer(model, QUESTION, [[token] for token in CHAIN], ANSWER)
    expected = scorer.read_without([0, 8])
    for unit, found in Scorer(model, QUESTION, [[token] for token in CHAIN], ANSWER).read_without([0, 8], 9).items():
        assert found.tolist() == pytest.approx(expected[unit][: len(found)].tolist(), abs=1e-9)


def test_for_the_answer_alone_all_is_read_to_the_end(model: Any) -> None:
    scorer = Scorer(model, QUESTION, [[token] for token in CHAIN], ANSWER, "answer")
    assert len(scorer.read_without([0], 2)[0]) == len(scorer.ids) - 1


def test_a_model_without_positions_reads_to_the_end() -> None:
    config = AutoConfig.for_model("bloom", vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    scorer = Scorer(model, QUESTION, [[token] for token in CHAIN], ANSWER)
    assert scorer.cache is not None and not scorer.decoder.takes_positions
    lengths = [len(found) for found in scorer.read_without([0, 4], 2).values()]
    assert lengths == [len(QUESTION) + len(CHAIN) - 1 + len(ANSWER)] * 2


def test_log_likelihoods_are_those_of_the_texts_that_are_left(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(initializer_range=0.3).double()
    pruned = prune_chain(model, tokenizer, "How?", "2+3=5, so", " 5.")
    question, answer = (tokenizer(text)["input_ids"] for text in ("How?", " 5."))
    for steps in (0, 1, 4, 9):
        kept = [token.id for place, token in enumerate(pruned.tokens) if place not in pruned.order[:steps]]
        expected = objective_value(model, question, kept, answer, "joint")
        assert pruned.log_likelihoods[steps] == pytest.approx(expected, abs=1e-9)


class Shapes(TorchDispatchMode):
    """The largest numbers of tokens that are in one pass, and of positions that are unembedded at once."""

    def __init__(self) -> None:
        super().__init__()
        self.unembedded = self.read = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        for each in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(each, torch.Tensor) and each.dim() > 1:
                if each.shape[-1] == VOCABULARY and each.shape != (32, VOCABULARY):
                    self.unembedded = max(self.unembedded, math.prod(each.shape[:-1]))
                if function is torch.ops.aten.embedding.default:
                    self.read = max(self.read, math.prod(each.shape[:-1]))
        return output


def test_memory_is_bounded_by_the_size_of_a_pass(
    tokenizer: PreTrainedTokenizerBase, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graftlm.models.linear_cross_entropy.CHUNK_ROWS", 16)
    with Shapes() as seen:
        prune_chain(model, tokenizer, "How?", "2+3=5, so it is 5", " 5.", batch_tokens=64)
    assert 0 < seen.unembedded <= 16
    assert 32 < seen.read <= 64
