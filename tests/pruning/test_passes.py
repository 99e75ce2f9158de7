from __future__ import annotations

from itertools import combinations

import pytest

from graftlm.pruning.passes import cheapest_groups


def cost(lengths: list[int], groups: list[slice], pass_cost: int) -> int:
    return sum((group.stop - group.start) * lengths[group.start] + pass_cost for group in groups)


@pytest.mark.parametrize("pass_cost", [0, 3, 30])
@pytest.mark.parametrize(("batch_tokens", "most_rows"), [(1, 8), (20, 8), (40, 8), (1000, 8), (40, 2), (1000, 3)])
def test_no_other_grouping_is_cheaper(pass_cost: int, batch_tokens: int, most_rows: int) -> None:
    lengths = [20, 19, 18, 12, 11, 4, 1, 0]
    found = cheapest_groups(lengths, batch_tokens, most_rows, pass_cost)
    assert [place for group in found for place in range(len(lengths))[group]] == list(range(len(lengths)))
    others = []
    for count in range(len(lengths)):
        for cuts in combinations(range(1, len(lengths)), count):
            groups = [slice(*ends) for ends in zip((0, *cuts), (*cuts, len(lengths)), strict=True)]
            sizes = [(group.stop - group.start, lengths[group.start]) for group in groups]
            if all(rows == 1 or (rows <= most_rows and rows * length <= batch_tokens) for rows, length in sizes):
                others.append(cost(lengths, groups, pass_cost))
    assert cost(lengths, found, pass_cost) == min(others)


def test_nothing_takes_no_pass() -> None:
    assert cheapest_groups([], 100, 10, 10) == []
