// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of the map of memory attributes.
 *
 * The oracle is an array with one byte for each gfn of a window. The attributes
 * of all gfns outside the window stay 0.
 *
 * Random sequences print their seed; to replay one, boot a kernel that has KVM
 * built in with kvm.mem_attributes_test_seed=SEED. (The tests of a module run
 * before its parameters are known.)
 */

#include <kunit/test.h>
#include <linux/cpumask.h>
#include <linux/hrtimer.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/kvm_mem_attributes.h>
#include <linux/moduleparam.h>
#include <linux/prandom.h>
#include <linux/random.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <linux/xarray.h>

#define MAX_GFNS	4096

/* The highest gfn that the ioctl can name: the address after it is a u64. */
#define TOP_GFN		((1UL << 52) - 2)

#define NO_END		(~(gfn_t)0)

#define BLOCK		512

/* Lookups beside a writer: see there. */
#define PART		(MAX_GFNS / 4)
#define NR_READERS	3
#define READER_PERIOD_NS	100000

static unsigned long long test_seed;
module_param_named(mem_attributes_test_seed, test_seed, ullong, 0444);
MODULE_PARM_DESC(mem_attributes_test_seed,
		 "Seed of the random tests of memory attributes, 0 for a new one");

/* The model stores indices into this table. */
static const unsigned long values[] = {
	0, BIT(3), BIT(0) | BIT(3), BIT(62), BIT(1)
};

struct reader {
	struct context *c;
	struct task_struct *task;	/* either ... */
	struct hrtimer timer;		/* ... or */
	struct rnd_state rnd;
	unsigned long lookups;

	/* the first wrong answer */
	const char *wrong;
	gfn_t gfn, last;
	unsigned long attrs;
};

struct context {
	struct kvm_mem_attributes_map map;
	struct rnd_state rnd;
	struct reader readers[NR_READERS];

	/* the model: the window, and an index into values[] for each gfn */
	gfn_t base;
	unsigned int nr;
	u8 model[MAX_GFNS];
};

static void set_window(struct kunit *test, gfn_t base, unsigned int nr)
{
	struct context *c = test->priv;

	KUNIT_ASSERT_LE(test, nr, MAX_GFNS);
	c->base = base;
	c->nr = nr;
	memset(c->model, 0, sizeof(c->model));
}

static void seed_random(struct kunit *test)
{
	struct context *c = test->priv;
	unsigned long long seed = test_seed ?: get_random_u32() + 1ULL;

	kunit_info(test, "kvm.mem_attributes_test_seed=%llu", seed);
	prandom_seed_state(&c->rnd, seed);
}

static unsigned int random_below(struct context *c, unsigned int n)
{
	return prandom_u32_state(&c->rnd) % n;
}

/* The model's answers */

static unsigned long model_get(struct context *c, gfn_t gfn)
{
	if (gfn < c->base || gfn - c->base >= c->nr)
		return 0;
	return values[c->model[gfn - c->base]];
}

static gfn_t model_last(struct context *c, gfn_t gfn)
{
	unsigned long attrs = model_get(c, gfn);

	if (gfn + 1 < c->base)
		gfn = c->base - 1;
	for (; gfn < c->base + c->nr; gfn++) {
		if (model_get(c, gfn + 1) != attrs)
			return gfn;
	}
	return NO_END;
}

static bool model_uniform(struct context *c, gfn_t start, gfn_t end,
			  unsigned long attrs)
{
	for (; start < end; start++) {
		if (model_get(c, start) != attrs)
			return false;
	}
	return true;
}

/* The comparisons */

/* The map holds one marked entry at each step of the model and nothing else. */
static void check_runs(struct kunit *test)
{
	struct context *c = test->priv;
	XA_STATE(xas, &c->map.runs, 0);
	bool marked = true, good = true;
	gfn_t gfn = model_last(c, 0);
	void *entry;

	rcu_read_lock();
	xas_for_each(&xas, entry, ULONG_MAX) {
		marked = xas_get_mark(&xas, XA_MARK_0);
		good = gfn != NO_END && xas.xa_index == gfn && marked &&
		       entry == xa_mk_value(model_get(c, gfn));
		if (!good)
			break;
		gfn = model_last(c, gfn + 1);
	}
	rcu_read_unlock();

	if (!good)
		KUNIT_FAIL(test, "gfn %lx: entry %lx, marked %d; expected %lx at %llx",
			   xas.xa_index, xa_to_value(entry), marked,
			   model_get(c, gfn), gfn);
	else if (gfn != NO_END)
		KUNIT_FAIL(test, "no entry at gfn %llx", gfn);
	if (!good || gfn != NO_END)
		kunit_try_catch_throw(&test->try_catch);
}

