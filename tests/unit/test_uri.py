"""Which connections lead to this machine's own kernel."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtksm.paths import host_key
from virtksm.uri import is_local

HERE = (
    "qemu:///system",
    "qemu+UNIX:///system",
    "qemu+unix:///system?socket=/run/libvirt/virtqemud-sock",
    "qemu://?socket=/run/libvirt/libvirt-sock",
)
ELSEWHERE = (
    "qemu://localhost/system",
    "qemu+unix://host/system",
    "qemu+ssh:///system",
    "qemu+unixx:///system",
)


@pytest.mark.parametrize("uri", HERE)
def test_without_a_host_it_is_this_machines_also_with_the_transport_or_the_socket_named(uri: str) -> None:
    assert is_local(uri)
    assert host_key(uri, local=is_local(uri)) == "local"


@pytest.mark.parametrize("uri", ELSEWHERE)
def test_a_host_or_a_transport_that_may_lead_to_one_is_not_this_machines(uri: str) -> None:
    assert not is_local(uri)


@given(
    st.sampled_from(["qemu", "qemu+unix", "qemu+ssh", "ch", "test"]),
    st.text(alphabet="/?#@:.-=+ab1", max_size=12),
)
def test_it_splits_uris_as_the_standard_library_does(scheme: str, rest: str) -> None:
    parts = urlsplit(f"{scheme}:{rest}")
    assert is_local(f"{scheme}:{rest}") is (parts.scheme in ("qemu", "qemu+unix", "ch", "test") and not parts.netloc)
