"""A model's answers to the examples of a task: greedy completions, likelihoods, choices ranked by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graftlm.decoding.batches import completion_log_likelihoods, generate_completions
from graftlm.decoding.candidates import candidate_log_likelihoods

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all); a step is one example passed through one of the task's measurements."""
Likelihood = tuple[float, int]
"""Sum of a completion's log-probabilities in nats, and its number of tokens."""


@dataclass(frozen=True)
class Example:
    """One question of a task.

    `completion` is the right answer as it follows the prompt, space included. `choices`: completions to rank by
    likelihood, the right one among them. `data`: whatever else `Task.score` needs.
    """

    prompt: str
    completion: str
    choices: Sequence[str] = ()
    data: Any = None

    @property
    def reference(self) -> str:
        """The right answer as reports show it."""
        return self.completion.strip()


@dataclass(frozen=True)
class Answer:
    """A model's answer to one example.

    `output`: the greedy completion, None where nothing was generated. `likelihood`: that of the right completion, None
    where it was not measured. `choices`: the likelihood of each choice.
    """

    output: str | None = None
    likelihood: Likelihood | None = None
    choices: Sequence[Likelihood] = ()

    @property
    def text(self) -> str:
        """The output without the space around it; empty where nothing was generated."""
        return (self.output or "").strip()


def ask(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    *,
    prefix: str,
    likelihoods: bool,
    new_tokens: Callable[[int], int] | None,
    stop: str | None,
    batch_size: int,
    progress: Progress | None,
) -> list[Answer]:
    """One answer for each example, `prefix` before each prompt.

    `likelihoods`: measure that of the right completion; choices are ranked where all examples have them. `new_tokens`:
    from the number of tokens of the longest right completion (0 if not measured) to that of the longest output; None
    where nothing is generated. `stop` ends an output.
    """
    prompts = [prefix + example.prompt for example in examples]
    ranked = all(example.choices for example in examples)
    advance = count_steps(progress, len(examples) * ((ranked or likelihoods) + (new_tokens is not None)))
    outputs: Sequence[str | None] = [None] * len(examples)
    references: Sequence[Likelihood | None] = [None] * len(examples)
    choices: Sequence[Sequence[Likelihood]] = [()] * len(examples)
    if ranked:
        groups = [example.choices for example in examples]
        choices = candidate_log_likelihoods(model, tokenizer, prompts, groups, batch_size, on_batch=advance)
        places = [example.choices.index(example.completion) for example in examples]
        references = [group[place] for group, place in zip(choices, places, strict=True)]
    elif likelihoods:
        pairs = [(prompt, example.completion) for prompt, example in zip(prompts, examples, strict=True)]
        references = completion_log_likelihoods(model, tokenizer, pairs, batch_size, on_batch=advance)
    if new_tokens is not None:
        longest = max((each[1] for each in references if each), default=0)
        if most := new_tokens(longest):
            outputs = generate_completions(model, tokenizer, prompts, most, batch_size, stop=stop, on_batch=advance)
        else:
            advance(len(examples))
    return [Answer(*each) for each in zip(outputs, references, choices, strict=True)]


def count_steps(progress: Progress | None, total: int) -> Callable[[int], None]:
    """A callback for "n more examples are finished" that tells `progress` how many of `total` are."""
    done = 0

    def advance(finished: int) -> None:
        nonlocal done
        done += finished
        if progress is not None:
            progress(done, total)

    return advance
