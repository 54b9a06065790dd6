#!/bin/sh
# Make the environment in .venv, or do nothing when it is up to date: tools/setup.sh EXTRA
#
# EXTRA names what pyproject.toml offers besides the dependencies: plots,report to prepare the sample, test for all.
# Python packages come pinned from constraints.txt. Sherpa is published only as
# source, so whatever its build needs is looked for first: a missing piece is
# installed with apt-get where that is possible without a password, else named.
# PYTHON chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."
. tools/apt.sh

extra=$1
venv=.venv
stamp=$venv/setup.done

die() {
    say "$@"
    exit 1
}

# --- the interpreter ---------------------------------------------------------

# Prints "3.12" and succeeds when $1 is a Python that the project supports.
python_version() {
    "$1" -c 'import sys
print("%d.%d" % sys.version_info[:2])
sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

python=
for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if version=$(python_version "$candidate"); then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    found=$(python_version "${PYTHON:-python3}" || true)
    die "Python >= 3.11 is needed, but ${PYTHON:-python3} is ${found:-not there}. Choose one with: make PYTHON=/path/to/python sample"
fi

# --- is there anything to do? ------------------------------------------------

# The place counts too: scripts in a virtual environment hold its full path. What holds all of `test` has the rest.
state="$version $(pwd) $(cat pyproject.toml constraints.txt tools/setup.sh | cksum)"
if [ -f "$stamp" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    case $(cat "$stamp") in
    "$state $extra" | "$state test") exit 0 ;;
    esac
fi

# --- what the machine must have ----------------------------------------------

# CC, CXX and PKG_CONFIG may hold arguments, as in CC="ccache gcc", so they are left to split.
c_works() {
    # shellcheck disable=SC2086
    printf '#include <%s>\n' "$1" | ${CC:-cc} ${2:-} -E - >/dev/null 2>&1
}

cxx_works() {
    # shellcheck disable=SC2086
    printf '#include <vector>\n' | ${CXX:-c++} -std=c++20 -x c++ -E - >/dev/null 2>&1
}

# Sherpa's build asks pkg-config for FFTW; the header may lie in a folder that only pkg-config knows.
fftw_works() {
    ${PKG_CONFIG:-pkg-config} --exists fftw3 2>/dev/null &&
        c_works fftw3.h "$(${PKG_CONFIG:-pkg-config} --cflags fftw3)"
}

python_header_works() {
    "$python" -c 'import pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())'
}

# need <what a reader calls it> <Debian's package>
need() {
    missing="${missing:+$missing, }$1"
    packages="${packages:+$packages }$2"
}

# Sets $missing (for people) and $packages (for apt-get).
look() {
    missing=
    packages=
    "$python" -c 'import ensurepip, venv' 2>/dev/null || need "Python's venv module" "python$version-venv"
    python_header_works || need "Python's header Python.h" "python$version-dev"
    c_works stdlib.h || need "a C compiler" "gcc libc6-dev"
    cxx_works || need "a C++20 compiler" g++
    has bison || need bison bison
    has flex || need flex flex
    has "${PKG_CONFIG:-pkg-config}" || need pkg-config pkg-config
    # Without a compiler and pkg-config the question cannot be asked; asking for the package twice does no harm.
    fftw_works || need "FFTW's header fftw3.h" libfftw3-dev
}

show_log() {
    say "The last lines of $log:"
    tail -n 25 "$log" | sed 's/^/    /' >&2
}

rm -f "$log"

look
if [ -n "$missing" ] && can_install; then
    # shellcheck disable=SC2086
    if apt_install $packages; then
        look
    else
        show_log
    fi
fi
if [ -n "$missing" ]; then
    say "Missing: $missing."
    say "Sherpa, which reduces the spectra, is published as source only and is built here. Install what is missing,"
    say "then run make again:"
    say "  Debian, Ubuntu  apt-get install $packages"
    say "  Fedora          dnf install gcc gcc-c++ bison flex fftw-devel pkgconf python3-devel"
    say "  macOS           xcode-select --install; brew install bison flex fftw pkgconf"
    say "  conda           conda install -c conda-forge c-compiler cxx-compiler bison flex fftw pkg-config"
    exit 1
fi

# --- the environment ---------------------------------------------------------

# An environment that was moved or made by another Python is made anew; else pip brings it up to date.
same_place=yes
if [ -f "$stamp" ]; then
    case $(cat "$stamp") in
    "$version $(pwd) "*) ;;
    *) same_place=no ;;
    esac
fi
rm -f "$stamp"
if [ $same_place = yes ] && [ "$(python_version "$venv/bin/python" || true)" = "$version" ] &&
    "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "Bringing $venv up to date …"
else
    say "Setting up $venv with Python $version (Sherpa is built from source: about a minute) …"
    if ! logged "$python" -m venv --clear "$venv"; then
        show_log
        die "Setting up $venv failed."
    fi
fi
if [ "$extra" = test ] && [ "$(uname)" = Linux ] && [ ! -d "$venv/lib/python$version/site-packages/torch" ]; then
    say "PyTorch belongs to it: gigabytes where pip finds only the CUDA build; a CPU build put into $venv first is kept."
fi
# The variables, unlike -c, reach the isolated builds too, so Sherpa is always built with the same tools:
# PIP_CONSTRAINT up to pip 25, PIP_BUILD_CONSTRAINT after it. Relative, since pip splits them at spaces.
if ! PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt logged "$venv/bin/python" -m pip install \
    --disable-pip-version-check --no-input --progress-bar off --editable ".[$extra]"; then
    show_log
    die "Setting up $venv failed."
fi
rm -f "$log"
printf '%s\n' "$state $extra" >"$stamp"
