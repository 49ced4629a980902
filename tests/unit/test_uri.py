"""Which connections lead to this machine's own kernel."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtksm.paths import host_key
from virtksm.uri import is_local, without_questions


@pytest.mark.parametrize(
    ("uri", "is_here"),
    [
        ("qemu+UNIX:///system", True),
        ("qemu+unix:///system?socket=/run/libvirt/virtqemud-sock", True),
        ("qemu://?socket=/run/libvirt/libvirt-sock", True),
        ("qemu://localhost/system", False),
        ("qemu+ssh:///system", False),
        ("qemu+unixx:///system", False),
    ],
)
def test_a_host_or_a_transport_that_may_lead_to_one_is_not_this_machines(uri: str, *, is_here: bool) -> None:
    assert is_local(uri) == is_here
    assert (host_key(uri, local=is_local(uri)) == "local") == is_here


@given(
    st.sampled_from(["qemu", "qemu+unix", "qemu+ssh", "ch", "test"]),
    st.text(alphabet="/?#@:.-=+ab1", max_size=12),
)
def test_it_splits_uris_as_the_standard_library_does(scheme: str, rest: str) -> None:
    parts = urlsplit(f"{scheme}:{rest}")
    assert is_local(f"{scheme}:{rest}") is (parts.scheme in ("qemu", "qemu+unix", "ch", "test") and not parts.netloc)


@pytest.mark.parametrize(
    ("uri", "added"),
    [
        ("qemu+ssh://a/system", "?no_tty=1"),
        ("qemu+ssh://a/system?keyfile=/x", "&no_tty=1"),
        ("qemu+ssh://a/system?no_tty=0", ""),
        ("qemu:///system", ""),
        ("qemu+tls://a/system", ""),
        ("ssh", ""),
    ],
)
def test_ssh_is_told_that_nobody_answers(uri: str, added: str) -> None:
    assert without_questions(uri) == uri + added
