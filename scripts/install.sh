#!/bin/sh
# Installs Amphipod as a service of this machine, or brings it up to date:
#
#   curl -sfL https://.../install.sh | sh -                                           a server
#   curl -sfL https://.../install.sh | AMPHIPOD_URL=https://server:6443 AMPHIPOD_TOKEN=... sh -    an agent
#   INSTALL_AMPHIPOD_FILE=./amphipod-linux-x86_64 sh install.sh                       without a network
#
# Arguments are those of `amphipod server` or `amphipod agent`. What steers the installation (each also by its
# INSTALL_K3S_* name, where k3s has one; ours wins):
#
#   INSTALL_AMPHIPOD_FILE            install this executable; if FILE.sha256 lies beside it, it must match
#   INSTALL_AMPHIPOD_DOWNLOAD_URL    where releases are: <URL>/<version or channel>/amphipod-linux-<architecture>[.sha256]
#   INSTALL_AMPHIPOD_VERSION         the version to install [default: what the channel has]
#   INSTALL_AMPHIPOD_CHANNEL         stable, latest, ... [default: stable]
#   INSTALL_AMPHIPOD_SKIP_DOWNLOAD   true: the executable is in BIN_DIR already
#   INSTALL_AMPHIPOD_BIN_DIR         where executable and scripts go [default: /usr/local/bin, or /opt/bin]
#   INSTALL_AMPHIPOD_BIN_DIR_READ_ONLY  true: write nothing there; implies SKIP_DOWNLOAD
#   INSTALL_AMPHIPOD_SYSTEMD_DIR     where unit and environment file go [default: /etc/systemd/system]
#   INSTALL_AMPHIPOD_EXEC            the arguments of the service, before those on the command line
#   INSTALL_AMPHIPOD_NAME            the service is amphipod-NAME [default: amphipod, or amphipod-agent]
#   INSTALL_AMPHIPOD_SKIP_ENABLE     true: do not start at boot, nor now
#   INSTALL_AMPHIPOD_SKIP_START      true: do not start now
#   INSTALL_AMPHIPOD_FORCE_RESTART   true: restart even if nothing changed
#
# Every AMPHIPOD_* and K3S_* variable and the proxies go to the service's environment file, readable for root only.
# Beside the executable it writes amphipod-killall and amphipod-uninstall. Run again, it changes what differs; pods go on
# while the service restarts. Invariant: nothing is run before the last line, so a cut download does nothing.
set -eu

# Filled in when a release is made for a place.
DOWNLOAD_URL=

