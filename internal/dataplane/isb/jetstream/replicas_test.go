package jetstream

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/testnats"
	"github.com/levada-io/levada/internal/testserver"
)

func TestReplicationOfAStream(t *testing.T) {
	peer := func(name string, current, offline bool, active time.Duration, lag uint64) *jetstream.PeerInfo {
		return &jetstream.PeerInfo{Name: name, Current: current, Offline: offline, Active: active, Lag: lag}
	}
	healthy := peer("n2", true, false, time.Second, 0)
	for name, c := range map[string]struct {
		leader   string
		peers    []*jetstream.PeerInfo
		before   replication
		problem  string
		stopped  bool
		askAgain bool
	}{
		"healthy":                               {"n1", []*jetstream.PeerInfo{healthy, peer("n3", true, false, 0, 0)}, replication{}, "", false, false},
		"one copy":                              {"n1", nil, replication{}, "", false, false},
		"one of three is offline":               {"n1", []*jetstream.PeerInfo{healthy, peer("n3", true, true, 0, 0)}, replication{}, "offline: n3; the loss of another server stops it", false, true},
		"one of three was not heard from":       {"n1", []*jetstream.PeerInfo{healthy, peer("n3", true, false, time.Minute, 0)}, replication{}, "offline: n3; the loss of another server stops it", false, true},
		"one of five is offline":                {"n1", []*jetstream.PeerInfo{healthy, peer("n3", true, true, 0, 0), peer("n4", true, false, 0, 0), peer("n5", true, false, 0, 0)}, replication{}, "offline: n3", false, true},
		"two of three are offline":              {"n1", []*jetstream.PeerInfo{peer("n3", false, true, 0, 9), peer("n2", false, true, 0, 9)}, replication{}, "the majority of its replicas is down: n2, n3. Messages wait until they are back", true, true},
		"a replica lags, once":                  {"n1", []*jetstream.PeerInfo{healthy, peer("n3", false, false, 0, 900)}, replication{}, "", false, true},
		"a replica lags, again":                 {"n1", []*jetstream.PeerInfo{healthy, peer("n3", false, false, time.Second, 900)}, replication{replicas: 3, lagging: []string{"n3"}}, "behind its leader: n3", false, true},
		"a replica is back, and lags":           {"n1", []*jetstream.PeerInfo{healthy, peer("n3", false, false, time.Second, 900)}, replication{replicas: 3, offline: []string{"n3"}}, "behind its leader: n3", false, true},
		"a new leader has not heard from one":   {"n1", []*jetstream.PeerInfo{healthy, peer("n3", false, false, 0, 900)}, replication{replicas: 3, lagging: []string{"n3"}}, "offline: n3; the loss of another server stops it", false, true},
		"nor in the answer after that":          {"n1", []*jetstream.PeerInfo{healthy, peer("n3", false, false, 0, 900)}, replication{replicas: 3, offline: []string{"n3"}}, "offline: n3; the loss of another server stops it", false, true},
		"a leader again, and one is not back":   {"n1", []*jetstream.PeerInfo{healthy, peer("n3", false, false, 0, 900)}, replication{replicas: 3, unanswered: maxUnanswered}, "offline: n3; the loss of another server stops it", false, true},
		"a new replica that has nothing left":   {"n1", []*jetstream.PeerInfo{healthy, peer("n3", false, false, 0, 0)}, replication{}, "", false, false},
		"no leader, once":                       {"", []*jetstream.PeerInfo{healthy, peer("n3", true, false, 0, 0)}, replication{}, "", false, true},
		"no leader, and all are called offline": {"", []*jetstream.PeerInfo{peer("n1", false, true, 0, 0), peer("n2", false, true, 0, 0), peer("n3", false, true, 0, 0)}, replication{replicas: 3}, "", false, true},
		"no leader, again": {"", []*jetstream.PeerInfo{healthy, peer("n3", true, false, 0, 0)}, replication{unanswered: 1},
			"it has no leader: its server, or the majority of its replicas, is down. Messages wait until they are back", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := replicationOf(&jetstream.StreamInfo{Cluster: &jetstream.ClusterInfo{Leader: c.leader, Replicas: c.peers}}, c.before)
			if r.problem() != c.problem || r.stopped() != c.stopped || r.unsettled() != c.askAgain {
				t.Errorf("%q, stopped: %v, asked again soon: %v", r.problem(), r.stopped(), r.unsettled())
			}
		})
	}
}

// TestStreamsOfAClusterAreWatched: servers of a cluster stop one by one and come back. What is missing is named, and the process is not usable exactly while nothing can be stored.
func TestStreamsOfAClusterAreWatched(t *testing.T) {
	c := testnats.NewCluster(t, 3)
	log := &lines{}
	s, err := Connect(t.Context(), Config{URL: c.URL(), Logger: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	owner := naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: "rivers"}
	store, err := isb.Retry(t.Context(), s, slog.New(slog.DiscardHandler), "the store", func(ctx context.Context) (isb.Store, error) {
		return s.Open(ctx, isb.Request{Owner: owner, Vertices: []string{"delta"}, Replicas: 3})
	})
	if err != nil {
		t.Fatal(err)
	}
	driver, err := store.OpenPartition(t.Context(), "delta", 0, isb.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	defer driver.Close()
	stream, err := store.Stream(t.Context(), "delta", 0)
	if err != nil {
		t.Fatal(err)
	}
	await := func(what string, is func(usable string, degraded []error) bool) {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
			s.watch.askNow()
			usable := ""
			if err := s.Usable(t.Context()); err != nil {
				usable = err.Error()
			}
			if is(usable, s.Degraded()) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s does not come. Usable: %s, degraded: %v, log:\n%s", what, usable, s.Degraded(), log)
			}
		}
	}
	names := func(all []error, what ...string) bool {
		for _, err := range all {
			ok := true
			for _, w := range what {
				ok = ok && strings.Contains(err.Error(), w)
			}
			if ok {
				return true
			}
		}
		return false
	}
	await("health", func(usable string, degraded []error) bool {
		return usable == "" && len(degraded) == 0 && s.watch.asked(stream)
	})
	first := c.Leader(stream) // the next leader has never heard from it
	c.Servers[first].Stop(testserver.Killed)
	await("the first loss", func(usable string, degraded []error) bool {
		return usable == "" && names(degraded, "stream "+stream, "offline: n"+string(rune('1'+first)), "another server stops it")
	})
	second := (first + 1) % 3
	c.Servers[second].Stop(testserver.Killed)
	await("the loss of the majority", func(usable string, _ []error) bool { return strings.Contains(usable, "stream "+stream) })
	for _, wrong := range []string{"again\" stream=" + stream, "n1, n2, n3"} {
		if strings.Contains(log.String(), wrong) {
			t.Errorf("%s is logged while one server runs:\n%s", wrong, log)
		}
	}
	c.Servers[first].Start()
	c.Servers[second].Start()
	await("recovery", func(usable string, degraded []error) bool { return usable == "" && len(degraded) == 0 })
	for _, want := range []string{"level=WARN msg=\"stream lacks replicas\" stream=" + stream, "level=ERROR msg=\"stream is stopped\" stream=" + stream, "msg=\"stream has all its replicas again\" stream=" + stream} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no line %s in the log:\n%s", want, log)
		}
	}
}

// asked reports whether there was an answer about a stream.
func (w *watch) asked(stream string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.streams[stream].replicas > 0
}

// lines is a log.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
