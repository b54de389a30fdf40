"""Facts about tables as values."""

from potstill.pipeline.views.tables import Cell, Table, figures, not_measured, words

COLUMNS = (words("Engine"), figures("p50", "ms"), figures("Energy", "mJ"))


def table(*energies: Cell) -> Table:
    """An engine a row, with these energies."""
    rows = tuple((Cell(f"engine {number}"), Cell("1.0"), energy) for number, energy in enumerate(energies))
    return Table("Engines", COLUMNS, rows, "A note.")


def test_a_column_of_which_nothing_was_measured_becomes_a_sentence() -> None:
    found = table(not_measured("no counter"), not_measured("no counter")).without_unmeasured()
    assert [column.title for column in found.columns] == ["Engine", "p50"]
    assert [len(row) for row in found.rows] == [2, 2]
    assert found.note == "A note. Energy: not measured (no counter)."


def test_a_column_with_a_number_or_several_reasons_stays() -> None:
    for others in (Cell("3.1"), not_measured("another reason")):
        whole = table(not_measured("no counter"), others)
        assert whole.without_unmeasured() == whole
