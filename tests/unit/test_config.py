"""Layers, faults and written forms of the configuration, on real files under a temporary folder."""

import os
import re
from pathlib import Path

import pytest

from virtksm.config.load import MAX_BYTES, Loaded, check_value, find_files, load
from virtksm.config.schema import Config, KsmtunedParams, all_keys, value_of
from virtksm.config.toml_text import effective
from virtksm.errors import ConfigError, ConfigFault
from virtksm.values import replace

PROJECT = Path(__file__).parents[2]


class Layers:
    """A vendor's and an administrator's folder, both empty at first."""

    def __init__(self, root: Path) -> None:
        self.vendor = root / "vendor"
        self.admin = root / "admin"

    def write(self, name: str, content: str | bytes) -> str:
        path = self.vendor.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def load(self) -> Loaded:
        return load(None, folders=(str(self.vendor), str(self.admin)))

    def faults(self) -> tuple[ConfigFault, ...]:
        with pytest.raises(ConfigError) as raised:
            self.load()
        return raised.value.faults


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(tmp_path)


def faults_of(path: str | Path) -> tuple[ConfigFault, ...]:
    with pytest.raises(ConfigError) as raised:
        load(str(path))
    return raised.value.faults


def fault_of(folder: Path, content: str | bytes) -> ConfigFault:
    path = folder / "one.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (fault,) = faults_of(path)
    assert fault.file == str(path)
    assert fault.remedy
    return fault


# Layers


def test_the_administrators_file_hides_the_vendors_and_that_the_defaults(layers: Layers) -> None:
    loaded = layers.load()
    assert (loaded.config, set(loaded.origins.values()), loaded.files) == (Config(), {"default"}, ())
    vendor = layers.write("vendor/virtksm.toml", "coalesce_ms = 1\nkeepalive_s = 9\n")
    loaded = layers.load()
    assert loaded.config == replace(Config(), coalesce_ms=1, keepalive_s=9)
    assert loaded.origins["coalesce_ms"] == vendor
    admin = layers.write("admin/virtksm.toml", "coalesce_ms = 2\n")
    loaded = layers.load()
    assert (loaded.config, loaded.files) == (replace(Config(), coalesce_ms=2), (admin,))


def test_drop_ins_are_sorted_by_name_across_both_folders_and_the_later_wins(layers: Layers) -> None:
    ten = layers.write("admin/conf.d/10-a.toml", "coalesce_ms = 10\nkeepalive_s = 10\nlog_level = 'error'\n")
    twenty = layers.write("vendor/conf.d/20-b.toml", "coalesce_ms = 20\nkeepalive_s = 20\n")
    thirty = layers.write("admin/conf.d/30-c.toml", "coalesce_ms = 30\n[ksmtuned]\nsleep_msec = 30\n")
    main = layers.write("admin/virtksm.toml", "coalesce_ms = 1\nlog_format = 'json'\n")
    loaded = layers.load()
    assert loaded.files == (main, ten, twenty, thirty)
    most = Config(coalesce_ms=30, keepalive_s=20, log_level="error", log_format="json")
    assert loaded.config == replace(most, ksmtuned=KsmtunedParams(sleep_msec=30))
    named = {"log_format": main, "log_level": ten, "keepalive_s": twenty, "coalesce_ms": thirty}
    named["ksmtuned.sleep_msec"] = thirty
    assert loaded.origins == dict.fromkeys(all_keys(), "default") | named


def test_drop_ins_are_sorted_by_bytes_as_strcmp_does(layers: Layers) -> None:
    names = ["10.toml", "9.toml", "B.toml", "a.toml", "é.toml", os.fsdecode(b"\xf9.toml"), "\U0001f600.toml"]
    for value, name in enumerate(names):
        layers.write(f"{'vendor' if value % 2 else 'admin'}/conf.d/{name}", f"coalesce_ms = {value}\n")
    loaded = layers.load()
    assert [os.fsencode(Path(file).name) for file in loaded.files] == sorted(map(os.fsencode, names))


@pytest.mark.parametrize("name", ["virtksm.toml", "conf.d/50-x.toml"])
def test_a_link_to_dev_null_or_an_empty_file_hides_the_vendors(layers: Layers, name: str) -> None:
    layers.write(f"vendor/{name}", "coalesce_ms = 1\n")
    assert layers.load().config.coalesce_ms == 1
    empty = Path(layers.write(f"admin/{name}", ""))
    assert layers.load().config == Config()
    empty.unlink()
    empty.symlink_to("/dev/null")
    assert layers.load().config == Config()


