package stream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/memstore"
)

// The eighteen defects of the obvious way to do this: a server that recovers and calls itself again, a client that goes on after any error,
// an event on a broker that says "go on with this job", and the greatest id in the table as the offset. Each test first runs a small
// naive implementation, and its check must find the defect there; then ours, where it must not.

// complete is the check of most of them: a stream that was said to be complete has all its records, in order, once.
func complete(got []uint64, n int) error {
	for i := range n {
		if i >= len(got) || got[i] != uint64(i+1) {
			return fmt.Errorf("record %d is not where it should be among %d rows of %d", i+1, len(got), n)
		}
	}
	if len(got) != n {
		return fmt.Errorf("%d rows of %d records", len(got), n)
	}
	return nil
}

func (c *table) seqs() (seqs []uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.rows {
		seqs = append(seqs, r.Seq)
	}
	return seqs
}

// mustFind fails the test when the check finds nothing wrong with the naive way: then it proves nothing of ours.
func mustFind(t *testing.T, err error) {
	t.Helper()
	if err == nil {
		t.Fatal("the check finds nothing wrong with the naive implementation")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// withProducer runs a test in a bubble, with a lab and a producer of one stream "s".
func withProducer(t *testing.T, source stream.Source, test func(l *lab)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := startProducer(t, stream.ServerConfig{}, "s", source)
		l := newLab(t, p.connections(t).Dial)
		test(l)
	})
}

// D1: the deferred recover calls the function again and drops its error, and the outer call returns nil: a stream that failed after a
// panic ends as a success.
func TestD01APanicIsNoEnd(t *testing.T) {
	const n = 20
	records := numbers(n)
	var naive func(from int, send func(uint64)) error
	panicked := false
	naive = func(from int, send func(uint64)) error {
		defer func() {
			if recover() != nil {
				_ = naive(from+5, send) // whose error is only logged
			}
		}()
		for i := from; i < n; i++ {
			if i == 5 && !panicked {
				panicked = true
				panic("a bad moment")
			}
			if i == 12 {
				return errors.New("the database went away")
			}
			send(uint64(i + 1))
		}
		return nil
	}
	var got []uint64
	if err := naive(0, func(seq uint64) { got = append(got, seq) }); err != nil {
		t.Fatal("the naive server noticed", err)
	}
	mustFind(t, complete(got, n))

	// Ours: the same panic, in Next, and one with io.EOF in flight, which is no end either; then the same error.
	faults := 0
	source := opens(func(ctx context.Context, q stream.Query) (stream.Cursor, error) {
		inner, err := stream.Slice(records...).Open(ctx, q)
		return cursor{value: func(dst []byte) ([]byte, error) { return inner.Value(dst) }, next: func(ctx context.Context) ([]byte, error) {
			key, err := inner.Next(ctx)
			if string(key) == "00000006" && faults < 4 {
				faults++
				switch faults {
				case 1:
					panic("a bad moment")
				case 2:
					panic(io.EOF)
				case 3:
					return nil, fmt.Errorf("reading the answer: %w", io.EOF)
				}
				return nil, errors.New("the database went away")
			}
			return key, err
		}}, err
	})
	withProducer(t, source, func(l *lab) {
		l.start("s", l.store.Sink(l.table.handle))
		job := l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Hour)
		l.is(job, stream.Completed, "")
		if faults != 4 {
			t.Fatalf("only %d faults were met", faults)
		}
		must(t, l.table.holds(records))
	})
}

// D2: any error of processing is logged, and the loop goes on: a sink that does not answer for a moment costs the records of that moment.
func TestD02AFaultThatPassesIsNoSkip(t *testing.T) {
	const n = 50
	away := func(calls int) bool { return calls > 10 && calls < 15 }
	var got []uint64
	for i, calls := 1, 0; i <= n; i++ {
		if calls++; away(calls) {
			continue // log.Println("database not reachable"), and on with the next
		}
		got = append(got, uint64(i))
	}
	mustFind(t, complete(got, n))

	withProducer(t, stream.Slice(numbers(n)...), func(l *lab) {
		l.config.CommitRecords = 3
		calls := 0
		l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			if calls++; away(calls) {
				return nil, errors.New("database not reachable")
			}
			return l.table.handle(ctx, b)
		}))
		job := l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Hour)
		l.is(job, stream.Completed, "")
		if calls < 15 {
			t.Fatalf("the sink was never away: %d calls", calls)
		}
		must(t, l.table.holds(numbers(n)))
	})
}

