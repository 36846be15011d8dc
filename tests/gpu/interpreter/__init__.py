"""The Triton kernels against the reference: one file a kernel, run by ``python -m tests.gpu.interpreter KERNEL``.

A file holds ``CASES`` (name -> arguments) and ``check(device, **arguments)``, which raises AssertionError. On the CPU the
process must have ``TRITON_INTERPRET=1`` before triton is imported; on a GPU the same bodies run as they are.
"""
