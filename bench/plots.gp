# SPDX-License-Identifier: GPL-2.0
#
# gnuplot plots.gp, where the figures are: range.svg, runs.svg and touch.svg

set terminal svg size 720,400 font "sans-serif,13" background "white"
set grid
set key below

# "FIGURE.X VALUE UNIT" of a run, as X VALUE
points(run, figure) = sprintf("< sed -n 's/^%s[.]\\([0-9]*\\)\\([KMG]*\\) /\\1 \\2 /p' %s | \
	awk '{ x = $1; if (NF == 4) x *= $2 == \"K\" ? 2^10 : $2 == \"M\" ? 2^20 : 2^30; print x, $(NF - 1) }'", figure, run)

set output "range.svg"
set title "Converting a range, nothing mapped"
set logscale xy
set xlabel "bytes"
set ylabel "instructions"
set format x "%.0b %BB"
set logscale x 2
plot points("ours", "convert[.]private") with linespoints linecolor 1 title "ours, to private", \
     points("ours", "convert[.]shared") with linespoints linecolor 1 dashtype 2 title "to shared", \
     points("peer", "convert[.]private") with linespoints linecolor 2 title "peer, to private", \
     points("peer", "convert[.]shared") with linespoints linecolor 2 dashtype 2 title "to shared"

set output "runs.svg"
set title "Converting a page among many private ranges"
unset logscale y
set xlabel "private ranges"
set format x "%.0f"
set yrange [0:*]
plot points("ours", "alternate[.]ranges") with linespoints title "ours", \
     points("peer", "alternate[.]ranges") with linespoints title "peer"

set output "touch.svg"
set title "First touch, for each page of 4 KiB"
unset logscale
unset xlabel
set format x "%s"
set style data histogram
set style fill solid 0.7
set xtics nomirror
touch(run) = sprintf("< for kind in private-4K private-2M ordinary-4K ordinary-2M; do \
	sed -n \"s/^touch[.]\\($kind\\) \\([^ ]*\\) .*/\\1 \\2/p\" %s | grep . || echo $kind nan; done", run)
plot touch("ours") using 2:xtic(1) title "ours", \
     touch("peer") using 2 title "peer", \
     touch("base") using 2 title "base"
