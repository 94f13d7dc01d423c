//go:build unix

package redisbuffer_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb/redis/redisbuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/redislink"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/testredis"
	"github.com/levada-io/levada/internal/testserver"
)

// submit stores a record, and tries for as long as that takes.
func submit(t *testing.T, d buffer.Appender, id string, data []byte) uint64 {
	t.Helper()
	for ctx := bounded(t); ; {
		seq, _, err := d.Submit(ctx, buffer.Record{ID: id, Data: data, Messages: 1}).Wait(ctx)
		if err == nil {
			return seq
		}
		if ctx.Err() != nil {
			t.Fatalf("record %s: %v", id, err)
		}
	}
}

func trySubmit(t *testing.T, d buffer.Appender, id string, data []byte) error {
	t.Helper()
	_, _, err := d.Submit(t.Context(), buffer.Record{ID: id, Data: data, Messages: 1}).Wait(bounded(t))
	return err
}

func partition(t *testing.T, link *redislink.Link, opt buffer.Options) *buffer.Partition {
	t.Helper()
	opt.Name = "test"
	p, err := redislink.Retry(bounded(t), link, "the partition", func(ctx context.Context) (*buffer.Partition, error) {
		d, err := redisbuffer.Open(ctx, link, redisbuffer.Config{Name: name})
		if err != nil {
			return nil, err
		}
		return buffer.Open(ctx, d, opt)
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func writeBlock(ctx context.Context, w *buffer.Writer, lane string, pos uint64, size int) error {
	var e flow.Encoder
	e.Reset(pos)
	e.Append(&flow.Message{ID: fmt.Sprintf("%s/%d", lane, pos), Pos: pos, Value: []byte(strings.Repeat("x", size))})
	out, err := w.Write(ctx, &flow.Block{Lane: lane, Lo: pos, Hi: pos, Floor: pos - 1, Watermark: flow.NoWatermark}, &e)
	if err != nil {
		return err
	}
	return out.Wait(ctx)
}

func runPartition(ctx context.Context, t *testing.T, p *buffer.Partition) {
	ctx, stop := context.WithCancel(ctx)
	var ran sync.WaitGroup
	ran.Go(func() {
		if err := p.Run(ctx); err != nil && !errors.Is(err, buffer.ErrClosed) { // a reader that is fenced ends
			t.Errorf("the partition's upkeep has ended: %v", err)
		}
	})
	t.Cleanup(func() { stop(); ran.Wait() })
}

// Every block that was acknowledged is read, once, whatever is killed: the server with SIGKILL, and the reader without a last word. A server that answers before it
// has synced its file, or a state that is saved beside a trim, would show in the ledger.
func TestLedgerOfAcknowledgedBlocksSurvivesKills(t *testing.T) {
	s := testredis.Server(t)
	link := dial(t, s.DSN())
	const lanes, each, kills = 4, 200, 4
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	opt := buffer.Options{SaveEvery: 10 * time.Millisecond, TrimEvery: 20 * time.Millisecond}
	w := partition(t, link, opt)
	var writers sync.WaitGroup
	for lane := range lanes {
		writers.Go(func() {
			for pos := uint64(1); pos <= each; pos++ {
				if err := writeBlock(ctx, w.Writer, fmt.Sprintf("l%d/0", lane), pos, 100); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	// A block is in the ledger of its reader when it is read, and done at once. What a reader has not saved when it is replaced comes again to the next one.
	reads := map[string]int{}
	for kill := 0; len(reads) < lanes*each; kill++ {
		running, stop := context.WithCancel(ctx)
		r := partition(t, link, opt)
		var ran sync.WaitGroup
		ran.Go(func() { _ = r.Run(running) })
		inThisLife := map[string]bool{}
		for len(reads) < lanes*each && (kill >= kills || len(inThisLife) < lanes*each/(kills+1)) {
			d, err := r.Read(ctx)
			if err != nil {
				t.Fatalf("read %d of %d: %v", len(reads), lanes*each, err)
			}
			for _, m := range d.Block.Messages {
				if inThisLife[m.ID] {
					t.Errorf("%s was read twice by one reader", m.ID)
				}
				inThisLife[m.ID] = true
				reads[m.ID]++
			}
			r.Done(ctx, d)
		}
		if kill < kills {
			s.Restart(testserver.Killed)
		}
		stop() // without Close
		ran.Wait()
	}
	writers.Wait()
	for lane := range lanes {
		for pos := 1; pos <= each; pos++ {
			if id := fmt.Sprintf("l%d/0/%d", lane, pos); reads[id] == 0 {
				t.Errorf("%s was acknowledged, and never read", id)
			}
		}
	}
}

// A connection that breaks after the server has stored a record, and before it has answered, makes the writer send it again: it is not stored twice.
func TestAppendWhoseAnswerWasLostIsNotDoubled(t *testing.T) {
	s := testredis.Server(t)
	r := newRelay(t, s)
	link := dial(t, r.url())
	d := open(t, link, redisbuffer.Config{})
	for i := range 20 {
		id := fmt.Sprint("record ", i)
		if i%4 == 3 {
			r.lose(true)
			if err := trySubmit(t, d, id, []byte("data")); err == nil {
				t.Fatal("the answer came although the relay loses all")
			}
			r.lose(false)
		}
		if seq := submit(t, d, id, []byte("data")); seq != uint64(i+1) {
			t.Errorf("%s is stored at %d, want %d", id, seq, i+1)
		}
		if i%5 == 2 {
			r.cut()
		}
	}
	if b, err := d.Bounds(bounded(t)); err != nil || b != (buffer.Bounds{First: 1, Last: 20}) {
		t.Errorf("%+v, %v", b, err)
	}
}

// The reader goes on behind the last entry whenever its connection breaks, also when what it was sent is lost on the way.
func TestCursorGoesOnAfterEachCut(t *testing.T) {
	s := testredis.Server(t)
	r := newRelay(t, s)
	direct, link := dial(t, s.DSN()), dial(t, r.url())
	w, d := open(t, direct, redisbuffer.Config{}), open(t, link, redisbuffer.Config{})
	if err := d.Resume(bounded(t), 0); err != nil {
		t.Fatal(err)
	}
	const last = 300
	var writing sync.WaitGroup
	writing.Go(func() {
		for i := range last {
			submit(t, w, fmt.Sprint(i), []byte("data"))
			if i%50 == 49 {
				r.lose(i%100 == 99)
				r.cut()
				r.lose(false)
			}
		}
	})
	for ctx, next := bounded(t), uint64(1); next <= last; {
		e, err := d.Next(ctx)
		switch {
		case ctx.Err() != nil:
			t.Fatalf("waiting for %d: %v", next, err)
		case err != nil:
			continue
		case e.Seq != next:
			t.Fatalf("%d came, want %d", e.Seq, next)
		}
		next++
	}
	writing.Wait()
}

// A save that is held up on its way, and arrives after a later one, must not take the floor back: what is behind the later floor may be removed by then.
func TestDelayedSaveDoesNotReplaceALaterOne(t *testing.T) {
	s := testredis.Server(t)
	r := newRelay(t, s)
	link := dial(t, r.url())
	d := open(t, link, redisbuffer.Config{})
	if err := d.SaveState(bounded(t), []byte("first")); err != nil {
		t.Fatal(err)
	}
	r.holdRequests()
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := d.SaveState(short, []byte("second")); err == nil {
		t.Fatal("the second save was not held up")
	}
	held := r.hold
	r.mu.Lock()
	r.hold = nil // for new connections
	r.mu.Unlock()
	if err := d.SaveState(bounded(t), []byte("third")); err != nil {
		t.Fatal(err)
	}
	before := r.answers.Load()
	close(held)
	r.awaitAnswer(bounded(t), t, before)
	if state, err := d.LoadState(bounded(t)); err != nil || string(state) != "third" {
		t.Errorf("state is %q, %v", state, err)
	}
}

// A reader that was frozen and replaced saves, trims and notes nothing any more, and finds out.
func TestReplacedReaderIsFenced(t *testing.T) {
	link := dial(t, testredis.Server(t).DSN())
	old := open(t, link, redisbuffer.Config{})
	submit(t, old, "a", []byte("data"))
	if err := errors.Join(old.Resume(bounded(t), 0), old.SaveState(bounded(t), []byte("old"))); err != nil {
		t.Fatal(err)
	}
	now := open(t, link, redisbuffer.Config{})
	if err := old.SaveState(bounded(t), []byte("old")); err != nil {
		t.Fatalf("opening a partition fenced its reader: %v", err)
	}
	if err := errors.Join(now.Resume(bounded(t), 0), now.SaveState(bounded(t), []byte("new"))); err != nil {
		t.Fatal(err)
	}
	for what, do := range map[string]func() error{
		"save":        func() error { return old.SaveState(bounded(t), []byte("old")) },
		"trim":        func() error { return old.Trim(bounded(t), 2) },
		"note damage": func() error { return old.SaveDamage(bounded(t), []byte("all")) },
		"read":        func() error { _, err := old.Next(bounded(t)); return err },
	} {
		if err := do(); !errors.Is(err, redisbuffer.ErrFenced) {
			t.Errorf("%s by the replaced reader: %v", what, err)
		}
	}
	if state, err := now.LoadState(bounded(t)); err != nil || string(state) != "new" {
		t.Errorf("state is %q, %v", state, err)
	}
	if b, err := now.Bounds(bounded(t)); err != nil || b.First != 1 {
		t.Errorf("%+v, %v", b, err)
	}
	// With the epochs of leases a lower one is refused at once, and the same one is the same reader.
	if err := open(t, link, redisbuffer.Config{Epoch: 1}).Resume(bounded(t), 0); !errors.Is(err, redisbuffer.ErrFenced) {
		t.Errorf("a reader with a lower epoch: %v", err)
	}
	if err := open(t, link, redisbuffer.Config{Epoch: 9}).SaveState(bounded(t), []byte("nine")); err != nil {
		t.Error(err)
	}
	if err := now.SaveState(bounded(t), []byte("new")); !errors.Is(err, redisbuffer.ErrFenced) {
		t.Errorf("a save after a reader with a higher epoch: %v", err)
	}
}

// A server at its memory limit refuses blocks, which is no loss and no error: the reader can still save and remove, and writing goes on by itself.
func TestServerAtItsMemoryLimitRecoversByItself(t *testing.T) {
	s := testredis.Server(t, testredis.Settings("maxmemory 12mb\nmaxmemory-policy noeviction"))
	link := dial(t, s.DSN())
	p := partition(t, link, buffer.Options{MaxLength: 1 << 20, SaveEvery: 10 * time.Millisecond, TrimEvery: 50 * time.Millisecond})
	const blocks = 40 // of 512 KiB
	ctx := bounded(t)
	var writing sync.WaitGroup
	writing.Go(func() {
		for pos := uint64(1); pos <= blocks; pos++ {
			if err := writeBlock(ctx, p.Writer, "a/0", pos, 512<<10); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for !errors.Is(p.Health(), buffer.ErrStoreFull) {
		if ctx.Err() != nil {
			t.Fatalf("the store is not said to be full: %v", p.Health())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if said := p.Health().Error(); !strings.Contains(said, "maxmemory") {
		t.Errorf("no advice in %q", said)
	}
	runPartition(ctx, t, p)
	for pos := uint64(1); pos <= blocks; pos++ {
		d, err := p.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if d.Block.Lo != pos {
			t.Fatalf("block %d came, want %d", d.Block.Lo, pos)
		}
		p.Done(ctx, d)
	}
	writing.Wait()
	if err := p.Health(); err != nil {
		t.Errorf("when all is done: %v", err)
	}
}

// A server that forgot its scripts (SCRIPT FLUSH, a restart, a new master) is sent them again.
func TestServerThatForgotItsScripts(t *testing.T) {
	link := dial(t, testredis.Server(t).DSN())
	d := open(t, link, redisbuffer.Config{})
	for i := range 6 {
		if err := trySubmit(t, d, fmt.Sprint(i), []byte("data")); err != nil {
			t.Errorf("record %d: %v", i, err)
		}
		if err := link.Client.ScriptFlush(bounded(t)).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// What is gone is not created again in silence: that would hide a loss.
func TestMissingPartitionIsNotCreatedAgain(t *testing.T) {
	for what, remove := range map[string]func(*redislink.Link) error{
		"the log":    func(l *redislink.Link) error { return l.Client.Del(t.Context(), keyPrefix+"log").Err() },
		"everything": func(l *redislink.Link) error { return l.Client.FlushDB(t.Context()).Err() },
		"and created by another process": func(l *redislink.Link) error {
			if err := l.Client.FlushDB(t.Context()).Err(); err != nil {
				return err
			}
			_, err := redisbuffer.Open(t.Context(), l, redisbuffer.Config{Name: name})
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			link := dial(t, testredis.Server(t).DSN())
			d := open(t, link, redisbuffer.Config{})
			submit(t, d, "a", []byte("data"))
			if err := d.Resume(bounded(t), 1); err != nil {
				t.Fatal(err)
			}
			if err := remove(link); err != nil {
				t.Fatal(err)
			}
			for what, do := range map[string]func() error{
				"append": func() error { return trySubmit(t, d, "b", []byte("data")) },
				"bounds": func() error { _, err := d.Bounds(bounded(t)); return err },
				"read":   func() error { _, err := d.Next(bounded(t)); return err },
				"trim":   func() error { return d.Trim(bounded(t), 1) },
			} {
				if err := do(); !errors.Is(err, buffer.ErrMissing) {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
	t.Run("the note that it was created", func(t *testing.T) {
		link := dial(t, testredis.Server(t).DSN())
		submit(t, open(t, link, redisbuffer.Config{}), "a", []byte("data"))
		if err := link.Client.Del(t.Context(), keyPrefix+"meta").Err(); err != nil {
			t.Fatal(err)
		}
		if _, err := redisbuffer.Open(t.Context(), link, redisbuffer.Config{Name: name}); err == nil {
			t.Error("a log of an unknown owner was taken over")
		}
	})
}

// A server that comes back with an older copy of its data has lost its end: the cursor returns ErrLostEnd, and gives nothing that took the place of what was lost.
func TestOlderCopyUnderARunningReaderIsALostEnd(t *testing.T) {
	dir := t.TempDir()
	s := testredis.Server(t, testredis.Dir(dir))
	link := dial(t, s.DSN())
	d := open(t, link, redisbuffer.Config{})
	if err := d.Resume(bounded(t), 0); err != nil {
		t.Fatal(err)
	}
	submit(t, d, "a", []byte("data"))
	s.Stop(testserver.Fast)
	copied := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	s.Start()
	for _, id := range []string{"b", "c"} {
		submit(t, d, id, []byte("data"))
	}
	for seq := uint64(1); seq <= 3; {
		if e, err := d.Next(bounded(t)); err == nil && e.Seq == seq {
			seq++
		}
	}
	s.Kill()
	if err := errors.Join(os.RemoveAll(filepath.Join(dir, "appendonlydir")), os.CopyFS(dir, os.DirFS(copied))); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	s.Start()
	lost := func() {
		t.Helper()
		for ctx := bounded(t); ; {
			e, err := d.Next(ctx)
			if errors.Is(err, buffer.ErrLostEnd) {
				return
			}
			if err == nil || ctx.Err() != nil {
				t.Fatalf("got block %d, %v", e.Seq, err)
			}
		}
	}
	lost()
	// Others take the sequences of those that were lost.
	for _, id := range []string{"d", "e", "f"} {
		submit(t, d, id, []byte("data"))
	}
	lost()
}

// Limits of the log are the last line behind those that count messages: a writer waits, and goes on when something is removed.
func TestBoundsOfTheLog(t *testing.T) {
	for what, cfg := range map[string]redisbuffer.Config{"blocks": {MaxBlocks: 3}, "bytes": {MaxBytes: 35}} {
		t.Run(what, func(t *testing.T) {
			link := dial(t, testredis.Server(t).DSN())
			d := open(t, link, cfg)
			data := []byte("0123456789")
			for i := range 3 {
				if err := trySubmit(t, d, fmt.Sprint(i), data); err != nil {
					t.Fatal(err)
				}
			}
			if err := trySubmit(t, d, "3", data); !errors.Is(err, buffer.ErrFull) {
				t.Fatalf("a full log took a record: %v", err)
			}
			if err := d.Trim(bounded(t), 2); err != nil {
				t.Fatal(err)
			}
			if err := trySubmit(t, d, "3", data); err != nil {
				t.Errorf("after a trim: %v", err)
			}
		})
	}
}

// More is removed than one request may remove.
func TestTrimOfManyEntries(t *testing.T) {
	link := dial(t, testredis.Server(t).DSN())
	d := open(t, link, redisbuffer.Config{})
	const last = 700
	receipts := make([]buffer.Receipt, last)
	for i := range receipts {
		receipts[i] = d.Submit(t.Context(), buffer.Record{ID: fmt.Sprint(i), Data: []byte("data"), Messages: 1})
	}
	for i, r := range receipts {
		if seq, _, err := r.Wait(bounded(t)); err != nil || seq != uint64(i+1) {
			t.Fatalf("record %d is at %d, %v", i+1, seq, err)
		}
	}
	if err := d.Trim(bounded(t), last-10); err != nil {
		t.Fatal(err)
	}
	if b, err := d.Bounds(bounded(t)); err != nil || b != (buffer.Bounds{First: last - 10, Last: last}) {
		t.Errorf("%+v, %v", b, err)
	}
	if bytes, err := link.Client.HGet(t.Context(), keyPrefix+"meta", "bytes").Int(); err != nil || bytes != 11*4 {
		t.Errorf("%d bytes are counted, %v; want %d", bytes, err, 11*4)
	}
	if err := d.Trim(bounded(t), last+2); err == nil {
		t.Error("what is not stored yet was removed")
	}
}

// A partition of another pipeline is refused before anything of it is touched.
func TestPartitionOfAnotherOwnerIsRefused(t *testing.T) {
	link := dial(t, testredis.Server(t).DSN())
	tag := func(pipeline string) naming.Tag {
		owner, err := naming.New("ns", naming.Pipeline, pipeline)
		if err != nil {
			t.Fatal(err)
		}
		return naming.Tag{Owner: owner, Role: naming.RoleBuffer, Vertex: "v"}
	}
	open(t, link, redisbuffer.Config{Tag: tag("one")})
	_, err := redisbuffer.Open(t.Context(), link, redisbuffer.Config{Name: name, Tag: tag("two")})
	if foreign, ok := errors.AsType[*naming.ForeignError](err); !ok || foreign.Have.Owner.Name != "one" {
		t.Errorf("the partition of another pipeline: %v", err)
	}
	if _, err := redisbuffer.Attach(t.Context(), link, redisbuffer.Config{Name: "never"}); !errors.Is(err, buffer.ErrNotCreated) {
		t.Errorf("a partition that never was: %v", err)
	}
}

// An outage is logged once, with what to do, and so is its end.
func TestOutageIsLoggedOnceWithAdvice(t *testing.T) {
	s := testredis.Server(t)
	var log testserver.Tail
	link := dialLogged(t, s.DSN(), slog.New(slog.NewTextHandler(&log, nil)))
	d := open(t, link, redisbuffer.Config{})
	admin := dial(t, s.DSN())
	do := func(args ...any) {
		t.Helper()
		if err := admin.Client.Do(bounded(t), args...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	do("replicaof", "127.0.0.1", "1")
	ctx := bounded(t)
	for !strings.Contains(log.String(), "give the address of the master") {
		if err := trySubmit(t, d, "a", []byte("data")); err == nil || ctx.Err() != nil {
			t.Fatalf("a replica took a record, or nothing was logged: %v, %s", err, &log)
		}
		time.Sleep(20 * time.Millisecond)
	}
	do("replicaof", "no", "one")
	submit(t, d, "a", []byte("data"))
	if got := log.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "answers again") {
		t.Errorf("logged:\n%s", got)
	}
}