// D3: on a break the message is published twice, once at once and once after a while; two run the same job, and each break doubles it.
func TestD03OneJobHasOneRunner(t *testing.T) {
	const breaks = 5
	queue := 1 // messages that make somebody run the job
	for range breaks {
		queue *= 2
	}
	one := func(runners int) error {
		if runners != 1 {
			return fmt.Errorf("%d run the same job", runners)
		}
		return nil
	}
	mustFind(t, one(queue))

	// Ours: many workers, and many notifications for each break.
	source := &counted{n: 400}
	broken := map[int]bool{}
	source.at = func(ctx context.Context, seq int) error {
		if seq%50 == 0 && !broken[seq] {
			broken[seq] = true
			return errors.New("a break")
		}
		return nil
	}
	withProducer(t, source, func(l *lab) {
		bus := &doublingNotifier{copies: 4}
		l.config.Notifier, l.config.ReleaseAfterFailures = bus, 1
		var mu sync.Mutex
		at, most := 0, 0
		count := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			at += n
			most = max(most, at)
		}
		sink := l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			count(1)
			sleep(ctx, 100*time.Millisecond)
			count(-1)
			return l.table.handle(ctx, b)
		})
		for range 4 {
			l.config.Owner = stream.Owner{Incarnation: stream.NewID()}
			l.start("s", sink)
		}
		job := l.submit(stream.Job{Stream: "s"})
		for range 20 {
			bus.Send(t.Context(), stream.Notification{Stream: "s", Job: job.ID})
		}
		job = l.end(job.ID, time.Hour)
		l.is(job, stream.Completed, "")
		if len(broken) < breaks || job.Attempts < breaks {
			t.Fatalf("%d breaks, %d attempts", len(broken), job.Attempts)
		}
		must(t, one(most))
		must(t, complete(l.table.seqs(), 400))
	})
}

// doublingNotifier hands each notification to each listener, several times.
type doublingNotifier struct {
	mu     sync.Mutex
	all    []chan stream.Notification
	copies int
}

func (h *doublingNotifier) Send(_ context.Context, notification stream.Notification) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.all {
		for range h.copies {
			select {
			case c <- notification:
			default:
			}
		}
	}
	return nil
}

