"""Drafted by the expert, checked by the others: the same tokens, the same distribution."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from transformers import PreTrainedTokenizerBase

from graftlm.decoding.speculation import SpeculativeOutput
from graftlm.errors import InputError
from graftlm.proxy import ProxyTunedModel
from graftlm.proxy.speculative import (
    LONGEST_DRAFT,
    Acceptance,
    ApartReader,
    Drafting,
    PairReader,
)
from tests.conftest import tiny_model
from tests.proxy.models import parts, with_adapter
from tests.proxy.test_model import PROMPTS, padded

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
GREEDY = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 258}


def models() -> dict[str, Any]:
    """With an expert that is mostly wrong, one that shares weights, and one that is always right."""
    base, expert, antiexpert = parts()
    return {
        "apart": ProxyTunedModel(base, expert, antiexpert),
        "shared": with_adapter()[0],
        "agreeing": ProxyTunedModel(base, expert, base),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["apart", "shared", "agreeing"])
def test_greedy_tokens_are_the_plain_ones(name: str) -> None:
    model = models()[name]
    for row in [*PROMPTS, [7]]:
        inputs = padded([row])
        found = model.generate(**inputs, **GREEDY, speculative=True, return_dict_in_generate=True)
        assert torch.equal(found.sequences, model.generate(**inputs, **GREEDY))
        assert isinstance(found, SpeculativeOutput) and 0 <= found.accepted <= found.drafted  # type: ignore[operator]
        if name == "agreeing":  # all is kept, so a round yields more than one token
            assert found.accepted == found.drafted and found.rounds <= 10  # type: ignore[operator]


@pytest.mark.slow
def test_padding_an_own_prompt_the_end_and_processors_are_minded() -> None:
    model = models()["shared"]
    row = padded([PROMPTS[1], PROMPTS[2]])
    left = {name: tensor[:1] for name, tensor in row.items()}
    assert torch.equal(model.generate(**left, **GREEDY, speculative=True), model.generate(**left, **GREEDY))
    own = padded([[60, 61, *PROMPTS[0], 62]])
    extra = {"expert_input_ids": own["input_ids"], "expert_attention_mask": own["attention_mask"]}
    inputs = padded(PROMPTS[:1])
    for settings in (extra, {"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 2}):
        plain = model.generate(**inputs, **GREEDY, **settings)
        assert torch.equal(model.generate(**inputs, **GREEDY, **settings, speculative=True), plain)
    end = int(model.generate(**inputs, **GREEDY)[0, 9])
    ended = model.generate(**inputs, **{**GREEDY, "eos_token_id": end}, speculative=True)
    assert torch.equal(ended, model.generate(**inputs, **{**GREEDY, "eos_token_id": end}))


def test_a_streamer_and_stop_strings_reach_it(tokenizer: PreTrainedTokenizerBase) -> None:
    model = models()["shared"]
    inputs = padded(PROMPTS[1:2])
    put: list[int] = []

    class Streamer:
        def put(self, value: torch.Tensor) -> None:
            put.extend(value.flatten().tolist())

        def end(self) -> None:
            put.append(-1)

    found = model.generate(**inputs, **GREEDY, speculative=True, streamer=Streamer())
    assert put == [*found[0].tolist(), -1]
    length = inputs["input_ids"].shape[1]
    stop = tokenizer.decode(found[0, length + 5 : length + 7])
    stopped = {"stop_strings": [stop], "tokenizer": tokenizer}
    plain = model.generate(**inputs, **GREEDY, **stopped)
    assert torch.equal(model.generate(**inputs, **GREEDY, **stopped, speculative=True), plain)
    assert plain.shape[1] < found.shape[1]


@pytest.mark.slow
def test_samples_are_distributed_as_the_combined_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the pairs of tokens after a prompt, over a vocabulary of 3; chi-square at a fixed seed."""
    base, expert, antiexpert = (
        tiny_model(seed=seed, vocab_size=3, bos_token_id=0, eos_token_id=1, pad_token_id=2) for seed in range(3)
    )
    for part in (base, expert, antiexpert):
        with torch.no_grad():
            part.get_output_embeddings().weight.mul_(3)
    model = ProxyTunedModel(base, expert, antiexpert)
    prompt = torch.tensor([[1, 0]])
    with torch.no_grad():
        first = torch.softmax(model(prompt).logits[0, -1] / 0.8, -1)
        rows = torch.cat([prompt.expand(3, -1), torch.arange(3)[:, None]], -1)
        second = torch.softmax(model(rows).logits[:, -1] / 0.8, -1)
    exact = (first[:, None] * second).double()
    torch.manual_seed(0)
    draws = 400
    seen: Counter[tuple[int, ...]] = Counter()
    for _ in range(draws):
        written = model.generate(prompt, do_sample=True, temperature=0.8, top_k=0, top_p=1.0, max_new_tokens=2,
                                 eos_token_id=None, pad_token_id=2, speculative=True)  # fmt: skip
        seen[tuple(written[0, 2:].tolist())] += 1
    expected = [float(exact[a, b]) * draws for a in range(3) for b in range(3)]
    observed = [seen[a, b] for a in range(3) for b in range(3)]
    kept = [place for place, value in enumerate(expected) if value >= 5]
    total = sum(observed[place] for place in kept)
    scale = total / sum(expected[place] for place in kept)
    test = chisquare([observed[p] for p in kept], [expected[p] * scale for p in kept])
    assert len(kept) >= 8 and test.pvalue > 0.01, test


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [("gemma3_text", {"sliding_window": 8}), ("mistral", {"sliding_window": 8}), ("gpt2", {"n_positions": 25})],
)
def test_windows_that_slide_and_positions_that_end(architecture: str, settings: dict[str, Any]) -> None:
    base, expert, antiexpert = parts(architecture, **settings)
    for model in (ProxyTunedModel(base, expert, antiexpert), ProxyTunedModel(base, expert, base)):
        inputs = padded(PROMPTS[:1])
        length = inputs["input_ids"].shape[1]
        given = {**GREEDY, "max_new_tokens": 25 - length}
        assert torch.equal(model.generate(**inputs, **given, speculative=True), model.generate(**inputs, **given))


