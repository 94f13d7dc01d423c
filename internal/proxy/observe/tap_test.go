package observe_test

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/observe"
	"github.com/levada-io/levada/internal/proxy/proxytest"
)

func tapOf(t *testing.T) (*observe.Tap, *proxytest.Proxy, *proxytest.Backend) {
	t.Helper()
	backend := proxytest.NewBackend(t)
	p := proxytest.Start(t, proxytest.Config(t, backend.Address, nil), proxy.Options{Logger: slog.New(slog.DiscardHandler)})
	return observe.NewTap(p.Proxy), p, backend
}

func decode(t *testing.T, lines []byte) (all []observe.Event) {
	t.Helper()
	for d := json.NewDecoder(strings.NewReader(string(lines))); ; {
		var e observe.Event
		if err := d.Decode(&e); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatalf("%v in %s", err, lines)
		}
		all = append(all, e)
	}
}

func TestTapFilters(t *testing.T) {
	tap, p, backend := tapOf(t)
	clients := map[string]*observe.TapClient{}
	want := map[string][2]int{} // beginnings and ends
	for name, c := range map[string]struct {
		f            observe.Filter
		began, ended int
	}{
		"all":       {observe.Filter{}, 3, 3},
		"path":      {observe.Filter{Path: proxytest.Method}, 2, 2},
		"prefix":    {observe.Filter{Path: "/grpc.health.v1.*"}, 2, 2},
		"no path":   {observe.Filter{Path: "/grpc.health.v1"}, 0, 0},
		"route":     {observe.Filter{Route: "*"}, 3, 3},
		"no route":  {observe.Filter{Route: "other"}, 0, 0},
		"status":    {observe.Filter{Status: "NOT_FOUND"}, 0, 1},
		"reason":    {observe.Filter{Reason: "backend"}, 0, 3},
		"no reason": {observe.Filter{Reason: "CLIENT_CANCELLED"}, 0, 0},
		"endpoint":  {observe.Filter{Endpoint: backend.Address, Path: proxytest.Method}, 0, 2},
	} {
		clients[name], want[name] = tap.Open(c.f), [2]int{c.began, c.ended}
	}
	client := p.Client(t)
	if _, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: "none"}); status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
	if err := p.Invoke(t, "/a.B/c"); status.Code(err) != codes.Unimplemented {
		t.Fatal(err)
	}
	for name, c := range clients {
		var got [2]int
		if want[name] != got {
			for _, e := range decode(t, c.Next(t.Context(), nil)) {
				switch e.Kind {
				case observe.EventStarted:
					got[0]++
				case observe.EventEnded:
					got[1]++
				}
				if e.Client == "" || e.ID == "" || e.Path == "" || e.Route != "*" || !e.GRPC || !strings.HasPrefix(e.UserAgent, "grpc-go/") {
					t.Errorf("%s: %+v", name, e)
				}
			}
		}
		if got != want[name] {
			t.Errorf("%s: %v beginnings and ends, want %v", name, got, want[name])
		}
	}
	if tap.Clients() != int64(len(clients)) {
		t.Error(tap.Clients())
	}
	for _, c := range clients {
		c.Close()
	}
	if tap.Clients() != 0 {
		t.Error(tap.Clients())
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Invoke(t, "/a.B/d"); status.Code(err) != codes.Unimplemented {
		t.Fatal(err)
	}
	if lines := clients["all"].Next(ended, nil); lines != nil {
		t.Errorf("after the end: %s", lines)
	}
}

// A client that does not read misses events, gets their place and number, and holds up nothing.
func TestTapSlowClient(t *testing.T) {
	tap, p, _ := tapOf(t)
	slow, fast := tap.Open(observe.Filter{}), tap.Open(observe.Filter{})
	defer slow.Close()
	defer fast.Close()
	const calls = 2000
	seen := make(chan [2]int)
	go func() {
		var got [2]int
		for got[1] < calls {
			for _, e := range decode(t, fast.Next(t.Context(), nil)) {
				if e.Kind == observe.EventStarted {
					got[0]++
				} else {
					got[1]++
				}
			}
		}
		seen <- got
	}()
	client := p.Client(t)
	for range calls {
		if _, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	if got := <-seen; got != [2]int{calls, calls} {
		t.Errorf("the fast client saw %v", got)
	}
	events := decode(t, slow.Next(t.Context(), nil))
	last := events[len(events)-1]
	if last.Kind != observe.EventDropped || last.Dropped == 0 || int64(len(events)-1)+last.Dropped != 2*calls || tap.Dropped() != last.Dropped {
		t.Errorf("%d events, then %+v; %d dropped", len(events)-1, last, tap.Dropped())
	}
	if _, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	if events := decode(t, slow.Next(t.Context(), nil)); events[0].Kind == observe.EventDropped {
		t.Errorf("it was told twice: %+v", events)
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name       string
		parse      func(string) (string, error)
		text, want string // of a filter, or of the error
		ok         bool
	}{
		{"path", observe.ParsePath, "", "", true},
		{"path", observe.ParsePath, "*", "*", true},
		{"path", observe.ParsePath, "/shop.Orders/*", "/shop.Orders/*", true},
		{"path", observe.ParsePath, "/shop.Orders/Get", "/shop.Orders/Get", true},
		{"path", observe.ParsePath, "shop.Orders/Get", "expected /service/method", false},
		{"path", observe.ParsePath, "/shop*Get", "expected /service/method", false},
		{"path", observe.ParsePath, "/shop**", "expected /service/method", false},
		{"reason", observe.ParseReason, "", "", true},
		{"reason", observe.ParseReason, "connection_lost", "CONNECTION_LOST", true},
		{"reason", observe.ParseReason, "NOPE", `"NOPE" is not a reason; expected one of: BACKEND, `, false},
		{"status", observe.ParseStatus, "", "", true},
		{"status", observe.ParseStatus, "unavailable", "UNAVAILABLE", true},
		{"status", observe.ParseStatus, "14", "UNAVAILABLE", true},
		{"status", observe.ParseStatus, "99", "CODE(99)", true},
		{"status", observe.ParseStatus, "CODE(99)", "CODE(99)", true},
		{"status", observe.ParseStatus, "CODE(x)", "such as UNAVAILABLE or 14", false},
		{"status", observe.ParseStatus, "-1", "such as UNAVAILABLE or 14", false},
	} {
		got, err := c.parse(c.text)
		if err != nil {
			got = err.Error()
		}
		if (err == nil) != c.ok || c.ok && got != c.want || !strings.Contains(got, c.want) {
			t.Errorf("%s %q: %q, %v; want %q", c.name, c.text, got, err, c.want)
		}
	}
}
