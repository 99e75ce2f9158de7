"""Self-speculative decoding: the heads draft, and the model checks the draft in its next pass.

    block   x_{t+1}  d_1 ... d_m        x_{t+1} is the model's own token at position t, d_k head k's

The model reads the block in one pass. Draft d_k is kept as long as all before it are and the model agrees: in greedy
decoding where d_k is its own likeliest token, in sampling with probability min(1, p / q) (algorithm 1 of Leviathan et
al., arXiv 2211.17192). After the last that is kept comes the model's own token, so that a pass yields one token at
least, and every token is as without drafts: the same one in greedy decoding, of the same distribution in sampling. The
heads then read what the pass has left at the last kept position, and draft anew.

Source: blockwise parallel decoding (arXiv 1811.03115), with heads as in CAFT (arXiv 2506.07833). Where this differs:

1. Heads are layers beside the model's last one, and each has a key-value cache of its own.
2. How many tokens are drafted follows what was accepted and what passes took so far (`Pace`): none where that is best.
3. Drafts are chains. A tree needs a row of the pass for each of its nodes; on a CPU each row costs about a fifth of a
   pass, and a second guess of a token is right less often than that.
4. Rows of a batch keep different numbers of tokens: what a row does not keep the mask hides from it, and it is taken
   out of the cache for good when it is a quarter of it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StoppingCriteriaList
from transformers.cache_utils import DynamicSlidingWindowLayer

from graftlm.decoding.batches import has_virtual_tokens
from graftlm.decoding.generation import named_arguments
from graftlm.decoding.pace import Pace
from graftlm.decoding.sequences import Row, is_transformers_own, processors_of_row
from graftlm.decoding.speculation import (
    SpeculativeOutput,
    check_call,
    check_can_forget,
    decoding_arguments,
    kept_or_drawn,
)
from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from graftlm.models.decoder import Decoder, LayerCall, plain_model
from graftlm.models.few_rows import use_fast_cpu_products

WASTE = 0.25
"""Share of a batch's cache that may be hidden before it is taken out."""


