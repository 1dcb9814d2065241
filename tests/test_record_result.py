"""The record of a finished run, and its row of the README's table."""

import record_result


def test_row_has_the_accuracies_of_the_closing_record(plain_run):
    folder, final, _ = plain_run
    result = record_result.collect(folder, "tiny_run.py")
    cells = [cell.strip() for cell in record_result.row(result).split("|")]
    accuracies = ("train_accuracy", "test_accuracy", "best_test_accuracy")
    assert cells[3:6] == [f"{final[name]:.2f}" for name in accuracies]
    assert cells[1] == "`tiny_run.py`" and len(result["scores"]) == 3
