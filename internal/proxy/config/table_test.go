package config_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/levada-io/levada/internal/proxy/config"
)

func TestRoute(t *testing.T) {
	c := parse(t, `
backends: [{name: a, target: "a:1"}]
routes:
- {}
- match: {service: shop.*}
- match: {service: shop.orders.*}
- match: {service: shop.Orders}
- match: {service: shop.Orders, method: Watch}
- match: {service: shop.Orders, method: Watch, authority: Orders.example}
- match: {service: shop.Orders, method: Watch, authority: "orders.example:8443"}
- match: {authority: "[::1]"}
- match: {service: only.Here, authority: here}
`)
	table := c.Compile()
	for _, x := range []struct{ authority, path, want string }{
		{"", "/other.Service/Get", "*"},
		{"", "/shop.Catalogue/Get", "shop.*"},
		{"", "/shop.orders.v1.Orders/Get", "shop.orders.*"},
		{"", "/shop.ordersX.Orders/Get", "shop.*"},
		{"", "/shop/Get", "*"},
		{"", "/shop.Orders/Get", "shop.Orders"},
		{"", "/shop.Orders/", "shop.Orders"},
		{"", "/shop.Orders.More/Get", "shop.*"},
		{"", "/Shop.Orders/Get", "*"},
		{"", "/shop.Orders/Watch", "shop.Orders/Watch"},
		{"", "/shop.Orders/Watch/", "shop.*"},
		{"", "/shop.Orders/Watch/Watch", "shop.*"},
		{"", "/x/shop.Orders/Watch", "*"},
		{"", "shop.Orders/Watch", "*"},
		{"", "//shop.Orders/Watch", "*"},
		{"", "", "*"},
		{"", "/", "*"},
		{"", "//", "*"},
		{"", "*", "*"},
		{"ORDERS.example", "/shop.Orders/Watch", "shop.Orders/Watch@Orders.example"},
		{"orders.example:80", "/shop.Orders/Watch", "shop.Orders/Watch@Orders.example"},
		{"orders.example:8443", "/shop.Orders/Watch", "shop.Orders/Watch@orders.example:8443"},
		{"orders.example.:80", "/shop.Orders/Watch", "shop.Orders/Watch"},
		{"[::1]:80", "/a/B", "*@[::1]"},
		{"[::1]", "/a/B", "*@[::1]"},
		{"[::2]", "/a/B", "*"},
		{strings.Repeat("a", 1000), "/a/B", "*"},
		{"here", "/only.Here/Get", "only.Here@here"},
		{"there", "/only.Here/Get", "*"},
	} {
		got := table.Route(x.authority, x.path)
		if got == nil || got.Match.String() != x.want {
			t.Errorf("%s %s goes to %v, want %s", x.authority, x.path, got, x.want)
		}
	}
	if got := parse(t, `{backends: [{name: a, target: "a:1"}], routes: [{match: {service: a.B}}, {match: {service: b.*, authority: x}}]}`).Compile().Route("y", "/b.C/D"); got != nil {
		t.Errorf("a route for nothing: %+v", got)
	}
}

// naive looks at every route, and keeps the best.
func naive(c *config.Config, authority, path string) *config.Route {
	var service, method string
	if parts := strings.Split(path, "/"); len(parts) >= 3 && parts[0] == "" {
		service, method = strings.Join(parts[1:len(parts)-1], "/"), parts[len(parts)-1]
	}
	authority = strings.ToLower(authority)
	host := authority
	if i := strings.LastIndex(authority, ":"); i >= 0 && !strings.HasSuffix(authority, "]") {
		host = authority[:i]
	}
	var best *config.Route
	bestRank := []int{-1}
	for i := range c.Routes {
		m := c.Routes[i].Match
		var rank []int
		prefix, isPrefix := strings.CutSuffix(m.Service, "*")
		switch {
		case m.Service == "":
			rank = []int{0, 0}
		case isPrefix && strings.HasPrefix(service, prefix):
			rank = []int{1, len(prefix)}
		case !isPrefix && m.Method == "" && m.Service == service:
			rank = []int{2, 0}
		case m.Method != "" && m.Service == service && m.Method == method:
			rank = []int{3, 0}
		default:
			continue
		}
		switch strings.ToLower(m.Authority) {
		case "":
			rank = append(rank, 0)
		case host:
			rank = append(rank, 1)
			if host == authority {
				rank[2] = 2
			}
		case authority:
			rank = append(rank, 2)
		default:
			continue
		}
		if slices.Compare(rank, bestRank) > 0 {
			best, bestRank = &c.Routes[i], rank
		}
	}
	return best
}

