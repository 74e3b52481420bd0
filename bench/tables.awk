# SPDX-License-Identifier: GPL-2.0
#
# awk -f tables.awk TARGETS ours again peer base: the tables of results.md, from
# what must hold and the figures of each run; says on stderr what is missed

FILENAME == ARGV[1] {
	if (split($0, field, / *[|] */) >= 3 && !/^#/)
		target[++targets] = $0
	next
}

{
	if (!($1 in unit))
		name[++names] = $1
	unit[$1] = $3
	value[FILENAME, $1] = $2
}

# The figure, or the largest of those that the pattern names; sets found
function figure(run, pattern,    i, regex, most) {
	regex = pattern
	gsub(/[.]/, "[.]", regex)
	gsub(/[*]/, ".*", regex)
	found = ""
	for (i = 1; i <= names; i++)
		if (name[i] ~ "^" regex "$" && (run, name[i]) in value &&
		    (!found || value[run, name[i]] > most)) {
			most = value[run, name[i]]
			found = name[i]
		}
	return most
}

function show(run, name,    v, u) {
	if (!((run, name) in value))
		return ""
	v = value[run, name]
	u = unit[name]
	if (u == "ns" && v >= 1e6)
		return sprintf("%.2f ms", v / 1e6)
	if (u == "ns" && v >= 1e4)
		return sprintf("%.2f µs", v / 1e3)
	if (u == "bytes" && v >= 1e5)
		return sprintf("%.1f KiB", v / 1024)
	return sprintf(v == int(v) ? "%d %s" : "%.1f %s", v, u)
}

function ratio(a, b) {
	if (b == 0)
		return a == 0 ? "1" : "-"
	return a > 0 && a / b < 0.01 ? sprintf("1/%.0f", b / a) : sprintf("%.4g", a / b)
}

function verdict(what, holds, because) {
	if (holds)
		return "yes"
	print "missed: " what ": " because >"/dev/stderr"
	missed = 1
	return "**no**"
}

function must_hold(line,    field, ours, his, other, most, holds) {
	split(line, field, / *[|] */)
	ours = figure("ours", field[2])
	mine = found
	if (field[4]) {
		split(field[4], other, " ")
		his = figure(other[1], other[2])
		holds = mine && found && ours <= field[3] * his
		printf "| %s | %s | %s: %s | %s | %s | %s |\n", field[1], show("ours", mine),
			other[1] == "ours" ? other[2] : other[1], show(other[1], found),
			mine && found ? ratio(ours, his) : "", ratio(field[3], 1),
			verdict(field[1], holds, mine && found ? "ratio " ratio(ours, his) ", at most " ratio(field[3], 1) : "not measured")
	} else {
		holds = mine && ours <= field[3]
		printf "| %s | %s | | | %s %s | %s |\n", field[1], show("ours", mine), field[3], unit[mine],
			verdict(field[1], holds, mine ? show("ours", mine) ", at most " field[3] " " unit[mine] : "not measured")
	}
}

# How far two runs of ours are apart
function agreement(    i, n, a, b, d, worst, which) {
	for (i = 1; i <= names; i++) {
		n = name[i]
		if (!(("ours", n) in value))
			continue
		a = value["ours", n]
		b = value["again", n]
		d = a == b ? 0 : a == 0 || b == "" ? 1 : (a > b ? a - b : b - a) / (a > 0 ? a : -a)
		if (!which || d > worst) {
			worst = d
			which = n
		}
	}
	printf "| two runs agree, %s %s | %s | again: %s | %.3f %% | 0.1 %% | %s |\n",
		worst ? "the farthest apart being" : "in every figure like", which,
		show("ours", which), show("again", which), worst * 100,
		verdict("two runs agree", which && worst <= 0.001, sprintf("%s differs by %.3f %%", which, worst * 100))
}

END {
	print "\n## What must hold\n"
	print "| what | ours | beside | ratio | at most | holds |\n|---|---|---|---|---|---|"
	for (i = 1; i <= targets; i++)
		must_hold(target[i])
	agreement()
	print "\n![Cost against the size of a range](range.svg)\n"
	print "![Cost against the number of private ranges](runs.svg)\n"
	print "![First touch by backing](touch.svg)\n"
	print "## All figures\n"
	print "| figure | ours | peer | ours/peer | base | ours/base |\n|---|---|---|---|---|---|"
	for (i = 1; i <= names; i++) {
		n = name[i]
		printf "| %s | %s | %s | %s | %s | %s |\n", n, show("ours", n), show("peer", n),
			("ours", n) in value && ("peer", n) in value ? ratio(value["ours", n], value["peer", n]) : "",
			show("base", n),
			("ours", n) in value && ("base", n) in value ? ratio(value["ours", n], value["base", n]) : ""
	}
	exit missed
}