say() { printf '[INFO]  %s\n' "$*"; }
warn() { printf '[WARN]  %s\n' "$*" >&2; }
fail() {
    printf '[ERROR] %s\n' "$*" >&2
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

# setting NAME DEFAULT: INSTALL_AMPHIPOD_NAME, or INSTALL_K3S_NAME, or the default.
setting() { eval "printf '%s' \"\${INSTALL_AMPHIPOD_$1:-\${INSTALL_K3S_$1:-\$2}}\""; }
# ours NAME: AMPHIPOD_NAME, or K3S_NAME.
ours() { eval "printf '%s' \"\${AMPHIPOD_$1:-\${K3S_$1:-}}\""; }

# --- what is wanted -------------------------------------------------------------------------------------------------

# in_double_quotes TEXT: as a shell and systemd's environment files read it between double quotes.
in_double_quotes() { printf '%s' "$1" | sed 's/[\\"$`]/\\&/g'; }
for_unit() { printf '%s' "$1" | sed 's/\\/\\\\/g; s/"/\\"/g; s/%/%%/g; s/\$/$$/g; s/^/"/; s/$/"/'; }
for_shell() { printf '%s' "$1" | sed "s/'/'\\\\''/g; s/^/'/; s/\$/'/"; }

# given_flag LONG SHORT ARGUMENT...: the last value of a flag among the arguments.
given_flag() {
    given_long=$1 given_short=$2 given=
    shift 2
    while [ $# -gt 0 ]; do
        case $1 in
            "$given_long" | "$given_short") given=${2-} ;;
            "$given_long="*) given=${1#*=} ;;
        esac
        shift
    done
    printf '%s' "$given"
}

# config_key NAME FILE: a plain value in config.yaml.
config_key() {
    [ -r "$2" ] || return 0
    sed -n "s/^$1:[[:space:]]*//p" "$2" | sed 's/[[:space:]]#.*$//; s/[[:space:]]*$//; s/^"\(.*\)"$/\1/; s/^'"'"'\(.*\)'"'"'$/\1/' | tail -n 1
}

# directory FLAG SHORT VARIABLE ARGUMENT...: where the service keeps things, if that was said.
directory() {
    directory_key=$1 directory_short=$2 directory_variable=$3
    shift 3
    found=$(given_flag "--$directory_key" "$directory_short" "$@")
    [ -n "$found" ] || found=$(ours "$directory_variable")
    [ -n "$found" ] || found=$(config_key "$directory_key" "$config")
    printf '%s' "$found"
}

plan() {
    case ${1-} in
        server | agent)
            role=$1
            shift
            ;;
        -* | '')
            role=server
            [ -z "$(ours URL)$(given_flag --server -s "$@")" ] || role=agent
            ;;
        *) fail "$1: expected server or agent and their flags" ;;
    esac
    config=$(given_flag --config -c "$@")
    [ -n "$config" ] || config=${AMPHIPOD_CONFIG:-${K3S_CONFIG_FILE:-}}
    config_dir=$(given_flag --config-dir --config-dir "$@")
    [ -n "$config_dir" ] || config_dir=${AMPHIPOD_CONFIG_DIR:-/etc/amphipod}
    [ -n "$config" ] || config=/etc/amphipod/config.yaml
    data_dir=$(directory data-dir -d DATA_DIR "$@")
    run_dir=$(directory run-dir --run-dir RUN_DIR "$@")
    : "${data_dir:=/var/lib/amphipod}" "${run_dir:=/run/amphipod}"
    for path in "$data_dir" "$run_dir" "$config_dir"; do
        case $path in
            /?*) ;;
            *) fail "$path: the directories of a service must be absolute paths" ;;
        esac
    done
    if [ "$role" = agent ]; then
        [ -n "$(ours URL)$(given_flag --server -s "$@")$(config_key server "$config")" ] ||
            fail "an agent needs a server to join: set AMPHIPOD_URL=https://HOST:6443"
        [ -n "$(ours TOKEN)$(ours TOKEN_FILE)$(given_flag --token -t "$@")$(given_flag --token-file '' "$@")" ] ||
            [ -n "$(config_key token "$config")$(config_key token-file "$config")" ] ||
            fail "an agent needs a token to join: set AMPHIPOD_TOKEN to what 'amphipod token create' prints on the server, or AMPHIPOD_TOKEN_FILE"
    fi

    name=$(setting NAME '')
    if [ -n "$name" ]; then
        case $name in
            *[!A-Za-z0-9_.-]*) fail "INSTALL_AMPHIPOD_NAME: $name: only letters, digits and _ . - can be in a service's name" ;;
        esac
        service=amphipod-${name#amphipod-}
    else
        service=amphipod
        [ "$role" = server ] || service=amphipod-agent
    fi
    unit_line=$role shell_line=$role
    for argument in "$@"; do
        unit_line="$unit_line $(for_unit "$argument")"
        shell_line="$shell_line $(for_shell "$argument")"
    done
}

look_around() {
    [ "$(uname -s)" = Linux ] || fail "Amphipod runs on Linux, this is $(uname -s)"
    case $(uname -m) in
        x86_64 | amd64) architecture=x86_64 ;;
        aarch64 | arm64) architecture=aarch64 ;;
        *) fail "there is no release for $(uname -m), only for x86_64 and aarch64" ;;
    esac
    sudo=
    if [ "$(id -u)" != 0 ]; then
        has sudo || fail "a service can be installed by root only: run this as root, or install sudo"
        sudo=sudo
    fi
    bin_dir=$(setting BIN_DIR '')
    if [ -z "$bin_dir" ]; then
        bin_dir=/usr/local/bin
        $sudo sh -c "mkdir -p $bin_dir && touch $bin_dir/.amphipod-try && rm $bin_dir/.amphipod-try" 2>/dev/null || bin_dir=/opt/bin
    fi
    executable=$bin_dir/amphipod
    running=true
    if [ -d /run/systemd/system ]; then
        init=systemd
    elif [ -x /sbin/openrc-run ]; then
        init=openrc
        [ -d /run/openrc ] || running=false
    elif has systemctl; then
        # In a container or an image that is being built: nothing can be started here.
        init=systemd running=false
    else
        init=none running=false
    fi
    systemd_dir=$(setting SYSTEMD_DIR /etc/systemd/system)
    case $init in
        systemd)
            service_file=$systemd_dir/$service.service
            environment_file=$systemd_dir/$service.service.env
            ;;
        openrc)
            service_file=/etc/init.d/$service
            environment_file=$config_dir/$service.env
            ;;
        none)
            service_file=
            environment_file=$config_dir/$service.env
            ;;
    esac
    if [ -f "$bin_dir/amphipod-uninstall" ]; then
        before=$(sed -n "s/^service='\(.*\)'\$/\1/p" "$bin_dir/amphipod-uninstall")
        [ -z "$before" ] || [ "$before" = "$service" ] ||
            fail "Amphipod is installed here as service $before; run $bin_dir/amphipod-uninstall first, it removes that one with its data"
    fi
}

