"""Self-speculative decoding: the heads draft, and the model checks the draft in its next pass.

    block   x_{t+1}  d_1 ... d_m        x_{t+1} is the model's own token at position t, d_k head k's

The model reads the block in one pass. Draft d_k is accepted where all before it are and the model agrees: in greedy
decoding where d_k is its own likeliest token, in sampling with probability min(1, p / q) (algorithm 1 of Leviathan et
al., arXiv 2211.17192). After the last accepted one comes the model's own token, so that a pass yields one token at
least, and every token is as without drafts: the same one in greedy decoding, of the same distribution in sampling. The
heads then read the states that the pass has left at the last accepted position, and draft anew.

Source: blockwise parallel decoding (arXiv 1811.03115), with heads as in CAFT (arXiv 2506.07833). Where this differs:

1. Heads are layers beside the model's last one, and each has a key-value cache of its own.
2. How many tokens are drafted follows how many were accepted so far and what they cost (`DraftLength`).
3. Drafts are chains. A tree needs a row of the pass for each of its nodes; on a CPU each row costs about a fifth of a
   pass, and a second guess of a token is right less often than that.
4. Sequences of a batch accept different numbers of tokens: the mask hides the others, and they are taken out of the
   caches when they are a quarter of them (`DraftCaches`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from graftlm.decoding.batches import has_virtual_tokens
from graftlm.decoding.draft_caches import DraftCaches
from graftlm.decoding.draft_length import HEADS_COST, TOKEN_COST, DraftLength
from graftlm.decoding.generation import named_arguments
from graftlm.decoding.sequences import Draft, Sequences
from graftlm.decoding.speculation import SpeculativeOutput, check_call, check_can_forget, decoding_arguments
from graftlm.errors import InputError
from graftlm.heads.heads import MultiTokenHeads
from graftlm.models.decoder import Decoder, LayerCall, plain_model
from graftlm.models.few_rows import use_fast_cpu_products


class HeadsDecoding:
    """A decoding method for `generate`: the same tokens as without it, several of them a pass.

        decoding = HeadsDecoding(model, heads)
        decoding.generate(**inputs, max_new_tokens=64)

    `generate` is the model's own, given this as `custom_generate`. It takes batches with padding on the left, sampling,
    logits processors, stopping criteria and a streamer. Greedy decoding learns from call to call how much to draft.
    With `return_dict_in_generate=True` the output is a SpeculativeOutput. One thread at a time: hooks watch a pass.

    A logits processor or stopping criterion of one's own may know sequences by their number. Its answer has to follow
    from its arguments alone, since it is asked about drafts that are not accepted.

    A logits processor that chooses tokens by itself may say so with `choose_rows(numbers, logits)`: the numbers of some
    sequences and their logits [sequences, vocabulary] -> a token each, None for a sequence that is done. A draft is
    then accepted as long as it is what that chooses, so that the text is the same as without drafts, sampled or not.

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
        check_rope(self.decoder.config)
        unembedding = self.decoder.unembedding.weight
        self.heads = heads.to(unembedding.device, unembedding.dtype).eval()
        if draft_tokens is not None and not 0 <= draft_tokens <= heads.num_heads:
            raise InputError(f"draft_tokens is {draft_tokens}: give 0 to {heads.num_heads}, the number of heads")
        kinds = check_can_forget(self.decoder.model)
        windows = DynamicSlidingWindowLayer in kinds or hasattr(self.decoder.config, "attention_types")
        self.counts_columns = windows or not self.decoder.takes_positions
        """Whether the distance of two tokens is that of their columns in the cache."""
        self.draft_tokens = draft_tokens
        self.draft_length = self.new_draft_length(sampled=False)
        self.drafted = self.accepted = 0
        """Tokens proposed in all calls so far, and those of them that were accepted."""

    def new_draft_length(self, *, sampled: bool) -> DraftLength:
        """A DraftLength that has learnt nothing; costs are shares of the model's parameters."""
        unembedding = self.decoder.unembedding.weight
        size = sum(parameter.numel() for parameter in self.decoder.model.parameters())
        read = sum(parameter.numel() for parameter in self.heads.parameters()) + unembedding.numel()
        token_cost = TOKEN_COST["cpu" if unembedding.device.type == "cpu" else "other"][sampled]
        return DraftLength(self.heads.num_heads, HEADS_COST * read / size, token_cost)

    @classmethod
    def load(cls, model: Any, folder: str) -> HeadsDecoding:
        """Draft with the heads in `folder`. InputError where there are none, or those of another model."""
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
        """Generate as the model itself does: input_ids [batch, time] int64, and the same output."""
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
        """Decode for `generate`, which calls this: input_ids and the result are [batch, time] int64.

        InputError for another model, for a streamer of several sequences, and for what `check_call` refuses.
        """
        check_call(generation_config, logits_processor, inputs)
        self._check_text(model, input_ids, streamer)
        sampled = bool(generation_config.do_sample)
        sequences = Sequences(input_ids, logits_processor, stopping_criteria, streamer, sampled=sampled)
        decoding = Decoding(self, sequences, self.new_draft_length(sampled=True) if sampled else self.draft_length)
        decoding.finish(*prompt_of(input_ids.to(self.device), inputs.get("attention_mask"), inputs.get("position_ids")))
        self.drafted, self.accepted = self.drafted + decoding.drafted, self.accepted + decoding.accepted
        if streamer is not None:
            streamer.end()
        ends = generation_config.eos_token_id
        pads = [generation_config.pad_token_id, *(ends if isinstance(ends, list) else [ends]), 0]
        pad = next(int(token) for token in pads if token is not None)
        texts = [sequence.tokens[0] for sequence in sequences.all]
        tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad)
        if not generation_config.return_dict_in_generate:
            return tokens
        return SpeculativeOutput(
            sequences=tokens, drafted=decoding.drafted, accepted=decoding.accepted, rounds=decoding.rounds
        )

    def _check_text(self, model: Any, input_ids: Tensor, streamer: Any) -> None:
        if plain_model(model) is not self.decoder.model:
            raise InputError("these heads draft for another model than generate was called on")
        if not input_ids.shape[1]:
            raise InputError("heads draft from tokens: give input_ids with at least one")
        if streamer is not None and len(input_ids) > 1:
            raise InputError(
                "a streamer takes one text, and drafts grow several at different speeds: leave one of them out"
            )


