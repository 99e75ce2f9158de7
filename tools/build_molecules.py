"""Rebuild graftlm/tasks/data/molecules.tsv.gz from the package `chemicals` (identifiers from PubChem).

    pip install chemicals==1.5.2 rdkit==2026.9.1
    python tools/build_molecules.py            # write the file
    python tools/build_molecules.py --check    # only compare: exit status 1 if it would differ

Kept: acyclic molecules of at most 8 heavy atoms whose SMILES needs no brackets and whose common name shows
how the carbon skeleton is built (meth, eth, prop, ...); "butane, 1,1-difluoro-", the order of an index, is
left out. The split goes by molecule: stereoisomers and tautomers, and with them all synonyms, share one InChI
skeleton, and its hash decides. Rows are in the order of their own hash, so that the first n rows are a random
sample of n.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import re
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from rdkit import Chem, rdBase

PACKAGE, VERSION = "chemicals", "1.5.2"
FILES = ("chemical identifiers pubchem small.tsv", "chemical identifiers pubchem large.tsv")
SMILES, COMMON_NAME = 4, 8  # columns; synonyms follow the common name
MAX_HEAVY_ATOMS = 8
MORPHEME = re.compile(r"meth|eth|prop|but|pent|hex|hept|oct")
NAME = re.compile(r"[a-z0-9 ,.'()\[\]-]+")
TEST_PERCENT, VALIDATION_PERCENT = 12, 4
TARGET = Path(__file__).resolve().parents[1] / "graftlm" / "tasks" / "data" / "molecules.tsv.gz"


class Molecule(NamedTuple):
    """One row of the source: `synonyms` holds every other name and registry number that the source lists."""

    name: str
    smiles: str
    synonyms: tuple[str, ...]


def read_molecules() -> Iterator[Molecule]:
    """The rows of the source that are kept, `smiles` canonical and without stereo."""
    package = distribution(PACKAGE)
    if package.version != VERSION:
        raise SystemExit(f"{PACKAGE} is {package.version}: pip install {PACKAGE}=={VERSION}")
    for file in FILES:
        text = Path(str(package.locate_file(f"chemicals/Identifiers/{file}"))).read_text(encoding="utf-8")
        for line in text.splitlines():
            columns = line.split("\t")
            name = columns[COMMON_NAME] if len(columns) > COMMON_NAME else ""
            if not NAME.fullmatch(name) or not MORPHEME.search(name) or ", " in name:
                continue
            if (smiles := canonical_acyclic(columns[SMILES])) is not None:
                yield Molecule(name, smiles, tuple(filter(None, columns[COMMON_NAME + 1 :])))


def canonical_acyclic(smiles: str) -> str | None:
    """Canonical SMILES of a small acyclic molecule, None for any other."""
    if "[" in smiles or "." in smiles:
        return None
    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
    if molecule is None or molecule.GetRingInfo().NumRings() or molecule.GetNumHeavyAtoms() > MAX_HEAVY_ATOMS:
        return None
    canonical = str(Chem.MolToSmiles(molecule, isomericSmiles=False))
    return None if "[" in canonical else canonical


def skeleton(smiles: str) -> str:
    """The first block of the InChIKey: equal for stereoisomers and for most tautomers."""
    with rdBase.BlockLogs():
        return str(Chem.MolToInchiKey(Chem.MolFromSmiles(smiles))).split("-")[0]


def split_of(smiles: str) -> str:
    bucket = int(hashlib.sha256(skeleton(smiles).encode()).hexdigest(), 16) % 100
    if bucket < TEST_PERCENT:
        return "test"
    return "validation" if bucket < TEST_PERCENT + VALIDATION_PERCENT else "train"


def build() -> str:
    """The whole table as text: split, name, SMILES."""
    pairs = {(molecule.name, molecule.smiles) for molecule in read_molecules()}
    lines = [f"{split_of(smiles)}\t{name}\t{smiles}" for name, smiles in pairs]
    lines.sort(key=lambda line: hashlib.sha256(line.encode()).hexdigest())
    return "\n".join(["split\tname\tsmiles", *lines]) + "\n"


def compress(text: str) -> bytes:
    """gzip without a time or a name in its header: equal text gives equal bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as file:
        file.write(text.encode())
    return buffer.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the existing file, write nothing")
    text = build()
    if parser.parse_args().check:
        # The text, since zlib's builds compress differently.
        same = gzip.decompress(TARGET.read_bytes()).decode() == text
        print(f"{TARGET.name}: {'identical' if same else 'DIFFERS'}")
        return 0 if same else 1
    TARGET.write_bytes(compress(text))
    print(f"{TARGET}: {text.count(chr(10)) - 1} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
