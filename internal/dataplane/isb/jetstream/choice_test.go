package jetstream

import (
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/testnats"
	"github.com/levada-io/levada/internal/testserver"
)

// opened opens all that a pipeline stores as one process does, with as many replicas as given, and returns how many each stream has. The log is that of the process.
func opened(t *testing.T, url, pipeline string, given int) (replicas map[string]int, log *lines) {
	t.Helper()
	log = &lines{}
	logger := slog.New(slog.NewTextHandler(log, nil))
	s, err := Connect(t.Context(), Config{URL: url, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	owner := naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: pipeline}
	store, err := isb.Retry(t.Context(), s, logger, "the store", func(ctx context.Context) (isb.Store, error) {
		return s.Open(ctx, isb.Request{Owner: owner, Vertices: []string{"delta"}, Replicas: given, Logger: logger})
	})
	if err != nil {
		t.Fatal(err)
	}
	letters, err := isb.Retry(t.Context(), s, logger, "dead letters", store.DeadLetters)
	if err != nil {
		t.Fatal(err)
	}
	if err := letters.Put(t.Context(), "delta", &flow.Message{ID: "1", Value: make([]byte, 2<<20)}, &deadletter.Failure{}); err != nil { // larger than a message: it needs the object store
		t.Fatal(err)
	}
	driver, err := isb.Retry(t.Context(), s, logger, "the buffer", func(ctx context.Context) (buffer.Driver, error) {
		return store.OpenPartition(ctx, "delta", 0, isb.Settings{Logger: logger})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer driver.Close()
	store.LogChanges()
	replicas = map[string]int{}
	for _, name := range []string{owner.Buffer("delta", 0), owner.DeadLetters(), naming.KVStream(owner.State()), naming.ObjectStream(naming.Payloads(owner.DeadLetters()))} {
		stream, err := s.js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		replicas[name] = stream.CachedInfo().Config.Replicas
	}
	return replicas, log
}

// all fails the test if a stream has another number of replicas.
func all(t *testing.T, replicas map[string]int, want int) {
	t.Helper()
	for stream, n := range replicas {
		if n != want {
			t.Errorf("stream %s has %d replicas, want %d", stream, n, want)
		}
	}
}

const singleLine = "streams have one replica in a cluster"

// TestReplicasAreChosen: what is created has three replicas where a cluster can keep three, and one elsewhere. What exists keeps its own, and a line says where these are fewer.
func TestReplicasAreChosen(t *testing.T) {
	three := testnats.NewCluster(t, 3)
	t.Run("three servers", func(t *testing.T) {
		replicas, log := opened(t, three.URL(), "chosen", 0)
		all(t, replicas, 3)
		if strings.Contains(log.String(), "replica") {
			t.Error(log)
		}
	})
	t.Run("what exists is kept", func(t *testing.T) {
		replicas, log := opened(t, three.URL(), "kept", 1)
		all(t, replicas, 1)
		if n := strings.Count(log.String(), singleLine); n != 1 {
			t.Errorf("%d lines: %s", n, log)
		}
		replicas, log = opened(t, three.URL(), "kept", 0)
		all(t, replicas, 1)
		if n := strings.Count(log.String(), singleLine); n != 1 || !strings.Contains(log.String(), "--replicas 3") || !strings.Contains(log.String(), "KV_levada") {
			t.Errorf("%d lines: %s", n, log)
		}
		replicas, log = opened(t, three.URL(), "kept", 3)
		all(t, replicas, 3)
		if !strings.Contains(log.String(), "replicas changed") || strings.Contains(log.String(), singleLine) {
			t.Error(log)
		}
		replicas, log = opened(t, three.URL(), "kept", 0)
		all(t, replicas, 3)
		if strings.Contains(log.String(), "replica") {
			t.Error(log)
		}
	})
	t.Run("a server is down", func(t *testing.T) {
		three.Servers[1].Stop(testserver.Killed)
		defer three.Servers[1].Start()
		replicas, _ := opened(t, three.URL(), "down", 0)
		all(t, replicas, 3)
	})
	t.Run("an account without limits for three", func(t *testing.T) {
		small := testnats.NewCluster(t, 3, testnats.JetStream("sync_interval: always\nlimits { max_ha_assets: 1 }"))
		replicas, log := opened(t, small.URL(), "assets", 0)
		one := 0
		for _, n := range replicas {
			if n == 1 {
				one++
			}
		}
		if one == 0 || !strings.Contains(log.String(), singleLine) || !strings.Contains(log.String(), "no suitable peers") {
			t.Errorf("%v: %s", replicas, log)
		}
	})
	t.Run("two servers", func(t *testing.T) {
		two := testnats.NewCluster(t, 2)
		replicas, log := opened(t, two.URL(), "two", 0)
		all(t, replicas, 1)
		if !strings.Contains(log.String(), singleLine) || !strings.Contains(log.String(), "no suitable peers") || !strings.Contains(log.String(), "three servers") {
			t.Error(log)
		}
	})
	t.Run("a single server", func(t *testing.T) {
		replicas, log := opened(t, testnats.Server(t).DSN(), "single", 0)
		all(t, replicas, 1)
		if strings.Contains(log.String(), "replica") {
			t.Error(log)
		}
	})
}

const settingsShown = `
server_tags: ["az:a", "disk:ssd"]
accounts {
  SYS { users: [{user: sys, password: sys}], exports: [{service: "$SYS.REQ.SERVER.PING.JSZ", response_type: stream}] }
  A { jetstream { max_streams: 2 }, users: [{user: u, password: p}], imports: [{service: {account: SYS, subject: "$SYS.REQ.SERVER.PING.JSZ"}}] }
}
system_account: SYS
max_payload: 65536
`

// TestRisksOfABrokerAreLogged: a line names each thing in which a broker falls short, with the setting to change, as far as a user can see it; a broker without risks has none.
func TestRisksOfABrokerAreLogged(t *testing.T) {
	logged := func(t *testing.T, url string, login ...string) string {
		t.Helper()
		log := &lines{}
		s, err := Connect(t.Context(), Config{URL: url, Logger: slog.New(slog.NewTextHandler(log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		warnOfRisks(t.Context(), s.conn, s.js, s.link.URL, s.watch.log)
		if err := s.link.Refused(); err != nil {
			t.Error(err)
		}
		return log.String()
	}
	t.Run("none", func(t *testing.T) {
		if log := logged(t, testnats.Server(t).DSN()); log != "" {
			t.Error(log)
		}
	})
	t.Run("a user that may not ask", func(t *testing.T) {
		s := testnats.Server(t, testnats.Login("lark:song"),
			testnats.Settings(`authorization { users: [ { user: lark, password: song, permissions: { publish: ["$JS.API.>"], subscribe: ["_INBOX.>"] } } ] }`))
		if log := logged(t, s.DSN()); log != "" {
			t.Error(log)
		}
	})
	t.Run("all", func(t *testing.T) {
		c := testnats.NewCluster(t, 3, testnats.Settings(settingsShown), testnats.Login("u:p"), testnats.JetStream("sync_interval: 30s"))
		js := c.Connect()
		for _, name := range []string{"mine", "yours"} {
			if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: []string{name}}); err != nil {
				t.Fatal(err)
			}
		}
		log := logged(t, c.URL())
		for _, want := range []string{"max_payload is 65536", "has 2 of its 2 streams", "n1, n2, n3: sync_interval is 30s", "sync_interval: always", "on the host 127.0.0.1", "have the tag az:a", "unique_tag"} {
			if n := strings.Count(log, want); n != 1 {
				t.Errorf("%d lines with %q", n, want)
			}
		}
		if n := strings.Count(log, "\n"); n != 5 {
			t.Errorf("%d lines, want 5", n)
		}
		if t.Failed() {
			t.Log(log)
		}
	})
}
