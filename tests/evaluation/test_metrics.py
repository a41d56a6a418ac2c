"""Each score against a case whose value is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flowcept.evaluation import metrics


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# --- psnr


def test_psnr_of_a_constant_error_is_its_ratio_to_the_peak():
    a = noise(3, 3, 8, 8) * 0.5
    assert metrics.psnr(a, a + 0.02) == pytest.approx(40.0, abs=1e-4)


def test_psnr_averages_decibels_over_frames_not_errors():
    a = torch.zeros(2, 1, 4, 4)
    b = torch.stack([torch.full((1, 4, 4), 0.2), torch.full((1, 4, 4), 0.002)])
    assert [metrics.psnr(a[f : f + 1], b[f : f + 1]) for f in (0, 1)] == pytest.approx([20, 60])
    assert metrics.psnr(a, b) == pytest.approx(40.0, abs=1e-4)


def test_psnr_of_equal_frames_is_the_best_and_shapes_must_agree():
    a = noise(1, 3, 4, 4)
    assert metrics.psnr(a, a) == metrics.BEST
    assert metrics.psnr(a, a + 1e-9) == metrics.BEST
    with pytest.raises(ValueError, match="one shape"):
        metrics.psnr(a, noise(1, 3, 4, 1))


# --- ssim


def test_ssim_of_equal_frames_is_one():
    a = noise(2, 3, 16, 20)
    torch.testing.assert_close(metrics.ssim(a, a), torch.ones(2).double())


def test_ssim_of_constant_frames_is_the_luminance_term():
    x, y, c1 = 0.5, -0.2, (0.01 * 2) ** 2
    score = metrics.ssim(torch.full((1, 3, 12, 12), x), torch.full((1, 3, 12, 12), y))
    assert score.item() == pytest.approx((2 * x * y + c1) / (x * x + y * y + c1), rel=1e-5)


def test_ssim_is_one_windowed_moment_where_one_window_fits():
    offset = np.arange(-5, 6)
    line = np.exp(-(offset**2) / (2 * 1.5**2))
    weight = np.outer(line, line) / line.sum() ** 2
    a, b = (noise(1, 1, 11, 11, seed=s).double() for s in (1, 2))
    x, y = a.numpy()[0, 0], b.numpy()[0, 0]
    mean_x, mean_y = (weight * x).sum(), (weight * y).sum()
    var_x, var_y = (weight * (x - mean_x) ** 2).sum(), (weight * (y - mean_y) ** 2).sum()
    cov = (weight * (x - mean_x) * (y - mean_y)).sum()
    c1, c2 = 0.02**2, 0.06**2
    expected = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    )
    assert metrics.ssim(a, b).item() == pytest.approx(expected, rel=1e-9)


def test_ssim_scores_each_frame_alone():
    a, b = noise(3, 3, 13, 17), noise(3, 3, 13, 17, seed=1)
    b[1] = a[1]
    alone = torch.cat([metrics.ssim(a[i : i + 1], b[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(metrics.ssim(a, b), alone)
    assert metrics.ssim(a, b)[1] == pytest.approx(1.0)
    assert metrics.ssim(a, b)[0] < 0.5


def test_ssim_refuses_frames_smaller_than_its_window():
    with pytest.raises(ValueError, match="11 px"):
        metrics.ssim(noise(1, 3, 10, 32), noise(1, 3, 10, 32))


def test_ssim_matches_scikit_image():
    reference = pytest.importorskip("skimage.metrics").structural_similarity
    a = noise(2, 3, 24, 31)
    b = (a + 0.3 * noise(2, 3, 24, 31, seed=1)).clamp(-1, 1)
    expected = [
        reference(
            a[i].double().numpy(),
            b[i].double().numpy(),
            channel_axis=0,
            data_range=2.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for i in range(2)
    ]
    np.testing.assert_allclose(metrics.ssim(a, b).numpy(), expected, rtol=1e-9)


# --- sharpness and motion


def wave(frequency: int, size: int) -> torch.Tensor:
    """Cosine of ``frequency`` half periods over ``size`` pixels, which mirrors into itself."""
    return torch.cos(math.pi * (torch.arange(size).double() + 0.5) * frequency / size)


@pytest.mark.parametrize(("frequency", "energy"), [(3, 0.0), (16, 0.0), (17, 0.18), (31, 0.18)])
def test_sharpness_is_the_energy_of_waves_above_half_nyquist(frequency, energy):
    line = 0.6 * wave(frequency, 32)  # Nyquist is 32 half periods; mean square 0.6 ** 2 / 2
    across = line.expand(1, 3, 20, 32)
    torch.testing.assert_close(metrics.sharpness(across), torch.tensor([energy]).double())
    torch.testing.assert_close(metrics.sharpness(across.mT), torch.tensor([energy]).double())


def test_sharpness_measures_the_length_of_a_diagonal_frequency():
    def energy(frequency: int) -> float:
        line = wave(frequency, 32)
        return metrics.sharpness((line[:, None] * line[None, :])[None, None]).item()

    assert energy(11) == pytest.approx(0.0, abs=1e-12)  # 11 * sqrt(2) = 15.6 < 16
    assert energy(12) == pytest.approx(0.25)  # 12 * sqrt(2) = 17.0 > 16


def test_sharpness_falls_with_blur_and_ignores_opposite_edges():
    image = noise(2, 3, 32, 32)
    blurred = torch.nn.functional.avg_pool2d(image, 3, 1, 1)
    assert (metrics.sharpness(blurred) < 0.1 * metrics.sharpness(image)).all()
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32)
    assert metrics.sharpness(ramp).item() < 1e-4


def test_motion_is_the_mean_step():
    level = torch.tensor([0.0, 0.3, -0.1, -0.1])  # steps 0.3, 0.4, 0
    assert metrics.motion(level.view(-1, 1, 1, 1).expand(4, 3, 5, 6)) == pytest.approx(0.7 / 3)
    assert metrics.motion(noise(1, 3, 4, 4)) == 0.0


# --- laws and Gaussians


def test_total_variation_of_laws_and_counts():
    assert metrics.total_variation({8: 0.2, 12: 0.8}, {8: 0.5, 16: 0.5}) == pytest.approx(0.8)
    assert metrics.total_variation({8: 1, 12: 3}, {8: 25.0, 12: 75.0}) == 0.0
    assert metrics.total_variation({1: 7}, {2: 1}) == 1.0


@pytest.mark.parametrize("law", [{}, {1: 0.0}, {1: 2.0, 2: -1.0}, {1: math.nan}, {1: math.inf}])
def test_total_variation_refuses_what_is_no_law(law):
    with pytest.raises(ValueError, match="law"):
        metrics.total_variation({1: 1.0}, law)


def samples(mean: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Two samples a column of the factor, with exactly this mean and covariance factor factor^T."""
    columns = factor.double().T * ((2 * factor.shape[1] - 1) / 2) ** 0.5
    return mean.double() + torch.cat([columns, -columns])


