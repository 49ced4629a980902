# Builds the roots that the containers of `script/test boot` and `script/test install` and the machines of `script/test vm`
# boot, and the modular daemons of `script/test modular`. Sourced by that, with `suite`, `root` and `log` set.
# shellcheck shell=bash
: "${suite:?}" "${root:?}" "${log:?}"

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
    command -v ssh >/dev/null || missing+=(openssh-client)
    ((${#missing[@]} == 0)) || DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends "${missing[@]}"
}

# Ansible asks for python3-apt; its sshd is started by the test alone, as a container has this machine's network.
bootstrap() { # bootstrap NEW PACKAGE...: a minimal Debian with systemd
    local new=$1 packages=systemd,systemd-sysv,dbus,ca-certificates,openssh-server,python3-apt
    shift
    rm -rf "$root" "$new" &&
        debootstrap --variant=minbase --include="$packages$(printf ',%s' "$@")" "$suite" "$new" &&
        systemctl --root="$new" mask ssh.service ssh.socket &&
        copy_network "$new" &&
        inside "$new" update-ca-certificates &&
        inside "$new" apt-get -q update
}

fill_for_image() { # fill_for_image NEW: what an image of Debian has
    rm -rf "$root" "$1" &&
        debootstrap --variant=minbase --include=ca-certificates "$suite" "$1" &&
        copy_network "$1" &&
        inside "$1" update-ca-certificates
}

# Steps are joined by &&: where a function's failure is asked for, bash ignores `set -e` in it.
fill_for_units() { # fill_for_units NEW: what docs/install.md has a host with a checkout do
    bootstrap "$1" git &&
        inside "$1" apt-get -q -y install --no-install-recommends polkitd &&
        copy_checkout "$1/opt/virtksm" &&
        { inside "$1" /opt/virtksm/script/setup || { cat "$1/opt/virtksm/build/setup.log" && return 1; }; } &&
        inside "$1" apt-get -q clean
}

copy_checkout() { # copy_checkout FOLDER
    mkdir -p "$1"
    git ls-files -z --cached --others --exclude-standard | tar -c --null --files-from=- --mode=u+rwX,go+rX,go-w | tar -x -C "$1"
}

# What apt will be asked for when the container has booted lies ready in its cache.
fill_for_package() { # fill_for_package NEW
    bootstrap "$1" python3 &&
        rm -f "$1/etc/apt/apt.conf.d/docker-clean" && # of a machine that is an image itself: it empties the cache
        inside "$1" apt-get -q -y install libvirt-daemon-system libvirt-clients qemu-system-x86 fish zsh \
            --no-install-recommends &&
        inside "$1" apt-get -q -y install --download-only --no-install-recommends ksmtuned polkitd python3-libvirt \
            python3-prometheus-client python3-psutil python3-structlog python3-tenacity tuned
}

# Of the root of `script/test install`, whose cache has most of it.
fill_for_machine() { # fill_for_machine NEW
    local unit
    rm -rf "$root" "$1" && cp -a "${packaged:?}" "$1" &&
        inside "$1" apt-get -q update &&
        inside "$1" apt-get -q -y install --no-install-recommends apparmor kmod polkitd procps python3-libvirt python3-psutil \
            python3-structlog python3-tenacity systemd-oomd udev &&
        systemctl --root="$1" disable systemd-oomd.service &&
        inside "$1" apt-get -q clean &&
        find "$1/etc/apparmor.d" -maxdepth 1 -type f ! -name '*libvirt*' -delete && # compiled at each boot
        echo Optimize=no-expr-simplify >>"$1/etc/apparmor/parser.conf" && # halves compiling
        find "$1/lib/systemd/system-generators" -type f ! -name systemd-debug-generator -delete && # run at each daemon-reload
        echo host >"$1/etc/hostname" && echo "127.0.0.1 localhost host" >"$1/etc/hosts" &&
        tr -d - </proc/sys/kernel/random/uuid >"$1/etc/machine-id" && : >"$1/etc/fstab" &&
        cp tests/boot/machine@.service "$1/etc/systemd/system/" &&
        for unit in apt-daily{,-upgrade}.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
            getty@tty1.service libvirt-guests.service systemd-firstboot.service; do
            ln -sf /dev/null "$1/etc/systemd/system/$unit" || return 1
        done
}

# Of the root of the other machines: a clone in root's home, set up.
fill_for_suite() { # fill_for_suite NEW
    rm -rf "$root" "$1" && cp -a "${machine:?}" "$1" &&
        git clone --quiet . "$1/root/virtksm" &&
        { inside "$1" /root/virtksm/script/setup || { cat "$1/root/virtksm/build/setup.log" && return 1; }; } &&
        inside "$1" apt-get -q clean
}

fill_with_modular_daemons() { # fill_with_modular_daemons NEW: what they are in /, and nothing else
    local build=$1.build
    bootstrap "$build" python3 &&
        cp tests/boot/modular.sh "$build/root/" &&
        inside "$build" bash /root/modular.sh /root/modular &&
        mv "$build/root/modular" "$1" &&
        rm -rf "$build"
}

# The same twice, the second as an upgrade: VERSION-1 and VERSION-2.
build_packages() {
    local revision
    rm -rf build/boot/packages
    mkdir -p build/boot/packages
    for revision in 1 2; do
        script/package deb "$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' virtksm/__init__.py)-$revision" &&
            cp build/packages/deb/virtksm_*.deb build/boot/packages/
    done
}

# Builds $root anew unless it was made of the same files, or REBUILD=1 is set.
ensure_root() { # ensure_root FILL FILE...: FILL NEW makes it of a minimal Debian
    local fill=$1 all
    shift
    all=$({ echo "$suite"; cat tests/boot/root.sh "$@"; } | sha256sum)
    if [[ -d $root && -z ${REBUILD:-} && $(cat "$root.stamp" 2>/dev/null) == "${all%% *}" ]]; then
        return
    fi
    echo "building $root of Debian $suite (see $log)"
    mkdir -p "${root%/*}"
    rm -f "$root.stamp"
    { install_tools && "$fill" "$root.new" && mv "$root.new" "$root"; } >"$log" 2>&1 ||
        { tail -n 30 "$log" >&2; die "could not build $root (everything is in $log)"; }
    echo "${all%% *}" >"$root.stamp"
}
