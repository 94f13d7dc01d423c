package shard

import (
	"fmt"
	"slices"
	"testing"
)

func names(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return all
}

// TestSharesAreEvenAndMoveLittle: with shares that differ by more than one, the busiest process sets the pace of the vertex. With shares that move more than
// needed, each process that comes or leaves makes the others stop and start shards that could have stayed.
func TestSharesAreEvenAndMoveLittle(t *testing.T) {
	for _, shards := range []int{1, 2, 8, 64} {
		keys := names("p0.s", shards)
		worst := 0.0
		for members := 1; members <= 40; members++ {
			pods := names("sum-pod", members+1)
			before, after := share(pods[:members], keys), share(pods, keys)
			counts := make([]int, members)
			for _, m := range before {
				counts[m]++
			}
			if slices.Max(counts)-slices.Min(counts) > 1 {
				t.Fatalf("%d shards of %d members: %v", shards, members, counts)
			}
			moved := 0
			for i := range keys {
				if before[i] != after[i] {
					moved++
				}
			}
			needed := (shards + members) / (members + 1)
			worst = max(worst, float64(moved)/float64(needed))
			if moved > 3*needed+1 {
				t.Errorf("%d shards, %d members and one more: %d shards move, %d must", shards, members, moved, needed)
			}
		}
		t.Logf("%d shards: at most %.1f times as many move as must", shards, worst)
	}
}

// TestSharesDoNotDependOnOrder: two members that list the others in another order must come to the same shares.
func TestSharesDoNotDependOnOrder(t *testing.T) {
	pods, keys := names("pod", 7), names("s", 64)
	want := share(pods, keys)
	turned := slices.Clone(pods)
	slices.Reverse(turned)
	for i, m := range share(turned, keys) {
		if turned[m] != pods[want[i]] {
			t.Fatalf("shard %d: %s and %s", i, turned[m], pods[want[i]])
		}
	}
}
