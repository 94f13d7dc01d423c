package proxy

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/levada-io/levada/internal/h2/header"
	"github.com/levada-io/levada/internal/proxy/config"
)

// counted is a stream as it is when it ends, without connections.
func counted(t testing.TB) (*Proxy, *stream) {
	simple := config.DefaultSimple()
	simple.Backend = "127.0.0.1:1"
	c, err := simple.Config()
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(c, Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{front: &front{}}
	s.front.proxy = p
	s.request = &header.Set{}
	s.call = &call{route: p.state.Load().route("", "", "/a.B/c"), method: p.methods.of("/a.B/c"), path: "/a.B/c"}
	s.reason = endedByBackend
	s.inMessages.count, s.outMessages.count, s.inBytes, s.outBytes = 1, 1, 20, 30
	return p, s
}

// Without a log, a tap and a tracer, to count a call takes no memory.
func TestCountingAllocatesNothing(t *testing.T) {
	p, s := counted(t)
	if n := testing.AllocsPerRun(1000, func() { s.traffic = traffic{}; p.began(s); p.ended(s) }); n != 0 {
		t.Errorf("%v allocations for a call", n)
	}
	calls := p.Stats().Routes[0].Calls
	if p.Stats().Routes[0].Open != 0 || calls[0].ByStatus[0] != 1001 || calls[0].ByReason[endedByBackend] != 1001 || calls[0].RequestBytes != 1001*20 {
		t.Errorf("%+v", calls)
	}
}

func BenchmarkCounting(b *testing.B) {
	p, s := counted(b)
	b.Run("one", func(b *testing.B) {
		for b.Loop() {
			p.began(s)
			p.ended(s)
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.RunParallel(func(loop *testing.PB) {
			own := *s
			for loop.Next() {
				p.began(&own)
				p.ended(&own)
			}
		})
	})
}

// Each ending is counted under a reason of its own: an ending without one would panic.
func TestReasonsAreCounted(t *testing.T) {
	all := slices.Clone(reasons[:])
	slices.Sort(all)
	if len(slices.Compact(all)) != len(reasons) || slices.Contains(all, "") {
		t.Errorf("%v", reasons)
	}
}

// A route that is gone is forgotten once its last call has ended, so that reloads add nothing that stays.
func TestForgetRoutes(t *testing.T) {
	p, s := counted(t)
	gone := p.routeStats(routeKey{route: "gone"})
	gone.opened.Add(1)
	p.forgetRoutes(p.state.Load())
	if len(p.Stats().Routes) != 3 {
		t.Errorf("an open call's route is forgotten: %+v", p.Stats().Routes)
	}
	gone.refused.ended[0].Add(1)
	p.forgetRoutes(p.state.Load())
	if routes := p.Stats().Routes; len(routes) != 2 || routes[0].Route != s.call.route.name || routes[1].Route != "none" {
		t.Errorf("%+v", routes)
	}
}

func TestMatchPath(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{{"", "/a", true}, {"/a", "/a", true}, {"/a", "/ab", false}, {"/a*", "/ab", true}, {"*", "", true}, {"/a*", "/b", false}} {
		if got := MatchPath(c.pattern, c.path); got != c.want {
			t.Errorf("%q matches %q: %v", c.pattern, c.path, got)
		}
	}
}

func TestParseID(t *testing.T) {
	for _, text := range []string{"", "1", "1.", ".1", "a.1", "1.a", "-1.1", "1.2.3", "1.4294967296"} {
		if _, err := ParseID(text); err == nil {
			t.Errorf("%q was read", text)
		}
	}
	if id, err := ParseID("12.345"); err != nil || id != (ID{12, 345}) || id.String() != "12.345" {
		t.Error(id, err)
	}
}

// TestMethodsOfStrangers: paths that clients think of do not take the place of methods that are served.
func TestMethodsOfStrangers(t *testing.T) {
	m := methods{known: map[string]*method{}}
	served := m.of("/a.Served/Method")
	served.stats.ended[codes.OK].Add(1)
	for i := range 3 * keptMethods {
		m.of(fmt.Sprintf("/scan/%d", i)).stats.ended[codes.Unimplemented].Add(1)
	}
	if len(m.known) > keptMethods {
		t.Errorf("%d methods are remembered", len(m.known))
	}
	if m.of("/a.Served/Method") != served {
		t.Error("a method that is served was forgotten")
	}
	if later := m.of("/a.Later/Method"); later == &m.rest {
		t.Error("there is no place for a method that comes later")
	}
	// Nor do those that are served make room for others.
	for _, x := range m.known {
		x.stats.ended[codes.OK].Add(1)
	}
	if m.of("/one/more") != &m.rest {
		t.Error("a method that is served was forgotten for another")
	}
}
