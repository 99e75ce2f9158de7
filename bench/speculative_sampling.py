"""Sampling with drafts beside sampling without: are the answers of a real model as good?

    .venv/bin/python bench/speculative_sampling.py --folder /tmp/speculative       (after bench/speculative.py)

The model that bench/speculative.py has tuned on `molecules` answers test questions at temperature 1, alone and with as
many drafts as there are heads in each pass, several times each. Of every answer: whether it is the right molecule, how
similar it is (RDKit), its tokens, and its log-likelihood a token under the model, in nats. The tests hold the
distribution itself, with a vocabulary of four.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from intervals import difference, mean, spread
from speculative import tuned_model

from graftlm.decoding.batches import completion_log_likelihoods
from graftlm.decoding.heads_decoding import HeadsDecoding
from graftlm.models.few_rows import use_fast_cpu_products
from graftlm.runs.console import say
from graftlm.runs.files import dump_json, write_text
from graftlm.runs.provenance import versions
from graftlm.tasks import get_task
from graftlm.tasks.molecules import score_smiles

NEW_TOKENS = 48


@torch.no_grad()
def answers(generate: Any, tokenizer: Any, questions: list[str], batch_size: int) -> list[str]:
    tokenizer.padding_side = "left"
    found: list[str] = []
    for start in range(0, len(questions), batch_size):
        inputs = tokenizer(questions[start : start + batch_size], return_tensors="pt", padding=True)
        outputs = generate(**inputs, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=NEW_TOKENS,
                           pad_token_id=tokenizer.pad_token_id)  # fmt: skip
        found += tokenizer.batch_decode(outputs[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return found


def measure(
    model: Any, tokenizer: Any, questions: list[str], references: list[str], texts: list[str]
) -> dict[str, list[float]]:
    """One value an answer; an empty answer has a log-likelihood of 0 a token."""
    firsts = [text.strip().split("\n")[0] for text in texts]
    scores = [score_smiles(first, wanted.strip()) for first, wanted in zip(firsts, references, strict=True)]
    written = [place for place, text in enumerate(texts) if text]
    found = completion_log_likelihoods(model, tokenizer, [(questions[place], texts[place]) for place in written])
    likelihoods, tokens = [0.0] * len(texts), [0.0] * len(texts)
    for place, (total, count) in zip(written, found, strict=True):
        likelihoods[place], tokens[place] = total / count, float(count)
    return {
        "exact": [score["exact"] for score in scores], "tanimoto": [score["tanimoto"] for score in scores],
        "tokens": tokens, "log_likelihood_a_token": likelihoods,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of bench/speculative.py")
    parser.add_argument("--output", type=Path, default=Path("bench/results/speculative_sampling.json"))
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    arguments = parser.parse_args()
    model, heads, tokenizer = tuned_model(arguments.folder)
    decoding = HeadsDecoding(model, heads, draft_tokens=heads.num_heads)
    use_fast_cpu_products(model)
    use_fast_cpu_products(decoding.heads)
    rows = get_task("molecules").rows("test")
    questions, references = rows["prompt"][: arguments.questions], rows["completion"][: arguments.questions]
    writers = {"without drafts": model.generate, "with drafts": decoding.generate}
    runs: dict[str, list[dict[str, list[float]]]] = {name: [] for name in writers}
    for repeat in range(arguments.repeats):
        for name, generate in writers.items():
            torch.manual_seed(repeat)
            texts = answers(generate, tokenizer, questions, arguments.batch_size)
            runs[name].append(measure(model, tokenizer, questions, references, texts))
        say(f"{repeat + 1}/{arguments.repeats}")
    compared = {}
    for metric in runs["with drafts"][0]:
        plain, drafted = ([run[metric] for run in each] for each in runs.values())
        compared[metric] = {"without": mean(plain), "with": mean(drafted), "difference": difference(drafted, plain)}
        change = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*compared[metric]["difference"])
        say(f"{metric}: {spread([mean(run) for run in plain])} without, {spread([mean(run) for run in drafted])} with"
            f" drafts, {change}")  # fmt: skip
    document = {
        "versions": versions(), "questions": len(questions), "repeats": arguments.repeats,
        "drafted": decoding.drafted, "accepted": decoding.accepted, "compared": compared, "runs": runs,
    }  # fmt: skip
    write_text(arguments.output, dump_json(document) + "\n")


if __name__ == "__main__":
    main()
