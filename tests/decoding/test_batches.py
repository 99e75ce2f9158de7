from __future__ import annotations

from typing import Any

import pytest
import torch

from graftlm.decoding import batches as generation
from graftlm.decoding.batches import completion_log_likelihoods, encode_pair, generate_completions
from graftlm.errors import InputError

PAIRS = [
    ("Name: hexane\nSMILES:", " CCCCCC\n"),
    ("Name: ethanol\nSMILES:", " CCO\n"),
    ("x", " C"),
    ("The capital of the United Kingdom is", " London"),
    ("Name: 2-methylpropan-2-ol\nSMILES:", " CC(C)(C)O\n"),
    ("y", " a completion that is much longer than its prompt"),
    ("an empty completion", ""),
]
PROMPTS = [prompt for prompt, _ in PAIRS]
KINDS = ["llama", "gpt2", "gpt_neox", "mistral", "granite", "mamba"]


@pytest.fixture
def tokenizer(make_tokenizer: Any) -> Any:
    return make_tokenizer()


def plain_log_likelihood(model: Any, tokenizer: Any, prompt: str, completion: str) -> tuple[float, int]:
    """One row, all logits, in float64."""
    start, tail = tokenizer(prompt)["input_ids"], tokenizer(completion)["input_ids"]
    ids = torch.tensor([start + tail])
    with torch.no_grad():
        log_probs = model(ids).logits.double().log_softmax(-1)[0]
    return sum(float(log_probs[len(start) + i - 1, token]) for i, token in enumerate(tail)), len(tail)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", KINDS)
def test_log_likelihoods_equal_a_plain_float64_computation(kind: str, side: str, make_model: Any, make_tokenizer: Any):
    model, tokenizer = make_model(kind), make_tokenizer()
    tokenizer.padding_side = side
    expected = [plain_log_likelihood(model, tokenizer, *pair) for pair in PAIRS]
    tolerance = 1e-6 if kind == "mamba" else 1e-9  # its scan computes in float32
    for batch_size in (1, 3, 32):
        scores = completion_log_likelihoods(model, tokenizer, PAIRS, batch_size)
        assert [count for _, count in scores] == [count for _, count in expected]
        assert [total for total, _ in scores] == pytest.approx([total for total, _ in expected], rel=tolerance)
    assert tokenizer.padding_side == side


def test_log_likelihoods_do_not_change_when_few_rows_may_be_unembedded_at_once(
    make_model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    model = make_model()
    expected = completion_log_likelihoods(model, tokenizer, PAIRS)
    rows = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1].numel()))
    monkeypatch.setattr(generation, "MAX_LOGIT_ROWS", 20)
    scores = completion_log_likelihoods(model, tokenizer, PAIRS)
    assert [total for total, _ in scores] == pytest.approx([total for total, _ in expected], rel=1e-9)
    longest = max(len(completion) for _, completion in PAIRS)
    assert max(rows) <= longest  # more than 20 for the one completion that is longer by itself


def test_only_the_positions_that_predict_completions_are_unembedded(make_model: Any, tokenizer: Any):
    model, shapes = make_model(), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    completion_log_likelihoods(model, tokenizer, [("p" * 40, "abc"), ("q" * 41, "abc")])
    assert shapes == [(2, 4, 258)]


def test_the_boundary_is_that_of_the_joint_text(make_tokenizer: Any):
    tokenizer = make_tokenizer()
    assert encode_pair(tokenizer, "ab", "cd") == (tokenizer("ab")["input_ids"], tokenizer("cd")["input_ids"])


def test_tokens_that_merge_across_the_boundary_are_kept_apart(make_tokenizer: Any):
    tokenizer = make_tokenizer(merges=(("b", "c"),))
    assert len(tokenizer("abcd")["input_ids"]) == 3
    prompt, completion = encode_pair(tokenizer, "ab", "cd")
    assert (tokenizer.decode(prompt), tokenizer.decode(completion)) == ("ab", "cd")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "falcon_h1", "lfm2", "qwen3_5_text"])
def test_completions_equal_an_argmax_loop_without_padding(kind: str, make_model: Any, tokenizer: Any):
    model = make_model(kind)
    expected = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        length = len(ids)
        while len(ids) < length + 6 and ids[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        expected.append(tokenizer.decode(ids[length:], skip_special_tokens=True))
    for batch_size in (1, 3, 32):
        assert generate_completions(model, tokenizer, PROMPTS, 6, batch_size, stop=None) == expected


def test_completions_are_cut_before_the_stop_string_and_in_the_order_of_the_prompts(
    make_successor_model: Any, tokenizer: Any
):
    model = make_successor_model({"a": "b", "b": "c", "c": "\n", "x": "y", "y": "\n"}, otherwise="a")
    assert generate_completions(model, tokenizer, ["..x", "a", "b.....a", "?"], 10, 2) == [
        "y",
        "bc",
        "bc",
        "abc",
    ]


def test_a_stop_string_of_several_tokens_ends_a_row(make_successor_model: Any, tokenizer: Any):
    model = make_successor_model({"a": "b", "b": "c", "c": "d", "d": "a"}, otherwise="a")
    assert generate_completions(model, tokenizer, ["a", "d"], 30, stop="cda") == ["b", "ab"]


def test_the_prompt_itself_does_not_stop_a_row(make_successor_model: Any, tokenizer: Any):
    model = make_successor_model({"\n": "a", "a": "b", "b": "\n"}, otherwise="a")
    assert generate_completions(model, tokenizer, ["first line\n"], 10) == ["ab"]


def test_a_batch_ends_when_every_row_has_stopped(make_successor_model: Any, tokenizer: Any):
    model, steps = make_successor_model({"a": "b", "b": "\n", "c": ""}, otherwise="a"), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: steps.append(output.shape[1]))
    assert generate_completions(model, tokenizer, ["a", "c", "b"], 100) == ["b", "", ""]
    assert steps == [1, 1]


def test_sampling_and_penalties_of_the_models_own_generation_config_are_switched_off(make_model: Any, tokenizer: Any):
    model = make_model()
    expected = generate_completions(model, tokenizer, PROMPTS, 12, stop=None)
    model.generation_config.update(
        do_sample=True,
        temperature=5.0,
        repetition_penalty=50.0,
        no_repeat_ngram_size=1,
        num_beams=2,
        min_new_tokens=12,
    )
    assert generate_completions(model, tokenizer, PROMPTS, 12, stop=None) == expected


def test_progress_counts_every_example_once(make_model: Any, tokenizer: Any):
    done: list[int] = []
    generate_completions(make_model(), tokenizer, PROMPTS, 2, 3, on_batch=done.append)
    assert done == [3, 3, 1]
    done.clear()
    completion_log_likelihoods(make_model(), tokenizer, PAIRS, 3, on_batch=done.append)
    assert sum(done) == len(PAIRS)


def test_a_prompt_beyond_the_models_positions_is_refused(make_model: Any, tokenizer: Any):
    with pytest.raises(InputError, match="205 tokens exceeds the model's 128 positions"):
        generate_completions(make_model("gpt2"), tokenizer, ["x" * 200], 5)


def test_an_empty_prompt_is_refused(make_model: Any, tokenizer: Any):
    with pytest.raises(InputError, match="no tokens"):
        completion_log_likelihoods(make_model(), tokenizer, [("", "a")])