def test_a_batch_or_beams_are_refused() -> None:
    model = models()["apart"]
    with pytest.raises(InputError, match="one prompt at a time"):
        model.generate(**padded(PROMPTS), **GREEDY, speculative=True)
    with pytest.raises(InputError, match="leave out num_beams"):
        model.generate(**padded(PROMPTS[:1]), **GREEDY, num_beams=2, speculative=True)


def test_a_shared_expert_reads_each_drafted_token_once_together_with_the_antiexpert() -> None:
    model = models()["shared"]
    rows: list[tuple[int, ...]] = []
    model.experts.paired.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    found = model.generate(**padded(PROMPTS[1:2]), **GREEDY, speculative=True, return_dict_in_generate=True)
    assert len(rows) == found.drafted and rows[0] == (2, len(PROMPTS[1])) and set(rows[1:]) == {(2, 1)}


def test_a_draft_goes_on_while_one_more_token_is_worth_its_pass() -> None:
    """At 0.4 of the base model's cost a round of n tokens costs 1 + n (0.4 + 0.1); it yields the sum of the chances."""
    drafting = object.__new__(Drafting)
    drafting.cost, drafting.experts, drafting.room = 0.4, object.__new__(PairReader), None
    assert drafting.worth_another(1, expected=1.0, reached=0.4)  # 1.4 / 2 > 1 / 1.5
    assert not drafting.worth_another(1, expected=1.0, reached=0.3)
    for count in range(1, LONGEST_DRAFT):
        assert drafting.worth_another(count, expected=count, reached=1.0)
    assert not drafting.worth_another(LONGEST_DRAFT, expected=LONGEST_DRAFT, reached=1.0)
    drafting.experts = object.__new__(ApartReader)  # whose anti-expert reads once more in any case
    assert drafting.worth_another(1, expected=1.0, reached=0.3)


def test_acceptance_begins_with_the_experts_own_belief_and_follows_what_is_seen() -> None:
    acceptance = Acceptance()
    assert [round(acceptance.rate(p), 2) for p in (0.05, 0.5, 0.99, 1.0)] == [0.1, 0.5, 0.9, 0.9]
    for _ in range(50):
        acceptance.learn(0.95, kept=False)
    assert acceptance.rate(0.9) < 0.05 and acceptance.rate(0.5) == 0.5
