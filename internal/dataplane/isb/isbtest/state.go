package isbtest

import (
	"bytes"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/ownership"
)

// values: Put, CompareAndSet and Get from two processes, revisions, keys, and the largest value.
func values(t *testing.T, h Harness) {
	a, b := open(t, h, pipeline("p")).State(), open(t, h, pipeline("p")).State()
	get := func(s isb.State, key string) (string, uint64) {
		t.Helper()
		v, revision, err := s.Get(ctx(t), key)
		must(t, err)
		return string(v), revision
	}
	if v, revision := get(a, "none"); v != "" || revision != 0 {
		t.Errorf("a key without a value has %q, revision %d", v, revision)
	}
	must(t, a.Put(ctx(t), "x", []byte("1")))
	v, first := get(b, "x")
	if v != "1" || first == 0 {
		t.Errorf("the other process sees %q, revision %d", v, first)
	}
	_, err := b.CompareAndSet(ctx(t), "x", []byte("2"), 0)
	is(t, "create a key that has a value", err, isb.ErrConflict)
	second, err := b.CompareAndSet(ctx(t), "x", []byte("2"), first)
	must(t, err)
	_, err = a.CompareAndSet(ctx(t), "x", []byte("3"), first)
	is(t, "set with an old revision", err, isb.ErrConflict)
	if v, revision := get(a, "x"); v != "2" || revision != second || second == first {
		t.Errorf("after two sets: %q, revision %d, after %d and %d", v, revision, first, second)
	}
	must(t, a.Put(ctx(t), "x", []byte("2"))) // the same value once more is another revision
	_, err = b.CompareAndSet(ctx(t), "x", []byte("4"), second)
	is(t, "set after a put", err, isb.ErrConflict)
	created, err := b.CompareAndSet(ctx(t), "owner.some-vertex", []byte("y"), 0)
	must(t, err)
	if created == 0 {
		t.Error("a value has revision 0")
	}
	keys, err := a.Keys(ctx(t))
	must(t, err)
	if !slices.Contains(keys, "x") || !slices.Contains(keys, "owner.some-vertex") || slices.Contains(keys, "none") {
		t.Errorf("keys: %q", keys)
	}
	large := bytes.Repeat([]byte{7}, a.MaxValue())
	must(t, a.Put(ctx(t), "large", large))
	if v, _ := get(b, "large"); v != string(large) {
		t.Errorf("of a value of %d bytes, %d came back", len(large), len(v))
	}
}

// counter: each of many processes adds to one number by compare-and-set. A lost update would make it too small.
func counter(t *testing.T, h Harness) {
	const processes, each = 4, 25
	var adding sync.WaitGroup
	for range processes {
		s := open(t, h, pipeline("p")).State()
		adding.Go(func() {
			for done := 0; done < each; {
				v, revision, err := s.Get(ctx(t), "n")
				if err != nil {
					t.Error(err)
					return
				}
				n, _ := strconv.Atoi(string(v))
				if _, err := s.CompareAndSet(ctx(t), "n", []byte(strconv.Itoa(n+1)), revision); err == nil {
					done++
				}
			}
		})
	}
	adding.Wait()
	v, _, err := open(t, h, pipeline("p")).State().Get(ctx(t), "n")
	must(t, err)
	if string(v) != strconv.Itoa(processes*each) {
		t.Errorf("the number is %s, want %d", v, processes*each)
	}
}

// valuesSurvive: what was written is durable when the call returns.
func valuesSurvive(t *testing.T, h Harness) {
	if h.Restart == nil {
		t.Skip("it cannot die")
	}
	s := open(t, h, pipeline("p")).State()
	must(t, s.Put(ctx(t), "put", []byte("1")))
	revision, err := s.CompareAndSet(ctx(t), "set", []byte("2"), 0)
	must(t, err)
	h.Restart(t)
	again := open(t, h, pipeline("p")).State()
	if v, _, err := again.Get(ctx(t), "put"); string(v) != "1" || err != nil {
		t.Errorf("after a restart: %q, %v", v, err)
	}
	if _, err := again.CompareAndSet(ctx(t), "set", []byte("3"), revision); err != nil {
		t.Errorf("the revision of before the restart: %v", err)
	}
}

