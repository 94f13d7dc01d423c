package jetstreambuffer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/isb/jetstream/jetstreambuffer"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/natslink"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/testnats"
	"github.com/levada-io/levada/internal/testserver"
)

const stream = "levada_ns_pl_v_0"

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// openAt opens the partition at a broker, as a new process would.
func openAt(t *testing.T, url string, replicas int, opt buffer.Options) (*buffer.Partition, jetstream.JetStream, error) {
	t.Helper()
	js := testnats.Connect(t, url)
	var driver buffer.Driver
	for {
		attempt, cancel := context.WithTimeout(within(t), 10*time.Second) // as in the product: a request can vanish with the server that got it
		state, err := jetstreambuffer.OpenBucket(attempt, js, "test_STATE", naming.Tag{}, replicas, nil)
		if err == nil {
			driver, err = jetstreambuffer.Open(attempt, js, jetstreambuffer.Config{Stream: stream, State: state, Replicas: replicas})
		}
		cancel()
		if err == nil {
			break
		}
		if within(t).Err() != nil || !natslink.Transient(err) {
			return nil, js, err
		}
	}
	opt.Name = "test"
	p, err := buffer.Open(within(t), driver, opt)
	if err != nil {
		return nil, js, err
	}
	ctx, cancel := context.WithCancel(within(t))
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.Run(ctx); err != nil { // what it returns ends a pipeline; without it nothing watches the cursor
			t.Errorf("the partition's upkeep has ended: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return p, js, nil
}

// put writes one block for each position, whose message holds some bytes.
func put(ctx context.Context, p *buffer.Partition, lo, hi uint64) error {
	for pos := lo; pos <= hi; pos++ {
		var e flow.Encoder
		e.Reset(pos)
		e.Append(&flow.Message{ID: fmt.Sprint(pos), Pos: pos, Value: bytes.Repeat([]byte{byte(pos)}, 3000)})
		w, err := p.Write(ctx, &flow.Block{Lane: "a/0", Lo: pos, Hi: pos, Floor: pos - 1, Watermark: flow.NoWatermark}, &e)
		if err != nil {
			return err
		}
		if err := w.Wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// take reads n messages and finishes them.
func take(ctx context.Context, p *buffer.Partition, n int) (ids []string, err error) {
	for len(ids) < n {
		d, err := p.Read(ctx)
		if err != nil {
			return ids, err
		}
		for _, m := range d.Block.Messages {
			ids = append(ids, m.ID)
		}
		p.Done(ctx, d)
	}
	return ids, nil
}

func ascending(t *testing.T, ids []string, from int) {
	t.Helper()
	for i, id := range ids {
		if id != fmt.Sprint(from+i) {
			t.Fatalf("message %d is %s, want %d", i, id, from+i)
		}
	}
}

// TestBlocksThatOneReplicaLostComeFromTheOthers flips bits in one replica's files and makes it the leader, twice: JetStream serves the stream without the messages, and its
// consumers step over them, or wait for the last ones indefinitely.
func TestBlocksThatOneReplicaLostComeFromTheOthers(t *testing.T) {
	for name, at := range map[string][]float64{"in the middle": {1. / 3, 1. / 2, 2. / 3}, "at the end": {0.9, 0.99, 0.999}} {
		t.Run(name, func(t *testing.T) { replicaLostBlocks(t, at) })
	}
}

// replicaLostBlocks damages the files of one replica at these parts of their length.
func replicaLostBlocks(t *testing.T, at []float64) {
	c := testnats.NewCluster(t, 3)
	p, _, err := openAt(t, c.URL(), 3, buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	const blocks = 120
	if err := put(within(t), p, 1, blocks); err != nil {
		t.Fatal(err)
	}
	ids, err := take(within(t), p, 10)
	if err != nil {
		t.Fatal(err)
	}
	ascending(t, ids, 1)
	if err := p.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	victim := (c.Leader(stream) + 1) % 3
	c.Servers[victim].Kill()
	damage(t, c.Store(victim), at)
	c.Servers[victim].Start()
	c.StepDown(stream, func(leader int) bool { return leader == victim })
	p, _, err = openAt(t, c.URL(), 3, buffer.Options{})
	if err != nil {
		t.Fatalf("two of three replicas are whole: %v", err)
	}
	if p.Pending() != blocks-10 {
		t.Errorf("%d pending, want %d", p.Pending(), blocks-10)
	}
	c.StepDown(stream, func(leader int) bool { return leader == victim })
	ids, err = take(within(t), p, blocks-10)
	if err != nil {
		t.Fatalf("two of three replicas are whole: %v", err)
	}
	ascending(t, ids, 11)
	if err := put(within(t), p, blocks+1, blocks+20); err != nil {
		t.Fatal(err)
	}
	ids, err = take(within(t), p, 20)
	if err != nil {
		t.Fatal(err)
	}
	ascending(t, ids, blocks+1)
}

// damage flips bits in the stream's blocks, at parts of their length.
func damage(t *testing.T, store string, parts []float64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(store, "*", "streams", stream, "msgs", "*.blk"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no blocks in %s: %v", store, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range parts {
			data[int(float64(len(data))*part)] ^= 0xff
		}
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(filepath.Join(filepath.Dir(file), "index.db")) // or a server believes it
	}
}

// TestLossIsRemembered removes a block from all replicas. Every start reports it before it reads anything, until it is accepted; then exactly that block is missing.
func TestLossIsRemembered(t *testing.T) {
	s := testnats.Server(t)
	p, js, err := openAt(t, s.DSN(), 1, buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := put(within(t), p, 1, 20); err != nil {
		t.Fatal(err)
	}
	log, err := js.Stream(within(t), stream)
	if err != nil {
		t.Fatal(err)
	}
	if err := log.DeleteMsg(within(t), 7); err != nil {
		t.Fatal(err)
	}
	if ids, err := take(within(t), p, 20); !errors.Is(err, buffer.ErrGap) || len(ids) != 6 {
		t.Fatalf("block 7 is lost: %d came, %v", len(ids), err)
	}
	if err := p.Trim(within(t)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, _, err := openAt(t, s.DSN(), 1, buffer.Options{}); !errors.Is(err, buffer.ErrGap) {
			t.Fatalf("a later start says %v", err)
		}
	}
	var given []uint64
	p, _, err = openAt(t, s.DSN(), 1, buffer.Options{OnCorrupt: func(seq uint64, _ []byte, _ error) error {
		given = append(given, seq)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	ids, err := take(within(t), p, 13)
	if err != nil {
		t.Fatal(err)
	}
	ascending(t, ids, 8)
	if len(given) == 0 || given[0] != 7 {
		t.Errorf("given up: %v, want 7", given)
	}
	if err := p.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := openAt(t, s.DSN(), 1, buffer.Options{}); err != nil {
		t.Errorf("it was accepted, and is said again: %v", err)
	}
}

// link passes connections on, and cuts them.
type link struct {
	listener net.Listener
	to       string
	mu       sync.Mutex
	open     []net.Conn
}

func newLink(t *testing.T, to string) *link {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{listener: listener, to: to}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				_ = in.Close()
				continue
			}
			l.mu.Lock()
			l.open = append(l.open, in, out)
			l.mu.Unlock()
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				running.Go(func() {
					_, _ = io.Copy(pair[0], pair[1])
					_ = pair[0].Close()
					_ = pair[1].Close()
				})
			}
		}
	})
	t.Cleanup(func() { _ = listener.Close(); l.cut(); running.Wait() })
	return l
}

func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.open {
		_ = c.Close()
	}
	l.open = nil
}

// TestCutConnectionsAreNoGaps cuts the connection to the broker again and again while blocks are written and read with several in flight. What was on its way
// then never arrives, and the next block comes first.
func TestCutConnectionsAreNoGaps(t *testing.T) {
	s := testnats.Server(t)
	l := newLink(t, s.DSN()[len("nats://"):])
	p, _, err := openAt(t, "nats://"+l.listener.Addr().String(), 1, buffer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	const blocks = 2000
	wrote := make(chan error, 1)
	go func() { wrote <- put(within(t), p, 1, blocks) }()
	var all []string
	for len(all) < blocks {
		ids, err := take(within(t), p, 1)
		if err != nil {
			t.Fatalf("after %d: %v", len(all), err)
		}
		if all = append(all, ids...); len(all)%150 == 0 {
			l.cut()
		}
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	ascending(t, all, 1)
}

// TestRollingRestartIsNoGap restarts each server of a cluster in good order, and kills each, while blocks go through.
func TestRollingRestartIsNoGap(t *testing.T) {
	c := testnats.NewCluster(t, 3)
	p, _, err := openAt(t, c.URL(), 3, buffer.Options{Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))})
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	wrote, read := make(chan uint64, 1), make(chan []string, 1)
	target := make(chan uint64, 1)
	go func() {
		pos := uint64(0)
		for {
			select {
			case <-stop:
				wrote <- pos
				return
			default:
			}
			if err := put(within(t), p, pos+1, pos+1); err != nil {
				t.Error(err)
			}
			pos++
		}
	}()
	go func() {
		var all []string
		defer func() { read <- all }()
		last := ^uint64(0)
		limit, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
		defer cancel()
		for uint64(len(all)) < last {
			ctx, cancel := context.WithTimeout(limit, time.Second)
			ids, err := take(ctx, p, 1)
			cancel()
			all = append(all, ids...)
			if err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("after %d: %v", len(all), err)
				return
			}
			select {
			case last = <-target:
			default:
			}
			if limit.Err() != nil {
				t.Errorf("reading takes too long after %d", len(all))
				return
			}
		}
	}()
	for _, how := range []testserver.How{testserver.Fast, testserver.Killed} {
		for _, s := range c.Servers {
			t.Log("restart", time.Now())
			s.Restart(how)
			c.WaitReady()
			t.Log("leader", c.Leader(stream), time.Now())
		}
	}
	close(stop)
	n := <-wrote
	target <- n
	all := <-read
	if uint64(len(all)) != n {
		t.Errorf("%d came of %d", len(all), n)
	}
	ascending(t, all, 1)
}