static void check_gfn(struct kunit *test, gfn_t gfn)
{
	struct context *c = test->priv;
	unsigned long attrs = model_get(c, gfn);
	gfn_t last, end = model_last(c, gfn);

	KUNIT_ASSERT_EQ_MSG(test, kvm_mem_attrs_get(&c->map, gfn, &last), attrs,
			    "gfn %llx", gfn);
	KUNIT_ASSERT_EQ_MSG(test, last, end, "gfn %llx", gfn);

	KUNIT_ASSERT_FALSE_MSG(test,
			       kvm_mem_attrs_uniform(&c->map, gfn, gfn + 1, ~attrs),
			       "gfn %llx", gfn);
	if (end == NO_END) {
		KUNIT_ASSERT_TRUE_MSG(test,
				      kvm_mem_attrs_uniform(&c->map, gfn, NO_END, 0),
				      "gfn %llx", gfn);
		return;
	}
	KUNIT_ASSERT_TRUE_MSG(test,
			      kvm_mem_attrs_uniform(&c->map, gfn, end + 1, attrs),
			      "gfn %llx", gfn);
	KUNIT_ASSERT_FALSE_MSG(test,
			       kvm_mem_attrs_uniform(&c->map, gfn, end + 2, attrs),
			       "gfn %llx", gfn);
}

/* All answers in and around the window. */
static void check_answers(struct kunit *test)
{
	struct context *c = test->priv;
	gfn_t gfn;

	for (gfn = c->base; gfn < c->base + c->nr + 2; gfn++)
		check_gfn(test, gfn);
	check_gfn(test, 0);
	if (c->base)
		check_gfn(test, c->base - 1);
	check_gfn(test, NO_END - 1);
}

static void check_random_answers(struct kunit *test)
{
	struct context *c = test->priv;
	int i;

	for (i = 0; i < 8; i++) {
		unsigned int first = random_below(c, c->nr);
		unsigned int nr = 1 + random_below(c, c->nr - first);
		gfn_t start = c->base + first;
		unsigned long attrs = model_get(c, start);

		check_gfn(test, start);
		KUNIT_ASSERT_EQ_MSG(test,
				    kvm_mem_attrs_uniform(&c->map, start, start + nr, attrs),
				    model_uniform(c, start, start + nr, attrs),
				    "gfns %llx to %llx", start, start + nr);
	}
}

static unsigned int nr_entries(struct context *c)
{
	unsigned int nr = 0;
	unsigned long index;
	void *entry;

	xa_for_each(&c->map.runs, index, entry)
		nr++;
	return nr;
}

static unsigned int nr_nodes(void *entry)
{
	unsigned int i, nr = 1;

	if (!xa_is_node(entry))
		return 0;
	for (i = 0; i < XA_CHUNK_SIZE; i++)
		nr += nr_nodes(rcu_dereference_protected(xa_to_node(entry)->slots[i], true));
	return nr;
}

/*
 * The nodes that the map holds; nobody else may use the map. A single entry at
 * gfn 0 has one or none, hence "at most as many as before" is what tests ask.
 */
static unsigned int map_nodes(struct kvm_mem_attributes_map *map)
{
	return nr_nodes(rcu_dereference_protected(map->runs.xa_head, true));
}

/* The operations, on map and model; nr gfns from the first one of the window */

static void set_attrs(struct kunit *test, gfn_t start, gfn_t end,
		      unsigned long attrs)
{
	struct context *c = test->priv;
	struct kvm_mem_attrs_plan plan;
	bool uniform;

	uniform = kvm_mem_attrs_uniform(&c->map, start, end, attrs);
	KUNIT_ASSERT_EQ(test, !uniform,
			kvm_mem_attrs_plan(&c->map, start, end, attrs, &plan));
	if (uniform)
		return;

	KUNIT_ASSERT_EQ(test, 0,
			kvm_mem_attrs_reserve(&c->map, &plan, GFP_KERNEL));
	kvm_mem_attrs_set(&c->map, &plan);
}

