"""What ended a job, from the words of torch, the driver and the libraries."""

from __future__ import annotations

import pytest
import torch

from model.program import advise
from runner.work.causes import cause_of


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory",
        "CUDA out of memory. Tried to allocate 2.25 GiB",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY",
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_too_little_memory_is_oom_with_the_remedy_whoever_says_so(said: str) -> None:
    for error in (RuntimeError(said), torch.AcceleratorError(said)):
        assert cause_of(error) == ("oom", f"{type(error).__name__}: {said}")
    assert "train.micro_batch" in advise("oom", "cpu")


@pytest.mark.parametrize(
    "said",
    ["CUDA error: an illegal memory access was encountered", "CUDA error: unspecified launch failure"],
)
def test_what_else_cuda_says_is_the_devices(said: str) -> None:
    assert cause_of(RuntimeError(said)) == ("device", f"RuntimeError: {said}")
