//go:build linux

// Package streams kills everything that takes part in streams, again and again, and counts what arrives.
package streams

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/pgstore"
)

// STREAM_RECORDS is how many records there are, STREAM_KILLS how often at least a process is ended while they flow.
var (
	records = fromEnv("STREAM_RECORDS", 80_000)
	kills   = fromEnv("STREAM_KILLS", 30)
	seed    = uint64(fromEnv("STREAM_SEED", 1))
)

func fromEnv(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

const streams = 4

// process is one of ours, started again whenever it ends.
type process struct {
	t    *testing.T
	role role
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{} // closed when it has ended

	containers int // that its pod has had
}

func (p *process) start() {
	p.t.Helper()
	text, err := json.Marshal(p.role)
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), roleEnv+"="+string(text), "PGAPPNAME="+p.role.Pod) // Postgres tells whose session is whose
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	cmd, done := p.cmd, make(chan struct{})
	p.done = done
	go func() {
		defer close(done)
		cmd.Wait()
	}()
}

// end sends a signal and waits for the process to end, by force if it takes too long.
func (p *process) end(signal syscall.Signal, patience time.Duration) (inTime bool) {
	p.cmd.Process.Signal(signal)
	select {
	case <-p.done:
		return true
	case <-time.After(patience):
		p.cmd.Process.Kill()
		<-p.done
		return false
	}
}

// said returns what it has logged.
func (p *process) said() []byte {
	p.t.Helper()
	text, err := os.ReadFile(p.log.Name())
	if err != nil {
		p.t.Fatal(err)
	}
	return text
}