func (h *doublingNotifier) Listen(ctx context.Context, wake func(context.Context, stream.Notification)) error {
	c := make(chan stream.Notification, 1000)
	h.mu.Lock()
	h.all = append(h.all, c)
	h.mu.Unlock()
	for {
		select {
		case notification := <-c:
			wake(ctx, notification)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (h *doublingNotifier) Close() error { return nil }

// D4: if the stream cannot be opened, nobody publishes anything: the job's row stays as it is indefinitely.
func TestD04AStreamThatCannotBeOpenedIsTriedAgain(t *testing.T) {
	const n = 10
	queue, completed := []string{"job"}, false
	for up := false; len(queue) > 0; up = true {
		queue = queue[1:] // acknowledged
		if !up {
			continue // "cannot open the stream": logged, and that is it
		}
		completed = true
	}
	ended := func(ok bool) error {
		if !ok {
			return errors.New("the job was never finished")
		}
		return nil
	}
	mustFind(t, ended(completed))

	synctest.Test(t, func(t *testing.T) {
		var way movable
		conns := stream.NewConnections("passthrough:///s", insecureTo(way.dial)...)
		t.Cleanup(func() { conns.Close() })
		l := newLab(t, conns.Dial)
		l.start("s", l.store.Sink(l.table.handle))
		job := l.submit(stream.Job{Stream: "s"})
		time.Sleep(3 * time.Hour) // nobody is there
		if l.get(job.ID).State.Final() {
			t.Fatalf("final without a producer: %+v", l.get(job.ID))
		}
		p := startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbers(n)...))
		way.set(p.listener)
		job = l.end(job.ID, 2*time.Minute)
		must(t, ended(job.State == stream.Completed))
		must(t, l.table.holds(numbers(n)))
	})
}

// D5: a job that died before its first record has no last id, so finding the offset fails, and the message is acknowledged already.
func TestD05AJobThatDiesBeforeItsFirstRecordIsResumed(t *testing.T) {
	findOffset := func(rows []uint64) (uint64, error) {
		if len(rows) == 0 {
			return 0, errors.New("no documents in result")
		}
		return rows[len(rows)-1], nil
	}
	_, err := findOffset(nil)
	mustFind(t, err)

	const n = 10
	withProducer(t, stream.Slice(numbers(n)...), func(l *lab) {
		// The process dies right after the claim, after the fence, and within the first batch.
		for _, when := range []string{"Fence", "Commit", "Note"} {
			var process mortal
			l.config.Store = &interceptedStore{Store: process.store(l.store), before: func(_ context.Context, method string) error {
				if method == when {
					process.dead.Store(true)
				}
				return process.alive()
			}}
			l.config.Owner = stream.Owner{Pod: "p", PodUID: "p", Incarnation: newProcess()}
			w := l.start("s", &interceptedSink{ReplaySink: l.store.Sink(l.table.handle), before: func(_ context.Context, method string) error {
				if method == when {
					process.dead.Store(true)
				}
				return process.alive()
			}})
			if when == "Fence" {
				l.submit(stream.Job{ID: "j", Stream: "s"})
			}
			l.await("dead", time.Minute, process.dead.Load)
			w.stop()
		}
		if l.table.len() != 0 {
			t.Fatal("something was committed before the deaths")
		}
		l.config.Store = l.store
		l.config.Owner = stream.Owner{Pod: "p", PodUID: "p", Incarnation: newProcess()}
		l.start("s", l.store.Sink(l.table.handle))
		l.is(l.end("j", time.Minute), stream.Completed, "")
		must(t, l.table.holds(numbers(n)))
	})
}

// D6: FindOne: of a pod with several streams only one is recovered.
func TestD06AllJobsOfADeadPodAreResumed(t *testing.T) {
	const jobs, n = 5, 30
	all := func(recovered int) error {
		if recovered != jobs {
			return fmt.Errorf("%d of %d jobs were recovered", recovered, jobs)
		}
		return nil
	}
	owners := slices.Repeat([]string{"dead-pod"}, jobs)
	recovered := 0
	if i := slices.Index(owners, "dead-pod"); i >= 0 { // FindOne, and the event is handled
		owners[i] = "new-pod"
		recovered++
	}
	mustFind(t, all(recovered))

	withProducer(t, stream.Slice(numbers(n)...), func(l *lab) {
		var process mortal
		l.config.Owner = stream.Owner{Pod: "a", PodUID: "a", Incarnation: stream.NewID()}
		l.config.Store = process.store(l.store)
		dead := l.start("s", &interceptedSink{ReplaySink: l.store.Sink(nil), before: func(ctx context.Context, _ string) error {
			sleep(ctx, time.Hour) // all are in flight when it dies
			return process.alive()
		}})
		for range jobs {
			l.submit(stream.Job{Stream: "s"})
		}
		time.Sleep(5 * time.Second)
		process.dead.Store(true)
		l.config.Store = l.store
		l.config.Owner = stream.Owner{Pod: "b", PodUID: "b", Incarnation: stream.NewID()}
		l.start("s", l.store.Sink(nil))
		if n, err := l.store.Expire(t.Context(), stream.ExpireFilter{PodUID: "a"}); err != nil || n != jobs {
			t.Fatalf("%d leases ended: %v", n, err)
		}
		time.Sleep(10 * time.Second) // less than a lease
		done, err := l.store.List(t.Context(), stream.Filter{States: []stream.State{stream.Completed}})
		must(t, err)
		must(t, all(len(done)))
		dead.stop()
	})
}

// D7: the message is acknowledged before the work is recorded: a kill in between loses the job.
func TestD07ADeathBetweenClaimAndWorkLosesNothing(t *testing.T) {
	type world struct {
		queue []string
		done  bool
	}
	found := 0
	for kill := range 4 { // before each step
		w := world{queue: []string{"job"}}
		func() {
			for step, do := range []func(){func() { w.queue = nil } /* ack */, func() { /* write the row */ }, func() { w.done = true }} {
				if step == kill {
					return
				}
				do()
			}
		}()
		if !w.done && len(w.queue) == 0 {
			found++ // and nobody will ever look at it again
		}
	}
	if found == 0 {
		t.Fatal("the check finds nothing wrong with the naive implementation")
	}

	// Ours is killed at each call of store and sink that a job needs, one after the other.
	const n = 7
	for kill := range 40 {
		var met atomic.Bool
		withProducer(t, stream.Slice(numbers(n)...), func(l *lab) {
			var process mortal
			var calls atomic.Int64
			die := func(context.Context, string) error {
				if calls.Add(1) == int64(kill+1) {
					met.Store(true)
					process.dead.Store(true)
				}
				return process.alive()
			}
			l.config.Store = &interceptedStore{Store: l.store, before: die}
			l.config.CommitRecords = 2
			job := l.submit(stream.Job{Stream: "s"})
			first := l.start("s", &interceptedSink{ReplaySink: l.store.Sink(l.table.handle), before: die, after: die})
			l.await("dead or done", time.Minute, func() bool { return process.dead.Load() || l.get(job.ID).State.Final() })
			l.config.Store = l.store
			l.config.Owner = stream.Owner{Incarnation: stream.NewID()}
			l.start("s", l.store.Sink(l.table.handle))
			job = l.end(job.ID, time.Minute)
			l.is(job, stream.Completed, "")
			must(t, l.table.holds(numbers(n)))
			first.stop()
		})
		if !met.Load() {
			if kill < 8 {
				t.Errorf("only %d moments to die were found", kill)
			}
			return
		}
	}
}

// D8: messages are transient and not confirmed: a restart of the broker loses the event.
func TestD08LosingEveryNotificationLosesNoJob(t *testing.T) {
	const n = 10
	type broker struct{ messages []string }
	b := broker{messages: []string{"job"}} // DeliveryMode: Transient
	b.messages = nil                       // it restarts
	started := func(ok bool) error {
		if !ok {
			return errors.New("nobody ever hears of the job")
		}
		return nil
	}
	mustFind(t, started(len(b.messages) > 0))

	withProducer(t, stream.Slice(numbers(n)...), func(l *lab) {
		l.config.Notifier = deafNotifier{}
		l.start("s", l.store.Sink(l.table.handle))
		time.Sleep(time.Minute)
		job := l.submit(stream.Job{Stream: "s"})
		job = l.end(job.ID, 3*time.Second) // one poll
		must(t, started(job.State == stream.Completed))
		must(t, l.table.holds(numbers(n)))
	})
}

// deafNotifier is a broker that loses all, and refuses half of it.
type deafNotifier struct{}

func (deafNotifier) Send(context.Context, stream.Notification) error { return errors.New("no broker") }
func (deafNotifier) Listen(ctx context.Context, _ func(context.Context, stream.Notification)) error {
	return errors.New("no broker")
}
func (deafNotifier) Close() error { return nil }

// D9: whole documents are written by upsert: of two owners the slow one moves the offset back, or says "completed".
func TestD09AnOldOwnerCannotMoveTheOffset(t *testing.T) {
	type doc struct{ offset uint64 }
	back := func(offsets []uint64) error {
		if !slices.IsSorted(offsets) {
			return fmt.Errorf("the offset moved back: %v", offsets)
		}
		return nil
	}
	var d doc
	var offsets []uint64
	for _, upsert := range []doc{{offset: 10}, {offset: 20}, {offset: 11}} { // the last one by the owner that was thought dead
		d = upsert
		offsets = append(offsets, d.offset)
	}
	mustFind(t, back(offsets))

	const n = 60
	withProducer(t, stream.Slice(numbers(n)...), func(l *lab) {
		l.config.CommitRecords = 5
		// The first owner freezes with records in flight: nothing of it runs, also not its heartbeat, until the job is complete.
		freeze := make(chan struct{})
		var frozen atomic.Bool
		l.config.Store = &interceptedStore{Store: l.store, before: func(_ context.Context, method string) error {
			if frozen.Load() {
				<-freeze
			}
			return nil
		}}
		var zombie error
		var committed []uint64
		first := l.start("s", &interceptedSink{
			ReplaySink: l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
				if b.Records[0].Seq > 20 {
					frozen.Store(true)
					<-freeze
				}
				return l.table.handle(ctx, b)
			}),
		})
		job := l.submit(stream.Job{Stream: "s"})
		l.await("frozen", time.Minute, frozen.Load)
		l.config.Store = l.store
		l.config.Owner = stream.Owner{Incarnation: stream.NewID()}
		l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			keep, err := l.table.handle(ctx, b)
			return func() { keep(); committed = append(committed, b.Records[len(b.Records)-1].Seq) }, err
		}))
		job = l.end(job.ID, time.Minute)
		close(freeze)
		time.Sleep(time.Minute)
		zombie = first.stop()
		must(t, zombie)
		must(t, back(committed))
		must(t, l.table.holds(numbers(n)))
		if after := l.get(job.ID); after.State != stream.Completed || after.Epoch != job.Epoch || after.Progress != job.Progress {
			t.Errorf("the old owner changed the job: %+v", after)
		}
	})
}

