import pytest

from sae_lens_gba.distributed.plan import Plan
from sae_lens_gba_command import main


def test_memory_and_traffic_by_hand() -> None:
    plan = Plan(d_in=100, d_sae=1000, batch=10, devices=4, nested=3)
    # 10 matrices of 100 x 250, 3 x outputs (3, 10, 100), 32,768 samples kept; float32
    assert plan.memory_bytes == 4 * (10 * 100 * 250 + 3 * 3 * 10 * 100 + 32768 * 100)
    # a ring sends 2 x 3/4 of what is summed, and 3/4 of what is gathered
    assert plan.traffic_bytes == 4 * (1.5 * 3 * 10 * 100 + 0.75 * 10 * 100)
    assert plan.host_bytes == 4 * 6 * 100 * 1000
    assert Plan(d_in=100, d_sae=1000, batch=10).traffic_bytes == 0


@pytest.mark.parametrize("devices", [2, 8])
def test_what_devices_share_is_divided_and_the_rest_is_not(devices: int) -> None:
    one = Plan(2304, 65536, 4096).times()
    several = Plan(2304, 65536, 4096, devices).times()
    for name in one:
        factor = {"nested outputs": 1, "between devices": 0}.get(name, devices)
        assert one[name] == pytest.approx(several[name] * factor)


def test_the_bottleneck_of_a_wide_sae_is_the_update_of_its_weights(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    flags = ["--d-in", "2304", "--d-sae", "262144", "--batch", "4096", "--devices", "8"]
    assert main(["plan", *flags]) == 0
    assert "0.363" in caplog.text
    assert "Expected bottleneck: weights" in caplog.text
    assert main(["plan", *flags, "--link-gb-s", "10"]) == 0
    assert "Expected bottleneck: between devices" in caplog.text


def test_an_impossible_number_is_named(caplog: pytest.LogCaptureFixture) -> None:
    assert main(["plan", "--d-in", "0", "--d-sae", "8", "--batch", "8"]) == 1
    assert "d_in=0 is not possible" in caplog.text
    assert main(["plan", "--d-in", "8", "--d-sae", "64", "--batch", "4", "--devices", "8"]) == 1
    assert "batch=4 is not possible: it must be a sample at least of each of 8" in caplog.text
