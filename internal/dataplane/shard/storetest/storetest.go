// Package storetest is the suite that every store of shards must pass.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/shard"
)

// Options say what a store can do.
type Options struct {
	// Expires says that it removes records after their TTL.
	Expires bool
}

// Run runs the suite. open returns a store without records.
func Run(t *testing.T, opt Options, open func(t *testing.T) shard.Store) {
	t.Run("a compare-and-set sees every write before it", func(t *testing.T) { compareAndSet(t, open(t)) })
	t.Run("revisions ascend over all keys", func(t *testing.T) { ascend(t, open(t)) })
	t.Run("a watch delivers all that is there and all that comes", func(t *testing.T) { watch(t, open(t)) })
	if opt.Expires {
		t.Run("a record that is renewed lives, one that is not expires", func(t *testing.T) { expire(t, open(t)) })
	}
}

func compareAndSet(t *testing.T, s shard.Store) {
	ctx := t.Context()
	first, err := s.Write(ctx, "g.k", []byte("1"), 0, 0)
	must(t, err)
	if _, err := s.Write(ctx, "g.k", []byte("2"), 0, 0); !errors.Is(err, shard.ErrConflict) {
		t.Errorf("write of a key that exists, as a new one: %v", err)
	}
	second, err := s.Write(ctx, "g.k", []byte("2"), first, 0)
	must(t, err)
	if _, err := s.Write(ctx, "g.k", []byte("3"), first, 0); !errors.Is(err, shard.ErrConflict) {
		t.Errorf("write over an older revision: %v", err)
	}
	if _, err := s.Remove(ctx, "g.k", first); !errors.Is(err, shard.ErrConflict) {
		t.Errorf("removal of an older revision: %v", err)
	}
	removed, err := s.Remove(ctx, "g.k", second)
	must(t, err)
	if e, err := s.Read(ctx, "g.k"); err != nil || e.Present || e.Revision != removed && e.Revision != 0 {
		t.Errorf("after its removal the key is %+v, %v", e, err)
	}
	if _, err := s.Write(ctx, "g.k", []byte("4"), second, 0); !errors.Is(err, shard.ErrConflict) {
		t.Errorf("a process that does not know of the removal writes: %v", err)
	}
	_, err = s.Write(ctx, "g.k", []byte("5"), 0, 0)
	must(t, err)
	e, err := s.Read(ctx, "g.k")
	must(t, err)
	_, err = s.Remove(ctx, "g.k", e.Revision)
	must(t, err)
	again, err := s.Remove(ctx, "g.k", 0)
	must(t, err)
	never, err := s.Remove(ctx, "g.never", 0)
	must(t, err)
	if never <= again || again <= e.Revision {
		t.Errorf("removals without a record have revisions %d and %d, after %d", again, never, e.Revision)
	}
	if _, err := s.Write(ctx, "g.never", []byte("6"), never, 0); err != nil {
		t.Errorf("write over the revision of a removal: %v", err)
	}
}

func ascend(t *testing.T, s shard.Store) {
	last := uint64(0)
	for i := range 10 {
		revision, err := s.Write(t.Context(), fmt.Sprintf("g.k%d", i%3), []byte("x"), map[bool]uint64{true: 0, false: revisionOf(t, s, fmt.Sprintf("g.k%d", i%3))}[i < 3], 0)
		must(t, err)
		if revision <= last {
			t.Fatalf("revision %d after %d", revision, last)
		}
		last = revision
	}
}

func revisionOf(t *testing.T, s shard.Store, key string) uint64 {
	t.Helper()
	e, err := s.Read(t.Context(), key)
	must(t, err)
	return e.Revision
}

func watch(t *testing.T, s shard.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a, err := s.Write(ctx, "g.a", []byte("1"), 0, 0)
	must(t, err)
	_, err = s.Write(ctx, "other.a", []byte("1"), 0, 0)
	must(t, err)
	entries, done := make(chan shard.Entry, 100), make(chan error, 1)
	go func() {
		done <- s.Watch(ctx, "g.", func(e shard.Entry) { entries <- e }, func() { entries <- shard.Entry{Key: "synced"} })
	}()
	expect := func(key, value string, present bool) {
		t.Helper()
		select {
		case e := <-entries:
			if e.Key != key || string(e.Value) != value || e.Present != present {
				t.Fatalf("the watch delivers %+v, want %s=%q", e, key, value)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("the watch does not deliver %s=%q", key, value)
		}
	}
	expect("g.a", "1", true)
	expect("synced", "", false)
	a, err = s.Write(ctx, "g.a", []byte("2"), a, 0)
	must(t, err)
	expect("g.a", "2", true)
	_, err = s.Write(ctx, "g.b", []byte("1"), 0, 0)
	must(t, err)
	expect("g.b", "1", true)
	_, err = s.Remove(ctx, "g.a", a)
	must(t, err)
	expect("g.a", "", false)
	cancel()
	if err := <-done; err == nil {
		t.Error("a watch that ends returns no error")
	}
}

func expire(t *testing.T, s shard.Store) {
	ctx := t.Context()
	const ttl = 2 * time.Second
	gone := make(chan string, 10)
	watch := func(e shard.Entry) {
		if !e.Present {
			gone <- e.Key
		}
	}
	go func() { _ = s.Watch(ctx, "g.", watch, func() {}) }() // ends with the test
	began := time.Now()
	dies, err := s.Write(ctx, "g.dies", []byte("1"), 0, ttl)
	must(t, err)
	lives, err := s.Write(ctx, "g.lives", []byte("1"), 0, ttl)
	must(t, err)
	for time.Since(began) < 3*ttl {
		time.Sleep(ttl / 4)
		sent := time.Now()
		if lives, err = s.Write(ctx, "g.lives", []byte("x"), lives, ttl); err != nil {
			t.Fatalf("renewal %v after the one before: %v", time.Since(sent), err)
		}
	}
	select {
	case key := <-gone:
		if key != "g.dies" || time.Since(began) < ttl {
			t.Errorf("%s expires after %v", key, time.Since(began))
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the watch does not deliver the expiry")
	}
	if _, err := s.Write(ctx, "g.dies", []byte("2"), dies, ttl); !errors.Is(err, shard.ErrConflict) {
		t.Errorf("renewal of a record that has expired: %v", err)
	}
	select { // a record that was renewed must still expire
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Error("a record that was renewed never expires")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
