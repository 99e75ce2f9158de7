from __future__ import annotations

import gzip
import math
import sys
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from typing import Any

import pytest

from graftlm.errors import InputError
from graftlm.tasks import asking
from graftlm.tasks.molecules import Molecules, random_tanimoto, read_molecules, score_smiles

SPLITS = ("train", "validation", "test")

pytest.importorskip("rdkit")


def needs_chemicals() -> None:
    try:
        distribution("chemicals")
    except PackageNotFoundError:
        pytest.skip("needs chemicals==1.5.2")


def test_the_splits_have_the_sizes_that_the_readme_of_the_data_states():
    assert {split: len(read_molecules(split)) for split in SPLITS} == {
        "train": 2584,
        "validation": 126,
        "test": 400,
    }


@pytest.mark.slow
def test_no_molecule_stereoisomer_or_tautomer_is_in_two_splits():
    from rdkit import Chem

    def skeletons(split: Any) -> set[str]:
        return {Chem.MolToInchiKey(Chem.MolFromSmiles(m.smiles)).split("-")[0] for m in read_molecules(split)}

    smiles = {split: {molecule.smiles for molecule in read_molecules(split)} for split in SPLITS}
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not smiles[one] & smiles[other]
        assert not skeletons(one) & skeletons(other)
    assert len(smiles["test"]) >= 300


@pytest.mark.slow
def test_no_synonym_of_a_test_molecule_names_a_trained_one(load_tool: Any):
    needs_chemicals()
    names: dict[str, set[str]] = {split: set() for split in SPLITS}
    synonyms: dict[str, set[str]] = {split: set() for split in SPLITS}
    split_of = {molecule.smiles: split for split in SPLITS for molecule in read_molecules(split)}
    for molecule in load_tool("build_molecules").read_molecules():
        split = split_of[molecule.smiles]
        names[split].add(molecule.name)
        synonyms[split] |= {molecule.name, *molecule.synonyms}
    assert {split: len(names[split]) for split in SPLITS} == {
        split: len({molecule.name for molecule in read_molecules(split)}) for split in SPLITS
    }
    assert not synonyms["test"] & synonyms["train"]
    assert not synonyms["validation"] & (synonyms["train"] | synonyms["test"])


@pytest.mark.slow
def test_the_script_rebuilds_the_data_file(load_tool: Any):
    needs_chemicals()
    tool, data = (
        load_tool("build_molecules"),
        files("graftlm.tasks").joinpath("data", "molecules.tsv.gz").read_bytes(),
    )
    assert gzip.decompress(data).decode() == tool.build()
    assert tool.compress("equal text") == tool.compress("equal text")


def test_every_molecule_is_canonical_acyclic_and_small():
    from rdkit import Chem

    for molecule in (molecule for split in SPLITS for molecule in read_molecules(split)):
        parsed = Chem.MolFromSmiles(molecule.smiles)
        assert Chem.MolToSmiles(parsed, isomericSmiles=False) == molecule.smiles
        assert parsed.GetRingInfo().NumRings() == 0 and parsed.GetNumHeavyAtoms() <= 8
        assert "[" not in molecule.smiles


def test_rows_are_prompt_and_completion():
    rows = Molecules().rows("train")
    assert rows.column_names == ["prompt", "completion"] and len(rows) == 2584
    assert rows[0] == {"prompt": "Name: 2-methyl-2-pentanethiol\nSMILES:", "completion": " CCCC(C)(C)S\n"}
    with pytest.raises(InputError, match="no split 'dev'"):
        Molecules().rows("dev")


