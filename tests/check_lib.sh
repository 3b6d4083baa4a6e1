# SPDX-License-Identifier: BSD-2-Clause
#
# check_lib.sh: what the checks of the examples share.  To be sourced:  . "${0%/*}/check_lib.sh"
#
# Exit status of a check: 0 passed, 1 failed, 77 skipped since this machine does not allow what it needs.
#
#	$dir	a directory of the check's own, removed when it ends; on a disk, since that may be what is measured
#	$status	of the last run()
#	$deadline	for each run(), in seconds; a check whose runs are long sets its own
# shellcheck shell=sh disable=SC2034 # used by who sources it
set -eu
export LC_ALL=C

check=${0##*/}
check=${check%.sh}
dir=$(mktemp -d "${TMPDIR:-/var/tmp}/$check.XXXXXX")
status=0
deadline=100

cleanup() {
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM

fail() {
	echo "$check: $*" >&2
	for f in out err; do
		[ ! -s "$dir/$f" ] || head -n 100 "$dir/$f" | sed "s/^/    $f: /" >&2
	done
	exit 1
}

# run STATUS|any COMMAND...: its output in $dir/out and $dir/err.  A hang is a failure that says where.
run() {
	want=$1
	shift
	status=0
	timeout "$deadline" "$@" >"$dir/out" 2>"$dir/err" </dev/null || status=$?
	[ $status -ne 124 ] || fail "no result after $deadline s: $*"
	[ "$want" = any ] || [ $status -eq "$want" ] || fail "exit status $status, not $want: $*"
}

# The same, of the first one that needs a runtime: skipped if there can be none here.
first() {
	run any "$@"
	skip_unless_allowed
	[ $status -eq 0 ] || fail "exit status $status: $*"
}

skip_unless_allowed() {
	if grep -q -e 'Operation not permitted' -e 'Function not implemented' "$dir/err"; then
		sed 's/^/skipped: /' "$dir/err" >&2
		exit 77
	fi
}

says() {
	grep -q -e "$1" "$dir/out" "$dir/err" || fail "no '$1' in the output"
}

says_not() {
	! grep -q -e "$1" "$dir/out" "$dir/err" || fail "'$1' in the output"
}