# --- the executable -------------------------------------------------------------------------------------------------

fetch() {
    case $2 in
        https://* | http://127.0.0.1[:/]* | http://localhost[:/]*) ;;
        *) fail "$2: only https is downloaded from" ;;
    esac
    if has curl; then
        curl -fsSL --retry 3 -o "$1" "$2" || fail "$2 cannot be downloaded"
    elif has wget; then
        wget -q -O "$1" "$2" || fail "$2 cannot be downloaded"
    else
        fail "curl or wget is needed for the download; or bring the file along and set INSTALL_AMPHIPOD_FILE"
    fi
}

sum_of() {
    if has sha256sum; then
        sha256sum "$1" | cut -d ' ' -f 1
    elif has openssl; then
        openssl dgst -sha256 -r "$1" | cut -d ' ' -f 1
    else
        fail "sha256sum is needed to verify what is installed"
    fi
}

# verify FILE SUMS: the file has the first checksum in SUMS.
verify() {
    wanted=$(sed -n 's/^[[:space:]]*\([0-9a-fA-F]\{64\}\)\([[:space:]].*\)\{0,1\}$/\1/p' "$2" | head -n 1 | tr A-F a-f)
    [ -n "$wanted" ] || fail "$2 holds no SHA-256 checksum"
    [ "$(sum_of "$1")" = "$wanted" ] || fail "the SHA-256 checksum of $1 is not the one in $2: the file is damaged or not what was released; nothing was installed"
}

get_executable() {
    skip=$(setting SKIP_DOWNLOAD false)
    [ "$(setting BIN_DIR_READ_ONLY false)" != true ] || skip=true
    file=$(setting FILE '')
    case $skip in
        true | binary)
            [ -x "$executable" ] || fail "$executable is not there, and its download was to be skipped"
            return
            ;;
    esac
    if [ -n "$file" ]; then
        [ -f "$file" ] || fail "INSTALL_AMPHIPOD_FILE: $file is not a file"
        if [ -f "$file.sha256" ]; then
            verify "$file" "$file.sha256"
            say "Verified $file by $file.sha256"
        else
            warn "$file is not verified: there is no $file.sha256"
        fi
        cp "$file" "$scratch/amphipod"
    else
        base=$(setting DOWNLOAD_URL "$DOWNLOAD_URL")
        [ -n "$base" ] || fail "no place to download from is set: set INSTALL_AMPHIPOD_DOWNLOAD_URL, or INSTALL_AMPHIPOD_FILE for a file that is here"
        version=$(setting VERSION "$(setting CHANNEL stable)")
        url=${base%/}/$version/amphipod-linux-$architecture
        say "Downloading $url"
        fetch "$scratch/sums" "$url.sha256"
        fetch "$scratch/amphipod" "$url"
        verify "$scratch/amphipod" "$scratch/sums"
    fi
    chmod 755 "$scratch/amphipod"
    "$scratch/amphipod" version >"$scratch/version" 2>&1 || fail "this is no Amphipod that runs on $architecture: $(head -n 1 "$scratch/version")"
    if [ -f "$executable" ] && [ "$(sum_of "$scratch/amphipod")" = "$(sum_of "$executable")" ]; then
        say "$executable is $(cat "$scratch/version") already"
    else
        # By a new name and a rename: the old one may be running, and a cut write leaves it whole.
        put 755 "$scratch/amphipod" "$executable"
        say "Installed $(cat "$scratch/version") as $executable"
    fi
}

# put MODE FROM TO: whole or not at all, with that mode from the first moment.
put() {
    $sudo mkdir -p "$(dirname "$3")"
    # shellcheck disable=SC2016 # the inner shell's
    $sudo sh -c 'umask 077; cat "$2" >"$3.new" && chmod "$1" "$3.new" && mv -f "$3.new" "$3"' put "$@"
}

# --- the service ----------------------------------------------------------------------------------------------------

