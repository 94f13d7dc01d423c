package faults

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/testserver"
)

// overRedis is the command line of a process of a vertex with Redis as its broker, from one with NATS.
func overRedis(args []string) (redis []string) {
	for i := 0; i < len(args); i++ {
		switch args[i] {
		case "--nats":
			redis = append(redis, "--redis")
		case "--replicas":
			i++ // Redis has its own
		default:
			redis = append(redis, args[i])
		}
	}
	return redis
}

// redisAway is longer than processes keep their partitions without their broker.
const redisAway = 6 * time.Second

// redisFaults end before they return. A Redis that is killed is there again before a lease can expire, and processes keep what they read.
var redisFaults = []sharedFault{
	func(_ *testing.T, r *sharedRun) string {
		r.broker.kill()
		return "Redis killed"
	},
	func(_ *testing.T, r *sharedRun) string {
		release := r.broker.hold()
		time.Sleep(redisAway) // the fault itself
		r.moves.allLeft("Redis away")
		release()
		return "Redis away"
	},
	func(_ *testing.T, r *sharedRun) string {
		r.broker.signal(syscall.SIGSTOP)
		time.Sleep(redisAway) // the fault itself
		r.moves.allLeft("Redis frozen")
		r.broker.signal(syscall.SIGCONT)
		return "Redis frozen"
	},
}

// TestSharedVertexLedgerOverRedis is TestSharedVertexLedger over Redis, which syncs its file before each answer, and is killed, frozen and kept away, too. There a partition has one shard, so
// the vertex has as many partitions. Each line comes out once.
func TestSharedVertexLedgerOverRedis(t *testing.T) {
	r := newSharedRun()
	faults := append(slices.Clone(redisFaults), memberFaults...)
	rounds := max(len(faults), ledgerKills)
	r.redis = true
	r.lines = max(ledgerLines/2, rounds*3000)
	if ledgerLines >= longLedger {
		r.lines = ledgerLines
	}
	r.random = rand.New(rand.NewPCG(seed, 6))
	t.Logf("LEDGER_SEED=%d", seed)
	r.dir = t.TempDir()
	r.ledger = newLedger(t, r.dir, r.lines, plain)
	r.file = filepath.Join(r.dir, "pipeline.yaml")
	r.write(t, fmt.Sprintf(sharedManifest, max(1000, r.lines/(rounds*5)), program(t, "cat"), sharedShards))
	address := testserver.FreeAddress(t)
	r.url = "redis://" + address
	command := r.redisServer(t, address)
	r.broker = &supervisor{name: "Redis", command: func() *exec.Cmd { return exec.Command(command[0], command[1:]...) }}
	r.background(t, t.Context(), r.broker)
	waitFor(t, address)
	r.begin(t)
	r.breakUntilDone(t, faults, rounds)
}

// allLeft notes that all processes have stopped to read by themselves. What they read before counts as left until it is taken again.
func (m *moves) allLeft(how string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for shard := range m.owner {
		m.left[shard] = departure{how, time.Now()}
	}
}
