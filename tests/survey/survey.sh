#!/bin/sh
# survey NAME: writes to /survey/NAME what the process that runs it is and finds around it, without what differs from
# machine to machine and from run to run.
out=/survey/$1
# In a process of its own, so that what is opened for it is not seen.
(ls -l /proc/$$/fd > $out.fd; :)
exec > $out.tmp

echo "user"
grep -E '^(Uid|Gid|Groups):' /proc/$$/status | sed 's/[ \t]*$//; s/[ \t]\+/ /g; s/^/  /'
echo "capabilities"
grep -E '^Cap' /proc/$$/status | sed 's/\t/ /; s/^/  /'
echo "confinement"
grep -E '^(NoNewPrivs|Seccomp):' /proc/$$/status | sed 's/\t/ /; s/^/  /'
awk '{ print "  session " ($6 == $1 ? "of its own" : "of another"); print "  terminal " $7 }' /proc/$$/stat
echo "descriptors"
# The script itself is read through one.
sed -n 's/.* \([0-9]*\) -> /\1 /p' $out.fd | grep -v '/bin/survey$' | sed 's/:\[.*//; s/^/  /' | sort
echo "control groups"
cut -d: -f3 /proc/$$/cgroup | sort -u | sed 's/^/  in /'
awk '$5 ~ "^/sys/fs/cgroup" { n++; if ($6 !~ /^ro(,|$)/) print "  writable " $5 } END { print "  " (n ? "mounted" : "none") }' /proc/$$/mountinfo
echo "keys"
if [ -c /proc/keys ]; then echo "  masked"; else echo "  in sight"; fi
echo "hidden"
for path in /proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug \
    /proc/scsi /proc/timer_list /proc/timer_stats /sys/devices/virtual/powercap /sys/firmware; do
    [ -e $path ] || continue
    if [ -d $path ]; then [ -z "$(ls -A $path 2>&1)" ] || echo "  in sight: $path"; else [ -c $path ] || echo "  in sight: $path"; fi
done
echo "read-only"
for path in /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger /sys; do
    [ -e $path ] || continue
    awk -v path=$path '$5 == path && $6 ~ /^ro(,|$)/ { found = 1 } END { if (!found) print "  writable: " path }' /proc/$$/mountinfo
done
echo "mounts"
awk '$5 !~ "^/(proc|sys)/" {
    i = 7; propagation = ""
    while ($i != "-") { sub(/:.*/, "", $i); propagation = propagation " " $i; i++ }
    split($6, options, ","); text = options[1]
    if ($4 == "/") for (k = 2; k in options; k++) if (options[k] ~ /^no(suid|dev|exec)$/) text = text "," options[k]
    print "  " $5 " " ($4 == "/" ? $(i + 1) : "bind") " " text propagation
}' /proc/$$/mountinfo | sort
echo "devices"
for path in /dev/*; do
    name=${path##*/}
    if [ -L $path ]; then echo "  $name -> $(readlink $path)"; else stat -c "  $name %F %a %u:%g %t:%T" $path; fi
done | sed 's/regular empty file/regular file/; s/ directory \(.*\) [0-9]*:[0-9]*$/ directory \1/; s/ regular file \(.*\) [0-9]*:[0-9]*$/ regular file \1/'
exec >&-
mv $out.tmp $out
