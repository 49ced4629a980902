# Builds the roots that the containers of script/test-boot and script/test-install boot. Sourced by them, with `suite`,
# `root` and `log` set.
# shellcheck shell=bash
: "${suite:?}" "${root:?}" "${log:?}"
export PATH=$PATH:/usr/sbin:/sbin

die() {
    printf 'script/%s: %s\n' "${0##*/}" "$1" >&2
    exit 1
}

# What this machine needs to reach the network, the root needs, too.
copy_network() { # copy_network ROOT
    local path
    for path in /etc/apt/apt.conf.d/. /etc/pip.conf /usr/local/share/ca-certificates/.; do
        if [[ -e $path ]]; then
            mkdir -p "$1${path%/*}"
            cp -an "$path" "$1${path%/*}/"
        fi
    done
}

inside() { # inside ROOT COMMAND...: with this machine's network
    local folder=$1 name given=()
    shift
    for name in SSL_CERT_FILE PIP_CERT PIP_INDEX_URL http_proxy https_proxy no_proxy; do
        [[ -z ${!name:-} ]] || given+=("--setenv=$name=${!name}")
    done
    systemd-nspawn --quiet --register=no --keep-unit --pipe --resolv-conf=copy-host --directory="$folder" \
        --setenv=DEBIAN_FRONTEND=noninteractive "${given[@]}" "$@" </dev/null
}

install_tools() {
    local missing=()
    command -v debootstrap >/dev/null || missing+=(debootstrap)
    command -v systemd-nspawn >/dev/null || missing+=(systemd-container)
    ((${#missing[@]} == 0)) || DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "${missing[@]}"
}

bootstrap() { # bootstrap NEW PACKAGE...: a minimal Debian with systemd
    local new=$1 packages=systemd,systemd-sysv,dbus,ca-certificates
    shift
    rm -rf "$root" "$new" &&
        debootstrap --variant=minbase --include="$packages$(printf ',%s' "$@")" "$suite" "$new" &&
        copy_network "$new" &&
        inside "$new" update-ca-certificates &&
        inside "$new" apt-get -q update
}

# Builds $root anew unless it was made of the same files: `fill_root NEW` is the caller's, and fills a minimal Debian.
ensure_root() { # ensure_root FILE...
    local all
    all=$({ echo "$suite"; cat tests/boot/root.sh "$@"; } | sha256sum)
    if [[ -d $root && -z ${REBUILD:-} && $(cat "$root.stamp" 2>/dev/null) == "${all%% *}" ]]; then
        return
    fi
    echo "building $root, a Debian $suite (see $log)"
    mkdir -p "${root%/*}"
    rm -f "$root.stamp"
    { install_tools && fill_root "$root.new" && mv "$root.new" "$root"; } >"$log" 2>&1 ||
        { tail -n 30 "$log" >&2; die "could not build $root (everything is in $log)"; }
    echo "${all%% *}" >"$root.stamp"
}

((EUID == 0)) || die "needs root: it boots a container and switches KSM on"
[[ -d /sys/kernel/mm/ksm ]] || die "this kernel has no KSM: /sys/kernel/mm/ksm is missing (CONFIG_KSM=y)"
[[ -w /sys/kernel/mm/ksm/run ]] || die "/sys/kernel/mm/ksm is read-only here (a container?)"
