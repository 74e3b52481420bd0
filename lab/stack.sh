# SPDX-License-Identifier: GPL-2.0
# The two forms of the series, patches/ with the new files and a stack of git
# commits, and what leads from one to the other. Nothing here touches a working
# tree: commits are made from an index of their own, GIT_DIR names the repository.

# read_pin: the package, version and checksum that base/linux names
read_pin() {
	package='' version='' sha256=''
	. "$top/base/linux"
	pin=$version
	[[ $package && $pin && $sha256 ]] ||
		die "base/linux lacks package=, version= or sha256=" "git checkout base/linux"
}

# tag_name VERSION: git refuses some of what Debian allows
tag_name() {
	printf '%s' "${1//[^A-Za-z0-9.+-]/_}"
}

# pinned_base: the commit in build/linux for base/linux, or for what took its place
pinned_base() {
	local want=$pin is=$pin
	[[ ! -f $build/pin ]] || read -r want is <"$build/pin"
	[[ $want == "$pin" ]] || is=$pin
	git -C "$build/linux" rev-parse -q --verify "refs/tags/base-$(tag_name "$is")^{commit}"
}

# base_is COMMIT FIELD: what the base's own message says of it
base_is() {
	git -C "$build/linux" show -s --format=%B "$1" | sed -n "s/^$2: //p"
}

# base_commit TREE MESSAGE: always the same commit for the same tree
base_commit() {
	printf '%s\n' "$2" | by base base@localhost 2000-01-01T00:00:00Z git commit-tree "$1"
}

# by NAME EMAIL DATE COMMAND...: author and committer are one, for equal ids everywhere
by() {
	GIT_AUTHOR_NAME=$1 GIT_AUTHOR_EMAIL=$2 GIT_AUTHOR_DATE=$3 \
	GIT_COMMITTER_NAME=$1 GIT_COMMITTER_EMAIL=$2 GIT_COMMITTER_DATE=$3 "${@:4}"
}

