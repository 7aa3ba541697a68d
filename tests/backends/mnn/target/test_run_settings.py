"""Runtime settings that may be chosen: how they are written, and what each release reads."""

from __future__ import annotations

import pytest

from backends.mnn.target.run_settings import TRIED, read_settings, spelled, tried
from ir.base.diag import LadingError


def test_settings_are_read_as_they_are_spelled():
    found = read_settings(" attention_mode=0, kvcache_mmap=true ,dynamic_option=2", ["3.6.1"])
    assert found == {"attention_mode": 0, "kvcache_mmap": True, "dynamic_option": 2}
    assert type(found["kvcache_mmap"]) is bool and type(found["attention_mode"]) is int
    assert read_settings(spelled(found), ["3.6.1"]) == found
    assert read_settings("", ["3.6.1"]) == {} and read_settings("attention_mode=8", ["3.4.0"]) == {"attention_mode": 8}


@pytest.mark.parametrize(
    ("text", "releases", "part"),
    [
        ("attention_mode=77", ["3.6.1"], "attention_mode cannot be '77' for MNN 3.6.1"),
        ("attention_mode=14", ["3.4.1", "3.6.1"], "attention_mode cannot be '14' for MNN 3.4.1"),
        ("atention_mode=0", ["3.6.1"], "did you mean 'attention_mode'"),
        ("use_mmap=true", ["3.6.1"], "use --mmap"),
        ("attention_mode", ["3.6.1"], "'attention_mode' is no setting"),
        ("kvcache_mmap=1", ["3.6.1"], "known: false, true"),
    ],
)
def test_settings_that_no_release_reads_are_refused(text, releases, part):
    with pytest.raises(LadingError) as caught:
        read_settings(text, releases)
    assert caught.value.code == "B795" and part in str(caught.value)


def test_what_is_tried_follows_from_releases_and_memory():
    new, old, several = (tried(one, "low") for one in (["3.6.1"], ["3.4.0"], ["3.4.0", "3.6.1"]))
    assert set(new) == set(TRIED) and {item.value for item in new} - {item.value for item in old} == {13, 14}
    assert {item.key for item in old} - {item.key for item in several} == {"use_mmap"}
    assert {item.key for item in tried(["3.6.1"], "normal")} == {"attention_mode", "kvcache_mmap"}


def test_every_row_says_how_it_is_known():
    assert all(item.evidence and item.meaning and item.value != item.usual for item in TRIED)
