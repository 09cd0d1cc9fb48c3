"""The times of `colm train --profile` are those of the device's kernels, whichever thread launched them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.gpu.support import DEVICE, on, ragged_batch, tiny_model
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from colm import LeanHead
from colm.step.stages import PICK, PREFIX, TRAIN, stage
from colm.trainers.profiling import time_by_stage

pytestmark = pytest.mark.gpu


def test_training_has_the_kernels_of_its_backward(measured: Callable[..., None]) -> None:
    model = tiny_model().to(DEVICE).train()
    head, batch = LeanHead(model), on(DEVICE, ragged_batch([13, 5, 24, 9]))
    cuda = DEVICE.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as profiler:
        with stage(PICK):
            batch["labels"].sum().item()
        with stage(TRAIN):
            head(model, batch).mean().backward()
        if cuda:
            torch.cuda.synchronize()
    events = [event for event in profiler.events() or () if event.device_type == DeviceType.CPU]
    times = time_by_stage(events, on_device=cuda)
    assert list(times) == [PREFIX + PICK, PREFIX + TRAIN]
    assert 0 < times[PREFIX + PICK] < times[PREFIX + TRAIN]
    measured(training_ms=times[PREFIX + TRAIN], threads=len({event.thread for event in events if event.kernels}))
    if cuda:
        kernels = sum(kernel.duration for event in events for kernel in event.kernels) / 1000
        assert sum(times.values()) == pytest.approx(kernels, rel=1e-3)
        shadows = [event for event in profiler.events() if event.device_type != DeviceType.CPU]
        work = sum(event.time_range.elapsed_us() for event in shadows if not event.is_user_annotation) / 1000
        assert kernels > 0.5 * work  # copies among them
