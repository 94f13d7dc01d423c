//go:build unix

package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/levada-io/levada/internal/dataplane/redislink"
	"github.com/levada-io/levada/internal/dataplane/shard"
	"github.com/levada-io/levada/internal/dataplane/shard/redisstore"
	"github.com/levada-io/levada/internal/dataplane/shard/storetest"
	"github.com/levada-io/levada/internal/testredis"
	"github.com/levada-io/levada/internal/testserver"
)

func TestMain(m *testing.M) {
	// The client library tries once a second to reach a server that is gone, and notices only then that it was closed.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/redis/go-redis/v9/internal/pool.(*ConnPool).tryDial"))
}

var places atomic.Int32

// dial connects to servers for the time of a test.
func dial(t *testing.T, url string) *redislink.Link {
	t.Helper()
	a, err := redislink.ParseAddress(url)
	must(t, err)
	link, err := redislink.Dial(t.Context(), redislink.Config{Address: a})
	must(t, err)
	t.Cleanup(func() { _ = link.Close() })
	return link
}

// create returns a store without records.
func create(t *testing.T, link *redislink.Link) *redisstore.Store {
	t.Helper()
	prefix := fmt.Sprintf("levada:{place%d}:", places.Add(1))
	must(t, link.Client.HSet(t.Context(), prefix+"place", "revision", 0).Err())
	return redisstore.New(link, redisstore.Keys{Place: prefix + "place", Values: prefix + "values", Prefix: prefix + "shards"})
}

// watched is a store whose watches have ended before the connection is closed.
type watched struct {
	*redisstore.Store
	watches sync.WaitGroup
}

func (w *watched) Watch(ctx context.Context, prefix string, deliver func(shard.Entry), synced func()) error {
	w.watches.Add(1)
	defer w.watches.Done()
	return w.Store.Watch(ctx, prefix, deliver, synced)
}

func createWatched(t *testing.T, link *redislink.Link) shard.Store {
	w := &watched{Store: create(t, link)}
	t.Cleanup(w.watches.Wait)
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	link := dial(t, testredis.Server(t).DSN())
	storetest.Run(t, storetest.Options{Expires: true}, func(t *testing.T) shard.Store { return createWatched(t, link) })
}

func TestConformanceOnCluster(t *testing.T) {
	link := dial(t, testredis.NewCluster(t, 3, false).URL())
	storetest.Run(t, storetest.Options{Expires: true}, func(t *testing.T) shard.Store { return createWatched(t, link) })
}