class Decoding:
    """One call of `generate`: passes of the model that check drafts, and of the heads that make them."""

    def __init__(self, method: HeadsDecoding, sequences: Sequences, length: DraftLength) -> None:
        self.decoder, self.heads, self.sequences = method.decoder, method.heads, sequences
        self.length = length if method.draft_tokens is None else None
        """None where the number of drafted tokens is fixed."""
        batch, count = len(sequences.all), method.draft_tokens
        if count is None:
            count = self.heads.num_heads if length.begin(batch) else 0
        self.caches = DraftCaches(
            batch, count, self.heads.config.copy_layer, counts_columns=method.counts_columns, device=method.device
        )
        self.drafted = self.accepted = self.rounds = 0

    def finish(self, prompt: Tensor, mask: Tensor, positions: Tensor) -> None:
        """Read the prompt, each [batch, time], then check draft after draft until all sequences are done."""
        hidden, call = self._read(prompt, mask, positions)
        if self.caches.model.get_seq_length() != prompt.shape[1]:
            raise InputError(f"{type(self.decoder.model).__name__} keeps no plain cache: leave the heads out")
        self.position = positions[:, -1] + 1
        nothing = Draft(prompt[:, -1], prompt[:, :0])
        chosen = self.sequences.choose(self.decoder.logits_of_normed(hidden[:, -1:]), nothing)
        last = torch.full((len(prompt),), prompt.shape[1] - 1, device=prompt.device)
        draft = self._append_and_draft(chosen, call, last)
        while draft is not None:
            draft = self._check(draft)

    def _check(self, draft: Draft) -> Draft | None:
        """Check a draft in a pass of the model; returns the next draft, None where all sequences are done."""
        block = torch.cat([draft.first[:, None], draft.tokens], dim=1).to(self.position.device)
        positions = self.position[:, None] + torch.arange(block.shape[1], device=block.device)
        hidden, call = self._read(block, torch.ones_like(block, dtype=torch.bool), positions)
        chosen = self.sequences.choose(self.decoder.logits_of_normed(hidden), draft)
        accepted = [max(len(tokens) - 1, 0) for tokens in chosen]
        if self.length is not None:
            self.length.learn(draft.count, accepted)
        self.rounds, self.drafted = self.rounds + 1, self.drafted + draft.tokens.numel()
        last = torch.tensor(accepted, device=block.device)
        self.position = self.position + last + 1
        return self._append_and_draft(chosen, call, last)

    def _read(self, block: Tensor, mask: Tensor, positions: Tensor) -> tuple[Tensor, LayerCall]:
        """Read a block [batch, time] into the cache: its final hidden states, and the call that the heads repeat."""
        inputs = {"input_ids": block, "position_ids": positions, **self.caches.extend(mask)}
        return self.decoder.run(self.heads.tap, self.caches.model, **inputs)

    def _append_and_draft(self, chosen: list[list[int]], call: LayerCall, last: Tensor) -> Draft | None:
        """Append the chosen tokens, forget the drafts that were not accepted, and draft for the sequences that go on.

        `last` [batch]: the place in the newest block of each sequence's last token that stays.
        """
        self.accepted += self.sequences.append(chosen)
        alive = self.sequences.drop_done()
        if not any(alive):
            return None
        outputs = self._run_heads(call, last)
        self.caches.forget(last, block=call.hidden_states.shape[1])
        if not all(alive):
            self.caches.keep(alive)
            rows = torch.tensor(alive, device=last.device)
            self.position, outputs = self.position[rows], outputs[:, rows.to(outputs.device)]
        return self.sequences.propose(self.decoder.logits(outputs[: self._count(len(outputs))]))

    def _run_heads(self, call: LayerCall, last: Tensor) -> Tensor:
        """Outputs [heads, batch, hidden] at the last place of each sequence that stays."""
        rows = torch.arange(len(last), device=last.device)
        outputs = [call.hidden_states.new_zeros(0, *call.hidden_states[:, 0].shape)]
        for layers, cache in zip(self.heads.layers, self.caches.heads, strict=False):
            states = call.through(layers, call.hidden_states, cache)  # type: ignore[arg-type]
            outputs.append(states[rows, last.to(states.device)][None])
        return torch.cat(outputs)

    def _count(self, heads: int) -> int:
        """The number of tokens to draft next; the heads rest from now on where that does not pay."""
        if heads and self.length is not None:
            heads = self.length.choose(len(self.sequences.live))
            if not heads:
                self.caches.heads.clear()
        limit = self.decoder.context_length
        return heads if limit is None else max(0, min(heads, limit - int(self.position.max()) - 1))


