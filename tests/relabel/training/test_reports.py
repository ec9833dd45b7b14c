"""What a run tells about itself."""

import pytest

from relabel.training.reports import step_lines

VALUES = {"loss": 2.31462, "target_entropy_nats": 0.0, "target_agreement_percent": 45.29}


@pytest.mark.parametrize(("entropy", "floor"), [(0.0, ""), (1.0213, " (floor 1.0213)")])
def test_the_floor_of_the_loss_is_named_for_soft_targets_only(entropy: float, floor: str) -> None:
    values = VALUES | {"target_entropy_nats": entropy, "images_per_s": 2512.4, "data_wait_percent": 3.2}
    learns, speed, note = step_lines(values, 0.09973, "2 h 02 min left")
    assert learns == f"loss 2.3146{floor}  target agreement 45.3 %"
    assert speed == "lr 0.0997  2,512 images/s  data wait 3 %  2 h 02 min left" and note == "2,512 images/s"


def test_the_bar_shows_that_training_waits_for_data() -> None:
    values = VALUES | {"images_per_s": 300.0, "data_wait_percent": 45.0}
    assert step_lines(values, 0.1, "")[2] == "300 images/s (data wait 45 %)"