def test_other_names_in_the_folders_are_no_configuration(layers: Layers) -> None:
    for name in ("a.toml~", ".#b.toml", ".toml", "c.toml.dpkg-new", "README", "d.conf"):
        layers.write(f"admin/conf.d/{name}", "nonsense\n")
    assert layers.load().files == ()


def test_the_files_are_listed_in_their_order_with_what_becomes_of_each(layers: Layers) -> None:
    vendor, admin = str(layers.vendor), str(layers.admin)

    def found() -> dict[str, str]:
        return find_files(None, (vendor, admin))[0]

    mains = {f"{vendor}/virtksm.toml": "missing", f"{admin}/virtksm.toml": "missing"}
    assert found() == mains | {f"{vendor}/conf.d/*.toml": "missing", f"{admin}/conf.d/*.toml": "missing"}
    for name in ("vendor/virtksm.toml", "vendor/conf.d/1.toml", "admin/conf.d/1.toml", "vendor/conf.d/2.toml"):
        layers.write(name, "")
    assert list(found().items()) == [
        (f"{vendor}/virtksm.toml", "read"),
        (f"{admin}/virtksm.toml", "missing"),
        (f"{vendor}/conf.d/1.toml", f"{admin}/conf.d/1.toml"),
        (f"{admin}/conf.d/1.toml", "read"),
        (f"{vendor}/conf.d/2.toml", "read"),
    ]
    layers.write("admin/virtksm.toml", "")
    assert found()[f"{vendor}/virtksm.toml"] == f"{admin}/virtksm.toml"
    assert find_files(f"{vendor}/nowhere", (vendor, admin)) == ({f"{vendor}/nowhere": "missing"}, [])


def test_what_cannot_be_read_is_reported_and_not_taken_for_absence(layers: Layers) -> None:
    layers.admin.mkdir()
    (layers.admin / "virtksm.toml").symlink_to("nowhere")
    layers.write("vendor/virtksm.toml", "coalesce_ms = 1\n")
    folder = layers.write("admin/conf.d", "coalesce_ms = 1\n")
    assert {fault.file: fault.problem for fault in layers.faults()} == {
        folder: "cannot be read: Not a directory",
        str(layers.admin / "virtksm.toml"): "cannot be read: No such file or directory",
    }


def test_a_named_file_is_read_alone(layers: Layers) -> None:
    layers.write("admin/virtksm.toml", "coalesce_ms = 2\n")
    path = layers.write("alone.toml", "keepalive_s = 9\n")
    loaded = load(path, folders=(str(layers.vendor), str(layers.admin)))
    assert loaded.config == replace(Config(), keepalive_s=9)
    assert loaded.files == (path,)


# Findings


def test_every_fault_of_every_file_is_reported_at_once(layers: Layers) -> None:
    main = layers.write("admin/virtksm.toml", "policy = 'best'\ncoalesce = 1\n[ksmtuned]\nnpages_min = 0\n")
    broken = layers.write("admin/conf.d/10.toml", "keepalive_s = = 1\n")
    later = layers.write("vendor/conf.d/20.toml", "coalesce_ms = 'x'\n[ksmtuned]\nnpages_mx = true\n")
    binary = layers.write("vendor/conf.d/30.toml", b"\xff\xfe")
    found = layers.faults()
    assert [(one.file, one.key) for one in found] == [
        (main, "policy"),
        (main, "coalesce"),
        (main, "ksmtuned.npages_min"),
        (broken, ""),
        (later, "coalesce_ms"),
        (later, "ksmtuned.npages_mx"),
        (binary, ""),
    ]
    assert all(one.problem and one.remedy for one in found)
    with pytest.raises(ConfigError) as raised:
        layers.load()
    assert str(raised.value).splitlines() == [str(one) for one in found]


