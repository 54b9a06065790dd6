# Read by the setup scripts: what they say, where their output goes, and Debian's packages.
# shellcheck shell=sh

log=.setup.log # kept only when something fails

say() { printf '%s\n' "$*" >&2; }

has() { command -v "$1" >/dev/null 2>&1; }

# Runs its arguments with all they print in the log.
logged() { "$@" >>"$log" 2>&1 </dev/null; }

# Whether packages can be installed without a password. Sets $root, which goes before a command to run it as root.
can_install() {
    has apt-get || return 1
    if [ "$(id -u)" = 0 ]; then
        root=
    elif has sudo && sudo -n true 2>/dev/null; then
        root="sudo -n"
    else
        return 1
    fi
}

apt() {
    # shellcheck disable=SC2086
    logged $root env DEBIAN_FRONTEND=noninteractive apt-get --yes -o DPkg::Lock::Timeout=120 "$@"
}

# Installs the packages that its arguments name, where `can_install` was found true.
apt_install() {
    say "Installing with apt-get: $* …"
    # A fresh machine has no package lists, an old one has lists of packages that are gone.
    apt install --no-install-recommends "$@" || { apt update && apt install --no-install-recommends "$@"; }
}
