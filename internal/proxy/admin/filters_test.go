package admin_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/levada-io/levada/internal/proxy/admin"
	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/proxy/observe"
)

// TestFiltersThatCanMatchNothing: a filter with a name that no call can have is refused, with what to try instead. The tap waited without end, and /streams was empty, as if the
// proxy had no calls.
func TestFiltersThatCanMatchNothing(t *testing.T) {
	p := start(t, func(c *config.Config) {
		orders := c.Routes[0]
		orders.Match = config.Match{Service: "shop.Orders", Method: "Watch"}
		c.Routes = append(c.Routes, orders)
	})
	if _, err := p.Client(t).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"/tap", "/streams"} {
		for name, c := range map[string]struct{ query, says string }{
			"a route that there is not":         {"route=shop.Order/Watch", `no route has this name; did you mean "shop.Orders/Watch"?`},
			"a route that is like no other":     {"route=payments", "no route has this name; there are: *, none, shop.Orders/Watch"},
			"a path that the route is not for":  {"route=shop.Orders/Watch&path=/shop.Orders/List", "no call of this path has this route"},
			"an endpoint that is no address":    {"endpoint=orders", "expected host:port or unix:PATH"},
			"an endpoint that no backend has":   {"endpoint=10.1.2.3:4", "no backend has this endpoint; there are: " + p.backend.Address},
			"a reason that there is not":        {"reason=LOST", "is not a reason; expected one of"},
			"a listener, which is no parameter": {"listener=a", "there is no parameter"},
		} {
			if at == "/streams" && strings.HasPrefix(c.query, "reason") {
				continue
			}
			code, text := p.ask(t, http.MethodGet, at+"?"+strings.ReplaceAll(c.query, "*", url.QueryEscape("*")))
			if code != http.StatusBadRequest || !strings.Contains(text, c.says) || strings.Count(text, "\n") != 1 {
				t.Errorf("%s, %s: %d %q", at, name, code, text)
			}
		}
	}
}

// TestFiltersForWhatMayCome: a path that was not called yet is answered, and a note says that nothing has been seen of it, with what is like it.
func TestFiltersForWhatMayCome(t *testing.T) {
	p := start(t, nil)
	if _, err := p.Client(t).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	const note = `no call of \"/grpc.health.v1.Health/Chekc\" has come so far; did you mean \"/grpc.health.v1.Health/Check\"?`
	if code, text := p.ask(t, http.MethodGet, "/streams?path=/grpc.health.v1.Health/Chekc"); code != http.StatusOK || !strings.Contains(text, note) {
		t.Errorf("%d %q", code, text)
	}
	if code, text := p.ask(t, http.MethodGet, "/streams?path=/grpc.health.v1.*&route=*&endpoint="+p.backend.Address); code != http.StatusOK || strings.Contains(text, `"note"`) {
		t.Errorf("%d %q", code, text)
	}
	client, err := admin.NewClient(p.url, "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	got := ""
	client.Note = func(n string) { got = n; cancel() }
	if err := client.Tap(ctx, observe.Filter{Path: "/grpc.health.v1.Health/Chekc"}, func([]byte, *observe.Event) error { return nil }); err != nil {
		t.Error(err)
	}
	if got != strings.ReplaceAll(note, `\"`, `"`) {
		t.Errorf("the tap's note is %q", got)
	}
}
