#!/bin/sh
# See to a browser for the tests that open the HTML report in one; without it they are skipped.
#
# Chromium or Chrome and its driver must be on the PATH. Where they are not, Debian's packages are installed with
# apt-get if that is possible without a password.
set -eu
cd "$(dirname "$0")/.."
. tools/apt.sh

browser_works() { { has chromium || has chromium-browser || has google-chrome; } && has chromedriver; }

browser_works && exit 0
rm -f "$log"
if ! can_install; then
    why="install Chromium and chromedriver to have them run"
elif apt_install chromium chromium-driver && browser_works; then
    rm -f "$log"
    exit 0
else
    why="apt-get could not install Chromium and its driver, see $log"
fi
say "The tests of the report in a browser will be skipped: $why."
