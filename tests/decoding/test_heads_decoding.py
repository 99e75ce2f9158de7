"""Drafted by the heads, checked by the model: the same tokens, the same distribution."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
)

from graftlm.decoding.draft_length import PATIENCE, RETRY, DraftLength
from graftlm.decoding.heads_decoding import HeadsDecoding
from graftlm.decoding.speculation import SpeculativeOutput
from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from tests.conftest import ARCHITECTURES, VOCABULARY, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
GREEDY = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 258}
PROMPTS = [[5, 9, 77, 31, 8], [100, 3], [40, 41, 42, 43, 44, 45, 46, 47, 48], [200]]


def padded(rows: list[list[int]]) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = [[258] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def drafting_model(architecture: str = "llama", seed: int = 0, **settings: Any) -> tuple[Any, MultiTokenHeads]:
    """A model whose own text has loops and turns, and heads that are right now and then: the last layer's copies repeat
    the newest token, which this model does at times."""
    model = tiny_model(architecture, seed=seed, initializer_range=0.05, **settings)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    return model, MultiTokenHeads.from_model(model, 3)


class Changing(DraftLength):
    """Drafts 3, 1, 2, 3, ... tokens, and after a while none."""

    def __init__(self, heads: int) -> None:
        super().__init__(heads, 0.1, 0.03)
        self.asked = 0

    def choose(self, batch: int) -> int:
        self.asked += 1
        return (3, 1, 2)[self.asked % 3 - 1] if self.asked < 8 else 0


def both(model: Any, heads: MultiTokenHeads, inputs: dict[str, Any], count: int | None, **settings: Any) -> Any:
    """What `generate` writes, and the output with drafts; the tokens are the same."""
    plain = model.generate(**inputs, **settings)
    decoding = HeadsDecoding(model, heads, draft_tokens=count)
    if count is None:
        decoding.draft_length = Changing(heads.num_heads)
    found = decoding.generate(**inputs, **settings, return_dict_in_generate=True)
    assert isinstance(found, SpeculativeOutput) and torch.equal(found.sequences, plain)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("count", [0, 1, 3, None])
def test_greedy_tokens_are_those_of_generate(architecture: str, count: int | None) -> None:
    model, heads = drafting_model(architecture)
    accepted = 0
    for rows in ([PROMPTS[0]], [PROMPTS[3]], PROMPTS):
        found = both(model, heads, padded(rows), count, **GREEDY)
        accepted += found.accepted
        assert found.rounds <= 24 and found.accepted <= found.drafted
        if count is not None:
            assert found.drafted == 0 if count == 0 else found.drafted >= count * (found.rounds - 1)
        else:
            assert found.drafted > 0
    assert count != 3 or accepted > 0


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["mistral", "gemma3_text"])
def test_a_window_that_is_shorter_than_the_text_slides_alike(architecture: str) -> None:
    accepted = 0
    for seed in range(3):
        model, heads = drafting_model(architecture, seed, sliding_window=8)
        for rows in ([PROMPTS[2]], PROMPTS):
            accepted += both(model, heads, padded(rows), 3, **GREEDY).accepted
    assert accepted > 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama4_text", {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
                         "intermediate_size": 64, "intermediate_size_mlp": 64, "num_local_experts": 2, "head_dim": 8,
                         "attention_chunk_size": 8}),
        ("gpt_neo", {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "attention_types": [[["global", "local"], 1]],
                     "window_size": 8}),
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
    ],
)  # fmt: skip
def test_experts_chunks_local_windows_and_alibi(architecture: str, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, vocab_size=VOCABULARY, **settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    heads = MultiTokenHeads.from_model(model, 3)
    assert sum(both(model, heads, padded(rows), 3, **GREEDY).accepted for rows in ([PROMPTS[2]], PROMPTS)) > 10


def test_heads_that_are_right_take_a_fraction_of_the_passes() -> None:
    """Of a model that repeats one token, the copies of its last layer are right."""
    model, heads = drafting_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()  # all logits are equal: token 0 is the likeliest, always
    found = both(model, heads, padded(PROMPTS), 3, **GREEDY)
    assert found.accepted == found.drafted and found.rounds == 6  # one token of the prompt's pass, then 4 a round


@pytest.mark.slow
def test_rows_that_end_leave_the_batch_and_the_others_go_on() -> None:
    model, heads = drafting_model()
    written = model.generate(**padded(PROMPTS), **GREEDY)[:, -24:]
    for end in {int(written[0, 3]), int(written[1, 7]), int(written[2, 12])}:
        both(model, heads, padded(PROMPTS), 3, **{**GREEDY, "eos_token_id": end})
        both(model, heads, padded(PROMPTS), None, **{**GREEDY, "eos_token_id": end})
    for length in (1, 2, 3):
        both(model, heads, padded(PROMPTS), 3, **{**GREEDY, "max_new_tokens": length})


def test_what_a_row_keeps_is_counted_only_if_there_was_room_for_it() -> None:
    model, heads = drafting_model()
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    found = both(model, heads, padded(PROMPTS[:1]), 3, **{**GREEDY, "max_new_tokens": 3})
    assert (found.drafted, found.accepted, found.rounds) == (3, 2, 1)


@pytest.mark.slow
def test_processors_stop_strings_and_a_streamer_are_minded(tokenizer: PreTrainedTokenizerBase) -> None:
    model, heads = drafting_model()
    for settings in (
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 5, "eos_token_id": 7},
    ):
        for rows in (PROMPTS[:1], PROMPTS):
            both(model, heads, padded(rows), 3, **{**GREEDY, **settings})
    text = tokenizer.decode(model.generate(**padded(PROMPTS[:1]), **GREEDY)[0, 15:17])
    stopped = both(model, heads, padded(PROMPTS[:1]), 3, **GREEDY, stop_strings=[text], tokenizer=tokenizer)
    assert stopped.sequences.shape[1] < 5 + 24
    config = GenerationConfig(**GREEDY, stop_strings=[text])
    again = both(model, heads, padded(PROMPTS[:1]), 3, generation_config=config, tokenizer=tokenizer)
    assert torch.equal(again.sequences, stopped.sequences) and config.stop_strings == [text]
    model.generation_config.stop_strings = [text]
    for given in ({}, {"generation_config": GenerationConfig(**GREEDY)}):
        settings = {"tokenizer": tokenizer, **(given or GREEDY)}
        again = both(model, heads, padded(PROMPTS[:1]), 3, **settings)
        assert torch.equal(again.sequences, stopped.sequences)
    with pytest.raises(InputError, match="stop strings need the model's tokenizer"):
        HeadsDecoding(model, heads).generate(**padded(PROMPTS[:1]), **GREEDY)
    model.generation_config.stop_strings = None

    def allowed(row: int, ids: Tensor) -> list[int]:
        return list(range(10 * row, 10 * row + 40)) if int(ids[-1]) != 258 else []

    both(model, heads, padded(PROMPTS), 3, **GREEDY, prefix_allowed_tokens_fn=allowed)
    put: list[int] = []

    class Streamer:
        def put(self, value: Tensor) -> None:
            put.extend(value.flatten().tolist())

        def end(self) -> None:
            put.append(-1)

    found = HeadsDecoding(model, heads).generate(**padded(PROMPTS[:1]), **GREEDY, streamer=Streamer())
    assert put == [*found[0].tolist(), -1]


class Banned(LogitsProcessor):
    """Bans a third of the vocabulary, another one for each row."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row in range(len(scores)):
            scores[row, row % 3 :: 3] = -torch.inf
        return scores


