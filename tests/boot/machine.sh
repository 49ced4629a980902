# Full machines for `script/test vm`: a Debian under software emulation, with a stock kernel. Sourced by that.
# shellcheck shell=bash
source tests/boot/root.sh

vm=$PWD/build/vm
# A kernel, the Debian that it is of, and that of the userland: Debian 11's Python and libvirt are too old.
declare -A suites=([5.10]=bullseye [6.1]=bookworm [6.12]=trixie [sid]=sid)
declare -A userlands=([5.10]=bookworm [6.1]=bookworm [6.12]=trixie [sid]=trixie)
# Other machines, with Linux 6.1: QEMU's options. Their claims are tests/boot/NAME.py. NumPy needs the suite's cx16.
declare -A machines=(
    [numa]="-m 2048,slots=1,maxmem=4G
        -object memory-backend-ram,id=n0,size=1G,merge=off -numa node,nodeid=0,cpus=0,memdev=n0
        -object memory-backend-ram,id=n1,size=1G,merge=off -numa node,nodeid=1,cpus=1,memdev=n1
        -object memory-backend-ram,id=plug,size=512M,merge=off
        -device virtio-mem-pci,memdev=plug,node=0,requested-size=256M"
    [swap]="-m 1536"
    [selinux]="-m 2048"
    [suite]="-m 7168 -cpu max,-erms,-smap,-la57"
)
# What the disk needs; ext4 is built into Debian's kernels for virtual machines, 9p is not there at all.
disk_modules=(virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk)

choose_machine() { # choose_machine NAME: sets kernel, claims, options, booted, limit_s, suite (its userland's), root, packaged, log
    kernel=$1 claims=machine options=(-m 2048) booted=() limit_s=3600
    if [[ -n ${machines[$1]:-} ]]; then
        kernel=6.1 claims=$1
        read -r -d '' -a options <<<"${machines[$1]}" || true
    fi
    [[ $1 != selinux ]] || booted=(security=selinux enforcing=1)
    [[ $1 != suite ]] || limit_s=$((5 * 3600))
    suite=${userlands[$kernel]:-}
    root=build/vm/$suite packaged=build/boot/package-$suite log=build/vm/build.log
    [[ -n $suite ]]
}

# Of the plain machine's root: Debian's reference policy, what that lacks for guests, and each file's label. Claims are
# made in the domain of root's shell.
fill_for_selinux() { # fill_for_selinux NEW
    local unit=$1/etc/systemd/system/machine@selinux.service.d
    rm -rf "$root" "$1" && cp -a "${machine:?}" "$1" &&
        inside "$1" apt-get -q update &&
        inside "$1" apt-get -q -y install --no-install-recommends policycoreutils selinux-policy-default selinux-utils &&
        inside "$1" apt-get -q clean &&
        cp tests/boot/selinux.cil "$1/root/guests.cil" && inside "$1" semodule --noreload --install /root/guests.cil &&
        mkdir "$unit" &&
        printf '[Service]\nSELinuxContext=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023\n' >"$unit/shell.conf" &&
        # Not `inside`, which lays its own file systems over the root's.
        unshare --fork --pid --mount-proc --root="$1" \
            setfiles -F -e /proc /etc/selinux/default/contexts/files/file_contexts /
}

private_apt() { # private_apt SUITE COMMAND...: apt with the index of one suite of this machine's mirror
    local state=$vm/apt/$1 mirror keys=/usr/share/keyrings/debian-archive-keyring.gpg
    if [[ ! -e $state/sources.list ]]; then
        mirror=$(apt-get indextargets --format "\$(SITE)" | grep -v security | head -n 1)
        mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
        : >"$state/status"
        printf 'deb [signed-by=%s] %s %s main\n' "$keys" "${mirror:?apt knows no mirror}" "$1" >"$state/sources.list"
        [[ $1 == sid ]] || printf 'deb [signed-by=%s] %s %s main\n' "$keys" "$mirror-security" "$1-security" >>"$state/sources.list"
        private_apt "$1" apt-get update || { rm "$state/sources.list" && return 1; }
    fi
    "$2" -q -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$state/lists" \
        -o Dir::State::status="$state/status" -o Dir::Cache="$state/cache" -o APT::Sandbox::User=root "${@:3}"
}

# build/vm/KERNEL/{vmlinuz,initrd,*.ko}: Debian's kernel for virtual machines; an initrd of busybox and the disk's modules;
# those that claims load.
ensure_kernel() { # ensure_kernel KERNEL
    local made=$vm/$1
    [[ ! -e $made/initrd ]] || return 0
    rm -rf "$made" && mkdir -p "$made"/{deb,root/{bin,dev,proc,sys,mnt,modules}} && fill_kernel "$made" "${suites[$1]}"
}