static void set_map(struct kunit *test, unsigned int first, unsigned int nr,
		    unsigned int value)
{
	struct context *c = test->priv;
	gfn_t start = c->base + first;

	set_attrs(test, start, start + nr, values[value]);
	memset(&c->model[first], value, nr);
}

static void set_and_check(struct kunit *test, unsigned int first,
			  unsigned int nr, unsigned int value)
{
	set_map(test, first, nr, value);
	check_runs(test);
	check_answers(test);
}

static void check_empty(struct kunit *test)
{
	struct context *c = test->priv;

	KUNIT_ASSERT_TRUE_MSG(test, xa_empty(&c->map.runs),
			      "%u nodes left", map_nodes(&c->map));
}

/* The places where the windows of the systematic tests lie */

struct place {
	const char *name;
	gfn_t base;
	unsigned int nr;
};

static const struct place places[] = {
	{ "from gfn 0",			0,			4 },
	{ "across two nodes",		64 - 2,			4 },
	{ "across 2 MiB blocks",	BLOCK - 2,		4 },
	{ "across 4 GiB",		(1UL << 20) - 2,	4 },
	{ "up to the last gfn",		TOP_GFN - 3,		4 },
};

static void place_name(const struct place *place, char *name)
{
	strscpy(name, place->name, KUNIT_PARAM_DESC_SIZE);
}

KUNIT_ARRAY_PARAM(place, places, place_name);

/* A window of four gfns has 3^4 states of three values ... */
#define NR_STATES	81

static void set_state(struct kunit *test, unsigned int state)
{
	unsigned int i;

	for (i = 0; i < 4; i++, state /= 3)
		set_map(test, i, 1, state % 3);
}

/* ... and 10 ranges, each of which can be set to three values. */
#define NR_SETS		30

static void get_set(unsigned int set, unsigned int *first, unsigned int *nr,
		    unsigned int *value)
{
	static const u8 ranges[10][2] = {
		{ 0, 1 }, { 1, 1 }, { 2, 1 }, { 3, 1 }, { 0, 2 },
		{ 1, 2 }, { 2, 2 }, { 0, 3 }, { 1, 3 }, { 0, 4 },
	};

	*first = ranges[set / 3][0];
	*nr = ranges[set / 3][1];
	*value = set % 3;
}

/* The cases */

static void untouched(struct kunit *test)
{
	set_window(test, 0, 2 * BLOCK);
	check_runs(test);
	check_answers(test);
	check_empty(test);
}

/* What each kind of set costs in entries, spelled out. */
static void edges(struct kunit *test)
{
	const struct place *place = test->param_value;
	struct context *c = test->priv;
	static const struct {
		unsigned int first, nr, value;
		unsigned int steps;	/* then, without one at gfn 0 of the window */
	} sets[] = {
		{ 1, 1, 1,	2 },	/* one gfn */
		{ 2, 1, 1,	2 },	/* adjacent and equal: merge with before */
		{ 3, 1, 2,	3 },	/* adjacent and different */
		{ 3, 1, 1,	2 },	/* merge with before, up to the window's end */
		{ 2, 1, 0,	4 },	/* split */
		{ 2, 1, 1,	2 },	/* merge on both sides */
		{ 1, 1, 0,	2 },	/* cut at the start */
		{ 1, 1, 1,	2 },	/* merge with after */
		{ 1, 3, 2,	2 },	/* exactly a run */
		{ 1, 2, 3,	3 },	/* the start of a run */
		{ 2, 2, 1,	3 },	/* across a boundary */
		{ 1, 2, 3,	3 },	/* across a boundary, set before it already */
		{ 1, 3, 1,	2 },	/* across a boundary, set after it already */
		{ 2, 1, 1,	2 },	/* set already */
		{ 0, 4, 1,	1 },	/* all */
		{ 0, 1, 0,	2 },
		{ 0, 1, 3,	2 },
		{ 0, 4, 0,	0 },	/* back */
	};
	int i;

	set_window(test, place->base, place->nr);
	for (i = 0; i < ARRAY_SIZE(sets); i++) {
		unsigned int steps = sets[i].steps;

		set_and_check(test, sets[i].first, sets[i].nr, sets[i].value);
		if (c->base && c->model[0])
			steps++;
		KUNIT_ASSERT_EQ_MSG(test, nr_entries(c), steps, "set %d", i);
	}
	check_empty(test);
}

