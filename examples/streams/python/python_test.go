//go:build unix

// Package python tests the producer in Python: with the suite for producers, and with our worker, while everything is interrupted.
package python

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/reflect/protodesc"
	_ "modernc.org/sqlite"

	"github.com/levada-io/levada/internal/testserver"
	streamv1 "github.com/levada-io/levada/proto/levada/stream/v1"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/sqlitestore"
	"github.com/levada-io/levada/stream/streamtest"
)

// patience is for things that take a second, on a machine that is busy.
const patience = 2 * time.Minute

// interpreter returns Debian's Python, with gRPC.
func interpreter(t *testing.T) string {
	t.Helper()
	// A package without a program: what is looked for beside /usr/sbin is its library. protobuf's comes with it.
	testserver.Program(t, "../lib/python3/dist-packages/grpc/__init__.py", "python3-grpcio")
	return "/usr/bin/python3"
}

func python(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), interpreter(t), append([]string{"-B"}, args...)...) // -B: nothing is written beside the files
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

// TestVectors: a digest or token that differs from the protocol's in a rare case shows up as a job that fails after a million records.
func TestVectors(t *testing.T) {
	t.Log(python(t, "check_vectors.py", "../../../stream/testdata/protocol-v1.json"))
	t.Log(python(t, "check_vectors.py")) // finds them by itself
}

// TestProducerRefusesADatabaseThatItCannotRead: it would be announced, and end each stream with an error.
func TestProducerRefusesADatabaseThatItCannotRead(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.db")
	out, err := exec.CommandContext(t.Context(), interpreter(t), "-B", "producer.py", "--listen", "127.0.0.1:0", "--database", missing).CombinedOutput()
	if err == nil || strings.Contains(string(out), "serving") || !strings.Contains(string(out), "--database "+missing) {
		t.Errorf("a database that is missing: %v\n%s", err, out)
	}
}

// TestStubIsOfThisProto: stream_pb2.py is generated and kept in the repository, so that the example runs without protoc. A field that is added
// to the .proto would be missing in it.
func TestStubIsOfThisProto(t *testing.T) {
	text := python(t, "-c", `
import stream_pb2 as pb
for m in pb.DESCRIPTOR.message_types_by_name.values():
    for f in m.fields:
        print(m.name, f.number, f.name, f.type, f.label)`)
	var want strings.Builder
	for _, m := range protodesc.ToFileDescriptorProto(streamv1.File_levada_stream_v1_stream_proto).GetMessageType() {
		for _, f := range m.GetField() {
			fmt.Fprintln(&want, m.GetName(), f.GetNumber(), f.GetName(), int32(f.GetType()), int32(f.GetLabel()))
		}
	}
	if text != want.String() {
		t.Errorf("stream_pb2.py is out of date, generate it as README.md says. It has\n%s\nand the .proto has\n%s", text, &want)
	}
}

// name is the name of a user; every 97th has none.
func name(id int) (string, bool) {
	return fmt.Sprintf("User %d %s", id, strings.Repeat("ü", id%50)), id%97 != 0
}

// users makes an SQLite file with n users. Their ids have holes.
func users(t *testing.T, n int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users.db")
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.Exec("create table users (id integer primary key, name text)"); err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= n; i++ {
		text, ok := name(i)
		if _, err := tx.Exec("insert into users values (?, ?)", i*3, sql.NullString{String: text, Valid: ok}); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	return path
}

// producer is a process of producer.py.
type producer struct {
	t       *testing.T
	cmd     *exec.Cmd
	address string
	done    chan struct{}
}

func start(t *testing.T, database string, args ...string) *producer {
	t.Helper()
	cmd := exec.Command(interpreter(t), append([]string{"-B", "producer.py", "--listen", "127.0.0.1:0", "--database", database}, args...)...)
	said := &testserver.Tail{}
	cmd.Stderr = said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &producer{t: t, cmd: cmd, done: make(chan struct{})}
	lines := bufio.NewReader(out)
	line, err := lines.ReadString('\n')
	go func() { defer close(p.done); cmd.Wait() }()
	t.Cleanup(func() {
		p.end(syscall.SIGKILL)
		if t.Failed() {
			t.Logf("producer.py: %s", said)
		}
	})
	var ok bool
	if p.address, ok = strings.CutPrefix(strings.TrimSpace(line), "serving at "); !ok || err != nil {
		t.Fatalf("producer.py says %q, %v\n%s", line, err, said)
	}
	return p
}

// end sends a signal and waits until the process has ended. It returns how long that took.
func (p *producer) end(signal syscall.Signal) time.Duration {
	begun := time.Now()
	p.cmd.Process.Signal(signal)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Errorf("producer.py did not end within %v of %v", patience, signal)
		p.cmd.Process.Kill()
		<-p.done
	}
	return time.Since(begun)
}