// D10: rows are keyed by the record and tagged with the stream's id, so a second job over the same records takes the tags of the first.
func TestD10TwoJobsOverTheSameRecordsHaveTwoOffsets(t *testing.T) {
	const n = 30
	tags := map[int]string{}
	offset := func(job string) (last int) {
		for id, tag := range tags {
			if tag == job {
				last = max(last, id)
			}
		}
		return last
	}
	apart := func(first, second int) error {
		if first != 20 || second != 25 {
			return fmt.Errorf("the jobs committed 20 and 25 records, and their offsets are %d and %d", first, second)
		}
		return nil
	}
	for id := range 20 {
		tags[id+1] = "first"
	}
	for id := range 25 {
		tags[id+1] = "second"
	}
	mustFind(t, apart(offset("first"), offset("second")))

	withProducer(t, stream.Slice(numbers(n)...), func(l *lab) {
		l.config.CommitRecords, l.config.ReleaseAfterFailures = 5, 1000
		var mu sync.Mutex // for the two below
		rows := map[string][]uint64{}
		limit := map[string]uint64{"first": 20, "second": 25}
		l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			mu.Lock()
			defer mu.Unlock()
			if last := b.Records[len(b.Records)-1].Seq; limit[b.Job.ID] < last {
				return nil, errors.New("not yet")
			}
			return func() {
				mu.Lock()
				defer mu.Unlock()
				for _, r := range b.Records {
					rows[b.Job.ID] = append(rows[b.Job.ID], r.Seq)
				}
			}, nil
		}))
		l.submit(stream.Job{ID: "first", Stream: "s"})
		l.submit(stream.Job{ID: "second", Stream: "s"})
		time.Sleep(20 * time.Second)
		must(t, apart(int(l.get("first").Progress.Records), int(l.get("second").Progress.Records)))
		mu.Lock()
		limit["first"], limit["second"] = n, n
		mu.Unlock()
		for _, id := range []string{"first", "second"} {
			l.is(l.end(id, 10*time.Minute), stream.Completed, "")
			mu.Lock()
			must(t, complete(rows[id], n))
			mu.Unlock()
		}
	})
}