class HeadsDecoding:
    """A decoding method for `generate`: the same tokens as without it, several of them a pass.

        decoding = HeadsDecoding(model, heads)
        decoding.generate(**inputs, max_new_tokens=64)

    `generate` is the model's own, given this as `custom_generate`. It takes batches with padding on the left, sampling,
    logits processors, stopping criteria and a streamer, and learns from call to call how much to draft (`pace`). With
    `return_dict_in_generate=True` the output is a SpeculativeOutput. One thread at a time: a pass is watched by hooks.

    A logits processor or stopping criterion of one's own may know rows by their number. Its answer has to follow from
    its arguments alone, since it is asked about drafts that are not kept.

    A logits processor that chooses tokens by itself may say so with `choose_rows(rows, logits)`: the numbers of some
    rows and their logits [rows, vocabulary] -> a token each, None for a row that is done. A draft is then kept as long
    as it is what that chooses, so that the text is the same as without drafts, sampled or not.

    `draft_tokens`: draft always so many instead, at most as many as there are heads. The heads given are moved to the
    model's device and dtype, and set to evaluate.

    InputError for heads of another shape, a model whose layers keep other states than keys and values, and beams.
    """

    def __init__(self, model: Any, heads: MultiTokenHeads, *, draft_tokens: int | None = None) -> None:
        if has_virtual_tokens(model):
            raise InputError("heads do not draft for prompt or prefix tuning: they never see its virtual tokens")
        self.model, self.decoder = model, Decoder(model)
        if misfit := heads.config.misfit(self.decoder):
            raise InputError(f"these heads belong to another model ({heads.config.base_model}): {misfit}")
        rope = getattr(self.decoder.config, "rope_parameters", None) or {}
        of_layers = [each for each in rope.values() if isinstance(each, dict)]  # one for each kind of attention
        for kind in (each.get("rope_type") for each in (rope, *of_layers)):
            if kind in ("dynamic", "longrope"):
                raise InputError(f"rope of type {kind} moves what was read as the text grows: decode it without heads")
        self.heads = heads.to(self.decoder.unembedding.weight.device, self.decoder.unembedding.weight.dtype).eval()
        if draft_tokens is not None and not 0 <= draft_tokens <= heads.num_heads:
            raise InputError(f"draft_tokens is {draft_tokens}: give 0 to {heads.num_heads}, the number of heads")
        kinds = check_can_forget(self.decoder.model)
        windows = DynamicSlidingWindowLayer in kinds or hasattr(self.decoder.config, "attention_types")
        self.counts_columns = windows or not self.decoder.takes_positions
        """Whether the distance of two tokens is that of their columns in the cache."""
        self.draft_tokens = draft_tokens
        self.drafted = self.accepted = 0
        """Tokens proposed in all calls so far, and of them kept."""
        size = sum(parameter.numel() for parameter in self.decoder.model.parameters())
        layers = sum(parameter.numel() for parameter in heads.layers[0].parameters())
        on_cpu = self.decoder.unembedding.weight.device.type == "cpu"
        self.pace = Pace(heads.num_heads, layers / size, self.decoder.unembedding.weight.numel() / size, on_cpu=on_cpu)

    @classmethod
    def load(cls, model: Any, folder: str) -> HeadsDecoding:
        """With the heads in `folder`. InputError where there are none, or those of another model."""
        decoding = cls(model, MultiTokenHeads.from_pretrained(folder, model))
        use_fast_cpu_products(decoding.heads)
        return decoding

    @property
    def device(self) -> torch.device:
        return self.decoder.model.device

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def generation_config(self) -> Any:
        return self.model.generation_config

    def generate(self, *inputs: Any, **options: Any) -> Any:
        """As the model's own: input_ids [batch, time] int64, and what it gives for them."""
        arguments = named_arguments(inputs, options)
        return self.model.generate(**decoding_arguments(self, arguments, self.generation_config))

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        streamer: Any = None,
        **inputs: Any,
    ) -> Any:
        """Called by `generate`: input_ids and what it returns are [batch, time] int64, on the same device.

        InputError for another model, for a streamer of several rows, and for what `check_call` refuses.
        """
        check_call(generation_config, logits_processor, inputs)
        if plain_model(model) is not self.decoder.model:
            raise InputError("these heads draft for another model than generate was called on")
        if not input_ids.shape[1]:
            raise InputError("heads draft from tokens: give input_ids with at least one")
        if streamer is not None and len(input_ids) > 1:
            raise InputError(
                "a streamer takes one text, and drafts grow several at different speeds: leave one of them out"
            )
        sample = bool(generation_config.do_sample)
        pace = self.pace.fresh() if sample else self.pace
        pace.begin()
        decoding = Decoding(
            self, input_ids, inputs.get("attention_mask"), inputs.get("position_ids"), logits_processor,
            stopping_criteria, sample, pace, streamer,
        )  # fmt: skip
        decoding.finish()
        self.drafted, self.accepted = self.drafted + decoding.drafted, self.accepted + decoding.accepted
        ends = generation_config.eos_token_id
        pads = [generation_config.pad_token_id, *(ends if isinstance(ends, list) else [ends]), 0]
        sequences = torch.nn.utils.rnn.pad_sequence(
            [row.sequence[0] for row in decoding.rows], batch_first=True,
            padding_value=int(next(pad for pad in pads if pad is not None)),
        )  # fmt: skip
        if streamer is not None:
            streamer.end()
        if not generation_config.return_dict_in_generate:
            return sequences
        return SpeculativeOutput(
            sequences=sequences, drafted=decoding.drafted, accepted=decoding.accepted, rounds=decoding.rounds
        )


@dataclass
class Draft:
    """Tokens [batch, count] after the one that the model gave itself; in sampling each with the distribution
    [batch, vocabulary] that it was drawn from."""

    tokens: Tensor
    distributions: list[Tensor] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.tokens.shape[1]


class HeadCache(DynamicCache):
    """Keys and values of a head's layers, which still count as those of the model that they were copied from."""

    def __init__(self, first_layer: int) -> None:
        super().__init__()
        self.first_layer = first_layer

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        return super().update(key_states, value_states, layer_idx - self.first_layer, *args, **kwargs)


