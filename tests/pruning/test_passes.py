from __future__ import annotations

import pytest

from graftlm.pruning.passes import groups_of

LENGTHS = [20, 19, 18, 12, 11, 4, 1, 0]


@pytest.mark.parametrize("pass_cost", [0, 3, 30])
@pytest.mark.parametrize(("batch_tokens", "most_rows"), [(1, 8), (20, 8), (40, 8), (1000, 8), (40, 2), (1000, 3)])
def test_each_row_is_in_one_pass_that_is_not_too_large(pass_cost: int, batch_tokens: int, most_rows: int) -> None:
    groups = groups_of(LENGTHS, batch_tokens, most_rows, pass_cost)
    assert [place for group in groups for place in range(len(LENGTHS))[group]] == list(range(len(LENGTHS)))
    for group in groups:
        rows, padded = LENGTHS[group], len(LENGTHS[group]) * LENGTHS[group.start]
        assert len(rows) == 1 or (len(rows) <= most_rows and padded <= batch_tokens and padded - sum(rows) <= pass_cost)


def test_a_pass_ends_where_padding_costs_more_than_another() -> None:
    assert groups_of([10, 9, 2], 100, 8, 8) == [slice(0, 2), slice(2, 3)]
    assert groups_of([10, 9, 2], 100, 8, 9) == [slice(0, 3)]


def test_nothing_takes_no_pass() -> None:
    assert groups_of([], 100, 10, 10) == []