/* Every set of every state. */
static void exhaustive(struct kunit *test)
{
	const struct place *place = test->param_value;
	unsigned int state, set, first, nr, value;

	set_window(test, place->base, place->nr);
	for (state = 0; state < NR_STATES; state++) {
		for (set = 0; set < NR_SETS; set++) {
			set_state(test, state);
			check_runs(test);
			get_set(set, &first, &nr, &value);
			set_and_check(test, first, nr, value);
		}
	}
	set_and_check(test, 0, place->nr, 0);
	check_empty(test);
}

/* Cost and answers do not depend on how far runs reach. */
static void far_apart(struct kunit *test)
{
	struct context *c = test->priv;
	static const struct {
		gfn_t first, last;
		unsigned int value, entries;
	} sets[] = {
		{ 0,		0,		1,	1 },
		{ TOP_GFN,	TOP_GFN,	2,	3 },
		{ 1UL << 40,	1UL << 41,	1,	5 },
		{ 1,		TOP_GFN - 1,	3,	3 },
		{ 1UL << 20,	1UL << 30,	3,	3 },
		{ 1UL << 20,	1UL << 30,	0,	5 },
		{ 0,		TOP_GFN,	1,	1 },
		{ 1,		TOP_GFN,	0,	1 },
		{ 0,		0,		0,	0 },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(sets); i++) {
		gfn_t start = sets[i].first, end = sets[i].last + 1, last;
		unsigned long attrs = values[sets[i].value];

		set_attrs(test, start, end, attrs);

		KUNIT_EXPECT_EQ_MSG(test, nr_entries(c), sets[i].entries, "set %d", i);
		KUNIT_EXPECT_EQ_MSG(test,
				    kvm_mem_attrs_get(&c->map, start, &last),
				    attrs, "set %d", i);
		KUNIT_EXPECT_GE_MSG(test, last, end - 1, "set %d", i);
		KUNIT_EXPECT_EQ_MSG(test,
				    kvm_mem_attrs_get(&c->map, end - 1, NULL),
				    attrs, "set %d", i);
		KUNIT_EXPECT_TRUE_MSG(test,
				      kvm_mem_attrs_uniform(&c->map, start, end, attrs),
				      "set %d", i);
		KUNIT_EXPECT_EQ_MSG(test,
				    kvm_mem_attrs_get(&c->map, TOP_GFN + 1, &last),
				    0, "set %d", i);
		KUNIT_EXPECT_EQ_MSG(test, last, NO_END, "set %d", i);
	}
	check_empty(test);
}

static void random_sets(struct kunit *test)
{
	struct context *c = test->priv;
	int i;

	seed_random(test);
	set_window(test, (gfn_t)random_below(c, 4) << random_below(c, 40),
		   4 * BLOCK);

	for (i = 0; i < 1000; i++) {
		unsigned int first = random_below(c, c->nr);
		unsigned int nr = 1 + random_below(c, c->nr - first);
		unsigned int value = random_below(c, ARRAY_SIZE(values));

		switch (random_below(c, 8)) {
		case 0:		/* 2 MiB blocks */
			first = round_down(first, BLOCK);
			nr = round_up(nr, BLOCK);
			nr = min(nr, c->nr - first);
			break;
		case 1:		/* up to the end of a run, one less, one more */
			nr = min_t(gfn_t, c->nr,
				   model_last(c, c->base + first) - c->base) - first;
			nr = clamp(nr + random_below(c, 3), 1U, c->nr - first);
			break;
		case 2 ... 5:	/* a few gfns, so that there are many runs */
			nr = min(nr, 1 + random_below(c, 16));
			break;
		}

		set_map(test, first, nr, value);
		check_runs(test);
		check_random_answers(test);
		if (i % 256 == 0)
			check_answers(test);
	}
	set_and_check(test, 0, c->nr, 0);
	check_empty(test);
}

