"""kernels/gemm_w4a16.py: within what its roundings can do, and the same bytes in every run."""

import torch

from tests.gpu.interpreter.guarded import inside, run, same_bytes


def _sizes(m, n, k, group=None, **options):
    name = f"M{m}-N{n}-K{k}-" + (f"g{group}" if group else "row")
    return name + "".join(f"-{key}" for key in options), {"m": m, "n": n, "k": k, "group": group, **options}


CASES = dict(
    [
        _sizes(1, 64, 64),
        _sizes(17, 63, 1),
        _sizes(63, 65, 129, zero=True),
        _sizes(17, 70, 96, 32, zero=True),
        _sizes(1, 31, 352, 32, splits=3, unsigned=True),
        _sizes(17, 65, 192, 64, splits=2),
        _sizes(128, 63, 384, 128, zero=True, splits=3),
        _sizes(3, 64, 1000, splits=5, zero=True),
        _sizes(1, 130, 128, 128, unsigned=True, zero=True),
    ]
)
ON_A_GPU = {"M17-N65-K192-g64-bf16": {"m": 17, "n": 65, "k": 192, "group": 64, "dtype": torch.bfloat16}}
WHY_ON_A_GPU = "Triton's interpreter multiplies bfloat16 wrongly"


def check(device, m, n, k, group, zero=False, unsigned=False, splits=None, dtype=torch.float16):
    """Random codes over their whole range against float64."""
    from pyquant.kernels import gemm_w4a16

    generator = torch.Generator().manual_seed(m * n * k)
    low, size = (0 if unsigned else -8), group or k
    shape = n, k // size
    codes = torch.randint(low, low + 16, (n, k), generator=generator)
    scale = torch.exp2(torch.empty(shape).uniform_(-8, -5, generator=generator))
    zero_point = torch.randint(low, low + 16, shape, generator=generator).int() if zero else None
    x = torch.randn(m, k, generator=generator).to(dtype)
    centred = codes - (0 if zero_point is None else zero_point.repeat_interleave(size, 1))
    weight = centred.double() * scale.double().repeat_interleave(size, 1)
    want, most = x.double() @ weight.T, x.double().abs() @ weight.abs().T
    repacked = gemm_w4a16.repack(codes, scale, zero_point, group, not unsigned, dtype)
    tensors = {name: inside(t, device) for name, t in vars(repacked).items() if name != "group"}
    repacked = gemm_w4a16.Weight(**tensors, group=repacked.group)
    arguments = inside(x, device), repacked
    got = run(gemm_w4a16.launch, *arguments, splits=splits)
    # Products are exact in float32 (11 bits times 5). On one term's way: an addition for each of K in any order, which
    # a tensor core may truncate rather than round, the scale, and an addition a group and a split; then the result is
    # rounded to its dtype, where it may be subnormal.
    groups = k // size
    depth = k + groups + (splits or 1) + 2
    end = torch.finfo(dtype)
    bound = (
        depth * 2.0**-23 * most + (want.abs() + depth * 2.0**-23 * most) * end.eps / 2 + end.tiny * end.eps
    )
    error = (got.cpu().double() - want).abs()
    assert bool((error <= bound).all()), f"off by {(error / bound).max():.3g} times the bound"
    same_bytes(run(gemm_w4a16.launch, *arguments, splits=splits), got)
