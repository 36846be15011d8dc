"""Stub until the op page lands."""
from pyquant import reference
from pyquant.reference import spread


def fake_quantize(x, scale, zero_point, grid, backend="auto"):
    s, z = spread(scale, x.shape, grid.axis, grid.group_size), spread(zero_point, x.shape, grid.axis, grid.group_size)
    return reference.fake_quantize(x, s, z, grid.qmin, grid.qmax)


def quantize(x, scale, zero_point, grid, backend="auto"):
    s, z = spread(scale, x.shape, grid.axis, grid.group_size), spread(zero_point, x.shape, grid.axis, grid.group_size)
    return reference.quantize(x, s, z, grid.qmin, grid.qmax).to(grid.code_dtype)


def dequantize(codes, scale, zero_point, grid):
    s, z = spread(scale, codes.shape, grid.axis, grid.group_size), spread(zero_point, codes.shape, grid.axis, grid.group_size)
    return reference.dequantize(codes, s, z)
