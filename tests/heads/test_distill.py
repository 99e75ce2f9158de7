"""Self-distillation: the model writes, its heads learn what it would say further on, and nothing else changes."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from graftlm.data.written_text import WrittenText, read_texts, write_texts
from graftlm.errors import InputError
from graftlm.heads.config import DistillConfig
from graftlm.heads.distill import (
    CandidateWords,
    agreement,
    candidate_cross_entropy,
    candidate_words,
    distill,
    distill_heads,
)
from graftlm.heads.heads import MultiTokenHeads
from graftlm.heads.hidden_states import CachedBatch, cached_batches
from graftlm.heads.texts import domain_prompts, split_held_out
from graftlm.models.decoder import Decoder
from graftlm.runs.run import Run
from tests.conftest import ARCHITECTURES, tiny_model

Cache = Callable[[nn.Module, list[WrittenText]], list[CachedBatch]]
PROMPTS = [f"{letter}{number}:" for letter in "abcdefgh" for number in range(4)]


def texts(model: nn.Module, tokenizer: PreTrainedTokenizerBase, tokens: int = 600) -> list[WrittenText]:
    return write_texts(model, tokenizer, PROMPTS, tokens=tokens, max_new_tokens=12, batch_size=8)


@pytest.fixture
def cache() -> Cache:
    return partial(cached_batches, tap=-1, tokens_per_batch=64, pad_token_id=258)


def words_of_all(model: nn.Module) -> CandidateWords:
    return CandidateWords(torch.arange(259), torch.zeros(259))


class TestWrittenText:
    def test_the_model_writes_at_least_as_many_tokens_and_hardly_more(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        written = texts(model, tokenizer)
        total = sum(text.written for text in written)
        assert 600 <= total < 600 + 8 * 12
        assert all(1 <= text.written <= 12 for text in written)
        prompts = {tuple(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS}
        assert all(tuple(text.input_ids[: text.prompt_length]) in prompts for text in written)

    def test_an_interrupted_call_goes_on_to_the_same_text(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
    ) -> None:
        settings = {"max_new_tokens": 12, "batch_size": 8, "seed": 3}
        whole = write_texts(model, tokenizer, PROMPTS, tokens=300, path=tmp_path / "whole.jsonl", **settings)

        class Killed(Exception):
            pass

        def kill(done: int, total: int) -> None:
            if done > 150:
                raise Killed

        path = tmp_path / "text.jsonl"
        with pytest.raises(Killed):
            write_texts(model, tokenizer, PROMPTS, tokens=300, path=path, progress=kill, **settings)
        kept = len(read_texts(path))
        assert 0 < kept < len(whole)
        with path.open("a") as file:
            file.write('{"kind": "domain", "prom')  # the kill came in the middle of a line
        assert write_texts(model, tokenizer, PROMPTS, tokens=300, path=path, **settings) == whole
        assert read_texts(path) == read_texts(tmp_path / "whole.jsonl") == whole

    @pytest.mark.slow
    def test_a_batch_half_written_is_neither_skipped_nor_repeated(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
    ) -> None:
        settings = {"max_new_tokens": 12, "batch_size": 8, "seed": 3, "tokens": 200}
        whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
        for kind in ("domain", "general"):
            write_texts(model, tokenizer, PROMPTS, kind=kind, path=whole, **settings)
        lines = whole.read_bytes().splitlines(keepends=True)
        for count in (3, 8, 11, len(lines) - 1):
            cut.write_bytes(b"".join(lines[:count]) + lines[count][:20])
            for kind in ("domain", "general"):
                write_texts(model, tokenizer, PROMPTS, kind=kind, path=cut, **settings)
            assert cut.read_bytes() == whole.read_bytes()

    def test_a_cut_last_line_costs_no_other_where_the_disk_is_full(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        settings = {"max_new_tokens": 12, "batch_size": 8, "seed": 3, "tokens": 200}
        path = tmp_path / "text.jsonl"
        write_texts(model, tokenizer, PROMPTS, path=path, **settings)
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:16]) + lines[16][:20])

        def full(self: Path, mode: str = "r", *given: Any, **named: Any) -> Any:
            if set(mode) & set("wax+"):
                raise OSError(errno.ENOSPC, "No space left on device")
            return open(self, mode, *given, **named)

        with monkeypatch.context() as patched, pytest.raises(OSError, match="No space left"):
            patched.setattr(Path, "open", full)
            write_texts(model, tokenizer, PROMPTS, path=path, **settings)
        assert path.read_bytes() == b"".join(lines[:16])
        write_texts(model, tokenizer, PROMPTS, path=path, **settings)
        assert path.read_bytes() == whole

    def test_text_that_is_there_is_used_again_and_kinds_stay_apart(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
    ) -> None:
        path = tmp_path / "text.jsonl"
        domain = write_texts(model, tokenizer, PROMPTS, kind="domain", tokens=50, path=path, max_new_tokens=5)
        general = write_texts(model, tokenizer, ["x"], kind="general", tokens=50, path=path, max_new_tokens=5)
        size = path.stat().st_size
        assert write_texts(model, tokenizer, PROMPTS, kind="domain", tokens=50, path=path) == domain
        assert write_texts(model, tokenizer, ["x"], kind="general", tokens=50, path=path) == general
        assert path.stat().st_size == size

    def test_it_ends_with_the_end_of_sequence_token(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> None:
        with torch.no_grad():
            model.lm_head.weight[257] = model.lm_head.weight.abs().max() * 8
        written = write_texts(model, tokenizer, PROMPTS, tokens=100, temperature=5.0, max_new_tokens=12)
        ended = [text for text in written if text.written < 12]
        assert ended
        assert all(text.input_ids[-1] == 257 for text in ended)
        assert all(257 not in text.input_ids[:-1] for text in written)

    def test_no_prompts_and_broken_lines_are_refused(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
    ) -> None:
        with pytest.raises(InputError, match="no general prompts"):
            write_texts(model, tokenizer, [], kind="general", tokens=5)
        (tmp_path / "text.jsonl").write_text('{"kind": 1}\n')
        with pytest.raises(InputError, match=r"text\.jsonl, line 1"):
            read_texts(tmp_path / "text.jsonl")


class TestCachedBatches:
    @pytest.mark.slow
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_it_holds_what_the_model_computes(
        self, architecture: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
    ) -> None:
        model = tiny_model(architecture)
        heads = MultiTokenHeads.from_model(model, 1)
        written = texts(tiny_model(), tokenizer, 100)
        cached = cached_batches(model, written, tap=-1, tokens_per_batch=64, pad_token_id=258, folder=tmp_path)
        seen = 0
        for batch in cached:
            with torch.no_grad():
                of_head = Decoder(model).logits(heads.hidden_states(1, batch.call(next(model.parameters()))))
            for row in range(len(batch.tokens)):
                length = int((batch.tokens[row] != 258).sum())
                with torch.no_grad():
                    expected = model(input_ids=batch.tokens[row : row + 1, :length]).logits[0]
                # A fresh head is a copy of the last layer.
                assert torch.allclose(of_head[row, :length], expected, atol=1e-4)
                for position in torch.nonzero(batch.written[row])[:, 0].tolist():
                    probabilities = expected[position - 1].softmax(0)
                    top = batch.top_tokens[row, position - 1]
                    assert torch.allclose(probabilities[top], batch.top_probabilities[row, position - 1], atol=1e-5)
                    assert torch.allclose(probabilities.topk(16).values, probabilities[top], atol=1e-5)
                    seen += 1
        assert seen == sum(text.written for text in written)
        assert not list(tmp_path.iterdir())

    def test_a_head_is_asked_only_for_what_the_model_wrote(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, cache: Cache
    ) -> None:
        written = texts(model, tokenizer, 100)
        for batch in cache(model, written):
            for head in (1, 2, 4):
                rows, positions = torch.nonzero(batch.targets(head), as_tuple=True)
                assert batch.written[rows, positions + head + 1].all()
                assert len(rows) == int(batch.written[:, head + 1 :].sum())
                # The distribution `head` places later is the one that wrote the token after it.
                ahead = batch.ahead(batch.tokens, head, batch.targets(head))
                assert torch.equal(ahead, batch.tokens[rows, positions + head])


class TestCandidateWords:
    def test_with_all_words_the_loss_is_the_plain_one(self, model: nn.Module) -> None:
        model = model.double()
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(11, 32, generator=generator, dtype=torch.float64, requires_grad=True)
        targets = torch.stack([torch.randperm(259, generator=generator)[:16] for _ in range(11)])
        weights = torch.rand(11, 17, generator=generator, dtype=torch.float64)
        weights = (weights / weights.sum(1, keepdim=True))[:, :16]
        found = candidate_cross_entropy(Decoder(model), rows, targets, weights, words_of_all(model))
        plain = 0.0
        q = torch.softmax(rows @ model.lm_head.weight.T, dim=1)
        for i in range(11):
            named = q[i, targets[i]]
            plain = plain - (weights[i] * named.log()).sum() - (1 - weights[i].sum()) * (1 - named.sum()).log()
        plain = plain / 11
        assert float(found.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
        (own,) = torch.autograd.grad(found, rows, retain_graph=True)
        (expected,) = torch.autograd.grad(plain, rows)
        assert torch.allclose(own, expected, atol=1e-5)

    def test_a_sample_stands_for_all_words_on_average(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, cache: Cache
    ) -> None:
        batch = cache(model, texts(model, tokenizer, 30))[0]
        logits = torch.randn(259, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        estimates = []
        for _ in range(400):
            words = candidate_words(batch, 259, 20)
            named = set(batch.top_tokens.flatten().tolist()) | set(batch.tokens.flatten().tolist())
            assert named <= set(words.ids.tolist())
            assert len(set(words.ids.tolist())) == len(words.ids) == len(named) + 20
            estimates.append((logits[words.ids] + words.log_multiplicity).exp().sum())
        mean = torch.stack(estimates).mean()
        assert float(mean) == pytest.approx(float(logits.exp().sum()), rel=0.05)

    def test_none_takes_them_all(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, cache: Cache) -> None:
        batch = cache(model, texts(model, tokenizer, 30))[0]
        for sampled in (None, 1000):
            words = candidate_words(batch, 259, sampled)
            assert torch.equal(words.ids, torch.arange(259))
            assert not words.log_multiplicity.any()


def test_agreement_is_the_share_of_the_models_own_greedy_tokens(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, cache: Cache
) -> None:
    heads = MultiTokenHeads.from_model(model, 2)
    written = texts(model, tokenizer, 200)
    right, count = [0, 0], [0, 0]
    for text in written:
        ids = torch.tensor([text.input_ids])
        with torch.no_grad():
            greedy = model(input_ids=ids).logits[0].argmax(-1)
            of_heads = heads(model, ids)[:, 0].argmax(-1)
        for k in (1, 2):
            for position in range(ids.shape[1] - k - 1):
                if position + k + 1 >= text.prompt_length:
                    right[k - 1] += int(of_heads[k - 1, position] == greedy[position + k])
                    count[k - 1] += 1
    found = agreement(Decoder(model), heads, cache(model, written))
    assert found == pytest.approx([r / c for r, c in zip(right, count, strict=True)], abs=1e-6)


def test_held_out_text_shares_no_prompt_with_what_the_heads_learn_from(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase
) -> None:
    written = texts(model, tokenizer, 900)
    kept, held_out = split_held_out(written, 0.2, 0)
    prompts = [{tuple(t.input_ids[: t.prompt_length]) for t in part} for part in (kept, held_out)]
    assert not prompts[0] & prompts[1]
    assert len(kept) + len(held_out) == len(written)
    assert len(prompts[1]) == round(0.2 * len(prompts[0] | prompts[1]))


@pytest.mark.parametrize("prompts", [1, 2])
def test_of_few_prompts_a_share_of_the_texts_is_held_out(prompts: int) -> None:
    written = [WrittenText("domain", 1, [place % prompts, 7, 8 + place]) for place in range(50)]
    kept, held_out = split_held_out(written, 0.1, 0)
    assert (len(kept), len(held_out)) == (45, 5) and kept + held_out != written
    assert split_held_out(written[:1], 0.1, 0) == (written[:1], [])


def test_prompts_of_text_rows_reach_beyond_what_all_begin_with(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    rows = [
        {"text": f"The same beginning of every row. {word} and more of it"} for word in ("First", "Second", "Third")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = domain_prompts(DistillConfig(data=str(tmp_path / "rows.jsonl")), tokenizer)
    assert len({tuple(prompt) for prompt in prompts}) == 3


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["soft", "sampled"])
def test_heads_learn_and_the_model_stays_as_it_was(targets: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = counting_model(1)
    model.lm_head.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    written = texts(model, tokenizer, 2000)
    lines: list[dict[str, float]] = []
    config = DistillConfig(num_heads=2, targets=targets, epochs=6, tokens_per_batch=128, held_out=0.2)
    result = distill_heads(model, tokenizer, written, config, log=lines.append)
    for k in (0, 1):
        assert result.agreement["domain"][k] > 0.8 > 0.5 > result.before["domain"][k]
        assert lines[-1][f"loss_{k + 1}"] < 0.5 * lines[0][f"loss_{k + 1}"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert flags == {name: parameter.requires_grad for name, parameter in model.named_parameters()}


def test_further_epochs_do_not_run_the_model_again(tokenizer: PreTrainedTokenizerBase) -> None:
    calls = []
    for epochs in (1, 3):
        model = tiny_model()
        written = texts(model, tokenizer, 300)
        count = 0

        def counted(*_: object) -> None:
            nonlocal count
            count += 1

        model.model.layers[0].register_forward_hook(counted)
        result = distill_heads(model, tokenizer, written, DistillConfig(num_heads=2, epochs=epochs))
        assert len(result.epoch_seconds) == epochs
        calls.append(count)
    assert calls[0] == calls[1] > 0


def counting_model(step: int) -> nn.Module:
    """Writes every `step`th byte; easy to foresee."""
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.copy_(model.model.embed_tokens.weight.roll(step, dims=0) * 60)
    return model


@pytest.mark.slow
def test_heads_are_refreshed_on_a_model_that_was_tuned_since(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model, tuned = counting_model(1), counting_model(3)
    settings = {"epochs": 6, "tokens_per_batch": 128, "held_out": 0.2}
    grown = distill_heads(model, tokenizer, texts(model, tokenizer, 2000), DistillConfig(num_heads=2, **settings)).heads
    grown.save_pretrained(tmp_path / "heads")
    with pytest.raises(InputError, match="belong to another model"):
        MultiTokenHeads.from_pretrained(tmp_path / "heads", tuned)
    written = texts(tuned, tokenizer, 2000)
    settings |= {"num_heads": 5, "refresh": str(tmp_path / "heads")}  # their number stays
    untouched = distill_heads(tuned, tokenizer, written, DistillConfig(**{**settings, "epochs": 0}))
    for name, weight in untouched.heads.state_dict().items():
        assert torch.equal(weight, grown.state_dict()[name])
    refreshed = distill_heads(tuned, tokenizer, written, DistillConfig(**settings))
    assert refreshed.before == untouched.agreement and refreshed.heads.num_heads == 2
    for k in (0, 1):
        assert refreshed.agreement["domain"][k] > 0.8 > 0.5 > untouched.agreement["domain"][k]
    refreshed.heads.save_pretrained(tmp_path / "refreshed")
    MultiTokenHeads.from_pretrained(tmp_path / "refreshed", tuned)  # they belong to it now
    with pytest.raises(InputError, match="their hidden size is 32, this model's is 64"):
        MultiTokenHeads.from_pretrained(tmp_path / "heads", tiny_model(hidden_size=64, head_dim=16), of_relative=True)


def test_a_distillation_leaves_heads_text_and_agreement_and_its_text_serves_again(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": p, "completion": " x"}) + "\n" for p in PROMPTS))
    (tmp_path / "prompts.txt").write_text("once\n\nupon\n a time\n")
    settings = {
        "model": str(tmp_path / "model"),
        "data": str(tmp_path / "rows.jsonl"),
        "prompts": str(tmp_path / "prompts.txt"),
        "domain_tokens": 200,
        "general_tokens": 100,
        "num_heads": 2,
        "epochs": 1,
        "max_new_tokens": 8,
    }
    first = DistillConfig(output=str(tmp_path / "first"), **settings)
    with Run.create(first.output, "distill", first, {}) as run:
        distill(first, run)
    written = json.loads((tmp_path / "first" / "agreement.json").read_text())
    assert set(written["heads"]) == {"domain", "general"}
    assert {t.kind for t in read_texts(tmp_path / "first" / "text.jsonl")} == {"domain", "general"}
    assert not [p for p in (tmp_path / "first").iterdir() if p.name.startswith(".hidden")]
    second = DistillConfig(output=str(tmp_path / "second"), text=str(tmp_path / "first"), **settings)
    with Run.create(second.output, "distill", second, {}) as run:
        distill(second, run)
    loaded = [MultiTokenHeads.from_pretrained(tmp_path / name, model) for name in ("first", "second")]
    for one, two in zip(loaded[0].parameters(), loaded[1].parameters(), strict=True):
        assert torch.equal(one, two)
    missing = DistillConfig(output=str(tmp_path / "third"), text=str(tmp_path / "rows.jsonl"), **settings)
    with (
        pytest.raises(InputError, match=r"holds no text\.jsonl"),
        Run.create(missing.output, "distill", missing, {}) as run,
    ):
        distill(missing, run)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_heads_are_trained_in_float32_whatever_the_model_is(
    architecture: str, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase
) -> None:
    written = texts(tiny_model(architecture), tokenizer, 150)
    losses = []
    for kind in (torch.float32, dtype):
        lines: list[dict[str, float]] = []
        config = DistillConfig(num_heads=2, epochs=2, tokens_per_batch=128)
        heads = distill_heads(tiny_model(architecture).to(kind), tokenizer, written, config, log=lines.append).heads
        assert {each.dtype for each in heads.parameters()} == {kind}
        losses.append([lines[-1]["loss_1"], lines[-1]["loss_2"]])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


@pytest.mark.slow
def test_steps_that_bfloat16_would_lose_add_up(tokenizer: PreTrainedTokenizerBase) -> None:
    model = counting_model(1).bfloat16()
    written = texts(model, tokenizer, 2000)
    config = DistillConfig(num_heads=1, epochs=3, tokens_per_batch=128, learning_rate=1e-5)
    heads = distill_heads(model, tokenizer, written, config).heads
    copies = MultiTokenHeads.from_model(model, 1).state_dict()
    for name, weight in heads.state_dict().items():
        assert weight.dtype == torch.bfloat16
        # One step of 1e-5 changes no weight of more than 0.005.
        large = copies[name].abs() > 0.01
        assert (weight != copies[name])[large].float().mean() > 0.1 or "norm" in name, name


def test_hidden_states_are_kept_in_a_file_that_no_kill_can_leave(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    written = texts(model, tokenizer, tokens=100)
    cache = cached_batches(model, written, tap=1, tokens_per_batch=64, pad_token_id=0, folder=tmp_path)
    assert not list(tmp_path.iterdir())
    assert sum(float(batch.cached.args[0].abs().sum()) for batch in cache) > 0


def test_a_learning_rate_that_ends_in_nan_stops_the_run_with_the_step(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config = DistillConfig(num_heads=2, learning_rate=1e30, epochs=4, tokens_per_batch=64)
    with pytest.raises(FloatingPointError, match=r"at step \d+ of \d+ the heads' losses are"):
        distill_heads(model, tokenizer, texts(model, tokenizer, tokens=200), config)
