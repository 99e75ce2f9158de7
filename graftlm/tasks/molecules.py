"""molecules: from a molecule's common name to its SMILES, the domain task of the demo (see
data/README.md)."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar, NamedTuple

from graftlm.errors import InputError
from graftlm.tasks.asking import Answer, Example
from graftlm.tasks.base import Split, Task
from graftlm.tasks.metric import NLL, Metric


class NamedMolecule(NamedTuple):
    """`smiles` is canonical, without stereo."""

    name: str
    smiles: str

    @property
    def prompt(self) -> str:
        return f"Name: {self.name}\nSMILES:"

    @property
    def completion(self) -> str:
        return f" {self.smiles}\n"


class Molecules(Task):
    """Metrics, each the mean over the test molecules except the last:

    - `valid`: RDKit parses the output (its first line), which must be one word;
    - `tanimoto`: similarity of the Morgan fingerprints (radius 2, 1,024 bits) of output and reference, 0 if
      invalid;
    - `exact`: both have the same canonical SMILES without stereo;
    - `nll_per_token`: nats per token of the references, newline included and end-of-sequence token excluded.

    Floors: what a molecule drawn at random from the training split reaches. For `tanimoto` it is the exact
    expectation, over all of them; for `exact` 0 and for `valid` 1, so `valid` alone shows only that the
    format is known.
    """

    name: ClassVar[str] = "molecules"
    description: ClassVar[str] = "common name of a small acyclic molecule -> SMILES"
    metrics = (
        Metric("valid", "valid SMILES", higher_is_better=True, floor=1.0, best=1.0),
        Metric("tanimoto", "Tanimoto similarity", higher_is_better=True, best=1.0),
        Metric("exact", "exact match", higher_is_better=True, floor=0.0, best=1.0),
        NLL,
    )

    max_new_tokens = 32  # the longest SMILES of the data takes 19 tokens of SmolLM2, newline included

    def examples(self, split: Split, seed: int = 0) -> list[Example]:
        return [Example(molecule.prompt, molecule.completion) for molecule in read_molecules(split)]

    def score(self, example: Example, answer: Answer) -> dict[str, Any]:
        return {**score_smiles(answer.text, example.reference)}

    def floors(self, examples: Sequence[Example]) -> dict[str, float]:
        try:
            import rdkit  # noqa: F401
        except ImportError:
            raise InputError("task molecules needs RDKit: pip install 'graftlm[molecules]'") from None
        return {"tanimoto": random_tanimoto([example.reference for example in examples])}


@cache
def read_molecules(split: Split) -> list[NamedMolecule]:
    """The rows of a split, in the file's order: any first n of them are a random sample."""
    data = files("graftlm.tasks").joinpath("data", "molecules.tsv.gz").read_bytes()
    rows = [line.split("\t") for line in gzip.decompress(data).decode().splitlines()[1:]]
    molecules = [NamedMolecule(name, smiles) for part, name, smiles in rows if part == split]
    if not molecules:
        raise InputError(f"task molecules has no split {split!r}: choose train, validation or test")
    return molecules


def score_smiles(output: str, reference: str) -> dict[str, float]:
    """`valid`, `tanimoto` and `exact` of one output; the reference must be a valid SMILES."""
    from rdkit import Chem, DataStructs

    molecule, expected = _parse(output), _parse(reference)
    if molecule is None:
        return {"valid": 0.0, "tanimoto": 0.0, "exact": 0.0}
    [print_output], [print_reference] = _fingerprints([molecule]), _fingerprints([expected])
    canonical = [Chem.MolToSmiles(each, isomericSmiles=False) for each in (molecule, expected)]
    tanimoto = float(DataStructs.TanimotoSimilarity(print_output, print_reference))
    return {"valid": 1.0, "tanimoto": tanimoto, "exact": float(canonical[0] == canonical[1])}


def random_tanimoto(references: Sequence[str]) -> float:
    """Expected Tanimoto similarity of a reference and a training molecule drawn at random."""
    from rdkit import DataStructs

    train = _fingerprints([_parse(molecule.smiles) for molecule in read_molecules("train")])
    prints = _fingerprints([_parse(reference) for reference in references])
    return _mean([_mean(DataStructs.BulkTanimotoSimilarity(each, train)) for each in prints])


def _parse(smiles: str) -> Any | None:
    """RDKit's molecule, None if invalid. RDKit itself takes the empty string, and ignores all after a
    space."""
    from rdkit import Chem, rdBase

    if not smiles or any(character.isspace() for character in smiles):
        return None
    with rdBase.BlockLogs():
        return Chem.MolFromSmiles(smiles)


def _fingerprints(molecules: Sequence[Any]) -> list[Any]:
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=1024)
    return [generator.GetFingerprint(molecule) for molecule in molecules]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