// D11: the text says alphabetical, the code parses the number at the end, the database sorts as it likes: the greatest key in text order is
// not the last position.
func TestD11TheOrderIsThatOfBytes(t *testing.T) {
	var users []string
	for i := range 30 {
		users = append(users, fmt.Sprintf("userID%d", i+1))
	}
	// Naive: sent in the order of their numbers, resumed after the greatest in text order.
	var got []string
	sent := users[:10]
	got = append(got, sent...)
	after := slices.Max(got) // userID9, though userID10 was the last
	for _, u := range users {
		if number(u) > number(after) {
			got = append(got, u)
		}
	}
	all := func(got []string) error {
		slices.Sort(got)
		want := slices.Clone(users)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			return fmt.Errorf("%d rows of %d users, or twice the same", len(got), len(users))
		}
		return nil
	}
	mustFind(t, all(got))

	// Ours: a source in that order is refused, at the producer and by the reader, and nothing is lost by it.
	records := make([]stream.Record, len(users))
	for i, u := range users {
		records[i] = stream.Record{Key: []byte(u)}
	}
	inOrder := slices.Clone(records)
	slices.SortFunc(inOrder, func(a, b stream.Record) int { return bytes.Compare(a.Key, b.Key) })
	next := func(i *int) stream.Cursor {
		return cursor{next: func(context.Context) ([]byte, error) {
			if *i++; *i > len(records) {
				return nil, io.EOF
			}
			return records[*i-1].Key, nil
		}}
	}
	for name, source := range map[string]stream.Source{
		"slice": stream.Slice(records...),
		"any":   opens(func(context.Context, stream.Query) (stream.Cursor, error) { return next(new(int)), nil }),
	} {
		withProducer(t, source, func(l *lab) {
			l.start("s", l.store.Sink(l.table.handle))
			job := l.end(l.submit(stream.Job{Stream: "s"}).ID, 10*time.Minute)
			l.is(job, stream.Failed, stream.ReasonOutOfOrder)
			if !strings.Contains(job.LastError, "userID10") {
				t.Errorf("%s: the error does not name the key: %s", name, job.LastError)
			}
		})
	}
	withProducer(t, stream.Slice(inOrder...), func(l *lab) {
		breaks := 0
		l.config.CommitRecords = 10
		l.start("s", l.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
			if breaks++; breaks%2 == 0 {
				return nil, errors.New("a break")
			}
			return l.table.handle(ctx, b)
		}))
		l.is(l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Hour), stream.Completed, "")
		var got []string
		for _, r := range l.table.rows {
			got = append(got, string(r.Key))
		}
		must(t, all(got))
	})
}