/* As many runs as gfns, set back by one set and one by one. */
static void alternating(struct kunit *test)
{
	struct context *c = test->priv;
	unsigned int i, first;

	set_window(test, BLOCK, MAX_GFNS);

	/* Erase whole nodes, and from the middle of one to that of another. */
	for (first = 0; first < 2; first++) {
		for (i = 0; i < c->nr; i += 2)
			set_map(test, i, 1, 1);
		check_runs(test);
		check_answers(test);
		set_and_check(test, first, c->nr - 2 * first, 2);
		set_and_check(test, 0, c->nr, 0);
		check_empty(test);
	}

	for (i = 0; i < c->nr; i += 2)
		set_map(test, i, 1, 1);
	for (i = 0; i < c->nr; i += 2) {
		/* in an order that is neither up nor down */
		set_map(test, i * 37 % c->nr, 1, 0);
		if (i % 128 == 0)
			check_runs(test);
	}
	check_empty(test);
}

/* What is set already is not set again. */
static void set_twice(struct kunit *test)
{
	struct context *c = test->priv;
	unsigned int nodes, seq;

	set_window(test, BLOCK, 2 * BLOCK);
	set_map(test, 100, 200, 1);
	nodes = map_nodes(&c->map);
	seq = read_seqbegin(&c->map.lock);

	set_and_check(test, 100, 200, 1);
	set_and_check(test, 120, 30, 1);
	set_and_check(test, 0, 100, 0);
	set_and_check(test, 300, 300, 0);

	KUNIT_EXPECT_EQ(test, map_nodes(&c->map), nodes);
	KUNIT_EXPECT_EQ(test, read_seqbegin(&c->map.lock), seq);
}

/* A reservation changes no answer, and nothing is left when it is given up. */
static void reservations(struct kunit *test)
{
	const struct place *place = test->param_value;
	unsigned int state, set, first, nr, value, nodes;
	struct context *c = test->priv;
	struct kvm_mem_attrs_plan plan;
	gfn_t start;

	set_window(test, place->base, place->nr);
	for (state = 0; state < NR_STATES; state++) {
		set_state(test, state);
		nodes = map_nodes(&c->map);

		for (set = 0; set < NR_SETS; set++) {
			get_set(set, &first, &nr, &value);
			start = c->base + first;
			if (!kvm_mem_attrs_plan(&c->map, start, start + nr,
						values[value], &plan))
				continue;

			KUNIT_ASSERT_EQ(test, 0,
					kvm_mem_attrs_reserve(&c->map, &plan,
							      GFP_KERNEL));
			check_answers(test);
			kvm_mem_attrs_unreserve(&c->map, &plan);
			check_runs(test);
			KUNIT_ASSERT_LE(test, map_nodes(&c->map), nodes);
		}
	}
	set_map(test, 0, place->nr, 0);
	check_empty(test);
}

#ifdef CONFIG_FAILSLAB
/* Reserve while the nth allocation fails; false if there were fewer. */
static bool reserve_failing(struct kunit *test, unsigned int nth,
			    const struct kvm_mem_attrs_plan *plan, gfp_t gfp,
			    int *ret)
{
	struct context *c = test->priv;
	bool failed;

	current->fail_nth = nth;
	*ret = kvm_mem_attrs_reserve(&c->map, plan, gfp);
	failed = !current->fail_nth;
	current->fail_nth = 0;
	return failed;
}

/*
 * Each allocation fails in turn, without blocking, and so for good: all or
 * nothing. Return how many of them are the map's.
 *
 * A debug feature of the allocator, such as kmemleak, may have allocations of its
 * own, which fail without consequence.
 */
static unsigned int fail_each_nowait(struct kunit *test,
				     const struct kvm_mem_attrs_plan *plan)
{
	struct context *c = test->priv;
	unsigned int nodes = map_nodes(&c->map);
	unsigned int nth, failures = 0;
	int ret;

	for (nth = 1;
	     reserve_failing(test, nth, plan, GFP_NOWAIT | __GFP_NOWARN, &ret);
	     nth++) {
		if (ret) {
			KUNIT_ASSERT_EQ(test, ret, -ENOMEM);
			failures++;
		} else {
			kvm_mem_attrs_unreserve(&c->map, plan);
		}
		KUNIT_ASSERT_LE(test, map_nodes(&c->map), nodes);
		check_runs(test);
	}
	KUNIT_ASSERT_EQ(test, ret, 0);
	kvm_mem_attrs_unreserve(&c->map, plan);
	KUNIT_ASSERT_LE(test, map_nodes(&c->map), nodes);

	return failures;
}

