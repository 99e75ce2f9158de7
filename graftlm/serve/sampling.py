"""The choice of the next token, row by row, inside one `model.generate`.

Temperature t, nucleus p and the random numbers e are a row's own. The token is drawn as the winner of a race in which
each one's time is exponential with its probability as the rate:

    q = softmax(logits / t), zero outside the smallest set of likeliest tokens that holds p;  token = argmax_i q_i / e_i

The winner is distributed as q. It is not found by one random number in the cumulative distribution, since a row has to
come out the same whichever rows are beside it, and these change the rounding of the logits: a sum over the vocabulary
moves every border between tokens, and where tokens are rare the borders are dense, while a race goes to another only
where the two fastest are as close as the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from graftlm.serve.row import Row, Scored

# What OpenAI's API says of a token that is impossible; JSON knows no infinity.
LEAST = -9999.0
# Nearly every nucleus is smaller, and only a larger one needs the whole vocabulary in order, which takes far longer.
NUCLEUS = 1024


def sample(logits: Tensor, temperature: Tensor, top_p: Tensor, race: Tensor) -> Tensor:
    """[rows, vocabulary] logits and e, [rows] settings, temperature above 0 -> [rows] int64."""
    probabilities = (logits / temperature.unsqueeze(-1)).softmax(-1)
    if (nucleus := top_p < 1).any():
        probabilities[nucleus] = keep_nucleus(probabilities[nucleus], top_p[nucleus])
    return probabilities.div_(race).argmax(-1)


def keep_nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Zero outside the smallest set of likeliest tokens that holds `top_p`; at least one is kept."""
    ordered, order = probabilities.topk(min(NUCLEUS, probabilities.shape[-1]))
    if (ordered.sum(-1) < top_p).any():
        ordered, order = probabilities.sort(descending=True)
    outside = ordered.cumsum(-1) - ordered >= top_p.unsqueeze(-1)
    outside[:, 0] = False
    return torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(outside, 0))


def score(logits: Tensor, tokens: Tensor, alternatives: int) -> list[Scored]:
    """Log-probabilities of the `tokens`, [rows], and of the likeliest `alternatives`."""
    logprobs = logits.float().log_softmax(-1)
    chosen = finite(logprobs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1))
    values, indices = logprobs.topk(min(alternatives, logprobs.shape[-1]))
    return [
        Scored(logprob=logprob, top=list(zip(index, value, strict=True)))
        for logprob, index, value in zip(chosen, indices.tolist(), finite(values), strict=True)
    ]


def finite(logprobs: Tensor) -> list[Any]:
    return logprobs.nan_to_num(nan=LEAST, neginf=LEAST).tolist()


class RowSampler(LogitsProcessor):
    """Chooses each row's token, tells the row, and leaves `generate` no other choice.

    A vocabulary is wide, so nothing is computed over it that no row asks for: greedy rows cost one argmax.
    """

    def __init__(self, rows: Sequence[Row], on_step: Callable[[int], None]) -> None:
        """`on_step` is called before each choice, with the number of rows that are still written."""
        self.rows = rows
        self.on_step = on_step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[rows, vocabulary] logits, which are changed in place: `generate` has copied them for its processors."""
        chosen = self.choose_rows(range(len(self.rows)), scores)
        tokens = torch.tensor([[token or 0] for token in chosen], device=scores.device)
        return scores.scatter_(-1, tokens, torch.inf)

    def choose_rows(self, numbers: Sequence[int], logits: Tensor) -> list[int | None]:
        """The next token of each of these rows, given its logits [numbers, vocabulary]; None for a row that is done.

        A decoding method that checks drafts (graftlm.decoding.heads_decoding) calls this for one place after another,
        as long as the tokens are those that were drafted: what a row draws depends on its own seed, not on the drafts.
        """
        places = [place for place, number in enumerate(numbers) if not self.rows[number].done]
        rows = [self.rows[numbers[place]] for place in places]
        self.on_step(len(rows))
        live = logits if len(rows) == len(numbers) else logits[places]
        tokens = self.choose(live, rows)
        chosen: list[int | None] = [None] * len(numbers)
        scored = self.scored(live, tokens, rows)
        for place, row, token, its in zip(places, rows, tokens.tolist(), scored, strict=True):
            row.push(token, its)
            chosen[place] = token
        return chosen

    def choose(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        """[rows] int64, the next token of each row."""
        drawn = [place for place, row in enumerate(rows) if row.sampling.temperature > 0]
        if len(drawn) < len(rows):
            tokens = logits.argmax(-1)
        else:
            tokens = torch.zeros(len(rows), dtype=torch.int64, device=logits.device)
        if drawn:
            tokens[drawn] = self.draw(logits[drawn], [rows[place] for place in drawn])
        return tokens

    def draw(self, logits: Tensor, rows: Sequence[Row]) -> Tensor:
        settings = [(row.sampling.temperature, row.sampling.top_p) for row in rows]
        temperature, top_p = torch.tensor(settings, device=logits.device).unbind(-1)
        race = torch.empty_like(logits)
        for own, row in zip(race, rows, strict=True):
            own.exponential_(generator=row.generator)
        return sample(logits, temperature, top_p, race)

    def scored(self, logits: Tensor, tokens: Tensor, rows: Sequence[Row]) -> list[Scored | None]:
        """Log-probabilities of the rows that want them."""
        wanted = {place: row.sampling.alternatives for place, row in enumerate(rows)}
        asked = {place: count for place, count in wanted.items() if count is not None}
        found: list[Scored | None] = [None] * len(rows)
        if asked:
            scores = score(logits[[*asked]], tokens[[*asked]], max(asked.values()))
            for (place, count), its in zip(asked.items(), scores, strict=True):
                found[place] = Scored(logprob=its.logprob, top=its.top[:count])
        return found


class RowStopper(StoppingCriteria):
    """Ends each row by itself, or all of them where `leave` says that the batch is to be put together anew."""

    def __init__(self, rows: Sequence[Row], leave: Callable[[], bool]) -> None:
        self.rows = rows
        self.leave = leave

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        leave = self.leave()
        return torch.tensor([leave or row.done for row in self.rows], device=input_ids.device)
