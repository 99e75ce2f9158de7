"""Which tokens of a chain of reasoning a model needs: three solutions pruned, and a page that shades each token.

python examples/prune.py pruned.jsonl        (two minutes on two cores)
"""

import json
import sys
import tempfile
from pathlib import Path

from graftlm import prune

SOLUTIONS = [
    ("Mia has 17 pens and gives 4 of them to her brother. How many has she left?",
     "First, we need to find how many pens Mia has left. She has 17 - 4 = 13 pens.", "13"),
    ("A box holds 6 eggs. How many eggs are in 7 boxes?",
     "Each of the 7 boxes holds 6 eggs, so together they hold 7 * 6 = 42 eggs.", "42"),
    ("Ben reads 12 pages a day. His book has 60 pages. How many days does he need?",
     "He reads 12 pages each day, therefore the book takes him 60 / 12 = 5 days.", "5"),
]  # fmt: skip

output = Path(sys.argv[1])
rows = [{"question": q, "chain": chain, "answer": f"The answer is {answer}."} for q, chain, answer in SOLUTIONS]
with tempfile.TemporaryDirectory() as folder:
    data = Path(folder) / "solutions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pruned = prune("smollm2-135m", str(data), output, keep=[0.6])
for row, (_, chain, _) in zip(pruned.rows, SOLUTIONS, strict=True):
    print(f"{chain}\n    {row['completion'][-1]['content'].splitlines()[0]}")
