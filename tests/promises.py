"""The promises of the README, and the tests that try to break each; the last lines of a run count what they tried."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest

# User properties of a test that tries more cases than one; they reach the reports of other processes.
TRIED, GENERATED = "cases", "generated cases"
HEADINGS = f"{'promise':<52}{'tests':>7}{'cases':>9}{'failed':>8}"


class Promise(NamedTuple):
    """What is promised, and test files or single tests of them, as FILE or FILE::TEST without endings."""

    title: str
    tests: tuple[str, ...]


PROMISES = (
    Promise("A wrong command does nothing", ("test_wrong_commands", "test_tool_commands", "test_main")),
    Promise("A run explains itself", ("test_run_folder", "test_run_log", "test_runs")),
    Promise(
        "Resume is exact",
        (
            "test_kills::test_a_run_killed_many_times_is_the_undisturbed_run",
            "test_kills::test_a_kill_between_the_checkpoints_of_a_validation_loses_neither",
            "test_runs::test_a_preempted_run_continues_exactly",
            "test_loader::test_workers_and_restarts_change_nothing",
        ),
    ),
    Promise(
        "A checkpoint is whole or absent",
        (
            "test_checkpoint",
            "test_kills::test_a_killed_save_leaves_the_checkpoint_before_or_the_new_one",
            "test_kills::test_no_flipped_bit_is_read_silently",
            "test_kills::test_no_truncated_checkpoint_is_read",
            "test_kills::test_a_folder_that_may_not_be_written_is_refused_before_the_first_step",
            "test_kills::test_a_checkpoint_that_does_not_fit_leaves_the_one_before",
            "test_kills::test_a_status_that_does_not_fit_leaves_the_one_before",
            "test_kills::test_a_run_on_a_full_disk_says_so_and_continues_when_there_is_room",
            "test_runs::test_a_damaged_checkpoint_never_replaces_the_whole_one_before",
        ),
    ),
    Promise("Preemption loses at most one step", ("test_preemption", "test_workers", "test_commands")),
    Promise(
        "Old files load, no file runs code",
        ("test_foreign_files", "test_banned_calls", "test_label_folder", "test_json_files", "test_fuzz"),
    ),
    Promise("A label map is the right one and intact", ("test_intact_label_maps", "test_packed_store")),
    Promise("Bad images are never silently replaced", ("test_damaged_images", "test_skipped_images")),
    Promise("Non-finite steps cannot poison a run", ("test_non_finite", "test_guard")),
    Promise(
        "Evaluation counts each image exactly once",
        (
            "test_evaluation",
            "test_predictions",
            "test_processes::test_an_evaluation_counts_each_image_once_however_it_is_shared",
            "test_processes::test_a_validation_counts_each_image_once_however_it_is_shared",
            "test_loader::test_testing_reads_every_image_once_over_all_ranks",
        ),
    ),
    Promise(
        "The numbers are right",
        (
            *("test_label_pooling", "test_targets", "test_crop_box", "test_cutmix", "test_label_map", "test_schedule"),
            *("test_config", "test_value_types", "test_packing", "test_dataset", "test_object_boxes"),
            "test_loader::test_an_epoch_takes_each_image_at_most_once_over_ranks_and_restarts",
            "test_label_folder::test_any_map_comes_back_under_any_name",
            "test_packed_store::test_a_row_is_found_as_in_a_dict",
            "test_packed_store::test_the_crc_of_a_record_follows_from_that_of_key_and_record",
        ),
    ),
    Promise("Two commands on a fresh machine", ("test_doctor",)),
)


def cases_of(report: pytest.TestReport) -> int:
    """How many cases a test tried; one where it does not say."""
    return next((int(str(count)) for name, count in report.user_properties if name in (TRIED, GENERATED)), 1)


def counted(reports: list[pytest.TestReport]) -> Iterator[str]:
    """The table: of each promise its tests in a run, the cases that they tried, and how many of the tests failed."""
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
    return place.endswith(f"{file}.py") and (not test or tail.partition("[")[0] == test)