@pytest.mark.parametrize(
    ("output", "valid", "exact"),
    [
        ("CC(C)O", 1, 1),
        ("OC(C)C", 1, 1),  # the same molecule, written from its other end
        ("CCCO", 1, 0),
        ("C[C@H](O)C", 1, 1),
        ("CC(C", 0, 0),
        ("CX", 0, 0),
        ("C(C)(C)(C)(C)C", 0, 0),  # five bonds to one carbon
        ("", 0, 0),  # an empty molecule to RDKit
        ("CC(C)O isopropanol", 0, 0),  # RDKit would take the second word for a name
    ],
)
def test_an_output_is_scored_as_the_molecule_it_means(output: str, valid: float, exact: float):
    scores = score_smiles(output, "CC(C)O")
    assert (scores["valid"], scores["exact"]) == (valid, exact)
    assert (scores["tanimoto"] == 1.0) == bool(exact)
    assert valid or scores["tanimoto"] == 0.0


def test_rdkit_is_silent_about_invalid_outputs_and_only_while_they_are_scored(
    capfd: pytest.CaptureFixture[str],
):
    from rdkit import Chem

    score_smiles("C(C", "CC")
    assert capfd.readouterr().err == ""
    Chem.MolFromSmiles("C(C")
    assert "SMILES Parse Error" in capfd.readouterr().err


def test_the_tanimoto_floor_is_the_mean_over_all_training_molecules():
    train = [molecule.smiles for molecule in read_molecules("train")]
    expected = sum(score_smiles(smiles, "CCCCO")["tanimoto"] for smiles in train) / len(train)
    assert random_tanimoto(["CCCCO"]) == pytest.approx(expected, rel=1e-9)


def test_without_rdkit_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, make_model: Any, tokenizer: Any):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(InputError, match=r"pip install 'graftlm\[molecules\]'"):
        Molecules().evaluate(make_model(), tokenizer, limit=1)


def test_the_result_holds_means_of_its_examples_and_nats_per_token(make_model: Any, tokenizer: Any):
    model = make_model()
    model.lm_head.weight.data.zero_()  # every token has probability 1 / 258
    steps: list[tuple[int, int]] = []
    progress = lambda done, total: steps.append((done, total))  # noqa: E731
    result = Molecules().evaluate(model, tokenizer, limit=5, batch_size=2, progress=progress)
    assert (result.task, result.count, len(result.examples)) == ("molecules", 5, 5)
    assert result.metrics["nll_per_token"] == pytest.approx(math.log(258))
    assert result.metrics["valid"] == sum(example["valid"] for example in result.examples) / 5
    assert set(result.floors) == {"valid", "tanimoto", "exact"}
    assert [example["reference"] for example in result.examples] == [m.smiles for m in read_molecules("test")[:5]]
    assert result.examples[0]["tokens"] == len(result.examples[0]["reference"]) + 2  # space and newline
    assert steps[-1] == (10, 10)


def test_a_model_that_writes_every_reference_scores_one(
    monkeypatch: pytest.MonkeyPatch, make_model: Any, tokenizer: Any
):
    right = {molecule.prompt: f" {molecule.smiles}" for molecule in read_molecules("test")}
    monkeypatch.setattr(asking, "generate_completions", lambda *args, **options: [right[p] for p in args[2]])
    metrics = Molecules().evaluate(make_model(), tokenizer, limit=20).metrics
    assert (metrics["valid"], metrics["tanimoto"], metrics["exact"]) == (1.0, 1.0, 1.0)


def test_shots_are_training_examples_that_the_seed_fixes(make_model: Any, tokenizer: Any):
    prefix = Molecules().few_shot_prefix(3, seed=0)
    assert prefix == Molecules().few_shot_prefix(3, seed=0) != Molecules().few_shot_prefix(3, seed=1)
    assert prefix.count("Name: ") == 3 and prefix.endswith("\n")
    train = {molecule.prompt + molecule.completion for molecule in read_molecules("train")}
    parts = ["Name: " + part for part in prefix.split("Name: ")[1:]]
    assert set(parts) <= train
    result = Molecules().evaluate(make_model(), tokenizer, limit=2, shots=3)
    assert result.examples[0]["prompt"] == read_molecules("test")[0].prompt
