#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# check_demo.sh BIGGER_THAN_MEMORY MINIMAL: the demo from outside, as people and scripts meet it.
#
# The demo checks the pager; here the demo is checked: that it passes when it should, on every way
# the pager can take, and above all that it fails when it should.
# shellcheck source=tests/check_lib.sh
. "${0%/*}/check_lib.sh"

demo=$1
minimal=$2
pid=
cleanup() {
	[ -z "$pid" ] || kill "$pid" 2>/dev/null || true
	rm -rf "$dir"
}
esc=$(printf '\033')
cr=$(printf '\r')

# Usage first: it needs no userfaultfd.
for bad in --size=12x --size=0 --size=4097 --size=99999999T --memory=1M --memory=K --threads=0 \
	--threads=9x --rounds=-1 --mask=move,bogus --flip=99999999 --service-threads=0 --delivery=nobody --bogus stray; do
	run 2 "$demo" "$bad"
	[ -s "$dir/err" ] || fail "$bad: refused without a word"
	says 'help'
done
echo "bad usage is refused with a word and status 2"

first "$minimal"
says '^256 MiB written and read back, 0 of 33554432 numbers wrong$'
echo "minimal works"

run 0 "$demo" --size=64M --memory=8M
says '^PASS$'
says '^mismatches  *0  none$'
says '^pages verified  *49152 '
says '^fill  *16384 pages'
says_not "$esc"
says_not "$cr"
awk 'length > 80 { exit 1 }' "$dir/out" || fail "a line is wider than 80 columns"
echo "64 MiB in 8 MiB passes, in plain lines when piped"

run 0 "$demo" --size=16M --memory=2M --threads=1
run 0 "$demo" --size=16M --memory=2M --threads=4 --service-threads=2 --seed=7
run 0 "$demo" --size=2M --memory=16M
run 0 "$demo" --size=4K --memory=2M --threads=1
echo "tiny ones pass"

for mask in none move poison,shared; do
	[ $mask != none ] || mask=
	run 0 "$demo" --size=32M --memory=4M --threads=4 --delivery=inline ${mask:+"--mask=$mask"}
	says '^mismatches  *0  none$'
done
echo "threads that serve themselves: as it should be"

for mask in move poison odirect kernel-faults ring-flags shared move,odirect all; do
	run 0 "$demo" --size=32M --memory=4M --mask="$mask"
done
echo "every feature can be missing"

run 1 "$demo" --size=16M --memory=4M --flip=1000
says '^FAIL$'
says '^  page 1000 version 1 at +2048: '
echo "one wrong bit is found"

run 0 "$demo" --size=16M --memory=4M --swap="$dir/swap" --trace
[ -e "$dir/swap" ] || fail "the swap file that was named is gone"
[ ! -s "$dir/swap" ] || fail "the swap file was not left behind empty"
rm "$dir/swap"

# background COMMAND...: started, and its "fill" line seen; $pid is set.
mkfifo "$dir/fifo"
background() {
	timeout 120 "$@" >"$dir/fifo" 2>"$dir/err" &
	pid=$!
	exec 3<"$dir/fifo"
	: >"$dir/out"
	while read -r line <&3; do
		printf '%s\n' "$line" >>"$dir/out"
		case $line in fill*) return 0 ;; esac
	done
	fail "ended before it had filled the region: $*"
}

# finish STATUS: the rest of its output, and how it ended.
finish() {
	cat <&3 >>"$dir/out"
	exec 3<&-
	status=0
	wait "$pid" || status=$?
	pid=
	[ $status -eq "$1" ] || fail "exit status $status, not $1"
}

background "$demo" --size=32M --memory=4M --rounds=1000
kill -INT "$pid"
finish 130
says 'stopped by Ctrl-C'
says '^mismatches  *0  none$'
echo "Ctrl-C stops it, with what was done so far"

# The pages in swap are gone: that must be SIGBUS, never other bytes.
background "$demo" --size=32M --memory=4M --rounds=1000 --swap="$dir/swap"
: >"$dir/swap"
finish 1
says 'SIGBUS at address 0x[0-9a-f]* in thread [0-9]*, page [0-9]* of the region'
says_not 'WRONG DATA'
echo "a swap file cut under its feet is SIGBUS on a page"

# On a terminal.  script(1) gives us one; it passes the exit status on.
if command -v script >/dev/null; then
	small="$demo --size=64M --memory=8M"
	TERM=xterm NO_COLOR='' run 0 script -qec "$small" /dev/null
	says "$cr"
	says "$esc"
	says '% .* MiB/s ETA'
	TERM=xterm NO_COLOR=1 run 0 script -qec "$small" /dev/null
	says '% .* MiB/s ETA'
	says_not "$esc"
	tr '\r' '\n' <"$dir/out" | awk '/ETA/ && length > 80 { exit 1 }' || fail "the bar is too wide"
	TERM=dumb run 0 script -qec "$small" /dev/null
	says_not 'ETA'
	says_not "$esc"
	echo "on a terminal: a bar, colours, and neither when not wanted"
else
	echo "no script(1): terminal output not checked"
fi
