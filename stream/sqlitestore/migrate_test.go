package sqlitestore

import (
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pressly/goose/v3"

	"github.com/levada-io/levada/stream"
)

// A program that only reads created tables in whatever file it was pointed at, and changed its journal's mode.
func TestWithoutMigrateLeavesTheFileAsItIs(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(t.Context(), filepath.Join(dir, "none.db"), WithoutMigrate()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: error %v", err)
	}
	foreign := filepath.Join(dir, "foreign.db")
	db, err := sql.Open("sqlite", foreign)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), `create table theirs (n)`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), foreign, WithoutMigrate()); !errors.Is(err, stream.ErrOlder) || !strings.Contains(err.Error(), "with Migrate of") {
		t.Errorf("a file without tables: error %v, want ErrOlder with the function to call", err)
	}
	if after, err := os.ReadFile(foreign); err != nil || string(before) != string(after) {
		t.Errorf("the file was changed, error %v", err)
	}
	if err := Migrate(t.Context(), foreign); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), foreign, WithoutMigrate())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// Rows of jobs that had ended were never deleted.
func TestPurgeDeletesWhatEndedLongAgo(t *testing.T) {
	now := time.Now()
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "jobs.db"), WithClock(func() time.Time { return now }))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	purge := func(r stream.Retention) int {
		t.Helper()
		n, err := s.Purge(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if _, err := s.Purge(t.Context(), stream.Retention{}); err == nil {
		t.Error("a purge of everything was taken")
	}
	if _, err := s.Purge(t.Context(), stream.Retention{OlderThan: time.Hour, States: []stream.State{stream.Running}}); err == nil {
		t.Error("a purge of running jobs was taken")
	}
	for _, id := range []string{"old", "quarantined", "failed", "running"} {
		if _, err := s.Submit(t.Context(), stream.Job{ID: id, Stream: "users", DedupeKey: id}); err != nil {
			t.Fatal(err)
		}
	}
	claimed, err := s.Claim(t.Context(), stream.Claim{Owner: stream.Self(), TTL: time.Hour, Max: 4})
	if err != nil || len(claimed) != 4 {
		t.Fatal(claimed, err)
	}
	sink := s.Sink(nil)
	for _, st := range claimed {
		l := st.Lease()
		c, err := sink.Fence(t.Context(), l)
		if err != nil {
			t.Fatal(err)
		}
		if st.ID == "quarantined" {
			next := c
			next.Seq, next.Bad = 1, 1
			if err := sink.Commit(t.Context(), stream.NewCommit(l, c, next, &stream.Batch{Job: st.Job}, stream.Quarantined{Seq: 1, Key: []byte("k"), Error: "bad", Class: stream.ClassRefused})); err != nil {
				t.Fatal(err)
			}
		}
		state := stream.Completed
		if st.ID == "failed" {
			state = stream.Failed
		}
		if st.ID != "running" {
			if err := s.Release(t.Context(), l, stream.Release{State: state}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := purge(stream.Retention{OlderThan: time.Hour}); n != 0 {
		t.Errorf("%d jobs that ended just now were deleted", n)
	}
	now = now.Add(2 * time.Hour)
	if n := purge(stream.Retention{OlderThan: time.Hour}); n != 1 {
		t.Errorf("%d jobs were deleted, want the old one alone", n)
	}
	if n := purge(stream.Retention{OlderThan: time.Hour, States: []stream.State{stream.Completed, stream.Failed}, WithQuarantine: true}); n != 2 {
		t.Errorf("%d jobs were deleted, want the failed and the quarantined one", n)
	}
	var rows int
	if err := s.DB().QueryRow(`select (select count(*) from levada_job) + (select count(*) from levada_offset) * 10 + (select count(*) from levada_quarantine) * 100`).Scan(&rows); err != nil || rows != 11 {
		t.Errorf("what is left counts %d, want the running job and its offset (11), error %v", rows, err)
	}
}

// Jobs that were stored while keys were unique in the whole file keep theirs.
func TestMigrationKeepsDedupeKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "jobs.db")
	write, read, err := openFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	files, err := fs.Sub(migrations, "migrations/job")
	if err != nil {
		t.Fatal(err)
	}
	provider, err := goose.NewProvider(goose.DialectSQLite3, write, files, goose.WithTableName("levada_job_version"), goose.WithDisableGlobalRegistry(true))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := provider.UpTo(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if _, err := write.ExecContext(t.Context(), `insert into levada_job (id, stream, target, dedupe_key, priority, not_before, on_bad, max_bad, state, created_at, updated_at)
		values ('a', 'users', '', 'k', 0, 0, 'quarantine', 0, 'ready', 0, 0)`); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(read.Close(), write.Close()); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if st, err := s.Submit(t.Context(), stream.Job{Stream: "users", DedupeKey: "k"}); err != nil || !st.Existed || st.ID != "a" || st.DedupeKey != "k" {
		t.Errorf("the key of a job from before gave %+v, error %v", st, err)
	}
}