// leases: the record of an owner on this state, as another process sees it.
func leases(t *testing.T, h Harness) {
	first := open(t, h, pipeline("p")).State()
	lease, err := ownership.Acquire(ctx(t), ownership.Config{Store: isb.PipelineLease(first), Self: ownership.Self("first", "")})
	must(t, err)
	second := open(t, h, pipeline("p")).State()
	_, err = ownership.Acquire(ctx(t), ownership.Config{Store: isb.PipelineLease(second), Self: ownership.Self("second", "")})
	is(t, "a second holder", err, ownership.ErrOwned)
	last, _, owned, err := ownership.Last(ctx(t), isb.PipelineLease(second))
	must(t, err)
	if !owned || last.Command != "first" {
		t.Errorf("the holder is %v, held %v", last, owned)
	}
	must(t, lease.Check(ctx(t)))
	must(t, lease.Release(ctx(t)))
	after, err := ownership.Acquire(ctx(t), ownership.Config{Store: isb.PipelineLease(second), Self: ownership.Self("second", "")})
	must(t, err)
	must(t, after.Release(ctx(t)))
	other := open(t, h, pipeline("other")).State()
	if _, _, owned, err := ownership.Last(ctx(t), isb.PipelineLease(other)); owned || err != nil {
		t.Errorf("another pipeline is held: %v, %v", owned, err)
	}
}

// vacate: a process that has one lease makes certain that nobody has the other; see ownership.Vacate.
func vacate(t *testing.T, h Harness) {
	run, vertex := open(t, h, pipeline("p")).State(), open(t, h, pipeline("p")).State()
	lease, err := ownership.Acquire(ctx(t), ownership.Config{Store: isb.VertexLease(vertex, "cat"), Self: ownership.Self("vertex cat", "")})
	must(t, err)
	names, err := isb.LeasedVertices(ctx(t), run)
	must(t, err)
	if len(names) != 1 || !names["cat"] {
		t.Errorf("vertices with a lease: %v", names)
	}
	err = ownership.Vacate(ctx(t), ownership.Config{Store: isb.VertexLease(run, "cat"), Self: ownership.Self("run", "")})
	is(t, "vacate what is held", err, ownership.ErrOwned)
	must(t, ownership.Vacate(ctx(t), ownership.Config{Store: isb.VertexLease(run, "other"), Self: ownership.Self("run", "")}))
	must(t, ownership.Vacate(ctx(t), ownership.Config{Store: isb.PipelineLease(vertex), Self: ownership.Self("vertex cat", "")}))
	must(t, lease.Release(ctx(t)))
	must(t, ownership.Vacate(ctx(t), ownership.Config{Store: isb.VertexLease(run, "cat"), Self: ownership.Self("run", "")}))
}

// positions: of odd names, of two vertices whose names begin alike, and across processes.
func positions(t *testing.T, h Harness) {
	service := connect(t, h)
	state := openAt(t, service, pipeline("p")).State()
	partitions := []string{"", "0", "a.b", "a_b", "a/b", "a b", "ü", "data.txt", "*", ">"}
	for _, vertex := range []string{"in", "in2"} {
		for _, partition := range partitions {
			p := isb.PositionsOf(service, state, vertex)
			if v, err := p.Load(ctx(t), partition); v != nil || err != nil {
				t.Errorf("%s of %s before it was saved: %q, %v", partition, vertex, v, err)
			}
			must(t, p.Save(ctx(t), partition, []byte(vertex+":"+partition)))
		}
	}
	other := connect(t, h)
	again := openAt(t, other, pipeline("p")).State()
	for _, vertex := range []string{"in", "in2"} {
		for _, partition := range partitions {
			if v, err := isb.PositionsOf(other, again, vertex).Load(ctx(t), partition); string(v) != vertex+":"+partition || err != nil {
				t.Errorf("%q of %s is %q, %v", partition, vertex, v, err)
			}
		}
	}
	keys, err := again.Keys(ctx(t))
	must(t, err)
	seen := map[string]int{}
	for _, key := range keys {
		if vertex, ok := isb.SourceOf(key); ok {
			seen[vertex]++
		}
	}
	if seen["in"] != len(partitions) || seen["in2"] != len(partitions) || len(seen) != 2 {
		t.Errorf("positions by source: %v", seen)
	}
}
