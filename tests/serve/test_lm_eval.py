"""The requests of lm-eval's own API models, and what they read out of the answers."""

from __future__ import annotations

from typing import Any

import pytest
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.serve.conftest import NAME, Serving, greedy

PROMPTS = ["Once", "The root of a graft", "x"]


class Named:
    """As much of a model of lm-eval as its payloads need; the rest wants a package for retries."""

    model = NAME
    _max_gen_toks = 256
    think_end_token = None


def generated(server: Serving, shape: type[LocalCompletionsAPI], prompt: Any, until: list[str]) -> list[str]:
    settings = {"until": until, "max_gen_toks": 16, "do_sample": False}
    chat = shape is LocalChatCompletion
    payload = shape._create_payload(Named(), prompt, generate=True, gen_kwargs=settings, eos="<eos>")
    status, _, answer = server.post("/v1/chat/completions" if chat else "/v1/completions", payload)
    assert status == 200, answer
    return shape.parse_generations(*((Named(),) if chat else ()), outputs=answer)


def test_lm_eval_gets_greedy_texts_up_to_the_first_of_more_than_four_stop_texts(
    server: Serving, writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    full = [greedy(writer, tokenizer, tokenizer(prompt)["input_ids"], 16) for prompt in PROMPTS]
    until = ["nowhere", "in", "any of them", "\n\n", full[0][8:10], full[1][5:7]]
    expected = [min((text.split(stop)[0] for stop in until), key=len) for text in full]
    assert expected != full
    assert generated(server, LocalCompletionsAPI, PROMPTS, list(until)) == expected
    assert generated(server, LocalCompletionsAPI, PROMPTS[0], list(until)) == expected[:1]
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    assert generated(server, LocalCompletionsAPI, ids, list(until)) == expected


def test_lm_eval_gets_greedy_answers_to_chats(
    server: Serving, writer: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    for prompt in PROMPTS:
        ids = tokenizer(f"[system]Be brief.<eos>[user]{prompt}<eos>[assistant]")["input_ids"]
        full = greedy(writer, tokenizer, ids, 16)
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
        stop = full[6:8]
        assert generated(server, LocalChatCompletion, messages, [stop]) == [full.split(stop)[0]]


@pytest.mark.parametrize("prompt", [PROMPTS[0], PROMPTS, [[1, 2, 3]]])
def test_lm_eval_is_told_that_prompts_are_not_scored(server: Serving, prompt: Any) -> None:
    payload = LocalCompletionsAPI._create_payload(Named(), prompt)
    status, _, answer = server.post("/v1/completions", payload)
    assert (status, answer["error"]["param"]) == (400, "echo")