func (p *producer) conn() *grpc.ClientConn {
	conn, err := grpc.NewClient(p.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	return conn
}

// TestConformance runs the suite that our own producer passes.
func TestConformance(t *testing.T) {
	const n = 250
	database := users(t, n)
	shared := start(t, database, "--mark-every", "0.2", "--batch-bytes", "2000")
	conn := shared.conn()
	streamtest.RunProducer(t, func(t *testing.T) streamtest.ProducerUnderTest {
		return streamtest.ProducerUnderTest{Conn: conn, Stream: "users", Count: n, Waiting: "users-live",
			Drain: func() { shared.cmd.Process.Signal(syscall.SIGTERM) }}
	})
	select {
	case <-shared.done:
	case <-time.After(patience):
		t.Fatal("producer.py did not end after SIGTERM, although its streams were drained")
	}
	if code := shared.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("producer.py ended with %d after SIGTERM", code)
	}
}

// link is the bad network between the worker and whichever producer there is at the moment.
type link struct {
	*streamtest.BadNet
	mu      sync.Mutex
	address string
}

func newLink(t *testing.T) *link {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &link{}
	k.BadNet = streamtest.NewBadNetOver(t, l, func() (net.Conn, error) {
		k.mu.Lock()
		defer k.mu.Unlock()
		return net.DialTimeout("tcp", k.address, 5*time.Second)
	})
	return k
}

func (k *link) to(address string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.address = address
}

// target is a database that a worker copies the users to.
type target struct {
	t     *testing.T
	store *sqlitestore.Store
	db    *sql.DB
	sink  stream.ReplaySink
}

func newTarget(t *testing.T) *target {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy.db")
	store, err := sqlitestore.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path+"?_pragma=busy_timeout(60000)")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close(); store.Close() })
	if _, err := db.Exec("create table copy (id integer not null, value text not null)"); err != nil { // no key: what comes twice is there twice
		t.Fatal(err)
	}
	c := &target{t: t, store: store, db: db}
	c.sink = store.Sink(func(ctx context.Context, tx *sql.Tx, b *stream.Batch) error {
		for _, r := range b.Records {
			if _, err := tx.ExecContext(ctx, "insert into copy values (?, ?)", binary.BigEndian.Uint64(r.Key), string(r.Value)); err != nil {
				return err
			}
		}
		return nil
	})
	return c
}

// work runs a worker until the test's end. observe gets its events.
func (c *target) work(address string, observe func(stream.Event)) {
	c.t.Helper()
	conns := stream.NewConnections(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	worker, err := stream.NewWorker(stream.WorkerConfig{Store: c.store, Dial: conns.Dial, SingleProcess: true, PollInterval: 50 * time.Millisecond,
		Retry: stream.Backoff{Min: 10 * time.Millisecond, Max: 200 * time.Millisecond}, CommitRecords: 200, MaxBad: 1000,
		Logger: slog.New(slog.DiscardHandler), Observe: observe})
	if err != nil {
		c.t.Fatal(err)
	}
	worker.Handle("users", c.sink)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- worker.Run(ctx) }()
	c.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Error(err)
		}
		conns.Close()
	})
}