@pytest.mark.parametrize(
    ("content", "key", "remedy"),
    [
        ("coalesce = 1", "coalesce", "did you mean coalesce_ms?"),
        ("ON_EXIT = 'idle'", "ON_EXIT", "did you mean on_exit?"),
        ("npages_max = 1", "npages_max", "did you mean ksmtuned.npages_max?"),
        ("[ksmtuned]\nhost = 'auto'", "ksmtuned.host", "did you mean host, which belongs above the first [table]?"),
        ("[ksmtune]\nnpages_max = 1", "ksmtune", "did you mean [ksmtuned]?"),
        ("[virtksm]\n", "virtksm", "remove it; `virtksm config show` lists all keys"),
        ("'ksmtuned.npages_max' = 1", "'ksmtuned.npages_max'", "did you mean ksmtuned.npages_max?"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path, content: str, key: str, remedy: str) -> None:
    fault = fault_of(tmp_path, content)
    assert (fault.key, fault.problem, fault.remedy) == (key, "is not a known key", remedy)


INTEGER, TEXT, TEXTS = "use 0..60000 ms", 'use "restore" | "idle" | "leave"', 'use ["TEXT", ...]'


@pytest.mark.parametrize(
    ("content", "problem", "remedy"),
    [
        ("coalesce_ms = true", "is true, not an integer", INTEGER),
        ("coalesce_ms = 1.0", "is 1.0, not an integer", INTEGER),
        ("coalesce_ms = '250'", "is '250', not an integer", INTEGER),
        ("coalesce_ms = [250]", "is an array, not an integer", INTEGER),
        ("coalesce_ms = {ms = 250}", "is a table, not an integer", INTEGER),
        ("coalesce_ms = 1979-05-27", "is a date or time, not an integer", INTEGER),
        ("on_exit = 1", "is 1, not a string", TEXT),
        ("ksmtuned = 3", "is 3, not a table", "write it as [ksmtuned]"),
        ("private_guests = 'tenant-*'", "is 'tenant-*', not an array", TEXTS),
        ("private_guests = ['a', 1]", "holds 1", TEXTS),
        ("private_guests = ['']", "holds an empty text", TEXTS),
        ("adaptive.exclude_rewriters = 1", "is 1, not true or false", "use true | false"),
        ("adaptive.exclude_rewriters = 'true'", "is 'true', not true or false", "use true | false"),
    ],
)
def test_a_value_of_another_type_is_refused(tmp_path: Path, content: str, problem: str, remedy: str) -> None:
    fault = fault_of(tmp_path, content)
    assert (fault.key, fault.problem, fault.remedy) == (content.split(maxsplit=1)[0], problem, remedy)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('listen = "localhost:9876"', "is 'localhost:9876', no address with a port"),
        ('textfile = "virtksm.prom"', "is 'virtksm.prom'"),
        ('textfile = "/var/lib/virtksm/virtksm.txt"', "is '/var/lib/virtksm/virtksm.txt'"),
        (r'textfile = "/a\nb.prom"', r"is '/a\nb.prom'"),
    ],
)
def test_metrics_need_a_place_that_can_be(tmp_path: Path, line: str, problem: str) -> None:
    fault = fault_of(tmp_path, f"[metrics]\n{line}\n")
    assert (fault.key, fault.problem) == (f"metrics.{line.split(maxsplit=1)[0]}", problem)


@pytest.mark.parametrize("name", ["coalesce_ms", "ksmtuned.npages_decay"])
def test_both_ends_of_a_range_are_allowed_and_nothing_beyond(tmp_path: Path, name: str) -> None:
    least, most, unit = all_keys()[name].bounds
    for allowed in (least, most):
        (tmp_path / "good.toml").write_text(f"{name} = {allowed}\n")
        assert value_of(load(str(tmp_path / "good.toml")).config, name) == allowed
    for beyond in (least - 1, most + 1, 10**500):
        fault = fault_of(tmp_path, f"{name} = {beyond}")
        assert (fault.key, fault.remedy) == (name, f"use {least}..{most} {unit}")
        assert re.fullmatch("is .{1,40}, out of range", fault.problem)


def test_every_key_has_a_default_of_its_own_range_or_choices() -> None:
    for name, one in all_keys().items():
        assert check_value(one, one.default) == ("", ""), name
        assert one.meaning, name
        assert one.reason, name
        assert bool(one.bounds[2]) == (type(one.default) is int), name


def test_a_status_group_must_be_one_of_this_machines(tmp_path: Path) -> None:
    for group in ("", "root", "daemon"):
        (tmp_path / "good.toml").write_text(f"status_group = '{group}'\n")
        assert load(str(tmp_path / "good.toml")).config.status_group == group
    for other in ("no-such-group", " root", "a\\u0000b", "x" * 10_000):
        fault = fault_of(tmp_path, f'status_group = "{other}"')
        assert fault.key == "status_group"
        assert fault.problem.endswith("and this machine has no such group")
        assert len(fault.problem) < 120
        assert fault.remedy == "create it (groupadd), or name one that exists"


