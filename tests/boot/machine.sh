# Full machines for `script/test vm`: a Debian under software emulation, with a stock kernel. Sourced by that.
# shellcheck shell=bash
source tests/boot/root.sh

vm=$PWD/build/vm
declare -A suites=([6.1]=bookworm [6.12]=trixie) # a kernel, and the Debian that it is of
# What the disk needs; ext4 is built into Debian's kernels for virtual machines, 9p is not there at all.
disk_modules=(virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk)

choose_machine() { # choose_machine KERNEL: sets the userland's suite, root, packaged and log
    suite=${suites[$1]} && root=build/vm/$suite packaged=build/boot/package-$suite log=build/vm/build.log
}

private_apt() { # private_apt SUITE COMMAND...: apt with the index of one suite of this machine's mirror
    local state=$vm/apt/$1 mirror keys=/usr/share/keyrings/debian-archive-keyring.gpg
    if [[ ! -e $state/sources.list ]]; then
        mirror=$(apt-get indextargets --format "\$(SITE)" | grep -v security | head -n 1)
        mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
        : >"$state/status"
        printf 'deb [signed-by=%s] %s %s main\n' "$keys" "${mirror:?apt knows no mirror}" "$1" \
            "$keys" "$mirror-security" "$1-security" >"$state/sources.list"
        private_apt "$1" apt-get update || { rm "$state/sources.list" && return 1; }
    fi
    "$2" -q -o Dir::Etc::sourcelist="$state/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::State::lists="$state/lists" \
        -o Dir::State::status="$state/status" -o Dir::Cache="$state/cache" -o APT::Sandbox::User=root "${@:3}"
}

# build/vm/KERNEL/{vmlinuz,initrd}: Debian's kernel for virtual machines; an initrd of busybox and the disk's modules.
ensure_kernel() { # ensure_kernel KERNEL
    local made=$vm/$1
    [[ ! -e $made/initrd ]] || return 0
    rm -rf "$made" && mkdir -p "$made"/{deb,root/{bin,dev,proc,sys,mnt,modules}} && fill_kernel "$made" "${suites[$1]}"
}

fill_kernel() { # fill_kernel MADE SUITE
    local made=$1 package module file
    package=$(private_apt "$2" apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p') &&
        (cd "$made" && private_apt "$2" apt-get download "$package" && dpkg-deb --extract ./*.deb deb) &&
        cp "$made"/deb/boot/vmlinuz-* "$made/vmlinuz" &&
        cp tests/boot/machine-init "$made/root/init" && cp /bin/busybox "$made/root/bin/" || return 1
    for module in "${disk_modules[@]}"; do
        file=$(find "$made/deb" -name "$module.ko*")
        case $file in
            *.xz) xz -dc "$file" >"$made/root/modules/$module.ko" ;;
            *.ko) cp "$file" "$made/root/modules/$module.ko" ;;
        esac || return 1
    done
    (cd "$made/root" && find . | cpio -o -H newc --quiet | gzip -1 >../initrd.new) && rm -rf "$made"/{deb,root,*.deb} &&
        mv "$made/initrd.new" "$made/initrd"
}

# The root as a disk, made anew when the root was.
ensure_image() {
    [[ ! $root.img -nt $root.stamp ]] || return 0
    rm -f "$root.img.new" && truncate -s 3G "$root.img.new" &&
        mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=0,root_owner=0:0 -d "$root" "$root.img.new" &&
        mv "$root.img.new" "$root.img"
}

# Traps. mem-merge=off: this host's KSM must not see the machine's memory. -cx16: QEMU 7.2 emulates cmpxchg16b wrongly, which
# Linux 6.12 uses. -erms: that copies a byte at a time; -smap, -la57: less to emulate. panic=1: a kernel that panics ends the
# machine. SLOWER=10 (machine.service): each limit is ten times a container's. A saved machine (migrate, -incoming) starts
# in 2 s instead of 30, but only with the same QEMU and options, and a fresh clone has none.
boot_machine() { # boot_machine KERNEL: print what its claims say; fails unless all hold
    local out=$vm/$1/out pid code=0 began=$SECONDS
    rm -rf "$out" && mkdir -p "$out" && : >"$out/report" && truncate -s 32M "$out/journal"
    { git ls-files -z --cached --others --exclude-standard &&
        printf '%s\0' build/payload.elf build/packages/deb/virtksm_*.deb; } |
        tar -c --null --files-from=- >"$out/checkout.tar"
    timeout --foreground "${LIMIT_S:-3600}" qemu-system-x86_64 -machine pc,mem-merge=off -accel tcg,thread=multi -cpu max,-cx16,-erms,-smap,-la57 \
        -smp 2 -m 2048 -nodefaults -display none -no-reboot -kernel "$vm/$1/vmlinuz" -initrd "$vm/$1/initrd" \
        -append "console=ttyS0 loglevel=4 mitigations=off panic=1 systemd.show_status=0 rw" \
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