def test_frechet_distance_of_commuting_covariances():
    vectors = torch.linalg.qr(noise(5, 5).double()).Q
    a, b = torch.tensor([4.0, 1, 0.25, 9, 0]), torch.tensor([1.0, 1, 4, 0, 0])
    shift = torch.tensor([3.0, 0, 0, -4, 0])
    expected = 25 + float((a.sqrt() - b.sqrt()).square().sum())
    found = metrics.frechet_of_samples(
        samples(torch.zeros(5), vectors * a.sqrt()), samples(shift, vectors * b.sqrt())
    )
    assert found == pytest.approx(expected, rel=1e-7)


def test_frechet_distance_of_covariances_that_do_not_commute():
    # For 2 x 2 the trace of the root is sqrt(tr(AB) + 2 sqrt(det(AB))).
    half_a, half_b = noise(2, 2, seed=1).double(), noise(2, 2, seed=2).double()
    a, b = half_a @ half_a.T, half_b @ half_b.T
    assert not torch.allclose(a @ b, b @ a)
    root_trace = math.sqrt((a @ b).trace() + 2 * math.sqrt(torch.det(a @ b)))
    expected = float(a.trace() + b.trace()) - 2 * root_trace
    of_a, of_b = samples(torch.zeros(2), half_a), samples(torch.zeros(2), half_b)
    assert torch.allclose(torch.cov(of_a.T), a)
    assert metrics.frechet_of_samples(of_a, of_b) == pytest.approx(expected, rel=1e-9)
    assert metrics.frechet_of_samples(of_b, of_a) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_to_itself_is_zero_even_where_singular():
    for rank in (40, 7):
        found = samples(noise(40), noise(40, rank, seed=3))
        size = float(torch.cov(found.T).trace())
        assert metrics.frechet_of_samples(found, found) < 1e-10 * size


