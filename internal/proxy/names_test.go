package proxy

import "testing"

// TestOverlap: a filter for a route and a path is refused only if no path can pass both.
func TestOverlap(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"*", "/shop.Orders/Watch", true}, {"/shop.Orders/*", "/shop.Orders/Watch", true}, {"/shop.Orders/*", "/shop.Order/Watch", false},
		{"/shop.*", "/shop.Orders/*", true}, {"/shop.Orders/*", "/shop.*", true}, {"/shop.Orders/Watch", "/shop.Orders/Watch", true}, {"/shop.Orders/Watch", "/shop.Orders/List", false},
		{"/shop.Orders/Watch", "/shop.Orders/L*", false}, {"/a/*", "/b/*", false}, {"/a/*", "", true}, {"/a/B", "*", true},
	} {
		if got := overlap(c.a, c.b); got != c.want {
			t.Errorf("%q and %q: %v", c.a, c.b, got)
		}
		if got := overlap(c.b, c.a); got != c.want {
			t.Errorf("%q and %q: %v", c.b, c.a, got)
		}
	}
}
