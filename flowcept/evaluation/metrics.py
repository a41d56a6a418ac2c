"""Scores of frames, clips and laws, each an equation of a few lines.

Pictures are in [-1, 1]. Sums run in float64: differences of nearly equal numbers decide every
score here.

Shape suffixes: F frames, C H W channels, height and width, N M samples, D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

PEAK = 2.0  # from the darkest value to the brightest
BEST = 100.0  # dB: frames equal to the last bit count as this
SSIM_RADIUS = 5  # pixels
WINDOW = 2 * SSIM_RADIUS + 1  # pixels that it is wide
SSIM_SIGMA = 1.5  # pixels
HIGH_FREQUENCY = 0.25  # cycles per pixel: half of Nyquist's 0.5


def psnr(a_FCHW: Tensor, b_FCHW: Tensor) -> float:
    """Mean over frames of the peak signal to noise ratio in dB.

    A frame that is equal bit for bit, as when nothing moves, counts as ``BEST``.
    """
    _check_same(a_FCHW, b_FCHW)
    error_F = (a_FCHW.double() - b_FCHW.double()).square().flatten(1).mean(1)
    decibels_F = 10 * torch.log10(PEAK**2 / error_F)
    return float(decibels_F.clamp(max=BEST).mean())


def ssim(a_FCHW: Tensor, b_FCHW: Tensor) -> Tensor:
    """Structural similarity of each frame, float64 [F]; 1 for equal frames.

    Wang et al. 2004 with a Gaussian window, population covariances, constants 0.01 and 0.03, mean
    over channels and over the positions where the whole window fits. Frames smaller than the
    window are a ``ValueError``.
    """
    _check_same(a_FCHW, b_FCHW)
    if min(a_FCHW.shape[-2:]) < WINDOW:
        raise ValueError(
            f"structural similarity needs {WINDOW} px per side, got {a_FCHW.shape[-2:]}"
        )
    a, b = a_FCHW.double(), b_FCHW.double()
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a.square()
    var_b = _blur(b * b) - mean_b.square()
    cov = _blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return (luminance * structure).flatten(1).mean(1)


def _blur(image_FCHW: Tensor) -> Tensor:
    """Gaussian mean at every position where the whole window fits."""
    offset = torch.arange(-SSIM_RADIUS, SSIM_RADIUS + 1, device=image_FCHW.device).double()
    weight = torch.exp(-0.5 * (offset / SSIM_SIGMA).square())
    weight = (weight / weight.sum()).view(1, 1, 1, -1)
    height, width = image_FCHW.shape[-2:]
    rows = F.conv2d(image_FCHW.reshape(-1, 1, height, width), weight)
    columns = F.conv2d(rows, weight.mT)
    return columns.reshape(*image_FCHW.shape[:2], *columns.shape[-2:])


def sharpness(image_FCHW: Tensor) -> Tensor:
    """Energy above half the Nyquist frequency in each frame, float64 [F].

    The mean square, over pixels and channels, of the picture that keeps only spatial frequencies
    of more than 0.25 cycles per pixel in length. The picture is mirrored at its edges, so that a
    jump from its right edge to its left one does not count as detail.
    """
    image = image_FCHW.double()
    for axis in (-1, -2):
        image = torch.cat([image, image.flip(axis)], axis)
    row_H = torch.fft.fftfreq(image.shape[-2], device=image.device, dtype=torch.float64)
    column_W = torch.fft.fftfreq(image.shape[-1], device=image.device, dtype=torch.float64)
    high_HW = torch.hypot(row_H[:, None], column_W[None, :]) > HIGH_FREQUENCY
    energy: Tensor = torch.fft.fft2(image, norm="forward").abs().square()
    return (energy * high_HW).sum((-2, -1)).mean(1)


def motion(image_FCHW: Tensor) -> float:
    """Mean absolute change of a value from one frame to the next; 0 for a single frame."""
    if len(image_FCHW) < 2:
        return 0.0
    return float(image_FCHW.double().diff(dim=0).abs().mean())


def total_variation(a: Mapping[int, float], b: Mapping[int, float]) -> float:
    """Half the L1 distance of two laws, in [0, 1]; counts are normalised first.

    A law without mass or with a negative or non-finite weight is a ``ValueError``.
    """
    for law in (a, b):
        if not all(math.isfinite(w) and w >= 0 for w in law.values()) or sum(law.values()) <= 0:
            raise ValueError("a law needs finite weights >= 0 with a positive sum")
    sum_a, sum_b = sum(a.values()), sum(b.values())
    return 0.5 * sum(abs(a.get(n, 0) / sum_a - b.get(n, 0) / sum_b) for n in a.keys() | b.keys())


def frechet_of_samples(a_ND: Tensor, b_MD: Tensor) -> float:
    """Squared 2-Wasserstein distance of the Gaussians with the samples' means and covariances.

    ``|mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2)``. The trace of the last root is the
    sum of the singular values of ``A^1/2 B^1/2``, which are those of the product of the centred
    samples, ``[N, M]``: no covariance is formed, and no digits are lost where one is singular, as
    with fewer samples than features. Where there are more, a triangular factor of the samples,
    ``[D, D]``, stands for them.
    """
    if a_ND.ndim != 2 or b_MD.ndim != 2 or a_ND.shape[1] != b_MD.shape[1]:
        raise ValueError("samples must be [N, D] and [M, D] of one D")
    if min(len(a_ND), len(b_MD)) < 2:
        raise ValueError("a covariance needs at least two samples")
    a_ND, b_MD = a_ND.double(), b_MD.double()
    shift = (a_ND.mean(0) - b_MD.mean(0)).square().sum()

    a_ND = (a_ND - a_ND.mean(0)) / (len(a_ND) - 1) ** 0.5
    b_MD = (b_MD - b_MD.mean(0)) / (len(b_MD) - 1) ** 0.5
    traces = a_ND.square().sum() + b_MD.square().sum()
    overlap = torch.linalg.svdvals(_factor(a_ND) @ _factor(b_MD).mT).sum()
    return max(0.0, float(shift + traces - 2 * overlap))


def _factor(x_ND: Tensor) -> Tensor:
    """A matrix with the same ``x.mT @ x`` and at most D rows."""
    if len(x_ND) <= x_ND.shape[1]:
        return x_ND
    factor_DD: Tensor = torch.linalg.qr(x_ND, mode="r").R
    return factor_DD


def kernel_distance(a_ND: Tensor, b_MD: Tensor) -> float:
    """Squared maximum mean discrepancy with the kernel ``(x . y / D + 1)^3``, unbiased.

    Bińkowski et al. 2018 (arXiv 1801.01401): the kernel's mean within each sample, over pairs of
    different rows, less twice its mean between them. It is 0 on average where both laws are equal,
    so that it may be negative, and the number of samples does not shift it.
    """
    if a_ND.ndim != 2 or b_MD.ndim != 2 or a_ND.shape[1] != b_MD.shape[1]:
        raise ValueError("samples must be [N, D] and [M, D] of one D")
    if min(len(a_ND), len(b_MD)) < 2:
        raise ValueError("a kernel distance needs at least two samples")
    return _within(a_ND) + _within(b_MD) - 2 * float(_kernel(a_ND, b_MD).mean())


def _kernel(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    return (a_ND.double() @ b_MD.double().mT / a_ND.shape[1] + 1) ** 3


def _within(x_ND: Tensor) -> float:
    """Mean of the kernel over pairs of different rows."""
    kernel_NN, count = _kernel(x_ND, x_ND), len(x_ND)
    return float(kernel_NN.sum() - kernel_NN.trace()) / (count * (count - 1))


def density_and_coverage(real_ND: Tensor, made_MD: Tensor, k: int = 5) -> tuple[float, float]:
    """Density of the made samples among the real, and coverage of the real by the made.

    Naeem et al. 2020 (arXiv 2002.09797): around every real sample the ball up to its k-th real
    neighbour; density is the mean number of balls that hold a made sample, over k (1 where both
    laws are equal, 0 far away); coverage the share of balls that hold any made sample.
    """
    if not 1 <= k < len(real_ND) or len(made_MD) < 1:
        raise ValueError(f"{len(real_ND)} real samples have no {k}-th neighbour")
    real, made = real_ND.double(), made_MD.double()
    radius_N = torch.cdist(real, real).kthvalue(k + 1, dim=1).values  # the first is itself
    inside_NM = torch.cdist(real, made) < radius_N[:, None]
    return float(inside_NM.sum(0).double().mean() / k), float(inside_NM.any(1).double().mean())


def linear_blend(a_CHW: Tensor, b_CHW: Tensor, count: int) -> Tensor:
    """``count`` evenly weighted frames strictly between two, [count, C, H, W]."""
    if count < 0:
        raise ValueError(f"cannot blend {count} frames")
    weight_F = torch.arange(1, count + 1, device=a_CHW.device) / (count + 1)
    return torch.lerp(a_CHW[None], b_CHW[None], weight_F.to(a_CHW.dtype).view(-1, 1, 1, 1))


def _check_same(a_FCHW: Tensor, b_FCHW: Tensor) -> None:
    if a_FCHW.shape != b_FCHW.shape or a_FCHW.ndim != 4:
        raise ValueError(f"need two [F, C, H, W] of one shape, got {a_FCHW.shape}, {b_FCHW.shape}")