func number(user string) int {
	n, _ := strconv.Atoi(strings.TrimPrefix(user, "userID"))
	return n
}

// D12: recovery reads from a replica that lags: the offset is too small, and records come twice. It cannot happen here: there is one place
// that holds the offset, the sink; no interface of this package reads it from anywhere else; and each commit names the checkpoint
// from which it goes on. What can be tested is the last: a checkpoint that was read from a replica anyhow commits nothing.
func TestD12AStaleOffsetCommitsNothing(t *testing.T) {
	type row struct{ seq uint64 }
	primary, replica := []row{{1}, {2}, {3}}, []row{{1}}
	for seq := replica[len(replica)-1].seq + 1; seq <= 4; seq++ { // resumed after what the replica says
		primary = append(primary, row{seq})
	}
	var got []uint64
	for _, r := range primary {
		got = append(got, r.seq)
	}
	mustFind(t, complete(got, 4))

	withProducer(t, stream.Slice(numbers(40)...), func(l *lab) {
		l.config.CommitRecords = 4
		sink := &staleSink{ReplaySink: l.store.Sink(l.table.handle), lag: 3}
		l.start("s", sink)
		job := l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Hour)
		l.is(job, stream.Completed, "")
		must(t, l.table.holds(numbers(40)))
		if sink.conflicts == 0 {
			t.Error("no stale checkpoint was ever used")
		}
	})
}

// staleSink says what the checkpoint was some fences ago, for a while, as a replica that lags would.
type staleSink struct {
	stream.ReplaySink
	lag, fences, conflicts int
	old                    stream.Checkpoint
	commits                int
}

func (s *staleSink) Fence(ctx context.Context, l stream.Lease) (stream.Checkpoint, error) {
	c, err := s.ReplaySink.Fence(ctx, l)
	if s.fences++; s.fences > 1 && s.fences <= 1+s.lag {
		return s.old, err
	}
	s.old = c
	return c, err
}

func (s *staleSink) Commit(ctx context.Context, c *stream.Commit) error {
	if s.commits++; s.commits == 4 || s.commits == 6 {
		return errors.New("connection lost") // so that the worker asks for the checkpoint
	}
	err := s.ReplaySink.Commit(ctx, c)
	if errors.Is(err, stream.ErrConflict) {
		s.conflicts++
	}
	return err
}

// D13: an interrupt is looked at after a record was processed, so one that waits in Recv never sees it; the wait for the workers has no
// deadline; if the write of the offset fails, Done is never called.
func TestD13ShutdownInterruptsRecvAndHasADeadline(t *testing.T) {
	within := func(took, limit time.Duration) error {
		if took > limit {
			return fmt.Errorf("the shutdown took %v, and %v are allowed", took, limit)
		}
		return nil
	}
	synctest.Test(t, func(t *testing.T) {
		interrupt, records, ended := make(chan struct{}), make(chan int), make(chan time.Time, 1)
		go func() {
			for range records { // Recv
				select {
				case <-interrupt:
					ended <- time.Now()
					return
				default:
				}
			}
		}()
		since := time.Now()
		close(interrupt)
		time.Sleep(time.Hour) // until somebody sends a record
		records <- 1
		at := <-ended
		close(records)
		mustFind(t, within(at.Sub(since), 20*time.Second))
	})

	live := opens(func(context.Context, stream.Query) (stream.Cursor, error) {
		return cursor{next: func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }}, nil
	})
	withProducer(t, live, func(l *lab) { // waits in Recv
		w := l.start("s", l.store.Sink(l.table.handle))
		job := l.submit(stream.Job{Stream: "s"})
		time.Sleep(time.Minute)
		since := time.Now()
		must(t, w.stop())
		must(t, within(time.Since(since), time.Second))
		l.is(l.get(job.ID), stream.Ready, stream.ReasonShutdown)
	})
	withProducer(t, stream.Slice(numbers(100)...), func(l *lab) { // the offset cannot be written
		away := func(ctx context.Context, _ string) error { <-ctx.Done(); return ctx.Err() }
		w := l.start("s", &interceptedSink{ReplaySink: l.store.Sink(nil), before: away})
		l.submit(stream.Job{Stream: "s"})
		time.Sleep(time.Minute)
		since := time.Now()
		_ = w.stop()
		must(t, within(time.Since(since), 22*time.Second))
	})
}

// D14 and D15 are about the listener for the pods' events: it has UpdateFunc only, and goes by the pod's name. Their counterparts with a real
// API server are in package podwatch. Here: what holds without any watcher.

