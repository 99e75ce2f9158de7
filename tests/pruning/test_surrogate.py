from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from graftlm.errors import InputError
from graftlm.pruning import prune_chain
from graftlm.pruning.config import Objective
from graftlm.pruning.encoding import encode_chain
from graftlm.pruning.features import PER_LAYER, SCALARS, ChainFeatures, chain_features
from graftlm.pruning.fit import measure, pearson, ranked_chain
from graftlm.pruning.pruned_file import COLUMN
from graftlm.pruning.scorer import Scorer
from graftlm.pruning.surrogate import RankedChain, fit_surrogate, load_surrogate
from graftlm.runs.files import read_json_lines
from tests.conftest import tiny_model
from tests.pruning.reference import objective_value
from tests.pruning.test_prune import SOLUTIONS, pruner, run, write  # noqa: F401  # a fixture

TEXTS = ("How many?\n", "Then 12 + 3 = 15 pens, so 15.", "\n#### 15")


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt_neox"])
@pytest.mark.parametrize("objective", ["joint", "answer"])
def test_the_estimates_are_those_of_mode_screened(
    tokenizer: PreTrainedTokenizerBase, architecture: str, objective: Objective
) -> None:
    model = tiny_model(architecture, initializer_range=0.3)
    encoding = encode_chain(tokenizer, *TEXTS)
    found = chain_features(model, encoding, objective)
    scorer = Scorer(model, encoding.question, [[token.id] for token in encoding.chain], encoding.answer, objective)
    assert found.value == pytest.approx(scorer.value, abs=1e-3)
    torch.testing.assert_close(found.estimates, scorer.estimates(scorer.left), atol=1e-3, rtol=0)
    assert found.features.shape == (len(encoding.chain), SCALARS + 2 * PER_LAYER)
    assert found.features.isfinite().all() and model.config._attn_implementation == "sdpa"