def check_rope(config: Any) -> None:
    """InputError for rotary embeddings of a kind that changes with the length of the text."""
    rope = getattr(config, "rope_parameters", None) or {}
    of_layers = [each for each in rope.values() if isinstance(each, dict)]  # one for each kind of attention
    for kind in (each.get("rope_type") for each in (rope, *of_layers)):
        if kind in ("dynamic", "longrope"):
            raise InputError(f"rope of type {kind} moves what was read as the text grows: decode it without heads")


def prompt_of(input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> tuple[Tensor, ...]:
    """Tokens, mask (bool) and positions of a prompt, each [batch, time], without the columns that the mask hides in all
    rows before it begins. InputError for a row that is hidden as a whole, and for positions of pictures."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.to(input_ids)
    if not bool(mask.any(1).all()):
        raise InputError("a row's attention_mask hides all of its tokens: leave the row out")
    mask = mask.bool()
    positions = (mask.cumsum(1) - 1).clamp(min=0) if position_ids is None else position_ids.to(input_ids.device)
    if positions.ndim == 3:  # [planes, batch, time] of models of pictures: of text all planes are the same
        if bool(((positions != positions[0]) & mask).any()):
            raise InputError("drafts are made from text alone, and these position_ids place pictures: leave them out")
        positions = positions[0]
    first = int(mask.any(0).nonzero()[0])
    return input_ids[:, first:], mask[:, first:], positions.expand_as(input_ids)[:, first:]