class Decoding:
    """One call of `generate`. `live`: the rows that are not done; the caches and `visible` have only those."""

    def __init__(
        self,
        method: HeadsDecoding,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        processor: Any,
        criteria: Any,
        sample: bool,
        pace: Pace,
        streamer: Any,
    ) -> None:
        self.method, self.decoder, self.heads = method, method.decoder, method.heads
        self.sample, self.pace, self.streamer = sample, pace, streamer
        self.criteria = StoppingCriteriaList(each for each in criteria if is_transformers_own(each))
        self.criteria_of_batch = StoppingCriteriaList(each for each in criteria if not is_transformers_own(each))
        """Those that may know rows by their number."""
        self.chooser = next((each for each in processor if hasattr(each, "choose_rows")), None)
        others = [each for each in processor if each is not self.chooser]
        self.rows = [
            Row(ids[None], processors_of_row(others, number, len(input_ids))) for number, ids in enumerate(input_ids)
        ]
        self.plain = not sample and not others
        """Whether the likeliest token of the logits as they are is chosen."""
        self.live = list(range(len(self.rows)))
        self.cache = DynamicCache()
        self.head_caches = [HeadCache(self.heads.config.copy_layer) for _ in range(self.heads.num_heads)]
        self.drafting = self.pace.heads if method.draft_tokens is None else method.draft_tokens
        """Heads that still draft: the first so many. One that has missed a pass has lost its place."""
        if sample and method.draft_tokens is None and pace.choose(len(self.rows)) == 0:
            self.drafting = pace.heads = 0  # nothing will be learnt that changes this
        input_ids = input_ids.to(method.device)
        visible = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids)
        if not bool(visible.any(1).all()):
            raise InputError("a row's attention_mask hides all of its tokens: leave the row out")
        first = int(visible.any(0).nonzero()[0])
        positions = (visible.cumsum(1) - 1).clamp(min=0)
        if position_ids is not None:
            positions = _places_in_text(position_ids.to(input_ids.device), visible.bool())
        self.prompt, self.prompt_positions = input_ids[:, first:], positions.expand_as(input_ids)[:, first:]
        self.prompt_mask, self.visible = visible[:, first:].bool(), visible[:, :0].bool()
        self.limit = self.decoder.context_length
        self.drafted = self.accepted = self.rounds = 0

    def finish(self) -> None:
        """Read the prompt, then round after round, until all rows are done."""
        draft, first = self._start()
        while self.live:
            draft, first = self._round(first, draft)

    def _start(self) -> tuple[Draft, Tensor]:
        positions = self.prompt_positions
        hidden, call = self._read(self.prompt, self.prompt_mask, positions)
        last = torch.full((len(self.live),), self.prompt.shape[1] - 1, device=self.prompt.device)
        self.position = positions[:, -1] + 1
        if self.cache.get_seq_length() != self.prompt.shape[1]:
            raise InputError(f"{type(self.decoder.model).__name__} keeps no plain cache: leave the heads out")
        logits = self.decoder.logits_of_normed(hidden[:, -1:])
        chosen = self._choose(logits, None)
        return self._after(chosen, call, last, block=self.prompt.shape[1])

    def _round(self, first: Tensor, draft: Draft) -> tuple[Draft, Tensor]:
        """Check a draft; returns the next one and the tokens before it."""
        begun = time.perf_counter()
        block = torch.cat([first[:, None], draft.tokens], dim=1)
        count = block.shape[1]
        positions = self.position[:, None] + torch.arange(count, device=block.device)
        hidden, call = self._read(block, torch.ones_like(block, dtype=torch.bool), positions)
        logits = self.decoder.logits_of_normed(hidden)
        chosen = self._choose(logits, draft)
        read = time.perf_counter() - begun
        self.rounds += 1
        kept = [max(len(each) - 1, 0) for each in chosen]
        self.drafted += draft.count * len(kept)
        self.pace.learn(len(kept), draft.count, kept, read)
        last = torch.tensor(kept, device=block.device)
        self.position = self.position + last + 1
        return self._after(chosen, call, last, block=count)

    def _after(self, chosen: list[list[int]], call: LayerCall, last: Tensor, block: int) -> tuple[Draft, Tensor]:
        """Append what was chosen, let the heads read, forget what was not kept, and draft."""
        for number, tokens in zip(self.live, chosen, strict=True):
            self.accepted += min(self._append(number, tokens), max(len(tokens) - 1, 0))
        begun = time.perf_counter()
        alive = torch.tensor([not self.rows[number].done for number in self.live])
        if not bool(alive.any()):
            self.live = []
            return Draft(self.prompt[:0, :0]), self.prompt[:0, 0]
        outputs = self._run_heads(call, last)
        self._forget(last, block)
        if not bool(alive.all()):
            rows = alive.nonzero()[:, 0].to(self.visible.device)
            for cache in (self.cache, *self.head_caches[: len(outputs)]):
                cache.batch_select_indices(rows)
            self.visible, self.position = self.visible[rows], self.position[rows]
            outputs = [each[rows] for each in outputs]
            self.live = [number for number, lives in zip(self.live, alive.tolist(), strict=True) if lives]
        first = torch.tensor([int(self.rows[n].sequence[0, -1]) for n in self.live], device=self.prompt.device)
        draft = self._draft(outputs, first)
        if block <= self.heads.num_heads + 1:
            self.pace.learn_heads(len(self.live), len(outputs), time.perf_counter() - begun)
        return draft, first

    def _append(self, number: int, tokens: Sequence[int]) -> int:
        """Returns how many of them there was room for."""
        row = self.rows[number]
        row.done = not tokens
        for count, token in enumerate(tokens, start=1):
            row.sequence = torch.cat([row.sequence, row.sequence.new_tensor([[token]])], dim=-1)
            if self.streamer is not None:
                self.streamer.put(torch.tensor([token]))
            if self._ends(number):
                row.done = True
                return count
        return len(tokens)

    def _ends(self, number: int) -> bool:
        sequence = self.rows[number].sequence
        if bool(self.criteria(sequence, None)[0]):
            return True
        others = self.criteria_of_batch
        return bool(others) and bool(others(sequence.repeat(len(self.rows), 1), None)[number])

    def _read(self, block: Tensor, mask: Tensor, positions: Tensor) -> tuple[Tensor, LayerCall]:
        """Final hidden states of a block [batch, time], which the cache is extended by, and what the heads read."""
        self.visible = torch.cat([self.visible, mask], dim=1)
        inputs: dict[str, Any] = {"input_ids": block, "position_ids": positions}
        if not bool(self.visible.all()):
            inputs["attention_mask"] = self.visible.long()
        return self.decoder.run(self.heads.tap, self.cache, **inputs)

    def _choose(self, logits: Tensor, draft: Draft | None) -> list[list[int]]:
        """Of each live row the drafted tokens that are kept, and the model's own token after them."""
        drafted = [[] for _ in self.live] if draft is None else draft.tokens.tolist()
        if self.chooser is not None:
            return self._chosen_elsewhere(logits, drafted)
        if self.plain:
            own = logits.argmax(-1).tolist()
            return [_agreeing(tokens, likeliest) for tokens, likeliest in zip(drafted, own, strict=True)]
        chosen = []
        for place, (number, tokens) in enumerate(zip(self.live, drafted, strict=True)):
            row, kept = self.rows[number], list[int]()
            sequence = row.sequence
            for step in range(len(tokens) + 1):
                scores = row.processed(sequence, logits[place, step])
                if not self.sample:
                    kept.append(int(scores.argmax()))
                elif step < len(tokens):
                    assert draft is not None
                    kept.append(kept_or_drawn(tokens[step], scores.softmax(-1), draft.distributions[step][place]))
                else:
                    kept.append(int(torch.multinomial(scores.softmax(-1), 1)))
                if step == len(tokens) or kept[-1] != tokens[step]:
                    break
                sequence = torch.cat([sequence, sequence.new_tensor([[tokens[step]]])], dim=-1)
            chosen.append(kept)
        return chosen

    def _chosen_elsewhere(self, logits: Tensor, drafted: list[list[int]]) -> list[list[int]]:
        """Place after place, of the rows whose draft has been right so far."""
        choose_rows: Any = self.chooser.choose_rows  # type: ignore[union-attr]
        kept: list[list[int]] = [[] for _ in self.live]
        going = list(range(len(self.live)))
        for step in range(logits.shape[1]):
            scores = logits[going, step].float()
            if not self.plain:
                scores = torch.stack([self._scores(place, kept[place], logits[place, step]) for place in going])
            chosen: list[int | None] = choose_rows([self.live[place] for place in going], scores)
            for place, token in zip(going, chosen, strict=True):
                kept[place] += [] if token is None else [token]
            going = [
                place for place, token in zip(going, chosen, strict=True)
                if token is not None and drafted[place][step : step + 1] == [token]
            ]  # fmt: skip
            if not going:
                break
        return kept

    def _scores(self, place: int, tokens: Sequence[int], logits: Tensor) -> Tensor:
        """Processed, of the token after these, which follow a live row."""
        row = self.rows[self.live[place]]
        return row.processed(torch.cat([row.sequence, row.sequence.new_tensor([[*tokens]])], dim=-1), logits)

    def _run_heads(self, call: LayerCall, last: Tensor) -> list[Tensor]:
        """Outputs [batch, hidden] at the last kept place of each row, of the heads that draft."""
        if self.method.draft_tokens is None:
            self.drafting = min(self.drafting, self.pace.heads)
        rows = torch.arange(len(last), device=last.device)
        outputs = []
        for head, cache in enumerate(self.head_caches[: self.drafting]):
            found = call.through(self.heads.layers[head], call.hidden_states, cache)  # type: ignore[arg-type]
            outputs.append(found[rows, last.to(found.device)])
        return outputs

    def _draft(self, outputs: list[Tensor], first: Tensor) -> Draft:
        """What the heads propose after the tokens `first` [batch]."""
        count = min(len(outputs), self._room())
        if self.method.draft_tokens is None:
            count = min(count, self.pace.choose(len(self.live)))
        if count == 0:
            return Draft(first.new_zeros(len(first), 0))
        logits = self.decoder.logits(torch.stack(outputs[:count]))  # [count, batch, vocabulary]
        if self.plain:
            return Draft(logits.argmax(-1).t().to(first.device))
        tokens, distributions = [], []
        rows = [self.rows[number] for number in self.live]
        sequences = [row.sequence for row in rows]
        for each in logits:
            scores = torch.stack([row.processed(*pair) for row, *pair in zip(rows, sequences, each, strict=True)])
            distributions.append(scores.softmax(-1))
            drawn = torch.multinomial(distributions[-1], 1) if self.sample else scores.argmax(-1, keepdim=True)
            tokens.append(drawn.to(first.device))
            sequences = [torch.cat([s, token[None].to(s)], dim=-1) for s, token in zip(sequences, drawn, strict=True)]
        return Draft(torch.cat(tokens, dim=1), distributions)

    def _room(self) -> int:
        """How many drafted tokens still have positions in the model."""
        if self.limit is None or not self.live:
            return self.heads.num_heads
        return max(0, int(self.limit) - int(self.position.max()) - 1)

    def _forget(self, last: Tensor, block: int) -> None:
        """What comes after place `last` of each row in the newest `block` columns."""
        caches = [self.cache, *(cache for cache in self.head_caches[: self.drafting])]
        spare = block - 1 - int(last.max())
        if spare:
            for cache in caches:
                cache.crop(-spare)
            self.visible = self.visible[:, :-spare]
        places = torch.arange(block - spare, device=last.device)
        self.visible[:, self.visible.shape[1] - len(places) :] &= places <= last[:, None]
        hidden = 1 - float(self.visible.sum(1).max()) / self.visible.shape[1]
        uneven = not bool(self.visible[:, -1].all())
        if hidden > WASTE or (uneven and self.method.counts_columns):
            self._compact(caches)

    def _compact(self, caches: Sequence[Cache]) -> None:
        """Each row's visible columns moved to the right end, what is hidden to the left or out."""
        width = int(self.visible.sum(1).max())
        # A stable sort by visibility keeps the order of what is visible.
        columns = self.visible.long().argsort(dim=1, stable=True)[:, -width:]
        for cache in caches:
            for layer in cache.layers:
                index = columns[:, None, :, None].to(layer.keys.device)
                layer.keys = layer.keys.gather(2, index.expand(-1, layer.keys.shape[1], -1, layer.keys.shape[3]))
                layer.values = layer.values.gather(
                    2, index.expand(-1, layer.values.shape[1], -1, layer.values.shape[3])
                )
        self.visible = self.visible.gather(1, columns)


def _places_in_text(positions: Tensor, visible: Tensor) -> Tensor:
    """Positions [batch, time] of those that models of pictures have, [planes, batch, time]: of text they are the same
    in all planes. InputError where they are not."""
    if positions.ndim == 2:
        return positions
    if bool(((positions != positions[0]) & visible).any()):
        raise InputError("drafts are made from text alone, and these position_ids place pictures: leave them out")
    return positions[0]


def _agreeing(tokens: Sequence[int], likeliest: Sequence[int]) -> list[int]:
    """`tokens` as far as they are the model's likeliest, and its own token after them."""
    matches = 0
    while matches < len(tokens) and tokens[matches] == likeliest[matches]:
        matches += 1
    return [*tokens[:matches], likeliest[matches]]