class Ends(StoppingCriteria):
    """Every row at another length."""

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([len(ids) >= 14 + 3 * row for row, ids in enumerate(input_ids)])


@pytest.mark.slow
def test_what_knows_rows_by_their_number_is_asked_about_that_row() -> None:
    model, heads = drafting_model()
    lengths = torch.tensor([9, 7, 6, 8])
    for settings in (
        {"logits_processor": [Banned()]},
        {"stopping_criteria": [Ends()], "eos_token_id": 257},  # without one, generate writes on in rows that have ended
        {"encoder_no_repeat_ngram_size": 2},
        {"encoder_repetition_penalty": 1.5},
        {"logits_processor": [RepetitionPenaltyLogitsProcessor(1.5, prompt_ignore_length=lengths)]},
    ):
        both(model, heads, padded(PROMPTS), 3, **{**GREEDY, **settings})


def test_a_draft_stays_within_the_models_positions() -> None:
    model, heads = drafting_model("gpt2", n_positions=20)
    both(model, heads, padded(PROMPTS[:1]), 3, **{**GREEDY, "max_new_tokens": 15})
    both(model, heads, padded(PROMPTS[:3]), 3, **{**GREEDY, "max_new_tokens": 11})


def test_an_adapter_drafts_with_its_own_heads() -> None:
    base, _ = drafting_model()
    torch.manual_seed(1)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    heads = MultiTokenHeads.from_model(adapted, 3)
    for rows in (PROMPTS[:1], PROMPTS):
        both(adapted, heads, padded(rows), 3, **GREEDY)


