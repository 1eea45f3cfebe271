#!/usr/bin/env bash
# Starts systemd as PID 1 of namespaces of its own, on a copy of this machine's root that forgets everything:
#
#   boot.sh DIRECTORY COMMANDS
#
# DIRECTORY is seen by both sides, inside as /srv/shared as well. COMMANDS has the layerfs to be tried. Returns when that systemd has ended.
#
# What systemd does when it boots must not reach the host: hence the overlay (systemd-tmpfiles empties /tmp), the own
# cgroup, and the masked units.
set -euo pipefail

if [ "${INSIDE:-}" = "" ]; then
    cgroup=/sys/fs/cgroup/unified/layerfs-test-$$
    [ -d /sys/fs/cgroup/unified ] || cgroup=/sys/fs/cgroup/layerfs-test-$$
    mkdir "$cgroup"
    # The processes in it may take a moment to be gone.
    trap 'for try in {1..50}; do find "$cgroup" -depth -type d -exec rmdir {} + 2> /dev/null && break; sleep 0.1; done' EXIT
    echo $$ > "$cgroup/cgroup.procs"
    # systemd has to be alone in its group, and this shell has to leave so that the group can be removed.
    INSIDE=1 unshare --pid --fork --mount --propagation private --uts --ipc --cgroup --kill-child "$0" "$@" &
    echo $$ > "$(dirname "$cgroup")/cgroup.procs"
    wait $!
    exit
fi

directory=$1 commands=$2
root=$directory/root
mkdir -p "$root"
mount -t tmpfs -o size=512m tmpfs "$root"
mkdir "$root/upper" "$root/work" "$root/new"
mount -t overlay overlay -o "lowerdir=/,upperdir=$root/upper,workdir=$root/work" "$root/new"
cd "$root/new"

for place in $(findmnt --raw --noheadings --output TARGET --types ext4,xfs,btrfs,overlay,tmpfs | grep -vxE '/|/dev.*|/run.*|/sys.*|/tmp/.*|/proc.*' || true); do
    mkdir -p ".$place" && mount --rbind "$place" ".$place"
done
# Not in /tmp only: services with a /tmp of their own do not see that.
mkdir -p srv/shared && mount --bind "$directory" srv/shared
mkdir -p ".$directory" && mount --bind "$directory" ".$directory"
mount -t proc proc proc
mount -t tmpfs tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
for device in null zero full random urandom tty fuse autofs; do
    cp -a "/dev/$device" dev/
done
chmod 666 dev/fuse
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
: > dev/console
mount --rbind /sys sys
mount -t tmpfs tmpfs sys/fs/cgroup
mount -t cgroup2 cgroup2 sys/fs/cgroup

units=etc/systemd/system
for unit in systemd-tmpfiles-setup systemd-tmpfiles-setup-dev systemd-sysctl systemd-timesyncd systemd-udevd \
    systemd-udev-trigger systemd-modules-load systemd-random-seed systemd-remount-fs systemd-update-utmp \
    systemd-logind systemd-hwdb-update lvm2-monitor getty@tty1 console-getty serial-getty@ttyS0 apt-daily apt-daily-upgrade; do
    ln -sf /dev/null "$units/$unit.service"
done
printf '' > etc/fstab
rm -f usr/local/bin/layerfs usr/sbin/mount.layerfs
ln -s "$commands/layerfs" usr/local/bin/layerfs
ln -s "$commands/mount.layerfs" usr/sbin/mount.layerfs
cat > $units/test.target << UNIT
[Unit]
Requires=sysinit.target local-fs.target
After=sysinit.target local-fs.target
AllowIsolate=yes
UNIT

mkdir -p old
pivot_root . old
umount -l old
# As on any machine, where services see what is mounted later; systemd leaves it alone in containers.
mount --make-rshared /
export container=layerfs-test
exec env -i container=layerfs-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    ${PYTHONPATH:+PYTHONPATH=$PYTHONPATH} /lib/systemd/systemd --system --unit=test.target --log-target=journal-or-kmsg \
    --show-status=no < /dev/null > /dev/null 2>&1