# kernel_files BASE: the files of ours that stand in directories which the kernel has
kernel_files() {
	local dirs=() dir
	while read -r dir; do
		[[ ! -d $top/$dir ]] || dirs+=("$dir")
	done < <(git ls-tree -d --name-only "$1")
	((${#dirs[@]})) || return 0
	# git knows what is an editor's backup; without git everything counts
	(
		cd "$top"
		unset GIT_DIR GIT_INDEX_FILE
		git ls-files -co --exclude-standard -- "${dirs[@]}" 2>/dev/null || find "${dirs[@]}" ! -type d
	) | sort -u | while read -r file; do
		[[ ! -e $top/$file && ! -L $top/$file ]] || printf '%s\n' "$file"
	done
}

# read_series DIRECTORY: sets patches=(...), new[PATCH]="FILE ...", owner[FILE]=PATCH
read_series() {
	local patch files file
	patches=()
	declare -gA new=() owner=()
	[[ -f $1/patches/series ]] || return 0
	while read -r patch files; do
		[[ $patch && $patch != \#* ]] || continue
		[[ -f $1/patches/$patch ]] ||
			die "patches/$patch does not exist" "correct its line in patches/series"
		[[ -z ${new[$patch]+set} ]] || die "two lines of patches/series name $patch" "remove one"
		patches+=("$patch")
		new[$patch]=$files
		for file in $files; do
			[[ -z ${owner[$file]-} ]] ||
				die "$file is named by two lines of patches/series: ${owner[$file]} and $patch" \
					"a new file enters whole, in one commit: remove it from one of them"
			owner[$file]=$patch
		done
	done <"$1/patches/series"
}

# check_series DIRECTORY BASE: every new file named once, and new
check_series() {
	local file patch
	for file in "${!owner[@]}"; do
		[[ -f $1/$file || -L $1/$file ]] ||
			die "$file does not exist; ${owner[$file]} names it in patches/series" \
				"create it, or remove it from that line"
	done
	((${#owner[@]} == 0)) || file=$(git ls-tree -r --name-only "$2" -- "${!owner[@]}")
	[[ -z ${file-} ]] || die "the base has already: ${file//$'\n'/ }" \
		"edits to files of the kernel are patches; new files need names of their own"
	while read -r file; do
		[[ ${owner[$file]-} ]] || die "$file: no line of patches/series names it" \
			"add it to the line of its commit, or remove it"
	done < <(kernel_files "$2")
	for patch in "$1"/patches/*.patch; do
		[[ ! -f $patch || ${new[${patch##*/}]+set} ]] ||
			die "patches/${patch##*/}: no line of patches/series names it" "add a line, or remove it"
	done
}

# sources DIRECTORY: one number that changes with anything that compose reads
sources() {
	local file
	(
		cd "$1"
		[[ ! -f patches/series ]] || sha256sum patches/series "${patches[@]/#/patches/}"
		for file in "${!owner[@]}"; do
			blob "$file"
		done | sort
	) | sha256sum | cut -d ' ' -f 1
}

# blob FILE: as git update-index takes it, mode and all
blob() {
	if [[ -L $1 ]]; then
		printf '120000 %s\t%s\n' "$(readlink -n "$1" | git hash-object -w --stdin)" "$1"
	else
		printf '100%s %s\t%s\n' "$([[ -x $1 ]] && echo 755 || echo 644)" \
			"$(git hash-object -w --no-filters "$1")" "$1"
	fi
}

# rejects DIFF: try again on copies, for the .rej files
rejects() {
	local file dir=$build/rejects
	rm -rf "$dir"
	mkdir -p "$dir"
	git apply --numstat "$1" | cut -f 3 | while read -r file; do
		mkdir -p "$dir/$(dirname "$file")"
		git show ":$file" >"$dir/$file" 2>/dev/null || rm -f "$dir/$file"
	done
	(
		cd "$dir"
		unset GIT_DIR GIT_INDEX_FILE
		GIT_CEILING_DIRECTORIES=$(dirname "$dir") git apply --reject "$1" 2>/dev/null
	) || true
	find "$dir" -name '*.rej' -printf 'build/rejects/%P '
}

# stack DIRECTORY BASE [reduced]: one commit per line of the series; prints the
# last one's id. With "reduced", a patch that does not fit exactly may match with
# one line of context.
stack() {
	local dir=$1 commit=$2 patch file diff message head name email subject date err
	local tmp=$build/stack
	rm -rf "$tmp"
	mkdir -p "$tmp"
	diff=$tmp/diff message=$tmp/message head=$tmp/head err=$tmp/error
	export GIT_INDEX_FILE=$tmp/index
	git read-tree "$2"
	for patch in "${patches[@]}"; do
		name='' email='' subject='' date=''
		git mailinfo "$message" "$diff" <"$dir/patches/$patch" >"$head" 2>"$err" &&
			name=$(sed -n 's/^Author: //p' "$head") email=$(sed -n 's/^Email: //p' "$head") &&
			subject=$(sed -n 's/^Subject: //p' "$head") date=$(sed -n 's/^Date: //p' "$head")
		[[ $name && $email && $subject && $date ]] ||
			die "patches/$patch is not a mail with From, Date and Subject" \
				"write it with git format-patch, or make the commit in build/linux and run make refresh"

		if grep -q '^@@ \|^diff --git ' "$diff"; then
			while IFS=$'\t' read -r _ _ file; do
				[[ -z ${owner[$file]-} ]] ||
					die "patches/$patch edits $file, which ${owner[$file]} brings" \
						"a new file enters whole, in one commit: edit the file itself"
			done < <(git apply --numstat "$diff" 2>/dev/null)
			file=$(git apply --summary "$diff" 2>/dev/null | sed -n 's/^ create mode [0-7]* //p')
			[[ -z $file ]] || die "patches/$patch creates $file" \
				"a new file stands whole at its path: name it in the patch's line of patches/series"
			if ! git apply --cached --whitespace=nowarn "$diff" 2>"$err"; then
				if [[ ${3-} ]] && git apply --cached --whitespace=nowarn -C1 "$diff" 2>/dev/null; then
					say "$patch: applied with reduced context" >&2
				else
					cat "$err" >&2
					die "patches/$patch does not apply" \
						"look at $(rejects "$diff")${otherwise-}"
				fi
			fi
		elif [[ -z ${new[$patch]} ]]; then
			die "patches/$patch has neither a diff nor a new file" "remove it and its line in patches/series"
		fi
		for file in ${new[$patch]}; do
			(cd "$dir" && blob "$file")
		done | git update-index --add --index-info
		commit=$(printf '%s\n\n' "$subject" | cat - "$message" | git stripspace |
			by "$name" "$email" "$date" git commit-tree "$(git write-tree)" -p "$commit")
	done
	unset GIT_INDEX_FILE
	rm -rf "$tmp"
	printf '%s\n' "$commit"
}

# mail COMMIT PREFIX [FILE...]: the commit as git format-patch writes it, its
# diff limited to the files. No line depends on an object's id.
mail() {
	git log -1 --format=email "$1" |
		sed -e "1s/^From [0-9a-f]*/From $(printf '%040d' 0)/" -e "1,/^\$/s|^Subject: \[PATCH\]|Subject: [$2]|"
	echo ---
	(($# < 3)) || git diff-tree -p --no-renames --no-ext-diff --no-textconv --no-color \
		"$1^" "$1" -- "${@:3}" |
		awk '/^diff --git / { head = 1 } /^@@ / { head = 0 }
			!(head && /^index [0-9a-f]+\.\.[0-9a-f]+/)'
}

# changed COMMIT: status letter and path of what it touches
changed() {
	git diff-tree -r --no-renames --name-status "$1^" "$1"
}

# patch_name NUMBER COMMIT
patch_name() {
	printf '%04d-%.52s.patch' "$1" "$(git show -s --format=%f "$2")"
}

# see_all TREE: Debian's .gitignore ends in "/*", to track nothing but its own
# packaging: a new file would be neither shown nor added. Drop that line, in the
# working tree only; git must not take this for an edit.
see_all() {
	grep -qx '/\*' "$1/.gitignore" 2>/dev/null || return 0
	sed -i -e '/^\/\*$/d' -e '/^!\/debian\/$/d' "$1/.gitignore"
	[[ -z $(git -C "$1" ls-files .gitignore) ]] ||
		git -C "$1" update-index --skip-worktree .gitignore
}

# read_state TREE: the base, the last commit and the sources when compose or
# refresh last left this tree and patches/ equal
read_state() {
	state=$build/composed
	[[ $1 == "$build/linux" ]] || state+=-$(printf '%s' "$1" | sha256sum | cut -c 1-12)
	was_base='' was_head='' was_sources=''
	[[ ! -f $state ]] || read -r was_base was_head was_sources <"$state"
}

# busy TREE: a rebase or a merge under way, changes without a commit
busy() {
	local dir what
	dir=$(git -C "$1" rev-parse --absolute-git-dir)
	for what in rebase-merge rebase-apply MERGE_HEAD CHERRY_PICK_HEAD; do
		[[ ! -e $dir/$what ]] || echo "$what is under way"
	done
	# in a tree of your own, what git does not track is nobody's business
	git -C "$1" status --porcelain ${LINUX:+-uno} | sed -n 1,10p
}
