"""Triton kernels of the losses that compare feature maps channel by channel.

A row is a channel of an image. Rows may lie apart, their values may not.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from calkd_det.losses.standardisation import EPS

BLOCK = 4096
WARPS = 8
LOWEST = tl.constexpr(-3.0e38)


def pkd_distance(student: Tensor, teacher: Tensor, mask: Tensor | None, slopes: Tensor) -> Tensor:
    """Return the distance of :func:`~calkd_det.losses.pkd_loss.pkd_loss`, summed over channels.

    The moments of each row are taken about its own mean and then united, as Chan et al. do
    (`Updating formulae and a pairwise algorithm for computing sample variances
    <http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf>`_).

    Args:
        student: Float, shape (N, D, h, w).
        teacher: Float, of the same shape.
        mask: Which places count, bool, shape (N, 1, h, w); None where all do.
        slopes: Float32, of the same shape. It is filled in with the slopes by the student's maps.

    Returns:
        A float32 scalar.
    """
    images, channels = student.shape[:2]
    moments = student.new_empty(6, images, channels, dtype=torch.float32)
    _on_rows(_moments, student, teacher, mask, None, moments)
    factors = student.new_empty(7, channels, dtype=torch.float32)
    with torch.cuda.device_of(student):
        _unite[(channels,)](moments, factors, EPS, images, channels, num_warps=1)
    distances = student.new_empty(images, channels, dtype=torch.float32)
    _on_rows(_standardised_distance, student, teacher, mask, slopes, factors, distances)
    return distances.sum()


def softmax_divergence(
    student: Tensor, teacher: Tensor, mask: Tensor | None, slopes: Tensor, tau: float
) -> Tensor:
    """Return the divergence of softmax over places, summed over channels and images.

    Args:
        student: Float, shape (N, D, h, w).
        teacher: Float, of the same shape.
        mask: Which places count, bool, shape (N, 1, h, w); None where all do.
        slopes: Float32, of the same shape. It is filled in with the student's shares less the
            teacher's.
        tau: What both are divided by.

    Returns:
        A float32 scalar.
    """
    divergences = student.new_empty(student.shape[:2], dtype=torch.float32)
    _on_rows(_softmax_divergence, student, teacher, mask, slopes, divergences, tau)
    return divergences.sum()


def _on_rows(
    kernel: triton.JITFunction,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    slopes: Tensor | None,
    *arguments: Tensor | float,
) -> None:
    """Run a kernel with one program a row."""
    images, channels, height, width = student.shape
    places = height * width
    written = [] if slopes is None else [slopes, slopes.stride(0)]
    # Triton starts kernels on the current device, wherever the tensors are.
    with torch.cuda.device_of(student):
        kernel[(images * channels,)](
            *(student, student.stride(0), teacher, teacher.stride(0)),
            # Never read where there is none.
            student if mask is None else mask.contiguous().view(torch.uint8),
            *(*written, *arguments, channels, places),
            HAS_MASK=mask is not None,
            BLOCK=min(BLOCK, triton.next_power_of_2(places)),
            num_warps=WARPS,
        )


@triton.jit
def _which_count(mask, start, places, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr):
    at = start + tl.arange(0, BLOCK)
    keep = at < places
    if HAS_MASK:
        keep = keep & (tl.load(mask + at, mask=keep, other=0) != 0)
    return at, keep


@triton.jit
def _to_row(maps, stride, channels, places):
    """Return a pointer to the row of this program, of maps whose images lie ``stride`` apart."""
    row = tl.program_id(0)
    return maps + (row // channels).to(tl.int64) * stride + (row % channels).to(tl.int64) * places


@triton.jit
def _to_image(mask, channels, places):
    """Return a pointer to the mask of this program's image."""
    return mask + (tl.program_id(0) // channels).to(tl.int64) * places


@triton.jit
def _load(row, at, keep):
    return tl.load(row + at, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def _moments(
    student,
    student_stride,
    teacher,
    teacher_stride,
    mask,
    moments,
    channels,
    places,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    student = _to_row(student, student_stride, channels, places)
    teacher = _to_row(teacher, teacher_stride, channels, places)
    mask = _to_image(mask, channels, places)

    # Means are taken from the first value on, so that that of a constant channel is exact.
    own_first = tl.load(student).to(tl.float32)
    other_first = tl.load(teacher).to(tl.float32)
    counts = tl.zeros([BLOCK], tl.float32)
    own_sums = tl.zeros([BLOCK], tl.float32)
    other_sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, places, BLOCK):
        at, keep = _which_count(mask, start, places, HAS_MASK, BLOCK)
        own = _load(student, at, keep)
        other = _load(teacher, at, keep)
        counts += keep.to(tl.float32)
        own_sums += tl.where(keep, own - own_first, 0.0)
        other_sums += tl.where(keep, other - other_first, 0.0)
    count = tl.sum(counts, axis=0)
    own_mean = own_first + tl.sum(own_sums, axis=0) / tl.maximum(count, 1.0)
    other_mean = other_first + tl.sum(other_sums, axis=0) / tl.maximum(count, 1.0)

    own_squares = tl.zeros([BLOCK], tl.float32)
    other_squares = tl.zeros([BLOCK], tl.float32)
    products = tl.zeros([BLOCK], tl.float32)
    for start in range(0, places, BLOCK):
        at, keep = _which_count(mask, start, places, HAS_MASK, BLOCK)
        own = _load(student, at, keep)
        other = _load(teacher, at, keep)
        own = tl.where(keep, own - own_mean, 0.0)
        other = tl.where(keep, other - other_mean, 0.0)
        own_squares += own * own
        other_squares += other * other
        products += own * other

    rows = tl.num_programs(0)
    tl.store(moments + row, count)
    tl.store(moments + rows + row, own_mean)
    tl.store(moments + 2 * rows + row, other_mean)
    tl.store(moments + 3 * rows + row, tl.sum(own_squares, axis=0))
    tl.store(moments + 4 * rows + row, tl.sum(other_squares, axis=0))
    tl.store(moments + 5 * rows + row, tl.sum(products, axis=0))


@triton.jit
def _unite(moments, factors, eps, images, channels):
    """Unite the moments of a channel's images into what :func:`_standardised_distance` needs."""
    channel = tl.program_id(0)
    rows = images * channels
    own_first = tl.load(moments + rows + channel)
    other_first = tl.load(moments + 2 * rows + channel)
    count = 0.0
    own_mean = 0.0
    other_mean = 0.0
    for image in range(images):
        row = moments + image * channels + channel
        places = tl.load(row)
        count += places
        own_mean += places * (tl.load(row + rows) - own_first)
        other_mean += places * (tl.load(row + 2 * rows) - other_first)
    own_mean = own_first + own_mean / tl.maximum(count, 1.0)
    other_mean = other_first + other_mean / tl.maximum(count, 1.0)

    own_square = 0.0
    other_square = 0.0
    product = 0.0
    for image in range(images):
        row = moments + image * channels + channel
        places = tl.load(row)
        own_shift = tl.load(row + rows) - own_mean
        other_shift = tl.load(row + 2 * rows) - other_mean
        own_square += tl.load(row + 3 * rows) + places * own_shift * own_shift
        other_square += tl.load(row + 4 * rows) + places * other_shift * other_shift
        product += tl.load(row + 5 * rows) + places * own_shift * other_shift

    degrees = tl.maximum(count - 1.0, 1.0)
    deviation = tl.sqrt(own_square / degrees)
    other_deviation = tl.sqrt(other_square / degrees)
    scale = tl.where(deviation > 0, 1.0 / (deviation + eps), 0.0)
    other_scale = tl.where(other_deviation > 0, 1.0 / (other_deviation + eps), 0.0)
    # The sum of ŝ δ. In this form it is exactly zero where both are the same.
    along = scale * (scale * (own_square - product) + (scale - other_scale) * product)
    share = along / tl.where(deviation > 0, degrees * deviation, 1.0)
    tl.store(factors + channel, own_mean)
    tl.store(factors + channels + channel, other_mean)
    tl.store(factors + 2 * channels + channel, scale)
    tl.store(factors + 3 * channels + channel, other_scale)
    tl.store(factors + 4 * channels + channel, scale / tl.maximum(count, 1.0))
    tl.store(factors + 5 * channels + channel, share)
    tl.store(factors + 6 * channels + channel, 0.5 / tl.maximum(count, 1.0))


@triton.jit
def _standardised_distance(
    student,
    student_stride,
    teacher,
    teacher_stride,
    mask,
    slopes,
    slopes_stride,
    factors,
    distances,
    channels,
    places,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    student = _to_row(student, student_stride, channels, places)
    teacher = _to_row(teacher, teacher_stride, channels, places)
    slopes = _to_row(slopes, slopes_stride, channels, places)
    mask = _to_image(mask, channels, places)
    factors += row % channels
    own_mean = tl.load(factors)
    other_mean = tl.load(factors + channels)
    scale = tl.load(factors + 2 * channels)
    other_scale = tl.load(factors + 3 * channels)
    slope_factor = tl.load(factors + 4 * channels)
    share = tl.load(factors + 5 * channels)
    distance_factor = tl.load(factors + 6 * channels)

    distance = tl.zeros([BLOCK], tl.float32)
    for start in range(0, places, BLOCK):
        at, keep = _which_count(mask, start, places, HAS_MASK, BLOCK)
        own = _load(student, at, keep) - own_mean
        other = _load(teacher, at, keep) - other_mean
        # Not own * scale - other * other_scale, of which a GPU rounds one product only.
        difference = (own - other) * scale + other * (scale - other_scale)
        difference = tl.where(keep, difference, 0.0)
        distance += difference * difference
        slope = tl.where(keep, slope_factor * (difference - own * share), 0.0)
        tl.store(slopes + at, slope, mask=at < places)
    tl.store(distances + row, distance_factor * tl.sum(distance, axis=0))


@triton.jit
def _softmax_divergence(
    student,
    student_stride,
    teacher,
    teacher_stride,
    mask,
    slopes,
    slopes_stride,
    divergences,
    tau,
    channels,
    places,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0)
    student = _to_row(student, student_stride, channels, places)
    teacher = _to_row(teacher, teacher_stride, channels, places)
    slopes = _to_row(slopes, slopes_stride, channels, places)
    mask = _to_image(mask, channels, places)

    own_tops = tl.full([BLOCK], LOWEST, tl.float32)
    other_tops = tl.full([BLOCK], LOWEST, tl.float32)
    own_sums = tl.zeros([BLOCK], tl.float32)
    other_sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, places, BLOCK):
        at, keep = _which_count(mask, start, places, HAS_MASK, BLOCK)
        own = _load(student, at, keep) / tau
        other = _load(teacher, at, keep) / tau
        own_top = tl.maximum(own_tops, tl.where(keep, own, LOWEST))
        other_top = tl.maximum(other_tops, tl.where(keep, other, LOWEST))
        own_sums = own_sums * tl.exp(own_tops - own_top)
        other_sums = other_sums * tl.exp(other_tops - other_top)
        own_sums += tl.where(keep, tl.exp(own - own_top), 0.0)
        other_sums += tl.where(keep, tl.exp(other - other_top), 0.0)
        own_tops = own_top
        other_tops = other_top
    own_top = tl.max(own_tops, axis=0)
    other_top = tl.max(other_tops, axis=0)
    own_sum = tl.sum(own_sums * tl.exp(own_tops - own_top), axis=0)
    other_sum = tl.sum(other_sums * tl.exp(other_tops - other_top), axis=0)
    # The sums are at least one, but where nothing counts.
    own_constant = own_top + tl.log(tl.maximum(own_sum, 1.0))
    other_constant = other_top + tl.log(tl.maximum(other_sum, 1.0))

    divergence = tl.zeros([BLOCK], tl.float32)
    for start in range(0, places, BLOCK):
        at, keep = _which_count(mask, start, places, HAS_MASK, BLOCK)
        own = _load(student, at, keep) / tau
        other = _load(teacher, at, keep) / tau
        share = tl.exp(other - other_constant)
        log_ratio = (other - own) - (other_constant - own_constant)
        divergence += tl.where(keep, share * log_ratio, 0.0)
        slope = tl.where(keep, tl.exp(own - own_constant) - share, 0.0)
        tl.store(slopes + at, slope, mask=at < places)
    tl.store(divergences + row, tl.sum(divergence, axis=0))