/* The same with a blocking attempt after it, and then the set goes through. */
static unsigned int fail_each(struct kunit *test, unsigned int first,
			      unsigned int nr, unsigned int value)
{
	struct context *c = test->priv;
	gfn_t start = c->base + first, end = start + nr;
	unsigned int nodes = map_nodes(&c->map);
	unsigned int i, nth, failures = 0;
	struct kvm_mem_attrs_plan plan;
	int ret;

	if (!kvm_mem_attrs_plan(&c->map, start, end, values[value], &plan))
		return 0;

	/*
	 * What the debug feature allocates in one attempt and not in the next
	 * moves the count, and one of the map's is passed over.
	 */
	for (i = 0; i < 3; i++)
		failures = max(failures, fail_each_nowait(test, &plan));

	/* With a second, blocking attempt: as if nothing had happened. */
	for (nth = 1;
	     reserve_failing(test, nth, &plan, GFP_KERNEL, &ret);
	     nth++) {
		KUNIT_ASSERT_EQ(test, ret, 0);
		kvm_mem_attrs_unreserve(&c->map, &plan);
		KUNIT_ASSERT_LE(test, map_nodes(&c->map), nodes);
		check_runs(test);
	}
	KUNIT_ASSERT_EQ(test, ret, 0);

	/* With memory at hand, the set goes through: no allocation is left. */
	current->fail_nth = 1;
	kvm_mem_attrs_set(&c->map, &plan);
	KUNIT_EXPECT_EQ(test, current->fail_nth, 1);
	current->fail_nth = 0;
	memset(&c->model[first], value, nr);
	check_runs(test);
	check_answers(test);

	return failures;
}

static void no_memory(struct kunit *test)
{
	static const gfn_t bases[] = { 0, 64 - 2, 4096 - 32, 1UL << 24, TOP_GFN - 63 };
	struct context *c = test->priv;
	unsigned int i, j, total = 0;

	seed_random(test);
	for (i = 0; i < ARRAY_SIZE(bases); i++) {
		set_window(test, bases[i], 64);

		/* the first entries of an empty map, a split, setting back */
		KUNIT_EXPECT_GT(test, fail_each(test, 1, 62, 1), 0);
		total += fail_each(test, 10, 20, 2);
		KUNIT_EXPECT_EQ(test, fail_each(test, 1, 62, 0), 0);
		check_empty(test);

		for (j = 0; j < 100; j++) {
			unsigned int first = random_below(c, 64);

			total += fail_each(test, first,
					   1 + random_below(c, 64 - first),
					   random_below(c, ARRAY_SIZE(values)));
		}
		KUNIT_EXPECT_EQ(test, fail_each(test, 0, 64, 0), 0);
		check_empty(test);
	}

	/* a new node beside others, and a map that grows upwards */
	set_window(test, 0, MAX_GFNS);
	set_map(test, 0, 1, 1);
	KUNIT_EXPECT_GT(test, fail_each(test, 300, 1, 1), 1);
	KUNIT_EXPECT_GT(test, fail_each(test, 700, 900, 2), 1);
	KUNIT_EXPECT_GT(test, fail_each(test, 4000, 1, 3), 0);
	KUNIT_EXPECT_EQ(test, fail_each(test, 0, MAX_GFNS, 0), 0);
	check_empty(test);
	kunit_info(test, "%u failures in random sets", total);
}
#else
static void no_memory(struct kunit *test)
{
	kunit_skip(test, "needs CONFIG_FAILSLAB");
}
#endif

/*
 * Lookups beside a writer. The window is in four parts:
 *
 *   cold  hot  cold  hot
 *
 * The writer changes the hot parts. What the cold ones have never changes, and
 * hot gfns have one of three values, one of which is that of the cold part
 * before them: boundaries come and go at the seams, and lookups of the cold gfns
 * depend on them.
 */
static const unsigned int part_value[4] = { 1, 2, 3, 0 };
#define ANY_HOT		4