// TestRouteAgainstNaive draws services from few and similar names, so that prefixes overlap.
func TestRouteAgainstNaive(t *testing.T) {
	names := rapid.StringMatching(`[ab](\.[abA]){0,4}`)
	authorities := rapid.SampledFrom([]string{"", "x", "X", "x:1", "x:2", "y", "[::1]", "[::1]:1"})
	rapid.Check(t, func(t *rapid.T) {
		c := config.Default()
		seen := map[config.Match]bool{}
		for range rapid.IntRange(0, 30).Draw(t, "routes") {
			m := config.Match{Authority: authorities.Draw(t, "authority")}
			switch rapid.IntRange(0, 3).Draw(t, "kind") {
			case 1:
				m.Service = names.Draw(t, "service")
			case 2:
				m.Service = names.Draw(t, "service") + ".*"
			case 3:
				m.Service, m.Method = names.Draw(t, "service"), rapid.SampledFrom([]string{"M", "N"}).Draw(t, "method")
			}
			key := m
			key.Authority = strings.ToLower(m.Authority)
			if !seen[key] {
				seen[key] = true
				c.Routes = append(c.Routes, config.Route{Match: m})
			}
		}
		table := c.Compile()
		for range 20 {
			authority := authorities.Draw(t, "authority")
			path := "/" + names.Draw(t, "service") + "/" + rapid.SampledFrom([]string{"M", "N", "", "M/N"}).Draw(t, "method")
			if rapid.IntRange(0, 9).Draw(t, "odd") == 0 {
				path = rapid.StringMatching(`[/ab.MN]{0,8}`).Draw(t, "path")
			}
			if got, want := table.Route(authority, path), naive(c, authority, path); got != want {
				t.Fatalf("%s %s goes to %s, want %s", authority, path, describe(got), describe(want))
			}
		}
	})
}

func describe(r *config.Route) string {
	if r == nil {
		return "no route"
	}
	return r.Match.String()
}

func large(t testing.TB) *config.Table {
	var b strings.Builder
	b.WriteString("backends: [{name: a, target: 'a:1'}]\nroutes:\n- {}\n")
	for i := range 300 {
		fmt.Fprintf(&b, "- match: {service: shop.v%d.Orders, method: Watch}\n- match: {service: shop.v%d.Orders}\n- match: {service: shop.v%d.*}\n", i, i, i)
		fmt.Fprintf(&b, "- match: {service: shop.v%d.Orders, authority: orders.example}\n", i)
	}
	return parse(t, b.String()).Compile()
}

var lookups = []struct{ authority, path string }{
	{"orders.example:443", "/shop.v7.Orders/Watch"},
	{"Orders.Example:443", "/shop.v7.Orders/Get"},
	{"orders.example", "/shop.v7.Catalogue/Get"},
	{"orders.example", "/other.Service/Get"},
	{strings.Repeat("a", 300), "/" + strings.Repeat("shop.", 1000) + "/Get"},
	{"", ""},
}

func TestRouteDoesNotAllocate(t *testing.T) {
	table := large(t)
	for _, l := range lookups {
		if n := testing.AllocsPerRun(100, func() {
			if table.Route(l.authority, l.path) == nil {
				t.Fatal("no route")
			}
		}); n != 0 {
			t.Errorf("%.0f allocations for %.40s %.40s", n, l.authority, l.path)
		}
	}
}

func BenchmarkRoute(b *testing.B) {
	table := large(b)
	for _, l := range lookups[:4] {
		b.Run(strings.TrimPrefix(l.path, "/"), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				table.Route(l.authority, l.path)
			}
		})
	}
}