func (c *target) submit(job stream.Job) string {
	c.t.Helper()
	status, err := c.store.Submit(c.t.Context(), job)
	if err != nil {
		c.t.Fatal(err)
	}
	return status.ID
}

// await waits until the job is final.
func (c *target) await(id string) stream.Status {
	c.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		status, err := c.store.Get(c.t.Context(), id)
		if err != nil {
			c.t.Fatal(err)
		}
		if status.State.Final() {
			return status
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("the job is %s after %v: %s %s", status.State, patience, status.Reason, status.LastError)
		}
	}
}

// holds checks the copy row by row, and the quarantine.
func (c *target) holds(job stream.Status, n int) {
	c.t.Helper()
	if job.State != stream.Completed || job.Progress.Records != uint64(n) {
		c.t.Fatalf("the job is %s with %d of %d records: %s", job.State, job.Progress.Records, n, job.LastError)
	}
	rows, err := c.db.Query("select id, value from copy order by rowid")
	if err != nil {
		c.t.Fatal(err)
	}
	defer rows.Close()
	quarantined, err := c.sink.Quarantined(c.t.Context(), job.ID, n)
	if err != nil {
		c.t.Fatal(err)
	}
	for id := 1; id <= n; id++ {
		if _, ok := name(id); !ok {
			if len(quarantined) == 0 || quarantined[0].Seq != uint64(id) || !strings.Contains(quarantined[0].Error, fmt.Sprintf("user %d has no name", id*3)) {
				c.t.Fatalf("record %d is bad and not the next in quarantine: %+v", id, quarantined)
			}
			quarantined = quarantined[1:]
			continue
		}
		var gotID int
		var got string
		if !rows.Next() {
			c.t.Fatalf("the copy ends before user %d: %v", id, rows.Err())
		}
		if err := rows.Scan(&gotID, &got); err != nil {
			c.t.Fatal(err)
		}
		if gotID != id*3 || got != value(id) {
			c.t.Fatalf("user %d %q comes where user %d %q should", gotID, got, id*3, value(id))
		}
	}
	if rows.Next() || len(quarantined) > 0 {
		c.t.Fatalf("there are more than %d users, or more in quarantine: %+v", n, quarantined)
	}
}

// value is the value of the n-th user, whose id is thrice that, as Python writes JSON.
func value(n int) string {
	text, _ := name(n)
	var ascii bytes.Buffer
	for _, r := range text {
		if r < 128 {
			ascii.WriteRune(r)
		} else {
			fmt.Fprintf(&ascii, `\u%04x`, r)
		}
	}
	return fmt.Sprintf(`{"id":%d,"name":"%s"}`, n*3, &ascii)
}

// TestWorkerCompletesThroughInterruptions: connections are cut and reset, streams end at their age, the producer is killed, and shut down while it sends. The
// copy is exact, and each bad row is in quarantine.
func TestWorkerCompletesThroughInterruptions(t *testing.T) {
	const n = 6000
	database := users(t, n)
	// 5,000 records a second at most, so that there is time to interrupt; streams move on twice a second.
	args := []string{"--pace", "0.0002", "--mark-every", "0.2", "--max-stream-age", "0.5", "--batch-bytes", "4000"}
	network, copied := newLink(t), newTarget(t)
	current := start(t, database, args...)
	network.to(current.address)
	var mu sync.Mutex
	seen := map[string]int{}
	copied.work(network.Addr(), func(e stream.Event) {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case e.Kind == stream.EventDisconnected && e.Reason == stream.ReasonDraining:
			seen["drain"]++
		case e.Kind == stream.EventDisconnected:
			seen["cut"]++
		}
	})
	id := copied.submit(stream.Job{Stream: "users"})
	reached := func(records uint64) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
			status, err := copied.store.Get(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if status.Progress.Records >= records || status.State.Final() {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("the job has not come to record %d within %v: %+v", records, patience, status)
			}
		}
	}
	for step, records := 0, uint64(300); records < n; step, records = step+1, records+600 {
		reached(records)
		switch step % 4 {
		case 0:
			network.Open().Cut()
		case 1:
			current.end(syscall.SIGKILL)
			current = start(t, database, args...)
			network.to(current.address)
		case 2:
			network.Open().Reset()
		case 3:
			current.end(syscall.SIGTERM)
			current = start(t, database, args...)
			network.to(current.address)
		}
	}
	copied.holds(copied.await(id), n)
	mu.Lock()
	defer mu.Unlock()
	if seen["cut"] == 0 || seen["drain"] == 0 {
		t.Errorf("streams were to be cut and drained, and this is what happened: %v", seen)
	}
	t.Logf("%d records, streams that ended before their end: %v", n, seen)
}

