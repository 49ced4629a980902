#!/usr/bin/env bash
# modular.sh FOLDER: build libvirt's modular daemon for QEMU of Debian's own source package, into FOLDER as it would lie in
# /. Run in a minimal Debian, as root; its sources of packages become sources of source packages, too.
set -euo pipefail

tools=(
    build-essential meson ninja-build pkgconf xsltproc libxml2-utils python3-docutils
    libglib2.0-dev libgnutls28-dev libxml2-dev libtirpc-dev # what libvirt does not build without
    libacl1-dev libapparmor-dev libattr1-dev libcap-ng-dev libdevmapper-dev libnl-3-dev libnl-route-3-dev libnuma-dev
    libpciaccess-dev libsasl2-dev libsystemd-dev libudev-dev libyajl-dev
    dmidecode iproute2
)
features=(
    apparmor apparmor_profiles attr capng driver_libvirtd driver_qemu driver_remote driver_secrets libnl numactl pciaccess
    polkit sasl secdriver_apparmor udev yajl
)

sed -n 's/^deb /deb-src /p' /etc/apt/sources.list >/etc/apt/sources.list.d/source.list
apt-get -q update
apt-get -q -y install --no-install-recommends "${tools[@]}"
cd /root
apt-get -q -o APT::Sandbox::User=root source libvirt
mapfile -t options < <(printf -- '-D%s=enabled\n' "${features[@]}")
# In Debian's folders: a private daemon finds libvirt's helper programs in those of the installed libvirt.
meson setup build libvirt-*/ --prefix=/usr --libdir="lib/$(gcc -print-multiarch)" --libexecdir=lib/libvirt \
    --sysconfdir=/etc --localstatedir=/var -Drunstatedir=/run -Dinit_script=systemd --buildtype=release \
    -Dqemu_user=libvirt-qemu -Dqemu_group=libvirt-qemu -Dauto_features=disabled "${options[@]}"
nice -n 19 ninja -j1 -C build
DESTDIR=$1 meson install --no-rebuild -C build --strip
