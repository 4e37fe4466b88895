"""A memory of a bounded weight forgets what was not used for longest."""

from carehook.ledger.postgresql.recently_used import RecentlyUsed


def test_what_was_put_is_remembered_until_it_is_forgotten() -> None:
    memory: RecentlyUsed[str, int] = RecentlyUsed(10)
    memory.put("one", 1)
    assert (memory.get("one"), memory.get("two")) == (1, None)
    memory.forget("one")
    memory.forget("two")
    assert memory.get("one") is None


def test_what_was_not_used_for_longest_goes_first() -> None:
    memory: RecentlyUsed[str, int] = RecentlyUsed(2)
    memory.put("one", 1)
    memory.put("two", 2)
    memory.get("one")
    memory.put("three", 3)
    assert [memory.get(key) for key in ("one", "two", "three")] == [1, None, 3]


def test_the_weights_are_counted_and_given_back() -> None:
    memory: RecentlyUsed[str, int] = RecentlyUsed(10)
    for _ in range(5):
        memory.put("heavy", 1, weight=8)
    memory.put("light", 2, weight=2)
    assert (memory.get("heavy"), memory.get("light")) == (1, 2)
    memory.forget("heavy")
    memory.put("other", 3, weight=8)
    assert (memory.get("light"), memory.get("other")) == (2, 3)


def test_one_that_is_heavier_than_all_stands_alone() -> None:
    memory: RecentlyUsed[str, int] = RecentlyUsed(10)
    memory.put("light", 1)
    memory.put("heavy", 2, weight=100)
    assert (memory.get("light"), memory.get("heavy")) == (None, 2)
    memory.put("next", 3)
    assert (memory.get("heavy"), memory.get("next")) == (None, 3)
