"""The promises of the README, and the tests that try to break each; the last lines of a run count what they tried."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

# User properties of a test that tries more cases than one; they reach the reports of other processes.
TRIED, GENERATED = "cases", "generated cases"
HEADINGS = f"{'promise':<52}{'tests':>7}{'cases':>9}{'failed':>8}"


class Promise(NamedTuple):
    """A promise and its tests: whole files or single tests, as FILE or FILE::TEST without suffixes."""

    title: str
    tests: tuple[str, ...]


PROMISES = (
    Promise(
        "A wrong command does nothing",
        ("whole_runs/test_wrong_commands", "utils/config/test_tool_commands", "whole_runs/test_main"),
    ),
    Promise("A run explains itself", ("utils/test_run_folder", "utils/test_run_log", "relabel/training/test_run")),
    Promise(
        "Resume is exact",
        (
            "whole_runs/test_kills::test_a_run_killed_many_times_is_the_undisturbed_run",
            "whole_runs/test_kills::test_a_kill_between_the_checkpoints_of_a_validation_loses_neither",
            "relabel/training/test_run::test_a_preempted_run_continues_exactly",
            "relabel/data/test_loader::test_workers_and_restarts_change_nothing",
        ),
    ),
    Promise(
        "A checkpoint is whole or absent",
        (
            "utils/test_checkpoint",
            "whole_runs/test_kills",
            "relabel/training/test_run::test_a_damaged_checkpoint_never_replaces_the_whole_one_before",
        ),
    ),
    Promise(
        "Preemption loses at most one step",
        (
            *("whole_runs/test_preemption", "whole_runs/test_surroundings"),
            *("utils/processes/test_workers", "utils/processes/test_commands"),
        ),
    ),
    Promise(
        "Old files load, no file runs code",
        (
            *("whole_runs/test_foreign_files", "whole_runs/test_banned_calls", "whole_runs/test_fuzz"),
            *("relabel/stores/test_pt_folder", "utils/test_files"),
        ),
    ),
    Promise(
        "A label map is the right one and intact",
        ("relabel/stores/test_intact_label_maps", "relabel/stores/test_packed"),
    ),
    Promise(
        "Bad images are never silently replaced",
        ("relabel/data/test_damaged_images", "relabel/data/test_skipped_images"),
    ),
    Promise("Non-finite steps cannot poison a run", ("relabel/training/test_non_finite", "utils/processes/test_guard")),
    Promise(
        "Evaluation counts each image exactly once",
        (
            "relabel/training/test_validation",
            "relabel/evaluation/test_predictions",
            "whole_runs/test_processes::test_an_evaluation_counts_each_image_once_however_it_is_shared",
            "whole_runs/test_processes::test_a_validation_counts_each_image_once_however_it_is_shared",
            "relabel/data/test_loader::test_testing_reads_every_image_once_over_all_ranks",
        ),
    ),
    Promise(
        "The numbers are right",
        (
            *(f"relabel/test_{name}" for name in ("label_pooling", "targets", "crop_box", "cutmix", "label_map")),
            *("utils/test_schedule", "relabel/config/test_load", "utils/config/test_value_types"),
            *("relabel/annotation/test_convert", "relabel/data/test_dataset", "relabel/checks/test_object_boxes"),
            "relabel/data/test_images::test_a_key_is_the_name_up_to_the_last_dot",
            "relabel/data/test_loader::test_an_epoch_takes_each_image_at_most_once_over_ranks_and_restarts",
            "relabel/stores/test_pt_folder::test_any_map_comes_back_under_any_name",
            "relabel/stores/test_packed::test_a_row_is_found_as_in_a_dict",
        ),
    ),
    Promise("Two commands on a fresh machine", ("utils/test_doctor",)),
)


def cases_of(report: pytest.TestReport) -> int:
    """Number of cases that a test tried; one where it does not record any."""
    return next((int(str(count)) for name, count in report.user_properties if name in (TRIED, GENERATED)), 1)


def counted(reports: list[pytest.TestReport]) -> Iterator[str]:
    """Lines of the table: for each promise its tests in a run, the cases that they tried, and the tests that failed."""
    for number, promise in enumerate(PROMISES, start=1):
        mine = [report for report in reports if any(_is_of(name, report.nodeid) for name in promise.tests)]
        if mine:
            tried, failed = sum(map(cases_of, mine)), sum(report.failed for report in mine)
            yield f"{number:>2}  {promise.title:<48}{len(mine):>7,}{tried:>9,}{failed:>8}"
    properties = [report for report in reports if any(name == GENERATED for name, _ in report.user_properties)]
    if properties:
        yield f"{sum(map(cases_of, properties)):,} cases were generated, by {len(properties):,} property-based tests"


def _is_of(name: str, nodeid: str) -> bool:
    file, _, test = name.partition("::")
    place, _, tail = nodeid.partition("::")
    return place == f"tests/{file}.py" and (not test or tail.partition("[")[0] == test)