// pod is what a listener could see of one.
type pod struct {
	name, uid string
	restarts  int
}

// D14: a change of RestartCount is all that the listener reacts to: deletion, eviction, the loss of a node, and all that happened while it was
// away, go by unseen.
func TestD14ADeathThatNobodySeesIsFoundByTheLease(t *testing.T) {
	const n = 40
	history := []struct {
		was, is *pod
		missed  bool // the listener was down
		death   bool
	}{
		{was: &pod{"a", "1", 0}, is: &pod{"a", "1", 1}, death: true},
		{was: &pod{"b", "2", 0}, is: nil, death: true},
		{was: &pod{"c", "3", 0}, is: &pod{"c", "3", 1}, missed: true, death: true},
	}
	deaths, seen := 0, 0
	for _, h := range history {
		if h.death {
			deaths++
		}
		if h.was != nil && h.is != nil && !h.missed && h.was.restarts != h.is.restarts { // UpdateFunc
			seen++
		}
	}
	all := func(recovered int) error {
		if recovered != deaths {
			return fmt.Errorf("%d of %d deaths were noticed", recovered, deaths)
		}
		return nil
	}
	mustFind(t, all(seen))

	recovered := 0
	for range history {
		withProducer(t, stream.Slice(numbers(n)...), func(l *lab) {
			var process mortal
			l.config.Store = process.store(l.store)
			l.config.Owner = stream.Owner{Pod: "a", PodUID: "1", Incarnation: stream.NewID()}
			first := l.start("s", &interceptedSink{ReplaySink: l.store.Sink(nil), before: func(ctx context.Context, _ string) error {
				sleep(ctx, time.Hour)
				return process.alive()
			}})
			job := l.submit(stream.Job{Stream: "s"})
			time.Sleep(7 * time.Second)
			process.dead.Store(true) // and nothing reports it
			l.config.Store = l.store
			l.config.Owner = stream.Owner{Pod: "z", PodUID: "9", Incarnation: stream.NewID()}
			l.start("s", l.store.Sink(l.table.handle))
			if l.end(job.ID, 15*time.Second+3*time.Second).State == stream.Completed && l.table.holds(numbers(n)) == nil { // lease and poll
				recovered++
			}
			first.stop()
		})
	}
	must(t, all(recovered))
}

// D15: the identity is the pod's name. After an in-place restart the same name is alive again, and the recoverer takes its new streams.
func TestD15TheNewProcessOfAPodKeepsItsJobs(t *testing.T) {
	type owned struct{ job, pod, incarnation string }
	jobs := []owned{{"old", "a", "first"}, {"new", "a", "second"}} // the second was claimed after the restart
	taken := func(live []string) error {
		if slices.Contains(live, "new") {
			return errors.New("the live job was taken from its owner")
		}
		return nil
	}
	var got []string
	for _, j := range jobs {
		if j.pod == "a" { // the death of pod "a"
			got = append(got, j.job)
		}
	}
	mustFind(t, taken(got))

	store := memstore.New()
	ctx := t.Context()
	claim := func(job, incarnation string) {
		t.Helper()
		if _, err := store.Submit(ctx, stream.Job{ID: job, Stream: "s"}); err != nil {
			t.Fatal(err)
		}
		owner := stream.Owner{Pod: "a", PodUID: "uid", Incarnation: incarnation}
		if got, err := store.Claim(ctx, stream.Claim{Owner: owner, TTL: time.Hour, Max: 1}); err != nil || len(got) != 1 {
			t.Fatal(got, err)
		}
	}
	claim("old", "first")
	claim("new", "second")
	if n, err := store.Expire(ctx, stream.ExpireFilter{PodUID: "uid", ExceptIncarnation: "second"}); err != nil || n != 1 {
		t.Fatalf("%d leases ended: %v", n, err)
	}
	due, err := store.Claim(ctx, stream.Claim{Owner: stream.Owner{Incarnation: "third"}, TTL: time.Hour, Max: 10})
	must(t, err)
	got = nil
	for _, s := range due {
		got = append(got, s.ID)
	}
	must(t, taken(got))
	if !slices.Contains(got, "old") {
		t.Error("the dead process's job was not taken over")
	}
}