def test_features_are_what_they_are_called(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(initializer_range=0.3)
    encoding = encode_chain(tokenizer, "2a", "ab2b", "b")
    features = chain_features(model, encoding, "joint").features.double()
    ids = torch.tensor([encoding.ids])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(input_ids=ids, output_attentions=True)
    log_probs = output.logits[0].double().log_softmax(-1)
    for token, place in enumerate(range(2, 6)):
        before, entropy = log_probs[place - 1], -(log_probs[place - 1].exp() * log_probs[place - 1]).sum()
        expected = [before[ids[0, place]], log_probs[place][ids[0, place + 1]], before[ids[0, place + 1]], entropy]
        torch.testing.assert_close(features[token, :4], torch.stack(expected), atol=1e-4, rtol=0)
        weights = output.attentions[1][0].double()  # [heads, queries, keys]
        received = weights[:, place + 1 : 6, place].sum(1), weights[:, 6:, place].sum(1)
        looks = -(weights[:, place, : place + 1] * weights[:, place, : place + 1].log()).sum(-1).mean()
        expected = [received[0].mean(), received[1].mean(), weights[:, place + 1, place].mean(),
                    weights[:, place, place].mean(), (received[0] + received[1]).max(), looks]  # fmt: skip
        torch.testing.assert_close(features[token, SCALARS + PER_LAYER :], torch.stack(expected), atol=1e-4, rtol=0)
    copies = features[:, 8:SCALARS]  # in the question, earlier, later, in the answer
    assert copies.tolist() == [[1, 0, 0, 0], [0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 1]]


def made_chains(count: int, seed: int) -> list[RankedChain]:
    """What g leaves out is a function of the first feature, and the rank of the second; the others are noise."""
    generator = torch.Generator().manual_seed(seed)
    chains = []
    for _ in range(count):
        features = torch.randn(30, 6, generator=generator)
        estimates = 5 * torch.randn(30, generator=generator).double() - 90
        residual = features[:, 0].abs().double()
        chains.append(RankedChain(ChainFeatures(features, estimates, -92.0), estimates + residual,
                                  features[:, 1].argsort().argsort() + 1))  # fmt: skip
    return chains


@pytest.mark.slow
def test_it_learns_what_the_features_tell_and_says_how_well_beside_what_needs_no_surrogate() -> None:
    surrogate = fit_surrogate(made_chains(40, 0), "tiny", "joint")
    found = measure(surrogate, made_chains(10, 1))
    assert found["chains"] == 10 and found["tokens"] == 300
    assert found["rank"]["mean"] > 0.95 and found["rank"]["least"] <= found["rank"]["mean"]
    assert found["likelihood"]["unchanged"] == 0.0
    assert found["likelihood"]["surrogate"] > 0.999 > found["likelihood"]["g"] > 0.9
    assert found["within"]["surrogate"] > found["within"]["g"]


def test_noise_is_not_learned() -> None:
    generator = torch.Generator().manual_seed(2)
    chains = [
        each._replace(ranks=torch.randperm(30, generator=generator) + 1, single_deletions=each.known.estimates)
        for each in made_chains(40, 0)
    ]
    found = measure(fit_surrogate(chains[:30], "tiny", "joint"), chains[30:])
    assert abs(found["rank"]["mean"]) < 0.2 and found["likelihood"]["g"] == pytest.approx(1)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_network_and_it_survives_its_file(tmp_path: Path) -> None:
    chains = made_chains(6, 0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again = (fit_surrogate(chains, "tiny", "joint", seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    first.save(tmp_path / "saved")
    loaded = load_surrogate(tmp_path / "saved")
    for other in (again, loaded):
        for one, two in zip(first.predict(chains[0].known), other.predict(chains[0].known), strict=True):
            assert torch.equal(one, two)
    assert loaded.config == first.config and sorted(p.name for p in (tmp_path / "saved").iterdir()) == [
        "config.json", "model.safetensors",
    ]  # fmt: skip


@pytest.mark.slow
def test_what_is_no_surrogate_is_said(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    folder = tmp_path / "s"
    with pytest.raises(InputError, match="holds no surrogate"):
        load_surrogate(folder)
    surrogate = fit_surrogate(made_chains(3, 0), "tiny", "joint")
    surrogate.save(folder)
    model = tiny_model()
    with pytest.raises(InputError, match="takes 6 features, this model gives 24: it was fitted to tiny"):
        prune_chain(model, tokenizer, *TEXTS, mode="surrogate", surrogate=surrogate)
    with pytest.raises(InputError, match="fitted to the objective joint, not answer"):
        prune_chain(model, tokenizer, *TEXTS, objective="answer", mode="surrogate", surrogate=surrogate)
    with pytest.raises(InputError, match="mode surrogate needs a surrogate"):
        prune_chain(model, tokenizer, *TEXTS, mode="surrogate")
    with pytest.raises(InputError, match="1 chain is too few"):
        fit_surrogate(made_chains(1, 0), "tiny", "joint")
    os.truncate(folder / "model.safetensors", 100)
    with pytest.raises(InputError, match="holds no surrogate"):
        load_surrogate(folder)
    (folder / "config.json").write_text('{"pruner": "x"}', "utf-8")
    with pytest.raises(InputError, match="holds no surrogate"):
        load_surrogate(folder)


@pytest.mark.slow
def test_fit_ranks_exactly_measures_held_out_chains_and_prune_takes_it(
    pruner: str,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    solutions = [{"question": "Q", "answer": f"{n}+{n} = {2 * n} pens.\n#### {2 * n}"} for n in range(3, 13)]
    data, other = write(tmp_path / "data.jsonl", solutions), write(tmp_path / "other.jsonl", SOLUTIONS)
    folder = tmp_path / "surrogate"
    given = ["prune", "fit", data, "--pruner", pruner, "--output", str(folder), "--chains", "10", "--other", other]
    assert run(*given) == 0
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["chains"] == 8 and config["measured"][data]["chains"] == config["measured"][other]["chains"] == 2
    assert f"{config['measured'][data]['rank']['mean']:.3f}" in capsys.readouterr().out
    model = tiny_model(initializer_range=0.3)
    row = read_json_lines(folder / "exact.jsonl")[0]
    encoding = encode_chain(tokenizer, row[COLUMN]["question"], row[COLUMN]["chain"], row[COLUMN]["answer"])
    for place, value in enumerate(row[COLUMN]["single_deletions"]):
        ids = [token.id for token in encoding.chain]
        left = ids[:place] + ids[place + 1 :]
        assert value == pytest.approx(
            objective_value(model, encoding.question, left, encoding.answer, "joint"), abs=1e-3
        )
    assert run(*given) == 2 and "holds a run; give --resume, --overwrite" in capsys.readouterr().err
    output = tmp_path / "out.jsonl"
    assert run("prune", data, "--pruner", pruner, "--output", str(output), "--surrogate", str(folder)) == 0
    surrogate = load_surrogate(folder)
    for row in read_json_lines(output):
        pruning = row[COLUMN]
        assert pruning["ranking"]["mode"] == "surrogate"
        encoding = encode_chain(tokenizer, pruning["question"], pruning["chain"], pruning["answer"])
        predicted = surrogate.predict(chain_features(model, encoding, "joint"))[1]
        assert sorted(range(len(predicted)), key=lambda i: predicted[i]) == sorted(
            range(len(predicted)), key=lambda i: pruning["ranks"][i]
        )


@pytest.mark.slow
def test_an_interrupted_fit_goes_on_from_the_chains_it_has_and_takes_no_others(
    pruner: str,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    solutions = [{"question": "Q", "answer": f"{n}+{n} = {2 * n} pens.\n#### {2 * n}"} for n in range(3, 8)]
    data, other = write(tmp_path / "data.jsonl", solutions), write(tmp_path / "other.jsonl", SOLUTIONS[:1])
    folder, whole = tmp_path / "surrogate", tmp_path / "whole"
    given = ["prune", "fit", data, "--pruner", pruner, "--chains", "5", "--other", other, "--output"]
    assert run(*given, str(whole)) == 0
    ranked: list[Any] = []

    def ranks_three(*texts: Any, **options: Any) -> Any:
        ranked.append(texts)
        if len(ranked) in (4, 7):
            raise KeyboardInterrupt
        return prune_chain(*texts, **options)

    monkeypatch.setattr("graftlm.pruning.prune.prune_chain", ranks_three)
    assert run(*given, str(folder)) == 130  # in the fourth chain
    assert "--resume" in capsys.readouterr().err and not (folder / "exact.jsonl").exists()
    assert run(*given, str(folder), "--resume") == 130  # then in the other data
    assert (folder / "exact.jsonl").exists() and not (folder / "config.json").exists()
    changed = write(tmp_path / "changed.jsonl", solutions[1:])
    for wrong, message in (
        (["--objective", "answer"], "another config: objective"), (["--chains", "4"], "another config: chains")
    ):  # fmt: skip
        assert run(*given, str(folder), "--resume", *wrong) == 2 and message in capsys.readouterr().err
    assert run("prune", "fit", changed, *given[3:], str(folder), "--resume") == 2
    assert run(*given, str(folder), "--resume") == 0
    assert len(ranked) == 4 + 3 + 1  # of 5 and 1 chains, two twice
    assert json.loads((folder / "config.json").read_text("utf-8")) == json.loads(
        (whole / "config.json").read_text("utf-8")
    )
    assert run("prune", "fit", changed, *given[3:], str(folder), "--overwrite") == 0
    assert json.loads((folder / "config.json").read_text("utf-8"))["measured"].keys() == {changed, other}


def test_tokens_that_are_protected_are_not_fitted_to(tokenizer: PreTrainedTokenizerBase) -> None:
    model = tiny_model(initializer_range=0.3)
    pruned = prune_chain(model, tokenizer, "Q", "<think>2+2", "</think>4", protect="</?think>")
    row = {
        COLUMN: {"question": "Q", "chain": "<think>2+2", "answer": "</think>4", "ranks": pruned.ranks,
                 "single_deletions": pruned.single_deletions, "ranking": {"objective": "joint"}},
    }  # fmt: skip
    chain = ranked_chain(model, tokenizer, row)
    assert (
        len(chain.ranks) == len(chain.single_deletions) == len(chain.known.features) == len(chain.known.estimates) == 3
    )
    assert chain.single_deletions.isfinite().all()


def test_pearson_is_zero_where_nothing_varies() -> None:
    values = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    assert pearson(values, 3 - 2 * values) == pytest.approx(-1)
    assert pearson(values, torch.ones(3, dtype=torch.float64)) == 0.0


@pytest.mark.slow
def test_help_of_both_verbs_loads_nothing_heavy() -> None:
    for arguments in (["prune", "--help"], ["prune", "fit", "--help"]):
        code = (
            "import sys\nfrom graftlm.cli import main\n"
            f"try:\n    main({arguments})\nexcept SystemExit:\n    pass\n"
            "print('HEAVY', sorted({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
        )
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout
        assert shown.endswith("HEAVY []\n") and "--pruner" in shown
        assert ("--chains" in shown) == ("fit" in arguments) and ("Usage: graftlm prune fit" in shown) == (
            "fit" in arguments
        )
