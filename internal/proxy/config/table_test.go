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
- match: {authority: "*.example.com"}
- match: {authority: "*.example.com:8443"}
- match: {authority: "*.a.example.com"}
- match: {authority: shop.example.com}
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
		{"shop.example.com", "/x.Y/Z", "*@shop.example.com"},
		{"a.example.com", "/x.Y/Z", "*@*.example.com"},
		{"b.A.EXAMPLE.com:80", "/x.Y/Z", "*@*.a.example.com"},
		{"a.example.com:8443", "/x.Y/Z", "*@*.example.com:8443"},
		{"example.com", "/x.Y/Z", "*"},
		{".example.com", "/x.Y/Z", "*"},
		{"aexample.com", "/x.Y/Z", "*"},
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

// TestMatchProblems: a match that nothing could meet is refused with the reason.
func TestMatchProblems(t *testing.T) {
	for text, want := range map[string]string{
		"routes: [{match: {authority: '*'}}]":                                                                 "leave the field away",
		"routes: [{match: {authority: 'a.*'}}]":                                                               "routes[0].match.authority",
		"routes: [{match: {authority: '*.*.com'}}]":                                                           "the end of a host",
		"routes: [{match: {authority: '*com'}}]":                                                              "the end of a host",
		"routes: [{match: {authority: '*.10.0.0.1'}}]":                                                        "the end of a host",
		"routes: [{match: {listener: public}}]":                                                               "give the listener a name",
		"{routes: [{}, {match: {listener: pubic}}], listeners: [{name: public, address: ':1'}]}":              "did you mean public",
		"{routes: [{match: {listener: a}}], listeners: [{name: a, address: ':1'}, {name: b, address: ':2'}]}": "listeners[1]: has no route",
		"{routes: [{}], listeners: [{name: a, address: ':1'}, {name: a, address: ':2'}]}":                     "listeners[1].name",
		"routes: [{match: {authority: '*.A.com'}}, {match: {authority: '*.a.com'}}]":                          "can never match",
	} {
		text := strings.TrimSuffix(strings.TrimPrefix(text, "{"), "}")
		text = strings.Replace(text, ", listeners: ", "\nlisteners: ", 1)
		_, err := config.Parse("p.yaml", []byte("backends: [{name: a, target: 'h:1'}]\n"+text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one error with %q", text, err, want)
		}
	}
}

// naive looks at every route, and keeps the best.
func naive(c *config.Config, listener, authority, path string) *config.Route {
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
		a := strings.ToLower(m.Authority)
		end, isEnd := strings.CutPrefix(a, "*")
		switch {
		case a == "":
			rank = append(rank, 0, 0)
		case a == authority:
			rank = append(rank, 3, 0)
		case a == host:
			rank = append(rank, 2, 0)
		case isEnd && strings.HasSuffix(authority, end) && len(authority) > len(end):
			rank = append(rank, 1, 2*strings.Count(end, ".")+1) // with the port
		case isEnd && strings.HasSuffix(host, end) && len(host) > len(end):
			rank = append(rank, 1, 2*strings.Count(end, "."))
		default:
			continue
		}
		switch m.Listener {
		case "":
			rank = append(rank, 0)
		case listener:
			rank = append(rank, 1)
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
	authorities := rapid.SampledFrom([]string{"", "x", "X", "x:1", "x:2", "y", "[::1]", "[::1]:1", "a.x", "b.a.X:1", ".x", "c.b.a.x:2"})
	matches := rapid.SampledFrom([]string{"", "x", "X", "x:1", "x:2", "y", "[::1]", "[::1]:1", "a.x", "*.x", "*.A.x", "*.x:1", "*.a.x:2"})
	listeners := rapid.SampledFrom([]string{"", "one", "two"})
	rapid.Check(t, func(t *rapid.T) {
		c := config.Default()
		seen := map[config.Match]bool{}
		for range rapid.IntRange(0, 30).Draw(t, "routes") {
			m := config.Match{Authority: matches.Draw(t, "match"), Listener: listeners.Draw(t, "listener")}
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
		others, named := c.CompileAll()
		for range 20 {
			listener, table := listeners.Draw(t, "at"), others
			if own := named[listener]; own != nil {
				table = own
			}
			authority := authorities.Draw(t, "authority")
			path := "/" + names.Draw(t, "service") + "/" + rapid.SampledFrom([]string{"M", "N", "", "M/N"}).Draw(t, "method")
			if rapid.IntRange(0, 9).Draw(t, "odd") == 0 {
				path = rapid.StringMatching(`[/ab.MN]{0,8}`).Draw(t, "path")
			}
			if got, want := table.Route(authority, path), naive(c, listener, authority, path); got != want {
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
