"""Which sequences are written together, and what ends them; the model is held while the test looks on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from openai import APIError, InternalServerError
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast

from graftlm.decoding.heads_decoding import HeadsDecoding
from graftlm.heads.heads import MultiTokenHeads
from graftlm.serve.batching import PATIENCE, Pace
from tests.serve.conftest import NAME, Watched, ascii_model, eventually, greedy, held, serving


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def text(answer: Future[Any]) -> str:
    return answer.result().choices[0].text


def test_requests_that_wait_are_written_in_one_batch_and_give_what_they_give_alone(
    watched: Watched, tokenizer: PreTrainedTokenizerFast, pool: ThreadPoolExecutor
) -> None:
    prompts = ["a", "some prompt", "another prompt of more tokens", "x" * 60]
    alone = [greedy(watched.model, tokenizer, tokenizer(prompt)["input_ids"], 12) for prompt in prompts]
    with serving(watched, tokenizer) as server:
        with held(server, watched) as first:
            answers = [pool.submit(server.complete, prompt, max_tokens=12) for prompt in prompts]
            eventually(lambda: len(server.engine.waiting) == len(prompts))
        assert [text(answer) for answer in answers] == alone
        assert watched.batches in ([1, 4], [1, 5])  # with the first or after it
        assert first.result().usage.completion_tokens == 2
        assert server.metric('graftlm_batch_size_bucket{le="1.0"}') == 1
        assert server.metric("graftlm_batch_size_count") == 2


def test_a_batch_holds_no_more_rows_than_it_may(watched: Watched, tokenizer: PreTrainedTokenizerFast) -> None:
    with serving(watched, tokenizer, max_batch_size=3) as server:
        answer = server.complete(["a", "b", "c", "d"], n=2, max_tokens=4)
        assert len(answer.choices) == 8
        assert watched.batches == [3, 3, 2]


@pytest.mark.slow
def test_a_newcomer_joins_a_batch_that_runs_and_no_text_is_changed(
    watched: Watched, tokenizer: PreTrainedTokenizerFast, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[dict[str, Any]] = [
        {"prompt": "long", "max_tokens": 60},
        {"prompt": "long and sampled", "max_tokens": 60, "temperature": 1, "seed": 4, "logprobs": 1},
    ]
    monkeypatch.setattr("graftlm.serve.batching.PATIENCE", 0.0)
    with serving(watched, tokenizer) as server:
        alone = [server.complete(**kind).choices[0] for kind in kinds]
        lone = server.complete("short", max_tokens=3).choices[0]
        del watched.batches[:]
        watched.hold()
        running = [pool.submit(server.complete, **kinds[0])]
        eventually(lambda: watched.is_held)
        for kind in (kinds[1], {"prompt": "short", "max_tokens": 3}):
            running.append(pool.submit(server.complete, **kind))
            eventually(lambda: len(server.engine.waiting) == 1)
            watched.go(1)
            eventually(lambda: watched.is_held and not server.engine.waiting)
        watched.go()
        together = [answer.result().choices[0] for answer in running]
    assert watched.batches[:3] == [1, 2, 3]
    assert [choice.text for choice in together] == [choice.text for choice in (*alone, lone)]
    expected = alone[1].logprobs.token_logprobs
    assert together[1].logprobs.token_logprobs == pytest.approx(expected, abs=1e-4)


def test_a_batch_is_left_when_it_has_written_long_enough_for_its_reading() -> None:
    pace = Pace()
    assert not pace.has_paid_off()
    pace.step()
    pace.reading = 100.0
    for elapsed, worth in ((PATIENCE * 100 + 90, False), (PATIENCE * 100 + 101, True)):
        pace.begun = time.monotonic() - elapsed
        assert pace.has_paid_off() == worth


def test_a_client_that_hangs_up_in_a_stream_stops_its_row_only(
    watched: Watched, tokenizer: PreTrainedTokenizerFast, pool: ThreadPoolExecutor
) -> None:
    with serving(watched, tokenizer) as server:
        with held(server, watched):
            gone = pool.submit(server.complete, "gone", max_tokens=250, stream=True)
            stays = pool.submit(server.complete, "stays", max_tokens=30)
            eventually(lambda: len(server.engine.waiting) == 2)
            watched.go(5)
            eventually(lambda: watched.is_held and not server.engine.waiting)
            assert server.engine.active_count == 2
            assert next(gone.result()).choices[0].text
            gone.result().close()
            eventually(lambda: server.engine.active_count == 1)
        assert len(text(stays)) == 30
        assert server.metric("graftlm_generated_tokens_total") < 50
        assert server.metric("graftlm_active_sequences") == 0


@pytest.mark.slow
def test_a_client_that_hangs_up_while_it_waits_leaves_the_queue(
    watched: Watched, tokenizer: PreTrainedTokenizerFast
) -> None:
    with serving(watched, tokenizer) as server:
        with held(server, watched) as first:
            impatient = server.new_client().with_options(timeout=0.3)
            with pytest.raises(APIError):
                impatient.completions.create(model=NAME, prompt=["gone", "too"])
            impatient.close()
            eventually(lambda: not server.engine.waiting)
        assert len(text(first)) == 2
        assert watched.batches == [1]
        eventually(lambda: server.metric('graftlm_requests_total{endpoint="/v1/completions",status="499"}') == 1)


def test_a_model_that_fails_fails_its_requests_and_the_server_goes_on(
    tokenizer: PreTrainedTokenizerFast, watched: Watched, capfd: pytest.CaptureFixture[str]
) -> None:
    class Broken(Watched):
        def generate(self, **inputs: Any) -> Any:
            if inputs["input_ids"].shape[1] == 3:
                raise RuntimeError("out of memory")
            return super().generate(**inputs)

    with serving(Broken(watched.model), tokenizer) as server:
        with pytest.raises(InternalServerError, match="the server's log says why"):
            server.complete("bad")
        with pytest.raises(InternalServerError):
            list(server.complete("bad", stream=True))
        assert len(server.complete("fine", max_tokens=5).choices[0].text) == 5
    assert "RuntimeError: out of memory" in capfd.readouterr().err


def test_of_the_models_own_settings_a_penalty_counts_and_sampling_does_not(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = ascii_model(tokenizer)
    plain = greedy(model, tokenizer, tokenizer("Once")["input_ids"], 20)
    model.generation_config.update(do_sample=True, temperature=0.6, top_k=20, top_p=0.9, repetition_penalty=1.3)
    expected = {
        prompt: greedy(model, tokenizer, tokenizer(prompt)["input_ids"], 20) for prompt in ("Once", "Once upon a time")
    }
    with serving(model, tokenizer) as server:
        answer = server.complete(list(expected), max_tokens=20)
    assert [choice.text for choice in answer.choices] == list(expected.values())
    assert expected["Once"] != plain


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # what PEFT asks of transformers
def test_an_adapter_is_served_like_a_model(tokenizer: PreTrainedTokenizerFast) -> None:
    model = get_peft_model(ascii_model(tokenizer), LoraConfig(init_lora_weights=False, target_modules="all-linear"))
    expected = [greedy(model, tokenizer, tokenizer(prompt)["input_ids"], 10) for prompt in ("Once", "more")]
    with serving(model.eval(), tokenizer) as server:
        answer = server.complete(["Once", "more"], max_tokens=10)
    assert [choice.text for choice in answer.choices] == expected


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text", "gpt_neox"])
def test_rows_of_unequal_length_are_right_for_other_architectures_too(
    architecture: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = ascii_model(tokenizer, architecture=architecture)
    prompts = ["a", "some prompt", "x" * 60]
    with serving(model, tokenizer) as server:
        answer = server.complete(prompts, max_tokens=10)
    expected = [greedy(model, tokenizer, tokenizer(prompt)["input_ids"], 10) for prompt in prompts]
    assert [choice.text for choice in answer.choices] == expected


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [None, 1.4])
def test_heads_that_draft_change_no_text(
    tokenizer: PreTrainedTokenizerFast, pool: ThreadPoolExecutor, penalty: float | None
) -> None:
    """Greedy and sampled, with log-probabilities and stop texts, alone and together; the heads are right at times."""
    model = ascii_model(tokenizer, initializer_range=0.05)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    model.generation_config.repetition_penalty = penalty
    decoding = HeadsDecoding(model, MultiTokenHeads.from_model(model, 3), draft_tokens=3)
    kinds: list[dict[str, Any]] = [
        {"prompt": "a", "max_tokens": 20, "temperature": 0},
        {"prompt": "some prompt", "max_tokens": 25, "temperature": 0.5, "seed": 1},
        {"prompt": "x" * 40, "max_tokens": 9, "temperature": 0, "logprobs": 2},
        {"prompt": "many", "max_tokens": 12, "n": 3, "temperature": 0.7, "seed": 3, "top_p": 0.9},
        {"prompt": "one", "max_tokens": 1, "temperature": 0},
    ]

    def answers(served: Any, together: bool) -> list[Any]:
        with serving(served, tokenizer, max_batch_size=8 if together else 1) as server:
            if together:
                found = [each.result() for each in [pool.submit(server.complete, **kind) for kind in kinds]]
            else:
                found = [server.complete(**kind) for kind in kinds]
            if served is decoding:
                assert 0 < server.metric("graftlm_accepted_tokens") < server.metric("graftlm_drafted_tokens")
            return found

    plain = answers(model, False)
    stop = plain[1].choices[0].text[6:8]
    kinds.append({**kinds[1], "stop": [stop]})
    plain.append(answers(model, False)[-1])
    for together in (False, True):
        for found, expected in zip(answers(decoding, together), plain, strict=True):
            for one, other in zip(found.choices, expected.choices, strict=True):
                assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
                if other.logprobs:
                    assert one.logprobs.token_logprobs == pytest.approx(other.logprobs.token_logprobs, abs=1e-4)
            assert found.usage == expected.usage
