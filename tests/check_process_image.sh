#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# check_process_image.sh PROCESS_IMAGE: what its four pictures show.
# shellcheck source=tests/check_lib.sh
. "${0%/*}/check_lib.sh"

image=$1

# picture N: of each line of its map: what it is about, the object, how many pages are in memory, and what children get.
picture() {
	awk -v n="$1" '
		/^[1-9]\. / { at = substr($1, 1, 1) }
		/^(child|parent): / { at = 0 }
		at != n { next }
		/^child PID [0-9]+$/ { print "child" }
		/^[0-9a-f]+-[0-9a-f]+ / { print $2, $5, $8, $13 }
		/^  over / { i = $3 == "at" ? 5 : 4; print "over", $2, $(i + 2), $(i + 5) }
	' "$dir/out"
}

# shows N: picture N is what is on the standard input.
shows() {
	picture "$1" >"$dir/got"
	cat >"$dir/want"
	diff -u "$dir/want" "$dir/got" >&2 || fail "picture $1 is not what it has to be"
}

# Usage first: it needs no userfaultfd.
run 0 "$image" --help
grep -q '^usage: ' "$dir/out" || fail "no usage"
for bad in --bogus more '--memory 1M' '--memory' '--memory 0' '--memory 8X' '--memory -8M'; do
	# shellcheck disable=SC2086 # each is a list of arguments
	run 2 "$image" $bad
	grep -q help "$dir/err" || fail "no word about $bad"
	[ ! -s "$dir/out" ] || fail "$bad: more than a word"
done
echo "bad usage is refused with a word and status 2"

run any "$image"
case $(cat "$dir/err") in
*'Operation not supported'*)
	# Shared memory can be paged from Linux 5.19 on: there it has to work.
	[ "$(printf '%s\n' 5.19 "$(uname -r)" | sort -V | head -n 1)" != 5.19 ] || fail "not supported"
	exit 77
	;;
esac
first "$image"

# The file's object is 1, or beneath 3; bss, stack and keys are 4 to 6.
shows 1 <<'END'
text 1 1 share
data 3 2 copy
over data's 2 0
bss 4 1 copy
stack 5 2 copy
keys 6 1 -
END
# 8, 10 and 12 are what parent and child have in common, 7, 9 and 11 the child's.
shows 2 <<'END'
text 1 1 share
data 3 0 copy
over data 8 2
over data's 2 0
bss 4 0 copy
over bss 10 1
stack 5 0 copy
over stack 12 2
keys 6 1 -
child
text 1 1 share
data 7 0 copy
over data 8 2
over data's 2 0
bss 9 0 copy
over bss 10 1
stack 11 0 copy
over stack 12 2
END
shows 3 <<'END'
text 1 1 share
data 3 1 copy
over data 8 2
over data's 2 0
bss 4 0 copy
over bss 10 1
stack 5 0 copy
over stack 12 2
keys 6 1 -
child
text 1 1 share
data 7 0 copy
over data 8 2
over data's 2 0
bss 9 0 copy
over bss 10 1
stack 11 1 copy
over stack 12 2
END
shows 4 <<'END'
text 1 3 share
data 3 2 copy
over data's 2 0
bss 4 1 copy
stack 5 2 copy
keys 6 1 -
END
grep -q '^child: 14 of 14 pages are right$' "$dir/out" || fail "the child has not seen what it should"
grep -q '^parent: 15 of 15 pages are right$' "$dir/out" || fail "the parent has not seen what it should"
grep -q '^PASS$' "$dir/out" || fail "no PASS"
[ "$(awk 'length > 110' "$dir/out" | wc -l)" -eq 0 ] || fail "lines are longer than 110"
echo "four pictures are as they have to be"

run 0 "$image" --memory 2M
grep -q '^PASS$' "$dir/out" || fail "no PASS with 2M"
echo "and so with as little memory as can be"
