"""The light named tuples behave as named tuples do, where the pool uses them."""

from __future__ import annotations

import copy
import pickle

import pytest

from prefork_executor._support.named_tuples import NamedTuple


class Place(NamedTuple):
    row: int
    column: int = 7

    @property
    def sum(self) -> int:
        return self.row + self.column


def test_fields_have_names_places_and_defaults() -> None:
    assert Place(3) == Place(3, 7) == Place(column=7, row=3) == (3, 7)
    row, column = Place(1, 2)
    assert (row, column, Place(1, 2).row, Place(1, 2).column, Place(1, 2).sum) == (1, 2, 1, 2, 3)
    assert repr(Place(1)) == "Place(row=1, column=7)"


def test_a_changed_copy_leaves_the_original_alone() -> None:
    place = Place(1)
    assert (place._replace(column=2), place) == (Place(1, 2), Place(1, 7))
    assert place._asdict() == {"row": 1, "column": 7}


def test_pickles_and_copies_are_of_the_same_class() -> None:
    for made in (pickle.loads(pickle.dumps(Place(4))), copy.copy(Place(4))):
        assert type(made) is Place
        assert made == Place(4)


@pytest.mark.parametrize("given", [{}, {"row": 1, "depth": 2}, {"column": 2}])
def test_a_field_that_lacks_or_does_not_exist_is_refused(given: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="Place takes row, column"):
        Place(**given)
    with pytest.raises(TypeError, match="Place takes row, column"):
        Place(*[1, 2, 3])
    with pytest.raises(TypeError, match="Place takes row, column"):
        Place(1)._replace(depth=3)  # type: ignore[call-arg]