write_environment() {
    umask 077
    names=$(env | sed -n 's/^\(\(AMPHIPOD\|K3S\)_[A-Za-z0-9_]*\)=.*/\1/p; s/^\([A-Za-z]*_[Pp][Rr][Oo][Xx][Yy]\)=.*/\1/p' | sort -u)
    for variable in $names; do
        eval "value=\${$variable-}"
        # shellcheck disable=SC2154 # assigned by eval
        [ -z "$value" ] || printf '%s="%s"\n' "$variable" "$(in_double_quotes "$value")"
    done >"$scratch/environment"
    umask 022
    put 600 "$scratch/environment" "$environment_file"
}

write_unit() {
    cat >"$scratch/service" <<END
[Unit]
Description=Amphipod: a container cluster in one executable ($role)
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
EnvironmentFile=-/etc/default/%N
EnvironmentFile=-/etc/sysconfig/%N
EnvironmentFile=-$environment_file
ExecStartPre=-/sbin/modprobe -a overlay br_netfilter vxlan
ExecStart=$executable $unit_line
# Only when the machine goes down: nothing else ends processes that heed no signal, and systemd waits 90 s for them.
ExecStopPost=-/bin/sh -c '[ "\$\$(systemctl is-system-running)" != stopping ] || exec "\$\$@"' sh \
    $(for_unit "$executable") killall --shutdown --data-dir $(for_unit "$data_dir") --run-dir $(for_unit "$run_dir") --config-dir $(for_unit "$config_dir")
# Pods are not part of the service: they go on while it is stopped or replaced.
KillMode=process
Delegate=yes
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
TimeoutStartSec=0
Restart=always
RestartSec=5s

[Install]
WantedBy=multi-user.target
END
    put 644 "$scratch/service" "$service_file"
}

write_openrc() {
    cat >"$scratch/service" <<END
#!/sbin/openrc-run
description="Amphipod: a container cluster in one executable ($role)"
supervisor=supervise-daemon
command="$executable"
command_args="$(in_double_quotes "$shell_line")"
pidfile="/run/$service.pid"
output_log="/var/log/$service.log"
error_log="/var/log/$service.log"
respawn_delay=5
respawn_max=0
rc_ulimit="-n 1048576"

depend() {
    need localmount
    want cgroups net
    after firewall net
}

start_pre() {
    modprobe -a overlay br_netfilter vxlan 2>/dev/null || true
}

set -a
[ ! -f "$environment_file" ] || . "$environment_file"
set +a
END
    put 755 "$scratch/service" "$service_file"
    [ -d /etc/logrotate.d ] || return 0
    printf '/var/log/%s.log {\n    missingok\n    notifempty\n    copytruncate\n    size 10M\n    rotate 3\n}\n' "$service" >"$scratch/logrotate"
    put 644 "$scratch/logrotate" "/etc/logrotate.d/$service"
}

# The scripts know where everything is, so that they remove exactly what this installed.
write_head() {
    cat <<END
#!/bin/sh
# $1
set -eu
service=$(for_shell "$service")
executable=$(for_shell "$executable")
service_file=$(for_shell "$service_file")
environment_file=$(for_shell "$environment_file")
data_dir=$(for_shell "$data_dir")
run_dir=$(for_shell "$run_dir")
config_dir=$(for_shell "$config_dir")
init=$init

if [ "\$(id -u)" != 0 ]; then
    exec sudo "\$0" "\$@"
fi
END
}

write_scripts() {
    {
        write_head "Stops Amphipod and ends every pod of this node; what is in the data directory stays."
        cat <<'END'

case $init in
    systemd)
        if [ -d /run/systemd/system ] && [ -f "$service_file" ]; then
            systemctl stop "$service.service"
        fi
        ;;
    openrc)
        if [ -d /run/openrc ] && [ -f "$service_file" ] && rc-service "$service" status >/dev/null 2>&1; then
            rc-service "$service" stop
        fi
        ;;
    none)
        # Only what holds the run directory is ours to stop.
        if [ -r "$run_dir/server.pid" ]; then
            pid=$(cat "$run_dir/server.pid")
            if [ "$(readlink "/proc/$pid/exe" 2>/dev/null | sed 's/ (deleted)$//')" = "$executable" ]; then
                kill "$pid"
                waited=0
                while [ -d "/proc/$pid" ] && [ "$waited" -lt 30 ]; do
                    sleep 1
                    waited=$((waited + 1))
                done
            fi
        fi
        ;;