// until calls do until it succeeds: a server comes back, or is replaced.
func until(t *testing.T, what string, do func(context.Context) error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err := do(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// A server that is killed and started again loses nothing that it acknowledged, and its revisions are those of another history all the same: a writer that knows the old
// one is refused, reads its record and goes on.
func TestRecordsSurviveARestartUnderLaterRevisions(t *testing.T) {
	server := testredis.Server(t)
	link := dial(t, server.DSN())
	s := create(t, link)
	session, err := s.Write(t.Context(), "shards.v.member.a", []byte("session"), 0, time.Minute)
	must(t, err)
	lease, err := s.Write(t.Context(), "shards.v.lease.p0", []byte("lease"), 0, 0)
	must(t, err)
	server.Restart(testserver.Killed)
	until(t, "write over a revision of before the restart", func(ctx context.Context) error {
		_, err := s.Write(ctx, "shards.v.member.a", []byte("x"), session, time.Minute)
		if errors.Is(err, shard.ErrConflict) {
			return nil
		}
		return fmt.Errorf("it is not refused: %w", err)
	})
	member, err := s.Read(t.Context(), "shards.v.member.a")
	must(t, err)
	owned, err := s.Read(t.Context(), "shards.v.lease.p0")
	must(t, err)
	if string(member.Value) != "session" || string(owned.Value) != "lease" {
		t.Errorf("after the restart: %+v, %+v", member, owned)
	}
	if member.Revision <= lease || owned.Revision <= member.Revision {
		t.Errorf("revisions %d and %d became %d and %d: they must be later, in the same order", session, lease, member.Revision, owned.Revision)
	}
	_, err = s.Write(t.Context(), "shards.v.member.a", []byte("renewed"), member.Revision, time.Minute)
	must(t, err)
}

// A replica that lacks the last writes becomes the master: the member whose announcement and claim are lost learns that it has no session, by a revision that is later than what it knows, and the
// other one keeps its own. No revision is given twice.
func TestFailoverThatLosesWritesEndsTheSessionsThatItLost(t *testing.T) {
	servers := testredis.NewSentinel(t)
	link := dial(t, servers.URL())
	s := create(t, link)
	kept, err := s.Write(t.Context(), "shards.v.member.kept", []byte("1"), 0, time.Minute)
	must(t, err)
	servers.WaitSynced()
	// The replica gets nothing of what comes from now on; the master does not wait for it.
	servers.Servers[1].Freeze()
	must(t, dial(t, servers.Servers[0].DSN()).Client.Do(t.Context(), "client", "kill", "type", "replica").Err())
	lost, err := s.Write(t.Context(), "shards.v.member.lost", []byte("1"), 0, time.Minute)
	must(t, err)
	claim, err := s.Write(t.Context(), "shards.v.lease.p0", []byte("1"), 0, 0)
	must(t, err)
	servers.Servers[0].Stop(testserver.Killed)
	servers.Servers[1].Thaw()
	until(t, "the replica becomes the master", func(ctx context.Context) error {
		_, err := s.Read(ctx, "shards.v.member.kept")
		return err
	})
	for key, known := range map[string]uint64{"shards.v.member.lost": lost, "shards.v.lease.p0": claim} {
		e, err := s.Read(t.Context(), key)
		must(t, err)
		if e.Present {
			t.Fatalf("%s reached the replica", key)
		}
		if e.Revision <= known {
			t.Errorf("%s is not there at revision %d, and was written at %d: its owner would take that for an older state", key, e.Revision, known)
		}
	}
	e, err := s.Read(t.Context(), "shards.v.member.kept")
	must(t, err)
	if !e.Present || e.Revision <= max(kept, claim) {
		t.Errorf("the session that the replica had is %+v, after revision %d", e, claim)
	}
	if _, err := s.Write(t.Context(), "shards.v.member.lost", []byte("2"), lost, time.Minute); !errors.Is(err, shard.ErrConflict) {
		t.Errorf("renewal of a session that was lost: %v", err)
	}
	again, err := s.Write(t.Context(), "shards.v.lease.p0", []byte("2"), 0, 0)
	must(t, err)
	if again <= claim {
		t.Errorf("the lease is claimed at revision %d a second time, after %d", again, claim)
	}
}

// A watch that goes on while the server is restarted delivers what comes then.
func TestWatchBegunAgainAfterARestartDeliversAll(t *testing.T) {
	server := testredis.Server(t)
	link := dial(t, server.DSN())
	s := create(t, link)
	first, err := s.Write(t.Context(), "shards.v.member.a", []byte("1"), 0, time.Minute)
	must(t, err)
	entries := make(chan shard.Entry, 1000)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = s.Watch(ctx, "shards.v.", func(e shard.Entry) { entries <- e }, func() {})
		}
	}()
	defer func() { stop(); <-done }()
	wait := func(value string) shard.Entry {
		t.Helper()
		for {
			select {
			case e := <-entries:
				if string(e.Value) == value {
					return e
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("the watch does not deliver %q", value)
			}
		}
	}
	if e := wait("1"); e.Revision != first {
		t.Errorf("revision %d, want %d", e.Revision, first)
	}
	server.Restart(testserver.Killed)
	e := wait("1") // with its revision in the new history
	if e.Revision <= first {
		t.Errorf("after the restart the revision is %d, before it was %d", e.Revision, first)
	}
	_, err = s.Write(t.Context(), "shards.v.member.a", []byte("2"), e.Revision, time.Minute)
	must(t, err)
	wait("2")
}
