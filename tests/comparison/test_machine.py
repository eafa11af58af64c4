"""The load of others, from planted `/proc/stat`."""

import pytest
from comparison.machine import CpuTimes, LoadSampler, load_of, parse_stat

STAT = """\
cpu  100 20 30 400 50 6 7 80 9 1
cpu0 50 10 15 200 25 3 4 40 5 1
cpu1 50 10 15 200 25 3 3 40 4 0
intr 12345
ctxt 678
"""


def test_columns_are_read_by_their_meaning() -> None:
    times = parse_stat(STAT)
    assert times == CpuTimes(busy=100 + 20 + 30 + 6 + 7, idle=400 + 50, steal=80, cpus=2)
    assert times.total == 163 + 450 + 80  # guests are part of user and nice


def test_foreign_load_is_what_the_measured_process_did_not_use() -> None:
    # Two CPUs for 10 seconds of 100 ticks: 2,000 ticks, of which 1,500 are busy, 300 idle and 200 stolen.
    samples = [
        CpuTimes(busy=1000, idle=5000, steal=10, cpus=2),
        CpuTimes(busy=1900, idle=5100, steal=10, cpus=2),  # nothing stolen in the first half
        CpuTimes(busy=2500, idle=5300, steal=210, cpus=2),
    ]
    load = load_of(samples, own_cpu_seconds=11.0, ticks_per_second=100)
    assert load.foreign_cpus == pytest.approx((15.0 - 11.0) / 10)
    assert load.steal_share == pytest.approx(200 / 2000)
    assert load.worst_steal_share == pytest.approx(200 / 1000)


def test_load_is_not_negative() -> None:
    samples = [CpuTimes(0, 0, 0, 1), CpuTimes(100, 0, 0, 1)]
    assert load_of(samples, own_cpu_seconds=1.2, ticks_per_second=100).foreign_cpus == 0


def test_the_sampler_reads_before_and_after() -> None:
    with LoadSampler() as sampler:
        pass
    assert len(sampler.samples) == 2
    assert sampler.load(0.0) is not None