def test_kernel_distance_is_the_double_loop_over_different_pairs(generator):
    a = torch.randn(5, 3, generator=generator)
    b = torch.randn(4, 3, generator=generator) + 0.5

    def mean(x, y, *, same):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not same or i != j]
        found = [(math.fsum((x[i] * y[j]).tolist()) / 3 + 1) ** 3 for i, j in pairs]
        return math.fsum(found) / len(pairs)

    expected = mean(a, a, same=True) + mean(b, b, same=True) - 2 * mean(a, b, same=False)
    assert metrics.kernel_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert metrics.kernel_distance(b, a) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_of_equal_laws_is_zero_on_average_and_grows_with_a_shift(generator):
    drawn = torch.randn(200, 2, 20, 6, generator=generator)  # 200 pairs of samples of one law

    def over_pairs(shift):
        return np.array([metrics.kernel_distance(a, b + shift) for a, b in drawn])

    equal = over_pairs(0.0)
    error = equal.std() / len(equal) ** 0.5
    assert abs(equal.mean()) < 3 * error
    assert (equal < 0).mean() > 0.3, "unbiased: often negative"
    assert (equal > 0).mean() > 0.3
    near, far = over_pairs(0.5).mean(), over_pairs(1.0).mean()
    assert equal.mean() + 10 * error < near < far


def test_kernel_distance_refuses_what_has_no_pairs():
    with pytest.raises(ValueError, match="two samples"):
        metrics.kernel_distance(torch.zeros(1, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="one D"):
        metrics.kernel_distance(torch.zeros(4, 3), torch.zeros(4, 2))


# --- blend


def test_linear_blend_is_strictly_between_and_even():
    a, b = torch.full((3, 2, 2), -1.0), torch.full((3, 2, 2), 1.0)
    blend = metrics.linear_blend(a, b, 3)
    assert blend.shape == (3, 3, 2, 2)
    torch.testing.assert_close(blend[:, 0, 0, 0], torch.tensor([-0.5, 0.0, 0.5]))
    assert metrics.linear_blend(a, b, 0).shape == (0, 3, 2, 2)
    with pytest.raises(ValueError, match="-1"):
        metrics.linear_blend(a, b, -1)


def root(cov: torch.Tensor) -> torch.Tensor:
    value, vector = torch.linalg.eigh(cov)
    return (vector * value.clamp(min=0).sqrt()) @ vector.T


@pytest.mark.parametrize(("n", "m", "size"), [(40, 60, 7), (5, 6, 30), (9, 40, 20)])
def test_frechet_of_samples_is_that_of_their_gaussians(generator, n, m, size):
    a = torch.randn(n, size, generator=generator) @ torch.randn(size, size, generator=generator)
    b = 1 + torch.randn(m, size, generator=generator)
    cov_a, cov_b = (torch.cov(x.double().T) for x in (a, b))
    shift = (a.double().mean(0) - b.double().mean(0)).square().sum()
    overlap = torch.linalg.svdvals(root(cov_a) @ root(cov_b)).sum()
    expected = float(shift + cov_a.trace() + cov_b.trace() - 2 * overlap)
    assert metrics.frechet_of_samples(a, b) == pytest.approx(expected, rel=1e-6)
    assert metrics.frechet_of_samples(a, a) == pytest.approx(0, abs=1e-6 * float(a.square().sum()))


def test_frechet_of_samples_refuses_what_has_no_covariance():
    with pytest.raises(ValueError, match="two samples"):
        metrics.frechet_of_samples(torch.zeros(1, 3), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="one D"):
        metrics.frechet_of_samples(torch.zeros(4, 3), torch.zeros(4, 2))


def test_density_and_coverage_by_counting(generator):
    real = torch.randn(30, 4, generator=generator)
    made = 0.5 + torch.randn(20, 4, generator=generator)
    k, held, met = 3, 0, 0
    for i in range(30):
        radius = sorted(float((real[i] - real[j]).norm()) for j in range(30) if j != i)[k - 1]
        inside = sum(float((real[i] - x).norm()) < radius for x in made)
        held, met = held + inside, met + (inside > 0)
    density, coverage = metrics.density_and_coverage(real, made, k)
    assert density == pytest.approx(held / (k * 20))
    assert coverage == pytest.approx(met / 30)


def test_density_and_coverage_at_the_ends(generator):
    real = torch.randn(400, 3, generator=generator)
    same = torch.randn(400, 3, generator=generator)
    density, coverage = metrics.density_and_coverage(real, same)
    assert density == pytest.approx(1, abs=0.15)
    assert coverage > 0.9
    assert metrics.density_and_coverage(real, same + 100) == (0, 0)
    one_place = real[:1] + 0.01 * same  # fidelity without variety
    density, coverage = metrics.density_and_coverage(real, one_place)
    assert density > 0.5
    assert coverage < 0.2
    with pytest.raises(ValueError, match="neighbour"):
        metrics.density_and_coverage(real[:5], same)