static void set_parts(struct kunit *test)
{
	unsigned int part;

	/* Across the 4 GiB line, so that the parts share few nodes. */
	set_window(test, (1UL << 20) - MAX_GFNS / 2, MAX_GFNS);
	for (part = 0; part < 4; part++)
		set_map(test, part * PART, PART, part_value[part & 2]);
}

/* One round of changes of the hot parts, back to what they were. */
static void change_parts(struct kunit *test, unsigned int round)
{
	struct kvm_mem_attrs_plan plan;
	struct context *c = test->priv;
	unsigned int part, i;

	for (part = 1; part < 4; part += 2) {
		unsigned int cold = part_value[part & 2], hot = part_value[part];
		unsigned int first = part * PART;

		switch (round % 4) {
		case 0:		/* all at once, often: the cold part's end moves */
			for (i = 0; i < 64; i++) {
				set_map(test, first, PART, hot);
				set_map(test, first, PART, cold);
			}
			break;
		case 1:		/* up and down */
			set_map(test, first, PART / 2, hot);
			set_map(test, first + PART / 2, PART / 2, hot);
			set_map(test, first + PART / 2, PART / 2, cold);
			set_map(test, first, PART / 2, cold);
			break;
		case 2:
			/*
			 * Many runs, erased in several goes. The boundary that
			 * is next must not have the cold value by chance.
			 */
			for (i = !!(round & 8); i < PART / 2; i++)
				set_map(test, first + i, 1, i & 1 ? hot : ANY_HOT);
			set_map(test, first, PART, round & 4 ? hot : cold);
			set_map(test, first, PART, cold);
			break;
		case 3:		/* the array grows and shrinks, and a set in vain */
			kvm_mem_attrs_plan(&c->map, TOP_GFN - 1, TOP_GFN,
					   values[1], &plan);
			KUNIT_ASSERT_EQ(test, 0,
					kvm_mem_attrs_reserve(&c->map, &plan,
							      GFP_KERNEL));
			kvm_mem_attrs_unreserve(&c->map, &plan);
			set_map(test, first, PART, cold);
			break;
		}
	}
}

static void change_parts_for_a_while(struct kunit *test)
{
	unsigned long end = jiffies + 2 * HZ;
	unsigned int round = 0;

	do {
		change_parts(test, round++);
		cond_resched();
	} while (time_before(jiffies, end) || round < 16);
}

static void lookup(struct reader *r)
{
	unsigned int offset = prandom_u32_state(&r->rnd) % MAX_GFNS;
	struct kvm_mem_attributes_map *map = &r->c->map;
	unsigned int part = offset / PART;
	unsigned long attrs, before = values[part_value[part & 2]];
	gfn_t gfn, last, start, end;
	bool cold = !(part & 1);

	/* At the seams, a step is missed or believed most easily. */
	if (prandom_u32_state(&r->rnd) & 1)
		offset = part * PART + (cold ? PART - 1 : 0);
	gfn = r->c->base + offset;
	start = r->c->base + part * PART;
	end = start + PART;
	r->lookups++;

	attrs = kvm_mem_attrs_get(map, gfn, &last);
	if (r->wrong)
		return;
	r->gfn = gfn;
	r->attrs = attrs;
	r->last = last;

	if (last < gfn)
		r->wrong = "a run that ends before its gfn";
	else if (!cold && attrs != before && attrs != values[part_value[part]] &&
		 attrs != values[ANY_HOT])
		r->wrong = "neither old nor new in a changing range";
	else if (cold && attrs != before)
		r->wrong = "wrong attributes beside a changing range";
	else if (cold && last < end - 1)
		r->wrong = "a run that ends too early beside a changing range";
	else if (cold && !kvm_mem_attrs_uniform(map, start, end, before))
		r->wrong = "not uniform beside a changing range";
}

static int reader_thread(void *data)
{
	struct reader *r = data;

	while (!kthread_should_stop()) {
		int i;

		for (i = 0; i < 256; i++)
			lookup(r);
		cond_resched();
	}
	return 0;
}

static enum hrtimer_restart reader_timer(struct hrtimer *timer)
{
	struct reader *r = container_of(timer, struct reader, timer);
	u64 start = ktime_get_ns();
	int i;