def test_what_does_not_fit_is_refused() -> None:
    model, heads = drafting_model()
    with pytest.raises(InputError, match="leave out num_beams"):
        model.generate(**padded(PROMPTS[:1]), **GREEDY, num_beams=2, custom_generate=HeadsDecoding(model, heads))
    with pytest.raises(InputError, match="another model"):
        tiny_model().generate(**padded(PROMPTS[:1]), **GREEDY, custom_generate=HeadsDecoding(model, heads))
    with pytest.raises(InputError, match="draft_tokens is 4: give 0 to 3"):
        HeadsDecoding(model, heads, draft_tokens=4)
    embeddings = model.get_input_embeddings()(torch.tensor(PROMPTS[:1]))
    decoding = HeadsDecoding(model, heads)
    with pytest.raises(InputError, match=r"input_ids with at least one|leave out inputs_embeds"):
        decoding.generate(inputs_embeds=embeddings, **GREEDY)
    with pytest.raises(InputError, match=r"belong to another model.*hidden size is 32, this model's is 64"):
        HeadsDecoding(tiny_model(hidden_size=64, head_dim=16), heads)
    with pytest.raises(InputError, match="leave out output_scores"):
        decoding.generate(**padded(PROMPTS[:1]), **GREEDY, output_scores=True, return_dict_in_generate=True)
    with pytest.raises(InputError, match="leave out prompt_lookup_num_tokens"):
        decoding.generate(**padded(PROMPTS[:1]), **GREEDY, prompt_lookup_num_tokens=2)
    with pytest.raises(InputError, match="leave out assistant_model"):
        decoding.generate(**padded(PROMPTS[:1]), **GREEDY, assistant_model=tiny_model())
    with pytest.raises(InputError, match="hides all of its tokens"):
        decoding.generate(torch.tensor([[5, 6]]), attention_mask=torch.tensor([[0, 0]]), **GREEDY)
    with pytest.raises(InputError, match="UnbatchedClassifierFreeGuidance"):
        decoding.generate(**padded(PROMPTS[:1]), **GREEDY, guidance_scale=1.5)
    with pytest.raises(InputError, match="rope of type dynamic"):
        scaled = tiny_model(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0})
        HeadsDecoding(scaled, MultiTokenHeads.from_model(scaled, 1))
    model.config.rope_parameters = {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {}}
    with pytest.raises(InputError, match="rope of type dynamic"):
        HeadsDecoding(model, heads)
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0}
    tuned = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(InputError, match="prompt or prefix tuning"):
        HeadsDecoding(tuned, MultiTokenHeads.from_model(tiny_model(), 1))
    past = model(torch.tensor([PROMPTS[0][:3]]), use_cache=True).past_key_values
    with pytest.raises(InputError, match="leave out past_key_values"):
        model.generate(
            **padded(PROMPTS[:1]), **GREEDY, custom_generate=HeadsDecoding(model, heads), past_key_values=past
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("batch", "draws", "settings"),
    [(1, 800, {"top_k": 0}), (100, 3000, {"top_k": 0}), (100, 3000, {"top_k": 3, "repetition_penalty": 1.3})],
)
def test_samples_are_distributed_as_the_models_own(batch: int, draws: int, settings: dict[str, Any]) -> None:
    """Triples of tokens after a prompt, over a vocabulary of 4; chi-square at a fixed seed."""
    model = tiny_model(seed=3, vocab_size=4, bos_token_id=0, eos_token_id=1, pad_token_id=2)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(60)
    heads = MultiTokenHeads.from_model(model, 2)
    with torch.no_grad():
        for number, parameter in enumerate(heads.parameters()):
            torch.manual_seed(number)
            parameter.add_(0.05 * torch.randn_like(parameter))  # so that the heads propose something of their own
    prompt = torch.tensor([[3, 0]])
    settings = {**settings, "do_sample": True, "temperature": 0.8, "top_p": 1.0, "eos_token_id": None,
                "pad_token_id": 2, "return_dict_in_generate": True}  # fmt: skip

    def distribution(prefix: list[int]) -> Tensor:
        ids = torch.tensor([[3, 0, *prefix]])
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        found = model.generate(**inputs, max_new_tokens=1, output_scores=True, **settings)
        return found.scores[0][0].double().softmax(-1)

    exact = {
        (a, b, c): float(distribution([])[a] * distribution([a])[b] * distribution([a, b])[c])
        for a in range(4) for b in range(4) for c in range(4)
    }  # fmt: skip
    decoding = HeadsDecoding(model, heads, draft_tokens=2)
    torch.manual_seed(0)
    seen, accepted, drafted = Counter[tuple[int, ...]](), 0, 0
    for _ in range(draws // batch):
        found = model.generate(prompt.repeat(batch, 1), max_new_tokens=3, custom_generate=decoding, **settings)
        seen.update(tuple(row[2:].tolist()) for row in found.sequences)
        accepted, drafted = accepted + found.accepted, drafted + found.drafted
    assert 0.1 < accepted / drafted < 0.95
    kept = [place for place in exact if exact[place] * draws >= 5]
    expected, observed = [exact[p] * draws for p in kept], [seen[p] for p in kept]
    scale = sum(observed) / sum(expected)
    test = chisquare(observed, [value * scale for value in expected])
    assert len(kept) >= 8 and test.pvalue > 0.01, test


@pytest.mark.slow
def test_positions_and_masks_of_ones_own_are_minded() -> None:
    model, heads = drafting_model()
    ids = torch.tensor(PROMPTS[:1])
    both(model, heads, {"input_ids": ids, "position_ids": torch.arange(3, 8)[None]}, 3, **GREEDY)
    both(model, heads, {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 0, 1, 1]])}, 3, **GREEDY)
    ended = {**GREEDY, "pad_token_id": None, "eos_token_id": [7, 8]}
    written = model.generate(**padded(PROMPTS), **GREEDY)
    both(model, heads, padded(PROMPTS), 3, **{**ended, "eos_token_id": [int(written[0, 12]), 8]})


