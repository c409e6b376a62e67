#!/bin/sh
# The first process of the machine in which an image's packages are configured. What it says on the
# console begins with a word that is the image's own; what dpkg and scripts print goes to a log, whose end
# it shows if something fails.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
export DEBIAN_FRONTEND=noninteractive DEBCONF_NONINTERACTIVE_SEEN=true
# Belljar boots the image with an initial RAM filesystem of its own; no other one is needed yet.
export INITRD=No
# Nothing runs here, so nothing is to be started or asked.
export SYSTEMD_OFFLINE=1

here=/var/lib/belljar/configure

log=/run/configure.log

# The console is opened anew each time: programs may leave what they inherit in a mode of their own.
say() { echo "@TOKEN@ $*" > /dev/console; }

finish() {
  cd /
  sync
  mount -o remount,ro / || set -- failed "making the root read-only"
  sync
  say "$@"
  echo o > /proc/sysrq-trigger
  sleep 60
}

fail() {
  tail -n 40 $log > /dev/console 2> /dev/null
  finish "failed $*"
}

if [ "$0" != /run/configure ]; then
  mount -t proc proc /proc && mount -t sysfs sys /sys || fail "mounting"
  # What the kernel says would be of use to a person only.
  echo 3 > /proc/sys/kernel/printk
  [ -c /dev/null ] || mount -t devtmpfs dev /dev || fail "mounting /dev"
  mkdir -p /dev/pts /dev/shm
  mount -t devpts devpts /dev/pts
  mount -t tmpfs -o mode=1777 tmpfs /tmp
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/lock
  mount -o remount,rw,barrier=0 / || fail "mounting the root writable"
  # From a copy, so that this file can be removed and the root still made read-only.
  cp "$0" /run/configure && exec /bin/sh /run/configure
  fail "copying $0"
fi

exec < /dev/null >> $log 2>&1
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d

say "scripts"
while read -r package; do
  DPKG_MAINTSCRIPT_PACKAGE=${package%%:*} DPKG_MAINTSCRIPT_ARCH=amd64 \
    DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1 DPKG_MAINTSCRIPT_NAME=preinst DPKG_ROOT='' \
    DPKG_ADMINDIR=/var/lib/dpkg DPKG_FORCE=unsafe-io \
    "/var/lib/dpkg/info/$package.preinst" install < /dev/null ||
    fail "the preinst script of $package"
done < $here/preinst

configure() {
  {
    dpkg --force-unsafe-io --force-confdef --force-confold --status-fd 3 --configure "$@" \
      3>&1 >> $log 2>&1 || echo failed > /run/failed
  } | while read -r line; do
    case $line in *': installed') echo "$line" > /dev/console ;; esac
  done
  [ ! -e /run/failed ] || fail "the configuration of packages"
}
# shellcheck disable=SC2046
configure $(cat $here/essential)
configure -a
[ -z "$(dpkg --audit)" ] || fail "packages remain unconfigured: $(dpkg --audit | tr '\n' ' ')"

say "settings"
units=$(cat $here/units)
for unit in $units; do
  systemctl enable "$unit" > /dev/null 2>&1 || fail "enabling $unit"
done
# What would work in the background, as soon as the machine has a network, and nobody asked for.
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service \
  systemd-networkd-wait-online.service; do
  systemctl disable "$unit" > /dev/null 2>&1 || true
done
passwd --quiet --delete root || fail "the password of root"
# Some suites have a link there that leads to the file.
echo LANG=C.UTF-8 > /etc/default/locale
ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
# Each machine has its own.
: > /etc/machine-id
rm -f /var/lib/dbus/machine-id /etc/ssh/ssh_host_*
ln -sf /etc/machine-id /var/lib/dbus/machine-id 2> /dev/null
rm -rf /usr/sbin/policy-rc.d /var/lib/belljar/configure* /var/cache/debconf/*-old \
  /var/lib/dpkg/*-old /var/log/dpkg.log /var/log/alternatives.log
say "blocks $(stat -f -c '%f' /)"
fstrim / 2> /dev/null
finish "done"