def test_values_that_do_not_fit_together_name_both_files(layers: Layers) -> None:
    least = layers.write("vendor/virtksm.toml", "[ksmtuned]\nnpages_min = 500\n")
    layers.load()
    most = layers.write("admin/conf.d/90.toml", "ksmtuned.npages_max = 400\n")
    (fault,) = layers.faults()
    assert fault.file == f"{least}, {most}"
    assert fault.key == "ksmtuned.npages_min"
    assert fault.problem == "500 is more than ksmtuned.npages_max, 400"
    assert fault.remedy == "lower npages_min or raise npages_max"
    assert fault_of(layers.vendor, "[ksmtuned]\nnpages_min = 2000\n").problem.startswith("2000 is more than")
    assert fault_of(layers.vendor, "[ksmtuned]\nnpages_max = 63\n").problem.startswith("64 is more than")


def test_a_policy_that_changes_nothing_unmerges_no_guest(layers: Layers) -> None:
    enforced = layers.write("admin/virtksm.toml", "private_enforce = 'unmerge'\n")
    layers.load()
    observing = layers.write("admin/conf.d/90.toml", "policy = 'observe'\n")
    (fault,) = layers.faults()
    assert (fault.file, fault.key) == (f"{enforced}, {observing}", "private_enforce")
    assert fault.problem == 'is "unmerge", and policy is "observe", which changes nothing'
    assert fault.remedy.startswith('set private_enforce = "report", or another policy')
    layers.write("admin/virtksm.toml", "private_enforce = 'report'\n")
    layers.load()


@pytest.mark.parametrize(
    "other", ["[ksmtuned]\nnpages_max = 0\n", "[ksmtuned]\nnpages_max = 'x'\n", "ksmtuned = 1\n", "=\n"]
)
def test_what_only_seems_inconsistent_beside_a_fault_is_not_reported(layers: Layers, other: str) -> None:
    layers.write("admin/virtksm.toml", "[ksmtuned]\nnpages_min = 2000\n")
    faulty = layers.write("admin/conf.d/90.toml", other)
    assert [one.file for one in layers.faults()] == [faulty]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"coalesce_ms = 1\nkeepalive_s = = 1\n", r"is not TOML: .*\(at line 2, column 15\)"),
        (b"coalesce_ms = 1\n\xff", r"is not UTF-8 \(byte 16\)"),
        (b"coalesce_ms = " + b"9" * 5000, "is not TOML: .*"),
        (b"x = " + b"[" * 5000, "is nested too deeply"),
        (b"#" * (MAX_BYTES + 1), f"is larger than {MAX_BYTES} bytes"),
        (b"a." * 300 + b"a = 1", "has a line with more than 200 dots"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_fault(tmp_path: Path, content: bytes, problem: str) -> None:
    fault = fault_of(tmp_path, content)
    assert re.fullmatch(problem, fault.problem)
    assert fault.key == ""


def test_the_largest_file_of_unknown_keys_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "many.toml"
    path.write_text("".join(f"k{number}=1\n" for number in range(6000)))
    assert len(faults_of(path)) == 6000


# Written forms


def test_the_effective_configuration_loads_back_equal_with_its_origins(layers: Layers, tmp_path: Path) -> None:
    drop_in = layers.write("admin/conf.d/1.toml", "on_exit = 'idle'\n[ksmtuned]\nnpages_decay = -7\n")
    loaded = layers.load()
    text = effective(loaded)
    (tmp_path / "again.toml").write_text(text)
    assert load(str(tmp_path / "again.toml")).config == loaded.config
    shown = dict(re.findall(r"^(\w+) = .*  # (.*)$", text, flags=re.MULTILINE))
    assert shown == {name.rpartition(".")[2]: origin for name, origin in loaded.origins.items()}
    assert [name for name, origin in shown.items() if origin == drop_in] == ["on_exit", "npages_decay"]


def test_the_default_file_changes_nothing_as_it_is_and_with_every_key_uncommented(tmp_path: Path) -> None:
    text = (PROJECT / "conf/virtksm.toml").read_text()
    uncommented = re.sub(r"^#(?=\w)", "", text, flags=re.MULTILINE)
    (tmp_path / "all.toml").write_text(uncommented)
    commented = load(str(PROJECT / "conf/virtksm.toml"))
    assert (commented.config, set(commented.origins.values())) == (Config(), {"default"})
    loaded = load(str(tmp_path / "all.toml"))
    assert (loaded.config, set(loaded.origins.values())) == (Config(), {str(tmp_path / "all.toml")})
