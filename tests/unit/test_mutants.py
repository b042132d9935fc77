"""The list of mutants against the code of today: `make mutants` itself runs too long for every change."""

from tests.mutants import check_list, read_list


def test_every_mutant_still_has_its_one_place() -> None:
    check_list(read_list())
