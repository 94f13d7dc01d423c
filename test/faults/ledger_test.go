// Package faults breaks running pipelines and counts what comes out. These tests start real processes and kill them.
package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testserver"
)

// shortMemory is a buffer service that soon forgets which ids it has stored, so that nothing is found to be a duplicate by the broker alone.
const shortMemory = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: InterStepBufferService
metadata: {name: default}
spec:
  jetstream:
    version: latest
    bufferConfig: |
      stream: {duplicates: 1s}
---
`

const manifest = shortMemory + `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata:
  name: ledger
  annotations: {levada.io/processing-timeout: 20s}
spec:
  limits: {readBatchSize: %[1]d}
  vertices:
    - name: in
      limits: {rateLimit: {max: %[4]d}} # so that the run lasts as long as the killing
      source: {file: {path: in.txt}}
    - name: cat
      partitions: %[2]d
      udf: {container: {command: [%[3]s]}}
    - name: out
      partitions: %[2]d
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: cat}
    - {from: cat, to: out}
`

// TestLedger moves numbered lines through a source, a function and a sink, with two durable hops, while everything is killed again and again, and finds each
// line exactly once. The broker's own deduplication lasts a second; some of the deaths last longer.
func TestLedger(t *testing.T) {
	for _, c := range []struct {
		name              string
		batch, partitions int
		external, redis   bool
	}{
		{"embedded broker", 100, 1, false, false},
		{"embedded broker, 4 partitions", 37, 4, false, false},
		{"broker of its own, 4 partitions", 100, 4, true, false},
		{"Redis, 3 partitions", 50, 3, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			run := &killing{lines: ledgerLines, external: c.external, redis: c.redis, functions: true}
			run.start(t, fmt.Sprintf(manifest, c.batch, c.partitions, program(t, "cat"), max(1000, ledgerLines/(2*ledgerKills))))
			run.toTheEnd(t)
			run.check(t, plain, nothing)
		})
	}
}

// killing is a run of levada in which everything is killed with SIGKILL again and again.
type killing struct {
	ledger
	lines     int
	external  bool // the broker is a process of its own, and is killed, too
	redis     bool // and is Redis, which syncs its file before each answer
	functions bool // functions are killed, too
	flags     []string
	between   time.Duration      // two kills, at least
	prepare   func(t *testing.T) // what the broker needs before levada starts

	dir, data, file string
	nats            string // URL of the external broker
	broker, levada  *supervisor
	functionKills   int
	random          *rand.Rand
	ended           chan error
}

// start writes input and manifest and starts everything. The manifest may name the broker as BROKER.
func (k *killing) start(t *testing.T, text string) {
	t.Helper()
	k.dir = t.TempDir()
	k.ledger = newLedger(t, k.dir, k.lines, plain)
	k.random = rand.New(rand.NewPCG(seed, 1))
	t.Logf("LEDGER_SEED=%d", seed)
	k.data, k.file = filepath.Join(k.dir, "data"), filepath.Join(k.dir, "pipeline.yaml")
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	t.Cleanup(cancel)
	levada := program(t, "levada")
	args := []string{"run", k.file, "--data", k.data, "--quiet", "--log-format", "text"}
	if k.external {
		address := testserver.FreeAddress(t)
		command := []string{levada, "broker", "--data", filepath.Join(k.dir, "broker"), "--listen", address}
		if k.redis {
			command = k.redisServer(t, address)
			args = append(args, "--redis", "redis://"+address)
		} else {
			k.nats = "nats://" + address
			args = append(args, "--nats", k.nats)
		}
		k.broker = &supervisor{name: "broker", pause: func() time.Duration { return 50 * time.Millisecond }, command: func() *exec.Cmd {
			return exec.Command(command[0], command[1:]...)
		}}
		k.background(t, ctx, k.broker)
		waitFor(t, address)
	}
	if k.prepare != nil {
		k.prepare(t)
	}
	k.write(t, strings.ReplaceAll(text, "BROKER", k.nats))
	deaths := 0
	k.levada = &supervisor{
		name:    "levada",
		command: func() *exec.Cmd { return exec.Command(levada, append(args, k.flags...)...) },
		pause: func() time.Duration {
			if deaths++; deaths%3 == 0 {
				return 1500 * time.Millisecond // longer than the broker's deduplication window
			}
			return 20 * time.Millisecond
		},
	}
	k.ended = k.background(t, ctx, k.levada)
}

// redisServer is the command line of a Redis server that loses nothing that it acknowledged.
func (k *killing) redisServer(t *testing.T, address string) []string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	dir := filepath.Join(k.dir, "redis")
	if err = errors.Join(err, os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	return []string{testserver.Program(t, "redis-server", "redis-server"), "--bind", "127.0.0.1", "--port", port, "--dir", dir, "--save", "", "--appendonly", "yes", "--appendfsync", "always"}
}

func (k *killing) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(k.file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// background keeps a process until its end or that of the test.
func (k *killing) background(t *testing.T, ctx context.Context, s *supervisor) chan error {
	ctx, stop := context.WithCancel(ctx)
	ended, gone := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(gone)
		ended <- s.keep(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-gone
	})
	return ended
}

// working waits until lines come out.
func (k *killing) working(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); k.size() == 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nothing came out within a minute")
		}
	}
}

// toTheEnd kills whatever has been killed least, until levada has ended by itself with 0.
func (k *killing) toTheEnd(t *testing.T) {
	t.Helper()
	begun := time.Now()
	for {
		select {
		case err := <-k.ended:
			k.levada.checkExits(t)
			if err != nil {
				t.Fatalf("levada did not come to its end: %v", err)
			}
			brokerKills := 0
			if k.broker != nil {
				k.broker.checkExits(t)
				brokerKills, _ = k.broker.counts()
			}
			kills, _ := k.levada.counts()
			t.Logf("%d lines in %v; kills: levada %d, function %d, broker %d", k.lines, time.Since(begun).Round(time.Millisecond), kills, k.functionKills, brokerKills)
			if kills < ledgerKills || k.functions && k.functionKills < ledgerKills || k.external && brokerKills < ledgerKills {
				t.Errorf("not everything was killed %d times: the run was too short", ledgerKills)
			}
			return
		case <-time.After(k.between + time.Duration(20+k.random.IntN(400))*time.Millisecond):
		}
		kills, _ := k.levada.counts()
		others := ledgerKills
		if k.functions {
			others = k.functionKills
		}
		brokerKills := ledgerKills
		if k.external {
			brokerKills, _ = k.broker.counts()
		}
		switch {
		case brokerKills <= min(kills, others) && brokerKills < ledgerKills:
			k.broker.kill()
		case kills <= others && kills < ledgerKills:
			k.levada.kill()
		case k.functions:
			k.functionKills += killFunctions(k.data)
		}
	}
}