// goUsers is the same stream served by our own producer.
func goUsers(t *testing.T, n int) string {
	t.Helper()
	ids := make([]int, n)
	for i := range ids {
		ids[i] = i + 1
	}
	source := stream.SliceOf(ids, func(i int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(i*3)) }, func(dst []byte, i int) ([]byte, error) {
		if _, ok := name(i); !ok {
			return dst, stream.Skip(fmt.Errorf("user %d has no name", i*3))
		}
		return append(dst, value(i)...), nil
	})
	server := valid(stream.NewServer(stream.ServerConfig{Logger: slog.New(slog.DiscardHandler)}))
	server.Handle("users", source)
	g := grpc.NewServer()
	server.Register(g)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); g.Serve(listener) }()
	t.Cleanup(func() { g.Stop(); <-done })
	return listener.Addr().String()
}

// TestGoAndPythonShareTokens: replicas in two languages serve one stream. A job begins at the one in Python and ends at the one in Go.
func TestGoAndPythonShareTokens(t *testing.T) {
	const n = 2000
	database := users(t, n)
	network, copied := newLink(t), newTarget(t)
	inPython := start(t, database, "--pace", "0.0005", "--batch-bytes", "4000")
	network.to(inPython.address)
	var mu sync.Mutex
	var first uint64 // of the last stream that was opened
	copied.work(network.Addr(), func(e stream.Event) {
		mu.Lock()
		defer mu.Unlock()
		if e.Kind == stream.EventOpened {
			first = e.From
		}
		if e.Kind == stream.EventCommitted && e.To > n/4 && first == 1 {
			network.to(goUsers(t, n))
			network.Open().Cut()
		}
	})
	copied.holds(copied.await(copied.submit(stream.Job{Stream: "users"})), n)
	mu.Lock()
	defer mu.Unlock()
	if first == 1 {
		t.Error("the job has ended at the producer in Python: it was not moved to the one in Go")
	}
}

// TestTokenOfAnotherStreamIsRefused: a position of another query ends the job at once, with the reason, and copies nothing.
func TestTokenOfAnotherStreamIsRefused(t *testing.T) {
	p := start(t, users(t, 20))
	conn := p.conn()
	dial := func(context.Context, stream.Job) (grpc.ClientConnInterface, error) { return conn, nil }
	in, err := streamv1.NewStreamClient(conn).Read(t.Context(), &streamv1.ReadRequest{Stream: "users", Query: []byte("others")})
	if err != nil {
		t.Fatal(err)
	}
	frame, err := in.Recv()
	if err != nil {
		t.Fatal(err)
	}
	for reason, token := range map[stream.Reason][]byte{stream.ReasonQueryChanged: frame.GetMark().GetToken(), stream.ReasonBadToken: []byte("1")} {
		reader, err := stream.NewReader(stream.ReaderConfig{Dial: dial, Stream: "users", Logger: slog.New(slog.DiscardHandler)}, stream.Checkpoint{Token: token})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		_, err = reader.Next(ctx)
		cancel()
		reader.Close()
		if cut := stream.Classify(err); err == nil || cut.Reason != reason || !cut.Fatal {
			t.Errorf("the reader's error is %v (%+v), and should have reason %s", err, cut, reason)
		}
	}
}

// valid returns a server whose configuration is known to be valid.
func valid(s *stream.Server, err error) *stream.Server {
	if err != nil {
		panic(err)
	}
	return s
}
