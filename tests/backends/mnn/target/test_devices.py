"""What MNN's kernels read, against the layouts that its source writes down, and what plans are told of it."""

from __future__ import annotations

import pytest

from backends.mnn.target.devices import ROWS, devices
from backends.mnn.target.releases import VERSIONS, target
from ir.base.diag import LadingError
from ir.quant.storage import Storage
from ir.target.target import Target


def bits(device, storage, rows=1024, columns=4096):
    """Bits read for each weight, as far as they are not a row's own."""
    return (device.streamed(rows, columns, storage) - rows * device.row.value) * 8 / (rows * columns)


def test_every_width_of_every_device_has_a_figure_with_evidence():
    for name in ("portable", *VERSIONS):
        for device in target(name).devices.values():
            assert set(device.codes) == {2, 3, 4, 5, 6, 7, 8, 16, 32}
            for figure in (*device.codes.values(), device.zeros, device.plain, device.row):
                assert figure.value >= 0 and "source/" in figure.evidence
                measured = "probe" in figure.evidence
                assert measured == (device.name == "x86") and measured != ("not measured" in figure.evidence)
    assert [row.name for row in ROWS] == ["x86", "arm82", "arm86", "metal", "opencl"]


@pytest.mark.parametrize(
    ("name", "width", "wanted"),
    [("x86", 2, 8), ("x86", 3, 8), ("x86", 4, 4), ("x86", 5, 8), ("arm82", 2, 2), ("arm82", 3, 4), ("arm86", 3, 3),
     ("arm86", 6, 8), ("metal", 3, 3), ("metal", 16, 16), ("opencl", 2, 2), ("x86", 16, 32)],
)  # fmt: skip
def test_codes_are_read_as_the_newest_kernels_take_them(name, width, wanted):
    device = target("3.6.1").device(name)
    assert bits(device, Storage(bits=width)) == pytest.approx(wanted, abs=0.02)


def test_scales_and_zeros_count_by_row_and_block():
    cpu, opencl = target("3.6.1").device("x86"), target("3.6.1").device("opencl")
    plain, zeros = Storage(bits=4, block=64, symmetric=True), Storage(bits=4, block=64)
    assert bits(cpu, zeros) == bits(cpu, plain) == 5
    assert (bits(opencl, zeros), bits(opencl, plain)) == (4.5, 4.25)


def test_a_target_of_several_releases_reads_what_the_slowest_of_them_does():
    old, new = devices(["3.5.0", "3.6.1"])["arm86"], devices(["3.6.0", "3.6.1"])["arm86"]
    assert [device.codes[2].value for device in (old, new)] == [1, 0.25]
    assert "3.5.0" in old.codes[2].evidence and "3.6.0" in new.codes[2].evidence


def test_a_device_that_nobody_knows_is_refused_with_those_known():
    with pytest.raises(LadingError, match="abacus") as error:
        target().device("abacus")
    assert error.value.code == "Q479" and "known: x86, arm82, arm86, metal, opencl" in str(error.value)
    assert target().device().name == "x86"
    assert bits(Target().device(), Storage(bits=3, block=64)) == 4
