#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
#
# check_pagers.sh COMPUTED [COMPRESSED_FILE|-] [ENCRYPTED_STORE|-]: the examples with pagers of their own, from outside.
# "-": not built here, for want of its library.
# shellcheck source=tests/check_lib.sh
. "${0%/*}/check_lib.sh"

computed=$1
compressed=$2
encrypted=$3

# Usage first: it needs no userfaultfd.
for program in "$computed" "$compressed" "$encrypted"; do
	[ "$program" != - ] || continue
	run 0 "$program" --help
	says '^usage: '
	run 2 "$program" --memory 1M
	says 'help'
	run 2 "$program" --bogus
	says 'help'
done
echo "bad usage is refused with a word and status 2"

first "$computed" --size 8M --memory 2M --checks 2000
says '^0 of 2000 random entries are wrong$'
says '^of 4194304 numbers 3732423 takes the most steps, 596$'
says ', 0 bytes of swap written$'
says '^PASS$'
echo "computed works"

if [ "$compressed" != - ]; then
	# 8 MB and a part of a page, of lines that compress like text.
	awk 'BEGIN { for (i = 0; i < 160000; i++) printf "line %d: %d and %d, %s\n", i, i * i, i % 977, "some of this is always the same" }' \
		>"$dir/original"
	run 0 "$compressed" create "$dir/original" "$dir/packed"
	[ "$(wc -c <"$dir/packed")" -lt "$(($(wc -c <"$dir/original") / 2))" ] || fail "it does not compress"
	run 0 "$compressed" --memory 2M verify "$dir/packed" "$dir/original"
	says '^0 of 5000 random bytes differ$'
	says '^all [0-9]* bytes are the same$'
	says '^PASS$'
	run 0 "$compressed" --memory 2M cat "$dir/packed"
	cmp "$dir/out" "$dir/original" || fail "cat differs"
	run 0 "$compressed" --memory 2M grep 'line 15999' "$dir/packed"
	grep 'line 15999' "$dir/original" | cmp - "$dir/out" || fail "grep differs"
	run 1 "$compressed" grep 'no such line' "$dir/packed"
	[ ! -s "$dir/out" ] || fail "grep found what is not there"
	if command -v zstd >/dev/null; then
		zstd -dqc "$dir/packed" | cmp - "$dir/original" || fail "zstd does not understand it"
	fi
	# Another original, a shorter one, and a file that is none.
	sed '80000s/same/SAME/' "$dir/original" >"$dir/other"
	run 1 "$compressed" verify "$dir/packed" "$dir/other"
	says '^FAIL$'
	head -c 100000 "$dir/original" >"$dir/other"
	run 1 "$compressed" verify "$dir/packed" "$dir/other"
	run 1 "$compressed" cat "$dir/original"
	says 'not made by compressed_file'
	# One wrong byte: never other bytes than the original's, and an error.
	cp "$dir/packed" "$dir/damaged"
	printf '\377\377\377\377' | dd of="$dir/damaged" bs=1 seek=500000 conv=notrunc 2>/dev/null
	run 1 "$compressed" cat "$dir/damaged"
	says 'the file is damaged'
	head -c "$(wc -c <"$dir/out")" "$dir/original" | cmp - "$dir/out" || fail "wrong bytes got out"
	echo "compressed_file works"
else
	echo "compressed_file: no libzstd here"
fi

if [ "$encrypted" != - ]; then
	run 0 "$encrypted" "$dir/store" --size 8M --memory 2M
	says '^2048 pages written, changed and read back, 0 lost$'
	says '^0 pieces of plaintext in the file$'
	says '^one bit of page 1024 flipped: 1 pages lost, page 1024$'
	says '^two pages exchanged, with their tags: 2 pages lost$'
	says '^another key: 2048 of 2048 pages lost$'
	says '^PASS$'
	! grep -q 'what nobody else may read' "$dir/store" || fail "plaintext in the file"
	echo "encrypted_store works"
else
	echo "encrypted_store: no libcrypto here"
fi