// D16: one stack frame for each bad record, on both sides.
func TestD16ManyBadRecordsNeedNoStack(t *testing.T) {
	const n = 3000
	flat := func(depth int) error {
		if depth > 100 {
			return fmt.Errorf("%d frames on the stack for %d bad records", depth, n)
		}
		return nil
	}
	deepest := 0
	var naive func(i, depth int)
	naive = func(i, depth int) {
		deepest = max(deepest, depth)
		defer func() {
			if recover() != nil && i+1 < n {
				naive(i+1, depth+1)
			}
		}()
		panic("bad")
	}
	naive(0, 1)
	mustFind(t, flat(deepest))

	most := 0
	source := opens(func(ctx context.Context, q stream.Query) (stream.Cursor, error) {
		inner, err := stream.Slice(numbers(n)...).Open(ctx, q)
		return cursor{next: inner.Next, value: func([]byte) ([]byte, error) {
			most = max(most, callers())
			panic("cannot be encoded")
		}}, err
	})
	withProducer(t, source, func(l *lab) {
		l.start("s", l.store.Sink(nil))
		job := l.end(l.submit(stream.Job{Stream: "s", MaxBad: n}).ID, time.Hour)
		l.is(job, stream.Completed, "")
		if job.Progress.Bad != n {
			t.Errorf("%d bad records", job.Progress.Bad)
		}
		must(t, flat(most))
	})
	withProducer(t, stream.Slice(numbers(n)...), func(l *lab) {
		most = 0
		l.start("s", l.store.Sink(func(context.Context, *stream.Batch) (func(), error) {
			most = max(most, callers())
			panic("cannot be processed")
		}))
		job := l.end(l.submit(stream.Job{Stream: "s", MaxBad: n}).ID, time.Hour)
		l.is(job, stream.Completed, "")
		if job.Progress.Bad != n {
			t.Errorf("%d bad records", job.Progress.Bad)
		}
		must(t, flat(most))
	})
}

// D17: a record that kills its process is fetched again by each recoverer in turn.
func TestD17ARecordThatKillsIsPutAside(t *testing.T) {
	const n, poison, batch = 100, 42, 16
	bounded := func(deaths int) error {
		if most := 4 + 2; deaths > most { // ceil(log2(16)) and two for the record alone
			return fmt.Errorf("%d processes died, and %d are enough", deaths, most)
		}
		return nil
	}
	deaths, offset := 0, 40
	for range 50 { // pods
		if offset+1 < poison && offset+batch >= poison {
			deaths++
			continue
		}
	}
	mustFind(t, bounded(deaths))

	synctest.Test(t, func(t *testing.T) {
		p := startProducer(t, stream.ServerConfig{}, "s", stream.Slice(numbers(n)...))
		l := newLab(t, p.connections(t).Dial)
		l.config.CommitRecords = batch
		job := l.submit(stream.Job{Stream: "s"})
		deaths := l.die("s", []string{job.ID}, func(_ string, seq uint64) bool { return seq == poison })
		must(t, bounded(deaths))
		must(t, l.table.holds(numbers(n), poison))
	})
}

// D18: the loop that reconnects has its ticker stopped within "range ticker.C", and never leaves: after the first loss of the broker nobody
// listens. Notifications that stop for good cost no more than the poll.
func TestD18ABrokerThatNeverComesBackCostsOnlyTime(t *testing.T) {
	soon := func(took time.Duration) error {
		if took > 3*time.Second {
			return fmt.Errorf("the job started after %v", took)
		}
		return nil
	}
	synctest.Test(t, func(t *testing.T) {
		since, started := time.Now(), make(chan time.Time, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		func() {
			ticker := time.NewTicker(time.Second)
			for { // for range ticker.C, which does not end when the ticker is stopped
				select {
				case <-ticker.C:
					ticker.Stop() // connected again: but the loop goes on, and the code behind it is never reached
				case <-ctx.Done():
					started <- time.Now()
					return
				}
			}
		}()
		mustFind(t, soon((<-started).Sub(since)))
	})
	withProducer(t, stream.Slice(numbers(10)...), func(l *lab) {
		l.config.Notifier = &hangingNotifier{}
		w := l.start("s", l.store.Sink(l.table.handle))
		time.Sleep(time.Hour)
		since := time.Now()
		l.is(l.end(l.submit(stream.Job{Stream: "s"}).ID, time.Hour), stream.Completed, "")
		must(t, soon(time.Since(since)))
		must(t, w.stop())
	})
}

// hangingNotifier neither fails nor says anything.
type hangingNotifier struct{}

func (*hangingNotifier) Send(ctx context.Context, _ stream.Notification) error {
	<-ctx.Done()
	return ctx.Err()
}
func (*hangingNotifier) Listen(ctx context.Context, _ func(context.Context, stream.Notification)) error {
	<-ctx.Done()
	return ctx.Err()
}
func (*hangingNotifier) Close() error { return nil }
