#!/bin/sh
# Make .venv-legacy, with the last datasets that runs loading scripts, or do nothing when it is up to date.
#
# It comes after tools/setup.sh, which sees to what Sherpa's build needs and chooses the Python. The versions are those
# of constraints.txt, but for datasets and the three that datasets 3.6 wants older. The project itself asks for
# datasets 5, so it is installed without its dependencies, and what chandra_spectra.py needs of them is named here.
set -eu
cd "$(dirname "$0")/.."

venv=.venv-legacy
stamp=$venv/setup.done
state="$(.venv/bin/python -V) $(pwd) $(cat pyproject.toml constraints-legacy.txt tools/setup_legacy.sh | cksum)"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$state" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

printf 'Setting up %s …\n' "$venv" >&2
.venv/bin/python -m venv --clear "$venv"
export PIP_CONSTRAINT=constraints-legacy.txt PIP_BUILD_CONSTRAINT=constraints-legacy.txt
pip="$venv/bin/python -m pip -qq --disable-pip-version-check --no-input install"
$pip 'datasets==3.6.*' astropy filelock h5py healpix isal numpy pyarrow requests sherpa
$pip --no-deps --editable .
printf '%s\n' "$state" >"$stamp"
