from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from graftlm.decoding.batches import completion_log_likelihoods, generate_completions
from graftlm.decoding.candidates import candidate_log_likelihoods
from graftlm.errors import InputError

PROMPTS = ["The capital of Chad is", "One", "The capital of Togo is", "Two, longer than the window", "Six"]
CANDIDATES = [
    [" Lomé", "a", " N'Djamena", " Oslo"],
    ["x", "yz"],
    ["a", "b"],
    [" a much longer candidate", "c"],
    ["zz"],
]


@pytest.fixture
def tokenizer(make_tokenizer: Any) -> Any:
    return make_tokenizer()


def check(model: Any, tokenizer: Any) -> None:
    """Equal to scoring all pairs, which tests/decoding/test_batches.py proves right."""
    for batch_size in (1, 2, 32):
        scores = candidate_log_likelihoods(model, tokenizer, PROMPTS, CANDIDATES, batch_size)
        assert [len(group) for group in scores] == [len(group) for group in CANDIDATES]
        for prompt, candidates, group in zip(PROMPTS, CANDIDATES, scores, strict=True):
            pairs = [(prompt, candidate) for candidate in candidates]
            expected = [completion_log_likelihoods(model, tokenizer, [pair])[0] for pair in pairs]
            assert [count for _, count in group] == [count for _, count in expected]
            assert [total for total, _ in group] == pytest.approx([total for total, _ in expected], rel=1e-6)


HYBRIDS = ["falcon_h1", "lfm2", "qwen3_5_text"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "mistral", "granite", "mamba", *HYBRIDS])
def test_candidates_score_as_if_each_pair_ran_alone(kind: str, make_model: Any, tokenizer: Any):
    check(make_model(kind), tokenizer)


@pytest.mark.parametrize("kind", HYBRIDS)
def test_hybrid_models_score_each_candidate_after_its_own_prompt(kind: str, make_model: Any, tokenizer: Any):
    """As many rows go on as there were prompts, in another order."""
    model, prompts, candidates = make_model(kind), ["Chad is", "Togo is"], [[" hot", "a"], [" humid", "b"]]
    scores = candidate_log_likelihoods(model, tokenizer, prompts, candidates)
    for prompt, group, found in zip(prompts, candidates, scores, strict=True):
        alone = [completion_log_likelihoods(model, tokenizer, [(prompt, candidate)])[0] for candidate in group]
        assert [total for total, _ in found] == pytest.approx([total for total, _ in alone], rel=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # what PEFT asks of transformers
@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # PEFT says so at each prompt with virtual tokens
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, target_modules="all-linear"),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    ],
    ids=["lora", "prompt", "prefix"],
)
def test_adapters_score_and_generate_like_any_model(config: Any, make_model: Any, tokenizer: Any):
    torch.manual_seed(1)
    model = get_peft_model(make_model(), config).double().eval()
    check(model, tokenizer)
    together = generate_completions(model, tokenizer, PROMPTS, 5)
    assert together == [generate_completions(model, tokenizer, [prompt], 5)[0] for prompt in PROMPTS]


def test_a_prompt_is_computed_once_for_all_its_candidates(make_model: Any, tokenizer: Any):
    model, tokens = make_model(), []
    model.model.embed_tokens.register_forward_hook(lambda module, inputs, output: tokens.append(inputs[0].numel()))
    candidate_log_likelihoods(model, tokenizer, ["p" * 50], [["a", "b", "cd", "ef"]])
    assert tokens == [50, 2]


def test_a_candidate_without_tokens_is_refused(make_model: Any, tokenizer: Any):
    with pytest.raises(InputError, match="at least one token"):
        candidate_log_likelihoods(make_model(), tokenizer, ["a"], [["b", ""]])
