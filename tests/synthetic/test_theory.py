import pytest

from sae_lens_gba.synthetic import resonance_band


def test_the_band_of_a_hand_worked_case() -> None:
    # n = 256, s = 4: 256^-(5/8) = 2^-5; 256^-(1/2 (1 + eps)^2) = 2^-(4 (1 + eps)^2);
    # d = 16, zeta = 1/2: 4 / 256 = 2^-6, which is the least
    band = resonance_band(n=256, d=16, s=4, epsilon=0.5, zeta=0.5)
    assert band.lowest == 1 / 256
    assert band.by_sparsity == pytest.approx(2**-5)
    assert band.by_concentration == pytest.approx(2**-9)
    assert band.by_dimension == pytest.approx(2**-6)
    assert band.highest == band.by_concentration


def test_the_band_widens_with_the_dimension_until_sparsity_limits_it() -> None:
    highest = [resonance_band(n=4096, d=d, s=16).highest for d in (8, 32, 128, 4096)]
    assert highest[0] < highest[1]
    assert highest[2] == highest[3] == resonance_band(n=4096, d=8, s=16).by_sparsity


def test_the_dimension_is_the_limit_exactly_under_heavy_superposition() -> None:
    # for s -> infinity the sparsity bound is n^-1/2 and the dimension's d/n: equal at sqrt(n)
    def is_limited_by_dimension(d: int) -> bool:
        band = resonance_band(n=10_000, d=d, s=5000, epsilon=1e-9, zeta=1e-9)
        return band.by_dimension < band.by_sparsity

    assert is_limited_by_dimension(90)
    assert not is_limited_by_dimension(110)


@pytest.mark.parametrize(
    "wrong", [{"n": 1}, {"d": 0}, {"s": 0}, {"s": 129}, {"epsilon": 0.0}, {"zeta": 1.0}]
)
def test_arguments_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        resonance_band(**{"n": 128, "d": 42, "s": 3, **wrong})  # type: ignore[arg-type]