// TestLedger has three workers load four streams from a producer into Postgres, with RabbitMQ for notifications and a watcher on a real API
// server, while all of them are killed, stopped, frozen and restarted. In the end each record must be in the table once.
func TestLedger(t *testing.T) {
	database, broker := testserver.PostgresServer(t), testserver.RabbitMQServer(t)
	ctx := t.Context()
	exec1 := func(sql string) {
		t.Helper()
		conn, err := pgx.Connect(ctx, database.DSN())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(ctx)
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	exec1(`create table ledger (job text not null, seq bigint not null, value bytea not null)`)
	address := testserver.FreeAddress(t)
	dir := t.TempDir()
	perStream := records / streams
	// About as many commits as a thousand records each need, spread so that all kills fit in.
	pace := time.Duration(kills) * 600 * time.Millisecond * streams / time.Duration(max(records/1000, 1))
	kubelet := startPods(t)
	prepare := func(name, pod string) *process {
		log, err := os.Create(filepath.Join(dir, pod+".log"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { log.Close() })
		p := &process{t: t, log: log, role: role{Name: name, Pod: pod, Address: address, DSN: database.DSN(), AMQP: broker.DSN(),
			Records: perStream, Streams: streams, Pace: pace, Lease: 3 * time.Second, Sweep: time.Second}}
		t.Cleanup(func() {
			p.end(syscall.SIGKILL, 5*time.Second)
			if b, err := os.ReadFile(log.Name()); err == nil && name == "watcher" {
				t.Logf("the watcher saw %d deaths", bytes.Count(b, []byte("msg=death")))
			}
			if t.Failed() {
				if b, err := os.ReadFile(log.Name()); err == nil {
					t.Logf("%s: ...%s", pod, b[max(0, len(b)-3000):])
				}
			}
		})
		return p
	}
	store, err := pgstore.Open(ctx, database.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	var jobs []stream.Status
	for i := range streams {
		job, err := store.Submit(ctx, stream.Job{Stream: fmt.Sprintf("stream%d", i), DedupeKey: fmt.Sprint("ledger/", i)})
		if err != nil {
			t.Fatal(err)
		}
		jobs = append(jobs, job)
	}
	producer, watcher := prepare("producer", "producer"), prepare("watcher", "watcher")
	watcher.role.Kube = kubelet.access()
	producer.start()
	watcher.start()
	var workers []*process
	for i := range 3 {
		w := prepare("worker", fmt.Sprint("worker", i))
		kubelet.create(w)
		w.start()
		workers = append(workers, w)
	}

	rng := rand.New(rand.NewPCG(seed, 0))
	counts := map[string]int{}
	complete := func() bool {
		for _, job := range jobs {
			status, err := store.Get(ctx, job.ID)
			if err != nil {
				return false // the database is coming back
			}
			switch status.State {
			case stream.Failed, stream.Cancelled:
				t.Fatalf("job %s is %s: %s", status.ID, status.State, status.LastError)
			case stream.Completed:
				continue
			}
			return false
		}
		return true
	}
	begun := time.Now()
	deadline := begun.Add(time.Duration(kills)*3*time.Second + 3*time.Minute)
	total := 0
	for !complete() {
		if time.Now().After(deadline) {
			for _, job := range jobs {
				status, err := store.Get(ctx, job.ID)
				t.Logf("%+v, %v", status, err)
			}
			t.Fatal("the jobs do not come to an end")
		}
		time.Sleep(time.Duration(20+rng.IntN(300)) * time.Millisecond)
		if total >= kills*3 {
			continue // enough: let it end
		}
		total++
		switch n := rng.IntN(40); {
		case n < 20:
			counts["SIGKILL of a worker"]++
			w := workers[rng.IntN(len(workers))]
			w.end(syscall.SIGKILL, time.Minute)
			kubelet.replace(w, rng.IntN(2) == 0)
		case n < 27:
			counts["SIGTERM of a worker"]++
			w := workers[rng.IntN(len(workers))]
			if !w.end(syscall.SIGTERM, 15*time.Second) {
				t.Error("a worker did not shut down in time")
			}
			kubelet.replace(w, rng.IntN(2) == 0)
		case n < 30:
			counts["freeze of a worker"]++
			w := workers[rng.IntN(len(workers))]
			w.cmd.Process.Signal(syscall.SIGSTOP)
			time.Sleep(time.Duration(rng.IntN(5000)) * time.Millisecond)
			w.cmd.Process.Signal(syscall.SIGCONT)
		case n < 35:
			counts["SIGKILL of the producer"]++
			producer.end(syscall.SIGKILL, time.Minute)
			producer.start()
		case n < 36:
			counts["SIGKILL of the watcher"]++
			watcher.end(syscall.SIGKILL, time.Minute)
			watcher.start()
		case n < 38:
			counts["SIGTERM of the producer"]++
			producer.end(syscall.SIGTERM, 15*time.Second)
			producer.start()
		case n < 39:
			how := []testserver.How{testserver.Fast, testserver.Immediate, testserver.Killed}[rng.IntN(3)]
			counts["restart of the database"]++
			database.Restart(how)
		default:
			if counts["restart of the broker"] >= 2+kills/100 {
				continue // it takes seconds
			}
			counts["restart of the broker"]++
			broker.Restart(testserver.Killed)
		}
	}
	took := time.Since(begun)
	ended := 0
	for what, n := range counts {
		t.Logf("%4d %s", n, what)
		ended += n
	}
	if ended < kills {
		t.Errorf("only %d processes were ended, and %d were to be: it was over too soon", ended, kills)
	}
	orphans, err := store.Orphans(ctx)
	if err != nil || orphans > 0 {
		t.Errorf("%d orphans, %v", orphans, err)
	}
	lost, doubled, attempts := 0, 0, 0
	for i, job := range jobs {
		status, err := store.Get(ctx, job.ID)
		if err != nil {
			t.Fatal(err)
		}
		attempts += status.Attempts
		l, d := count(t, database.DSN(), job, i, perStream)
		lost, doubled = lost+l, doubled+d
		if status.Progress.Records != uint64(perStream) || status.Progress.Bad != 0 {
			t.Errorf("job %s has %+v", status.ID, status.Progress)
		}
	}
	t.Logf("%d records in %v, %d ends of processes, %d claims: %d lost, %d doubled", perStream*streams, took.Round(time.Second), ended, attempts, lost, doubled)
	if lost+doubled > 0 {
		t.Errorf("%d records lost, %d doubled", lost, doubled)
	}
}

// count compares a job's rows with what the producer holds, and the digest of the rows with the one in the checkpoint.
func count(t *testing.T, dsn string, job stream.Status, number, n int) (lost, doubled int) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	rows, err := conn.Query(ctx, `select seq, value from ledger where job = $1 order by seq`, job.ID)
	if err != nil {
		t.Fatal(err)
	}
	var digest stream.Digest
	next := int64(1)
	for rows.Next() {
		var seq int64
		var got []byte
		if err := rows.Scan(&seq, &got); err != nil {
			t.Fatal(err)
		}
		for ; next < seq; next++ {
			lost++
		}
		if seq < next {
			doubled++
			continue
		}
		if !bytes.Equal(got, value(nil, number, uint64(seq))) {
			t.Fatalf("record %d of stream %d is %x", seq, number, got)
		}
		next++
		digest.Add(stream.Record{Seq: uint64(seq), Key: binary.BigEndian.AppendUint64(nil, uint64(seq)), Value: got})
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	lost += n - int(next-1)
	var stored []byte
	if err := conn.QueryRow(ctx, `select digest from levada_offset where job = $1`, job.ID).Scan(&stored); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(stored, digest[:]) {
		t.Errorf("stream %d: the rows have digest %v, the checkpoint %x", number, digest, stored)
	}
	return lost, doubled
}
