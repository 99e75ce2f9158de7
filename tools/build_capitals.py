"""Rebuild graftlm/tasks/data/capitals.tsv from the package `countryinfo`.

    pip install countryinfo==1.0.1
    python tools/build_capitals.py            # write the file
    python tools/build_capitals.py --check    # only compare: exit status 1 if it would differ

Countries of more than 3 million people are probed (split "test"); those of 1 to 3 million serve as examples
for few-shot prompts (split "validation"). Three corrections are made by hand, below: entries to leave out,
the article that the name takes in a sentence, and other accepted names of a capital.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

PACKAGE, VERSION = "countryinfo", "1.0.1"
PROBED_POPULATION, SHOT_POPULATION = 3_000_000, 1_000_000
TARGET = Path(__file__).resolve().parents[1] / "graftlm" / "tasks" / "data" / "capitals.tsv"

# Dissolved in 2006; a special administrative region; a territory of the United States; named after another
# capital.
LEFT_OUT = {"Serbia and Montenegro", "Hong Kong", "Puerto Rico", "Swaziland"}
TAKES_ARTICLE = {
    "Central African Republic",
    "Czech Republic",
    "Democratic Republic of the Congo",
    "Dominican Republic",
    "Ivory Coast",
    "Netherlands",
    "Philippines",
    "Republic of Macedonia",
    "Republic of the Congo",
    "United Arab Emirates",
    "United Kingdom",
    "United States",
}
# Other spellings, the name before or after a renaming, and a second capital where law and seat of government
# differ.
ALSO_ACCEPTED = {
    "Bolivia": ("La Paz",),
    "Burundi": ("Gitega",),
    "Kazakhstan": ("Astana",),
    "Myanmar": ("Nay Pyi Taw", "Naypyitaw"),
    "South Africa": ("Cape Town", "Bloemfontein"),
    "Sri Lanka": ("Sri Jayawardenepura Kotte",),
    "Ukraine": ("Kiev",),
    "United States": ("Washington",),
}


class Country(NamedTuple):
    name: str
    capital: str
    population: int


def read_countries() -> list[Country]:
    """Every country with one capital and a population; entries with lists or without either are skipped."""
    package = distribution(PACKAGE)
    if package.version != VERSION:
        raise SystemExit(f"{PACKAGE} is {package.version}: pip install {PACKAGE}=={VERSION}")
    countries = []
    for path in Path(str(package.locate_file("countryinfo/data"))).glob("*.json"):
        entry = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(entry, dict):
            continue
        capital, population = entry.get("capital"), entry.get("population")
        if isinstance(capital, str) and capital and isinstance(population, int):
            countries.append(Country(entry["name"], capital, population))
    return sorted(countries)


def build() -> str:
    """The whole table as text: split, country as it stands in a sentence, capital, other accepted names
    ("|")."""
    lines = ["split\tcountry\tcapital\taliases"]
    for country in read_countries():
        if country.name in LEFT_OUT or country.population <= SHOT_POPULATION:
            continue
        split = "test" if country.population > PROBED_POPULATION else "validation"
        name = f"the {country.name}" if country.name in TAKES_ARTICLE else country.name.replace("The ", "the ")
        lines.append(f"{split}\t{name}\t{country.capital}\t{'|'.join(ALSO_ACCEPTED.get(country.name, ()))}")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the existing file, write nothing")
    text = build()
    if parser.parse_args().check:
        same = TARGET.read_bytes() == text.encode()
        print(f"{TARGET.name}: {'identical' if same else 'DIFFERS'}")
        return 0 if same else 1
    TARGET.write_bytes(text.encode())
    print(f"{TARGET}: {text.count(chr(10)) - 1} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
