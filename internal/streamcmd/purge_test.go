package streamcmd

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/sqlitestore"
)

// TestStreamPurge: nothing else deletes jobs, so the command must delete what it says, all of it, and nothing beside.
func TestStreamPurge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jobs.db")
	now := time.Now()
	store, err := sqlitestore.Open(t.Context(), path, sqlitestore.WithClock(func() time.Time { return now }))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	// end makes a job that ended some time ago.
	end := func(id string, ago time.Duration, state stream.State, quarantined ...stream.Quarantined) {
		t.Helper()
		now = time.Now().Add(-ago)
		if _, err := store.Submit(t.Context(), stream.Job{ID: id, Stream: id, DedupeKey: "k"}); err != nil {
			t.Fatal(err)
		}
		claimed, err := store.Claim(t.Context(), stream.Claim{Owner: stream.Owner{Incarnation: id}, Streams: []string{id}, TTL: time.Hour, Max: 1})
		if err != nil || len(claimed) != 1 {
			t.Fatalf("claimed %v, error %v", claimed, err)
		}
		l, sink := claimed[0].Lease(), store.Sink(nil)
		c, err := sink.Fence(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		if n := uint64(len(quarantined)); n > 0 {
			next := c
			next.Seq, next.Bad = n, n
			if err := sink.Commit(t.Context(), stream.NewCommit(l, c, next, &stream.Batch{Job: claimed[0].Job}, quarantined...)); err != nil {
				t.Fatal(err)
			}
		}
		if err := store.Release(t.Context(), l, stream.Release{State: state}); err != nil {
			t.Fatal(err)
		}
	}
	const day = 24 * time.Hour
	end("old", 60*day, stream.Completed)
	end("refused", 60*day, stream.Completed, stream.Quarantined{Seq: 1, Key: []byte("k"), Error: "bad", Class: stream.ClassRefused})
	end("failed", 60*day, stream.Failed)
	end("recent", day, stream.Completed)
	now = time.Now()
	purge := func(want string, left []string, args ...string) {
		t.Helper()
		o := levada(t, append([]string{"stream", "purge", "--store", path}, args...)...)
		if o.Code != 0 || strings.TrimSpace(o.Stdout) != want {
			t.Errorf("purge %v: %+v, want %s", args, o, want)
		}
		all, err := store.List(t.Context(), stream.Filter{})
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for i := range all {
			ids = append(ids, all[i].ID)
		}
		slices.Sort(ids)
		if !slices.Equal(ids, left) {
			t.Errorf("after purge %v the jobs are %v, want %v", args, ids, left)
		}
	}
	for _, args := range [][]string{{"--older-than", "0s"}, {"--older-than", "-1h"}, {"--state", "running"}, {"--state", "gone"}} {
		o := levada(t, append([]string{"stream", "purge", "--store", path}, args...)...)
		if o.Code != 2 || !strings.Contains(o.Stderr, args[0]) {
			t.Errorf("purge %v: %+v", args, o)
		}
	}
	purge("0 jobs deleted", []string{"failed", "old", "recent", "refused"}, "--older-than", "2160h")
	purge("1 jobs deleted", []string{"failed", "recent", "refused"})
	if _, err := store.Submit(t.Context(), stream.Job{ID: "old", Stream: "old", DedupeKey: "k", NotBefore: time.Now().Add(time.Hour)}); err != nil {
		t.Errorf("the dedupe key of a deleted job: %v", err)
	}
	if got, err := store.Sink(nil).Quarantined(t.Context(), "refused", 0); err != nil || len(got) != 1 {
		t.Errorf("quarantine %v, error %v", got, err)
	}
	purge(`{"jobs":2}`, []string{"old", "recent"}, "--state", "completed,failed", "--with-quarantine", "--output", "json")
	if got, err := store.Sink(nil).Quarantined(t.Context(), "refused", 0); err != nil || len(got) != 0 {
		t.Errorf("quarantine of a deleted job %v, error %v", got, err)
	}
}