	for (i = 0; i < 8; i++)
		lookup(r);
	/* A slow kernel must get on with the writer, too. */
	hrtimer_forward_now(timer, max_t(u64, READER_PERIOD_NS,
					 8 * (ktime_get_ns() - start)));
	return HRTIMER_RESTART;
}

static void init_reader(struct reader *r, struct context *c)
{
	r->c = c;
	prandom_seed_state(&r->rnd, prandom_u32_state(&c->rnd));
}

static void stop_reader(struct reader *r)
{
	if (r->task)
		kthread_stop(r->task);
	r->task = NULL;
	if (r->timer.function)
		hrtimer_cancel(&r->timer);
}

static void check_reader(struct kunit *test, struct reader *r)
{
	if (r->wrong)
		KUNIT_FAIL(test, "%s: gfn %llx, %lx up to %llx", r->wrong, r->gfn,
			   r->attrs, r->last);
	KUNIT_EXPECT_GT(test, r->lookups, 0);
	kunit_info(test, "%lu lookups", r->lookups);
}

static void lookups_beside_writer(struct kunit *test)
{
	struct context *c = test->priv;
	int i;

	seed_random(test);
	set_parts(test);

	for (i = 0; i < NR_READERS; i++) {
		struct reader *r = &c->readers[i];
		struct task_struct *task;

		init_reader(r, c);
		task = kthread_run(reader_thread, r, "mem_attrs/%d", i);
		KUNIT_ASSERT_FALSE(test, IS_ERR(task));
		r->task = task;
	}

	change_parts_for_a_while(test);

	for (i = 0; i < NR_READERS; i++) {
		stop_reader(&c->readers[i]);
		check_reader(test, &c->readers[i]);
	}
	check_runs(test);
	check_answers(test);
}

/*
 * A timer that expires while the writer has interrupts disabled comes when it
 * enables them: just between two steps of a long erasure, when the gfns beside
 * the range must be right. And if it came earlier, a lookup would wait forever
 * for the writer that it interrupts; lockdep says so before that happens.
 */
static void lookups_in_interrupts(struct kunit *test)
{
	struct context *c = test->priv;
	struct reader *r = &c->readers[0];

	seed_random(test);
	set_parts(test);
	init_reader(r, c);

	KUNIT_ASSERT_EQ(test, 0,
			set_cpus_allowed_ptr(current,
					     cpumask_of(raw_smp_processor_id())));
	hrtimer_init(&r->timer, CLOCK_MONOTONIC, HRTIMER_MODE_REL_PINNED_HARD);
	r->timer.function = reader_timer;
	hrtimer_start(&r->timer, ns_to_ktime(READER_PERIOD_NS),
		      HRTIMER_MODE_REL_PINNED_HARD);

	change_parts_for_a_while(test);

	stop_reader(r);
	check_reader(test, r);
	check_runs(test);
	check_answers(test);
}

static int init_context(struct kunit *test)
{
	struct context *c = kunit_kzalloc(test, sizeof(*c), GFP_KERNEL);

	if (!c)
		return -ENOMEM;
	kvm_mem_attrs_init(&c->map);
	test->priv = c;
	return 0;
}

static void exit_context(struct kunit *test)
{
	struct context *c = test->priv;
	int i;

	if (!c)
		return;
	for (i = 0; i < NR_READERS; i++)
		stop_reader(&c->readers[i]);
	kvm_mem_attrs_destroy(&c->map);
	KUNIT_EXPECT_TRUE(test, xa_empty(&c->map.runs));
}

static struct kunit_case mem_attributes_cases[] = {
	KUNIT_CASE(untouched),
	KUNIT_CASE_PARAM(edges, place_gen_params),
	KUNIT_CASE_PARAM(exhaustive, place_gen_params),
	KUNIT_CASE(far_apart),
	KUNIT_CASE(random_sets),
	KUNIT_CASE(alternating),
	KUNIT_CASE(set_twice),
	KUNIT_CASE_PARAM(reservations, place_gen_params),
	KUNIT_CASE(no_memory),
	KUNIT_CASE(lookups_beside_writer),
	KUNIT_CASE(lookups_in_interrupts),
	{}
};

static struct kunit_suite mem_attributes_suite = {
	.name = "kvm_mem_attributes",
	.init = init_context,
	.exit = exit_context,
	.test_cases = mem_attributes_cases,
};

kunit_test_suite(mem_attributes_suite);