# From Linux 7 on, the package has its files in others that it depends on.
fill_kernel() { # fill_kernel MADE SUITE
    local made=$1 image packages one
    image=$(depends "$2" linux-image-cloud-amd64 image) && mapfile -t packages < <(depends "$2" "$image" 'binary\|modules') &&
        (cd "$made" && private_apt "$2" apt-get download "$image" "${packages[@]}") || return 1
    for one in "$made"/*.deb; do dpkg-deb --extract "$one" "$made/deb" || return 1; done
    cp "$(find "$made/deb" -name 'vmlinuz*')" "$made/vmlinuz" &&
        cp tests/boot/machine-init "$made/root/init" && cp /bin/busybox "$made/root/bin/" || return 1
    for one in "${disk_modules[@]}"; do copy_module "$made" "$one" "$made/root/modules" || return 1; done
    (cd "$made/root" && find . | cpio -o -H newc --quiet | gzip -1 >../initrd.new) &&
        copy_module "$made" virtio_mem "$made" && copy_module "$made" fuse "$made" &&
        rm -rf "$made"/{deb,root,*.deb} && mv "$made/initrd.new" "$made/initrd"
}

depends() { # depends SUITE PACKAGE KIND: the linux-KIND-... that it depends on
    private_apt "$1" apt-cache depends "$2" | sed -n "s/.*Depends: \(linux-\($3\)-[0-9].*\)/\1/p"
}

copy_module() { # copy_module MADE MODULE FOLDER: nothing where the kernel has it built in, or not at all
    local file
    file=$(find "$1/deb" -name "$2.ko*")
    case $file in
        *.xz) xz -dc "$file" >"$3/$2.ko" ;;
        *.ko) cp "$file" "$3/" ;;
    esac
}

# The root as a disk, made anew when the root was.
ensure_image() {
    [[ ! $root.img -nt $root.stamp ]] || return 0
    rm -f "$root.img.new" && truncate -s "$(($(du -sm "$root" | cut -f 1) + 2048))M" "$root.img.new" &&
        mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=0,root_owner=0:0 -d "$root" "$root.img.new" &&
        mv "$root.img.new" "$root.img"
}

# Traps. mem-merge=off, and merge=off of a node's memory: this host's KSM must not see the machine's. -cx16: QEMU 7.2
# emulates cmpxchg16b wrongly, which Linux 6.12 uses. -erms: that copies a byte at a time; -smap, -la57: less to emulate.
# panic=1: a kernel that panics ends the machine. SLOWER=10 (machine@.service): each limit is ten times a container's. A
# saved machine (migrate, -incoming) starts in 2 s instead of 30, but only with the same QEMU and options, and a fresh
# clone has none.
boot_machine() { # boot_machine NAME: print what its claims say; fails unless all hold
    local out=$vm/$1/out pid code=0 began=$SECONDS
    local said="console=ttyS0 loglevel=4 mitigations=off panic=1 memhp_default_state=online systemd.show_status=0 rw"
    rm -rf "$out" && mkdir -p "$out" && : >"$out/report" && truncate -s 32M "$out/journal"
    { git ls-files -z --cached --others --exclude-standard &&
        printf '%s\0' build/payload.elf build/packages/deb/virtksm_*.deb &&
        find "build/vm/$kernel" -name '*.ko' -print0; } |
        tar -c --null --files-from=- >"$out/checkout.tar"
    timeout --foreground "$limit_s" qemu-system-x86_64 -machine pc,mem-merge=off -accel tcg,thread=multi \
        -cpu max,-cx16,-erms,-smap,-la57 -smp 2 "${options[@]}" -nodefaults -display none -no-reboot \
        -kernel "$vm/$kernel/vmlinuz" -initrd "$vm/$kernel/initrd" -append "$said ${booted[*]} systemd.wants=machine@$claims.service" \
        -drive "file=$root.img,format=raw,if=virtio,snapshot=on" \
        -drive "file=$out/checkout.tar,format=raw,if=virtio,readonly=on" -drive "file=$out/journal,format=raw,if=virtio" \
        -serial "file:$out/console" -serial "file:$out/report" >"$out/qemu" 2>&1 &
    pid=$!
    trap 'kill "$pid" 2>/dev/null || true' EXIT
    tail --pid="$pid" -s 0.2 -n +1 -F "$out/report" 2>/dev/null
    wait "$pid" || code=$?
    trap - EXIT
    tr -d '\0' <"$out/journal" >"$out/journal.txt" && rm "$out"/{journal,checkout.tar}
    echo "$((SECONDS - began)) s in all, with the machine's start and end"
    grep -Eq '^([0-9]+) of \1 claims hold' "$out/report" || { echo "see $out (QEMU ended with $code)" >&2 && return 1; }
}
