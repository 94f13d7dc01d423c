//go:build linux

package streams

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgnotify"
	"github.com/levada-io/levada/stream/pgstore"
)

// TestTakeover measures, with default settings (a lease of 15 s, a poll each 2 s), how long a job has no owner after its owner
// has gone in each way. What the promises in docs/streams.md say is the limit.
func TestTakeover(t *testing.T) {
	dsn := testserver.Postgres(t)
	ctx := t.Context()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, `create table ledger (job text not null, seq bigint not null, value bytea not null)`); err != nil {
		t.Fatal(err)
	}
	store, err := pgstore.Open(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	notifier, err := pgnotify.New(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer notifier.Close()
	address := testserver.FreeAddress(t)
	start := func(name, pod string) *process {
		log, err := os.Create(filepath.Join(t.TempDir(), "log"))
		if err != nil {
			t.Fatal(err)
		}
		p := &process{t: t, log: log, role: role{Name: name, Pod: pod, Address: address, DSN: dsn, Records: 1 << 40, Streams: 1, Pace: 20 * time.Millisecond}}
		p.start()
		t.Cleanup(func() {
			p.cmd.Process.Signal(syscall.SIGCONT)
			p.end(syscall.SIGKILL, 5*time.Second)
			log.Close()
		})
		return p
	}
	start("producer", "producer")
	job, err := store.Submit(ctx, stream.Job{Stream: "stream0"})
	if err != nil {
		t.Fatal(err)
	}
	status := func() stream.Status {
		t.Helper()
		s, err := store.Get(ctx, job.ID)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	// commits waits until the job's owner, in an epoch after the given one, has committed something new.
	commits := func(after uint64) stream.Status {
		t.Helper()
		var first stream.Status
		for deadline := time.Now().Add(40 * time.Second); ; time.Sleep(2 * time.Millisecond) {
			s := status()
			if s.State == stream.Running && s.Epoch > after {
				if first.Epoch != s.Epoch {
					first = s
				} else if s.Progress.Records > first.Progress.Records {
					return s
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("nobody goes on with the job: %+v", s)
			}
		}
	}
	await := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(40 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not within 40 s: %s", what)
			}
		}
	}
	pods := 0
	// startWorker returns when the worker gets notifications, and so polls, too: what is measured is not its start.
	startWorker := func() *process {
		t.Helper()
		pods++
		pod := fmt.Sprint("pod", pods)
		p := start("worker", pod)
		await(pod+" listens", func() (listens bool) {
			if err := conn.QueryRow(ctx, `select exists (select from pg_stat_activity where application_name = $1 and query ilike 'listen %' and state = 'idle')`, pod).Scan(&listens); err != nil {
				t.Fatal(err)
			}
			return listens
		})
		return p
	}
	owner := startWorker()
	commits(0)
	other := startWorker()

	measure := func(what string, limit time.Duration, gone func(s stream.Status)) {
		t.Helper()
		before := status()
		begun := time.Now()
		gone(before)
		after := commits(before.Epoch)
		took := time.Since(begun)
		t.Logf("%-45s %6.2f s (promised: %v)", what, took.Seconds(), limit)
		if took > limit {
			t.Errorf("%s: taken over after %v, promised are %v", what, took, limit)
		}
		if after.Progress.Records < before.Progress.Records {
			t.Errorf("%s: the job went back from %d to %d", what, before.Progress.Records, after.Progress.Records)
		}
	}
	const slack = 2 * time.Second // for the first commit, on a busy machine
	measure("SIGTERM, with notifications", slack+time.Second, func(stream.Status) { owner.cmd.Process.Signal(syscall.SIGTERM) })
	owner, other = other, startWorker()
	measure("SIGKILL, without a watcher", 17*time.Second+slack, func(stream.Status) { owner.end(syscall.SIGKILL, time.Minute) })
	owner, other = other, startWorker()
	measure("SIGKILL, the watcher learns of it at once", 2*time.Second+slack, func(s stream.Status) {
		owner.end(syscall.SIGKILL, time.Minute)
		// What podwatch does when it sees the container terminated.
		if n, err := store.Expire(ctx, stream.ExpireFilter{PodUID: s.Owner.PodUID}); n != 1 || err != nil {
			t.Fatalf("%d jobs expired, %v", n, err)
		}
		if err := notifier.Send(ctx, stream.Notification{}); err != nil {
			t.Error(err)
		}
	})
	owner = other
	measure("SIGKILL, the container restarts in its pod", 2*time.Second+slack, func(stream.Status) {
		owner.end(syscall.SIGKILL, time.Minute)
		owner.start()
	})
	startWorker()
	measure("node lost (the process is frozen)", 17*time.Second+slack, func(stream.Status) { owner.cmd.Process.Signal(syscall.SIGSTOP) })
	// The frozen owner wakes up, learns that it is none any more, and must not change anything.
	before := status()
	frozen := len(owner.said())
	owner.cmd.Process.Signal(syscall.SIGCONT)
	await("the old owner knows", func() bool { return bytes.Contains(owner.said()[frozen:], []byte("lease lost")) })
	if after := commits(before.Epoch - 1); after.Epoch != before.Epoch || after.Progress.Records <= before.Progress.Records {
		t.Errorf("after the old owner woke up the job is %+v, before %+v", after, before)
	}
	if _, err := store.Cancel(ctx, job.ID); err != nil {
		t.Fatal(err)
	}
	lost, doubled := countUpTo(t, dsn, job)
	if lost+doubled > 0 {
		t.Errorf("%d records lost, %d doubled", lost, doubled)
	}
}

// countUpTo counts the rows of a job that was cancelled in between: what its checkpoint names must be there once, nothing else.
func countUpTo(t *testing.T, dsn string, job stream.Status) (lost, doubled int) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var seq, rows, different, last int
	if err := conn.QueryRow(ctx, `select o.seq, count(l.seq), count(distinct l.seq), coalesce(max(l.seq), 0) from levada_offset o left join ledger l on l.job = o.job
		where o.job = $1 group by o.seq`, job.ID).Scan(&seq, &rows, &different, &last); err != nil {
		t.Fatal(err)
	}
	if last > seq {
		t.Errorf("record %d is in the table, and the checkpoint is %d", last, seq)
	}
	return seq - different, rows - different
}