def test_a_seed_gives_the_same_sample_in_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model, heads = drafting_model()
    decoding = HeadsDecoding(model, heads)
    monkeypatch.setattr(decoding, "new_draft_length", lambda sampled: DraftLength(3, 0.1, 0.03))  # worth drafting
    texts = []
    for _ in range(3):
        torch.manual_seed(1)
        texts.append(model.generate(**padded(PROMPTS), max_new_tokens=12, do_sample=True, top_k=0, eos_token_id=None,
                                    pad_token_id=258, custom_generate=decoding))  # fmt: skip
    assert torch.equal(texts[0], texts[1]) and torch.equal(texts[0], texts[2])
    assert decoding.drafted > 0 and decoding.draft_length.rates == [0.6] * 3


def test_where_sampling_gains_nothing_the_heads_do_not_even_read_the_prompt() -> None:
    model, heads = drafting_model()
    decoding = HeadsDecoding(model, heads)  # a head's layers are a quarter of this model
    calls: list[Any] = []
    heads.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    for layer in heads.layers[0]:
        layer.register_forward_pre_hook(lambda *_: calls.append(1))
    decoding.generate(**padded(PROMPTS), max_new_tokens=4, do_sample=True, eos_token_id=None, pad_token_id=258)
    assert not calls and decoding.drafted == 0


@pytest.mark.parametrize(
    ("rates", "token_cost", "heads_cost", "best"),
    [
        ([0.9, 0.9, 0.9], 0.0, 0.1, 3),
        ([0.9, 0.2, 0.9], 0.2, 0.1, 1),
        ([0.1, 0.1, 0.1], 0.2, 0.1, 0),
        ([0.5, 0.5, 0.5], 0.0, 1.0, 0),  # the heads cost as much as a pass
    ],
)
def test_as_much_is_drafted_as_yields_most_for_its_cost(
    rates: list[float], token_cost: float, heads_cost: float, best: int
) -> None:
    length = DraftLength(3, heads_cost, token_cost)
    length.rates = rates
    assert length.best(1) == best


def test_where_a_pass_is_bound_by_arithmetic_batches_are_not_drafted_for() -> None:
    length = DraftLength(3, 0.3, 0.2)
    assert length.begin(1) and not length.begin(8)


def calls(length: DraftLength, right: float, number: int) -> list[int]:
    """The tokens drafted in each of so many calls of forty rounds, on a text that heads foresee so often."""
    drafted = []
    for call in range(number):
        total, used = 0, length.begin(1)
        for each in range(40):
            if not used:
                break
            count = length.choose(1)
            used, total = count > 0, total + count
            places = range(count)
            length.learn(count, [next((p for p in places if (each * 7 + p * 3 + call) % 10 >= 10 * right), count)])
        drafted.append(total)
    return drafted


def test_heads_that_do_not_pay_rest_and_are_tried_again_by_what_they_do_then() -> None:
    length = DraftLength(3, 0.2, 0.05)
    assert min(calls(length, 0.9, 3)) > 60
    useless = calls(length, 0.0, 4 * RETRY)
    assert sum(count > 0 for count in useless[2:]) <= 4 and sum(useless[2:]) < 30 * PATIENCE
    assert min(calls(length, 0.9, 2 * RETRY)[RETRY:]) > 60


def test_a_run_of_bad_luck_does_not_end_drafting() -> None:
    length = DraftLength(3, 0.2, 0.05)
    for accepted in [3] * 20 + [0] * PATIENCE + [3] * 20:
        length.learn(count := length.choose(1), [min(count, accepted)])
    assert length.choose(1) == 3
