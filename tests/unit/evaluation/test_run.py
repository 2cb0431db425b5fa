from hypothesis import given
from hypothesis import strategies as st

from longvita.evaluation.run import split_items
from longvita.evaluation.task import EvaluationItem

ITEMS = [
    EvaluationItem(f"{group}{number}", "digest", group, cost)
    for group, cost in (("a", 1), ("b", 9), ("c", 4))
    for number in (1, 2)
]


def test_groups_stay_together_and_the_costliest_is_alone():
    assert [[item.key for item in own] for own in split_items(ITEMS, (), 2)] == [
        ["b1", "b2"],
        ["a1", "a2", "c1", "c2"],
    ]


def test_items_that_are_done_are_left_out():
    assert [[item.key for item in own] for own in split_items(ITEMS, {"a1", "b1", "b2"}, 1)] == [["a2", "c1", "c2"]]


@given(
    groups=st.lists(st.tuples(st.integers(0, 6), st.floats(0.1, 50)), max_size=30),
    done=st.sets(st.integers(0, 29)),
    replicas=st.integers(1, 5),
)
def test_each_item_that_is_left_is_asked_by_one_replica(groups, done, replicas):
    items = [EvaluationItem(str(place), "digest", str(group), cost) for place, (group, cost) in enumerate(groups)]
    split = split_items(items, {str(place) for place in done}, replicas)
    assert len(split) == replicas
    assert sorted(item.key for own in split for item in own) == sorted(
        item.key for item in items if int(item.key) not in done
    )
    owners = [{item.group for item in own} for own in split]
    assert sum(map(len, owners)) == len(set().union(*owners))
