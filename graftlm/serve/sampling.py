"""The choice of the next token, sequence by sequence, inside one `model.generate`.

Temperature t, nucleus p and the random numbers e are a sequence's own. The token is drawn as the winner of a race in
which each one's time is exponential with its probability as the rate:

    q = softmax(logits / t), zero outside the smallest set of likeliest tokens that holds p;  token = argmax_i q_i / e_i

The winner is distributed as q. One random number in the cumulative distribution would not do, since a sequence has to
come out the same whichever sequences are beside it, and these change the rounding of the logits: a sum over the
vocabulary moves every border between tokens, and where tokens are rare the borders are dense. A race goes to another
winner only where the two fastest are as close as the rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from graftlm.serve.sequence import Scores, ServedSequence

# The log-probability of an impossible token in OpenAI's API; JSON knows no infinity.
LEAST = -9999.0
# Nearly every nucleus is smaller, and only a larger one needs the whole vocabulary in order, which takes far longer.
NUCLEUS = 1024


def sample(logits: Tensor, temperature: Tensor, top_p: Tensor, race: Tensor) -> Tensor:
    """[sequences, vocabulary] logits and e, [sequences] settings, temperature above 0 -> [sequences] int64."""
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


def score(logits: Tensor, tokens: Tensor, alternatives: int) -> list[Scores]:
    """Log-probabilities of the `tokens`, [sequences], and of the likeliest `alternatives`."""
    logprobs = logits.float().log_softmax(-1)
    likeliest = logprobs.topk(min(alternatives, logprobs.shape[-1])).indices
    reported = torch.cat([tokens.unsqueeze(-1), likeliest], dim=-1)
    values = logprobs.gather(-1, reported).nan_to_num(nan=LEAST, neginf=LEAST).tolist()
    return [list(zip(*pair, strict=True)) for pair in zip(reported.tolist(), values, strict=True)]


class SequenceSampler(LogitsProcessor):
    """Chooses each sequence's token, tells the sequence, and leaves `generate` no other choice.

    A vocabulary is wide, so nothing is computed over it that no sequence asks for: greedy sequences cost one argmax.
    """

    def __init__(self, sequences: Sequence[ServedSequence], on_step: Callable[[int], None]) -> None:
        """`on_step` is called before each choice, with the number of sequences that are still written."""
        self.sequences = sequences
        self.on_step = on_step

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """[sequences, vocabulary] logits, which are changed in place: `generate` has copied them for its processors."""
        chosen = self.choose_rows(range(len(self.sequences)), scores)
        tokens = torch.tensor([[token or 0] for token in chosen], device=scores.device)
        return scores.scatter_(-1, tokens, torch.inf)

    def choose_rows(self, numbers: Sequence[int], logits: Tensor) -> list[int | None]:
        """The next token of each of these sequences, given their logits [numbers, vocabulary]; None where one is done.

        A decoding method that checks drafts (graftlm.decoding.heads_decoding) calls this for one place after another,
        as long as the tokens are those that were drafted: a sequence's own seed decides what it draws, not the drafts.
        """
        places = [place for place, number in enumerate(numbers) if not self.sequences[number].done]
        sequences = [self.sequences[numbers[place]] for place in places]
        self.on_step(len(sequences))
        live = logits if len(sequences) == len(numbers) else logits[places]
        tokens = self.choose(live, sequences)
        chosen: list[int | None] = [None] * len(numbers)
        scored = self.scores(live, tokens, sequences)
        for place, sequence, token, scores in zip(places, sequences, tokens.tolist(), scored, strict=True):
            sequence.push(token, scores)
            chosen[place] = token
        return chosen

    def choose(self, logits: Tensor, sequences: Sequence[ServedSequence]) -> Tensor:
        """[sequences] int64, the next token of each sequence."""
        drawn = [place for place, sequence in enumerate(sequences) if sequence.request.temperature > 0]
        if len(drawn) < len(sequences):
            tokens = logits.argmax(-1)
        else:
            tokens = torch.zeros(len(sequences), dtype=torch.int64, device=logits.device)
        if drawn:
            tokens[drawn] = self.draw(logits[drawn], [sequences[place] for place in drawn])
        return tokens

    def draw(self, logits: Tensor, sequences: Sequence[ServedSequence]) -> Tensor:
        settings = [(sequence.request.temperature, sequence.request.top_p) for sequence in sequences]
        temperature, top_p = torch.tensor(settings, device=logits.device).unbind(-1)
        race = torch.empty_like(logits)
        for own, sequence in zip(race, sequences, strict=True):
            own.exponential_(generator=sequence.generator)
        return sample(logits, temperature, top_p, race)

    def scores(self, logits: Tensor, tokens: Tensor, sequences: Sequence[ServedSequence]) -> list[Scores | None]:
        """Log-probabilities of the sequences that want them."""
        wanted = {place: sequence.request.alternatives for place, sequence in enumerate(sequences)}
        asked = {place: count for place, count in wanted.items() if count is not None}
        results: list[Scores | None] = [None] * len(sequences)
        if asked:
            scores = score(logits[[*asked]], tokens[[*asked]], max(asked.values()))
            for (place, count), each in zip(asked.items(), scores, strict=True):
                results[place] = each[: 1 + count]
        return results


class SequenceStopper(StoppingCriteria):
    """Ends each sequence by itself, or all of them where `leave` says that the batch is to be put together anew."""

    def __init__(self, sequences: Sequence[ServedSequence], leave: Callable[[], bool]) -> None:
        self.sequences = sequences
        self.leave = leave

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        leave = self.leave()
        return torch.tensor([leave or sequence.done for sequence in self.sequences], device=input_ids.device)
