"""Which connections lead to this machine's own kernel."""

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtksm.paths import host_key
from virtksm.uri import address, is_local, may_be_here, without_questions


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


@given(st.sampled_from(["qemu", "qemu+unix", "qemu+ssh", "ch", "test"]), st.text(alphabet="/?#@:.-=+ab1", max_size=12))
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


@pytest.mark.parametrize(
    ("uri", "named"),
    [
        ("qemu+ssh://root@web1:22/system", ("root", "web1", "22")),
        ("qemu+ssh://[fe80::1]:22/system", ("", "fe80::1", "22")),
        ("qemu+tls://[fe80::1]?x=//y", ("", "fe80::1", "")),
        ("qemu+ext:///system?command=/a/b@c:1", ("", "", "")),
        ("alias", ("", "", "")),
    ],
)
def test_a_uri_names_a_user_a_host_and_a_port(uri: str, named: tuple[str, str, str]) -> None:
    assert address(uri) == named


@pytest.mark.parametrize("host", ["", "localhost", "127.0.0.2:16509", "[::1]:16509", "a@WEB1", "web1.site"])
def test_host_local_is_for_uris_that_may_mean_this_machine(host: str) -> None:
    assert may_be_here(f"qemu+tls://{host}/system", "web1")
    assert may_be_here("qemu+tls://web1/system", "web1.site")


@pytest.mark.parametrize("host", ["web", "web11", "web2.site", "127.example.com", "10.0.0.7", "[fe80::1]"])
def test_a_uri_that_names_another_machine_never_means_this_one(host: str) -> None:
    assert not may_be_here(f"qemu+ssh://{host}/system", "web1")