esac
exec "$executable" killall --data-dir "$data_dir" --run-dir "$run_dir" --config-dir "$config_dir"
END
    } >"$scratch/killall"
    {
        write_head "Removes Amphipod from this machine, with all its pods and data."
        cat <<'END'
here=$(dirname "$executable")

"$here/amphipod-killall"
# Never delete through a mount: it may be somebody's storage.
if grep -F -q " $data_dir/" /proc/mounts; then
    echo "[ERROR] something is still mounted below $data_dir: unmount it, then run this again" >&2
    exit 1
fi
case $init in
    systemd)
        if [ -f "$service_file" ]; then
            systemctl disable --quiet "$service.service" || true
        fi
        rm -rf "$service_file" "$service_file.d" "$environment_file"
        if [ -d /run/systemd/system ]; then
            systemctl daemon-reload
            systemctl reset-failed "$service.service" 2>/dev/null || true
        fi
        ;;
    openrc)
        if [ -f "$service_file" ]; then
            rc-update -q delete "$service" default || true
        fi
        rm -f "$service_file" "$environment_file" "/etc/logrotate.d/$service" "/var/log/$service.log"*
        ;;
esac
# A directory that is a mount itself is emptied.
for directory in "$data_dir" "$run_dir" "$config_dir"; do
    rm -rf "$directory" 2>/dev/null || find "$directory" -xdev -mindepth 1 -delete
done
rm -f "$here/amphipod-killall" "$executable" "$here/amphipod-uninstall"
echo "[INFO]  Amphipod is removed from this machine"
END
    } >"$scratch/uninstall"
    put 755 "$scratch/killall" "$bin_dir/amphipod-killall"
    put 755 "$scratch/uninstall" "$bin_dir/amphipod-uninstall"
}

# What a change of makes a restart necessary.
state() {
    for part in "$executable" "$service_file" "$environment_file"; do
        if [ -n "$part" ] && $sudo test -f "$part"; then
            if has sha256sum; then $sudo sha256sum "$part"; else $sudo openssl dgst -sha256 -r "$part"; fi
        fi
    done
}

is_active() {
    case $init in
        systemd) systemctl is-active -q "$service.service" ;;
        openrc) rc-service "$service" status >/dev/null 2>&1 ;;
        *) false ;;
    esac
}

# What this machine lacks, in the words of the executable; the service says so too.
show_check() {
    ! is_active || return 0
    $sudo "$executable" check --data-dir "$data_dir" --run-dir "$run_dir" --config-dir "$config_dir" 2>/dev/null |
        grep -E '^(warn|fail)' | while read -r line; do warn "$line"; done || true
}

start() {
    if [ "$(setting SKIP_ENABLE false)" = true ]; then
        say "The service $service is neither enabled nor started, as asked"
        return
    fi
    case $init in
        systemd)
            [ "$running" = false ] || $sudo systemctl daemon-reload
            $sudo systemctl enable --quiet "$service_file"
            ;;
        openrc) $sudo rc-update -q add "$service" default ;;
        none)
            say "There is no systemd and no OpenRC here. Start it, as root, with:"
            say "    set -a; . $environment_file; set +a; setsid $executable $shell_line >/var/log/$service.log 2>&1 </dev/null &"
            return
            ;;
    esac
    if [ "$(setting SKIP_START false)" = true ]; then
        say "The service $service is enabled and not started, as asked"
        return
    fi
    if [ "$running" = false ]; then
        say "The service $service is enabled; $init does not run here, so it starts at boot"
        return
    fi
    if [ "$(state)" = "$state_before" ] && [ "$(setting FORCE_RESTART false)" != true ] && is_active; then
        say "No change detected, so skipping the start of $service"
        return
    fi
    show_check
    say "Starting $service"
    case $init in
        systemd) $sudo systemctl restart "$service.service" || fail "it did not start; see: journalctl -u $service" ;;
        openrc) $sudo rc-service "$service" restart || fail "it did not start; see: /var/log/$service.log" ;;
    esac
    say "$service runs; remove it with $bin_dir/amphipod-uninstall"
}

main() {
    arguments=$(setting EXEC '')
    eval "set -- $arguments \"\$@\""
    plan "$@"
    look_around
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    trap 'exit 1' HUP INT TERM
    state_before=$(state)
    get_executable
    write_environment
    case $init in
        systemd) write_unit ;;
        openrc) write_openrc ;;
    esac
    [ "$(setting BIN_DIR_READ_ONLY false)" = true ] || write_scripts
    start
}

main "$@"
