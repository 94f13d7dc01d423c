package discovery

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quiet are options for tests.
func quiet(o Options) Options {
	o.Logger = slog.New(slog.DiscardHandler)
	return o
}

// follow runs a source until the test ends. Each list it finds comes out of the channel.
func follow(t *testing.T, target string, o Options) (Source, <-chan []string) {
	t.Helper()
	source, err := New(target, quiet(o))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	lists := make(chan []string, 1000)
	ended := make(chan error, 1)
	go func() { ended <- source.Run(ctx, func(endpoints []string) { lists <- endpoints }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return source, lists
}

// next checks the list that comes next.
func next(t *testing.T, lists <-chan []string, want ...string) {
	t.Helper()
	select {
	case got := <-lists:
		if diff := cmp.Diff(append([]string{}, want...), append([]string{}, got...)); diff != "" {
			t.Fatal(diff)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("no list came, want %v", want)
	}
}

// eventually waits for what another goroutine does.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !check(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestTargets(t *testing.T) {
	kubernetes := func(s Service, _ Options) (Source, error) {
		if s.Name == "refused" {
			return nil, errors.New("no cluster")
		}
		return &static{target: s.String()}, nil
	}
	for _, target := range []string{
		"localhost:1", "10.0.0.1:9000,[::1]:9000", "a:1, b:2", "dns:///orders:9000", "dns:///orders.shop.svc.cluster.local.:9000", "dns:///10.0.0.1:80",
		"dns+srv:///_grpc._tcp.orders.shop.svc", "file:///etc/endpoints", "kubernetes:///shop/orders:grpc", "kubernetes:///shop/orders:9000",
	} {
		source, err := New(target, Options{Kubernetes: kubernetes})
		if err != nil {
			t.Errorf("%s: %v", target, err)
		} else if source.String() != target {
			t.Errorf("%s calls itself %s", target, source)
		}
	}
	for _, c := range []struct{ target, want string }{
		{"", "there is not host:port; expected host:port[,host:port...], unix:PATH, dns:///"},
		{"localhost", `"localhost" has no port, as in localhost:9000`},
		{"localhost:0", `the port "0" of "localhost:0" is not a number from 1 to 65535`},
		{"localhost:70000", "the port"},
		{"localhost:http", "the port"},
		{":9000", `"" of ":9000" is neither a host name nor an IP address`},
		{"::1:9000", "must be in brackets"},
		{"::1", "must be in brackets"},
		{"2001:db8:0:0:0:0:0:1:9000", "must be in brackets"},
		{"x:y:z", `"x:y:z" is not host:port; expected`},
		{"a:1:2", `"a:1:2" is not host:port; expected`},
		{"[::1]", "not host:port"},
		{"[::g]:80", "neither a host name nor an IP address"},
		{"10.0.0.256:80", "neither a host name nor an IP address"},
		{"a:1,,b:2", "there is not host:port"},
		{"a b:1", "neither"},
		{"dns:orders:80", `"dns:orders:80" is not host:port; expected host:port`},
		{"http://orders:80", `the scheme "http" is not known: expected host:port`},
		{"dns://orders:80", "must begin with a third slash, as in dns:///host:port"},
		{"dns://8.8.8.8/orders:80", "must begin with a third slash, as in dns:///host:port"},
		{"dns:///orders", `"orders" has no port, as in orders:9000; expected dns:///host:port`},
		{"dns:///a:1,b:1", `"a:1,b:1" is a list, and there can be only one host:port here; expected dns:///host:port`},
		{"dns:///x:y:z", `"x:y:z" is not host:port; expected dns:///host:port`},
		{"dns+srv:///", "expected dns+srv:///name"},
		{"dns+srv:///_grpc._tcp.orders:80", "is not a name of service records"},
		{"file://etc/endpoints", "as in file:///path"},
		{"file:///", "the path of a file is missing"},
		{"kubernetes:///orders:80", `the namespace is missing; expected kubernetes:///namespace/service:port`},
		{"kubernetes:////orders:80", "the namespace is missing"},
		{"kubernetes:///Shop/orders:80", `"Shop" is not a namespace name`},
		{"kubernetes:///a", `the service is missing; expected kubernetes:///namespace/service:port`},
		{"kubernetes:///", "the namespace is missing"},
		{"kubernetes:///shop/orders", "the port is missing"},
		{"kubernetes:///shop/orders:0", "the port"},
		{"kubernetes:///shop/orders:99999", "the port"},
		{"kubernetes:///shop/orders:GRPC", "neither a number nor the name of a port"},
		{"kubernetes:///shop/:80", "the service is missing"},
		{"kubernetes:///shop/a_b:80", `"a_b" is not a service name`},
		{"kubernetes:///shop/refused:80", "no cluster"},
	} {
		_, err := New(c.target, Options{Kubernetes: kubernetes})
		if err == nil {
			t.Errorf("%q: no error", c.target)
		} else if !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), `target "`+c.target+`": `) {
			t.Errorf("%q: the error is %q, want one with %q", c.target, err, c.want)
		}
	}
	if _, err := New("kubernetes:///shop/orders:80", Options{}); err == nil || !strings.Contains(err.Error(), "built without the client of Kubernetes") {
		t.Errorf("without Kubernetes: %v", err)
	}
}

func TestStatic(t *testing.T) {
	source, lists := follow(t, "B.example.com.:80,[2001:DB8:0::1]:080,a:1,a:1", Options{})
	next(t, lists, "[2001:db8::1]:80", "a:1", "b.example.com:80")
	if status := source.Status(); !status.Known || status.Endpoints != 3 || status.Failing || status.LastSuccess.IsZero() {
		t.Errorf("%+v", status)
	}
}

// What fails again and again is logged once, until it works or fails in another way.
func TestTrackerLogs(t *testing.T) {
	var log bytes.Buffer
	tracker := NewTracker("dns:///orders:80", slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})))
	none := func([]string) {}
	tracker.Fail(errors.New("read udp 10.0.0.1:40001: timeout"))
	tracker.Fail(errors.New("read udp 10.0.0.1:50002: timeout"))
	tracker.Fail(errors.New("refused"))
	tracker.Succeed([]string{"a:1"}, none)
	tracker.Succeed([]string{"a:1"}, none)
	tracker.Fail(errors.New("refused"))
	want := `level=WARN msg="endpoints could not be found or confirmed" target=dns:///orders:80 known=0 error="read udp 10.0.0.1:40001: timeout"
level=WARN msg="endpoints could not be found or confirmed" target=dns:///orders:80 known=0 error=refused
level=INFO msg="endpoints can be found again" target=dns:///orders:80
level=WARN msg="endpoints could not be found or confirmed" target=dns:///orders:80 known=1 error=refused
`
	if diff := cmp.Diff(want, log.String()); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseEndpoint(f *testing.F) {
	for _, s := range []string{"a:1", "[::1]:80", "[fe80::1%eth0]:80", "10.0.0.1:65535", ":", "[", "a:1:2", "ä:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		endpoint, err := ParseEndpoint(s)
		if err != nil {
			return
		}
		if again, err := ParseEndpoint(endpoint); err != nil || again != endpoint {
			t.Errorf("%q is %q, and that is %q, %v", s, endpoint, again, err)
		}
	})
}
